"""GaLore's scaling: another scaler, in a subspace of low rank."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.combine import refuse_finished
from boxopt.core.decompose import svd
from boxopt.core.transform import GradientTransformation, bind, whole_leaves
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.adam import scale_by_adam
from boxopt.scale.muon import MuonDimensionNumbers, as_matrices, is_dimension_numbers

GaLoreDimensionNumbers = MuonDimensionNumbers


class GaLoreState(NamedTuple):
    """The state of `scale_by_galore`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        base_optimizer_state: The base optimizer's, for the projected gradients.
        projector: An orthonormal basis for each matrix, in its columns; a zero for the other leaves.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    base_optimizer_state: Any
    projector: Any


def scale_by_galore(
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 1.0,
    base_optimizer: GradientTransformation | None = None,
    weight_dimension_numbers: Any | Callable[[Any], Any] | None = None,
) -> GradientTransformation:
    r"""Scale the gradients of matrices in the space of their leading singular vectors.

    $$ P = \text{the first } r \text{ left singular vectors of } G, \qquad u = c\, P \cdot \text{base}(P^\top G) $$

    if G has at least as many rows as columns, and the same with right ones otherwise. The base's state is as small as
    $P^\top G$. P is recomputed from the gradient every so many steps, and is a constant to derivatives: singular
    vectors have none where singular values coincide. It is computed in the leaf's dtype, where optax uses float32, and
    in every step, since nothing branches on a counter.

    A metric of the subspace is no diagonal one: for matrices the step size is unchanged but for c, and a set after it
    is projected onto in the Euclidean metric; for other leaves it is the base's.

    Args:
        rank: r.
        update_proj_gap: Every how many steps P is recomputed.
        scale: c.
        base_optimizer: What scales the projected gradients, and the other leaves; `scale_by_adam` if left out. In the
            place of parameters it gets zeros: put weight decay after.
        weight_dimension_numbers: Which leaves are matrices and how: `GaLoreDimensionNumbers` for all that have two
            dimensions or more, a prefix of the parameters with them, or None, or a function from the parameters to
            one. Left out, the leaves with two dimensions are.

    Returns:
        A gradient-space transformation with a `GaLoreState`.

    Raises:
        ValueError: The rank is not positive; or, in ``init``, the dimensions of a leaf are not those of a matrix.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_galore(rank=1), torch.zeros(3, 2)
        >>> tx.update(torch.ones(3, 2), tx.init(params), params)[0]
        tensor([[0.5774, 0.5774],
                [0.5774, 0.5774],
                [0.5774, 0.5774]])

    Source:
        J. Zhao et al., "GaLore: memory-efficient LLM training by gradient low-rank projection", ICML 2024;
        `optax.contrib.scale_by_galore`.
    """
    if rank <= 0:
        raise ValueError(f"the rank is positive, got {rank!r}")
    base = scale_by_adam() if base_optimizer is None else base_optimizer
    refuse_finished("galore", base)
    numbers = weight_dimension_numbers
    return GradientTransformation(
        bind(_galore_init, base=base, rank=rank, numbers=numbers),
        bind(_galore_update, base=base, gap=update_proj_gap, scale=scale, numbers=numbers),
        bind(_galore_step_size, base=base, scale=scale),
    )


def _galore_init(params: Any, *, base: GradientTransformation, rank: int, numbers: Any) -> GaLoreState:
    tree.check_parameters(params)
    params = tree.map(sharded.whole, params)

    def basis(x: Tensor, dims: Any) -> Tensor:
        if dims is None:
            return x.new_zeros(())
        matrix, _ = _as_matrix(x, dims)
        return x.new_zeros(max(matrix.shape), min(rank, *matrix.shape))

    dims = _dimension_numbers(numbers, params)
    projector = tree.map(basis, params, dims)
    return GaLoreState(zero_count(params), base.init(_projected(params, projector, dims)), projector)


@whole_leaves
def _galore_update(
    updates: P,
    state: GaLoreState,
    params: P,
    *,
    base: GradientTransformation,
    gap: int,
    scale: Scalar,
    numbers: Any,
    **extra: Any,
) -> tuple[P, GaLoreState]:
    dims, placed = _dimension_numbers(numbers, updates), updates
    updates = tree.map(sharded.whole, updates)
    due = state.count % gap == 0

    def basis(old: Tensor, g: Tensor, dim: Any) -> Tensor:
        if dim is None:
            return old
        tall, _ = _as_matrix(exact.wide(g), dim)
        left = svd(tall.detach()).left[:, : old.shape[-1]]
        return torch.where(due, exact.like(left, old), old)

    def restore(low: Tensor, basis: Tensor, g: Tensor, dim: Any) -> Tensor:
        if dim is None:
            return low
        _, back = _as_matrix(g, dim)
        w = exact.wide(low)
        return exact.like(exact.like(scale, w) * back(exact.wide(basis) @ w), g)

    projector = tree.map(basis, state.projector, updates, dims)
    low = _projected(updates, projector, dims)
    none = tree.map(torch.zeros_like, low)
    changed, base_state = base.update(low, state.base_optimizer_state, none, **extra)
    new = tree.map(restore, changed, projector, updates, dims)
    return tree.map(sharded.like, new, placed), GaLoreState(state.count + 1, base_state, projector)


def _galore_step_size(state: GaLoreState, step_size: Any, *, base: GradientTransformation, scale: Scalar) -> Any:
    def size(basis: Tensor, inner: Any, outer: Any) -> Any:
        if basis.ndim:  # that of the low-rank gradients has another shape
            return exact.like(scale, basis) * outer
        return sharded.like(inner, outer) * outer

    inner = tree.expand(base.step_size(state.base_optimizer_state, 1.0), state.projector)
    return tree.map(size, state.projector, inner, tree.expand(step_size, state.projector))


def _projected(values: Any, projector: Any, dims: Any) -> Any:
    def project(x: Tensor, basis: Tensor, dim: Any) -> Tensor:
        if dim is None:
            return x
        tall, _ = _as_matrix(exact.wide(x), dim)
        return exact.like(exact.wide(basis).mT @ tall, x)

    return tree.map(project, values, projector, dims)


def _as_matrix(x: Tensor, dims: MuonDimensionNumbers) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A leaf as a matrix with at least as many rows as columns, and the way back."""
    matrix, back = as_matrices(x, dims)
    if matrix.ndim > 2:
        if matrix.shape[0] != 1 or x.ndim != _count(dims.reduction_axis) + _count(dims.output_axis):
            raise ValueError(f"each dimension is one of rows or columns, got {dims} for the shape {tuple(x.shape)}")
        matrix = matrix[0]
    if matrix.shape[-2] >= matrix.shape[-1]:
        return matrix, back
    return matrix.mT, lambda y: back(y.mT)


def _count(axes: Any) -> int:
    return 1 if isinstance(axes, int) else len(axes)


def _dimension_numbers(numbers: Any, values: Any) -> Any:
    if numbers is None or is_dimension_numbers(numbers):
        dims = MuonDimensionNumbers() if numbers is None else numbers
        return tree.map(lambda x: dims if (x.ndim == 2 if numbers is None else x.ndim >= 2) else None, values)
    return tree.expand(numbers(values) if tree.is_function(numbers) else numbers, values, is_leaf=is_dimension_numbers)
