"""Muon's scaling: momentum, made orthogonal."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import bias_correction, map_wide, update_moment, zeros_like
from boxopt.scale.newton_schulz import STANDARD, Preconditioning, iterations, orthogonalize


class MuonDimensionNumbers(NamedTuple):
    """Which dimensions of a leaf are those of a matrix; the others are batch dimensions.

    Attributes:
        reduction_axis: The dimension, or dimensions, of the rows: those that x has in xW.
        output_axis: The dimension, or dimensions, of the columns.
    """

    reduction_axis: int | Sequence[int] = 0
    output_axis: int | Sequence[int] = 1


def is_dimension_numbers(node: Any) -> bool:
    """Whether this counts as one value in a tree of dimension numbers."""
    return isinstance(node, MuonDimensionNumbers)


def dimension_numbers_of(values: Any, params: Any) -> Any:
    """The dimension numbers of each leaf, from a prefix of them or a function from the parameters to one."""
    values = values(params) if tree.is_function(values) else values
    values = MuonDimensionNumbers() if values is None else values
    return tree.expand(values, params, is_leaf=is_dimension_numbers)


class MuonState(NamedTuple):
    """The state of `scale_by_muon`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any


def scale_by_muon(
    ns_coeffs: Any = STANDARD,
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    weight_dimension_numbers: Any | Callable[[Any], Any] | None = None,
) -> GradientTransformation:
    r"""Replace the singular values of the averaged gradient by ones, roughly.

    $$ m \leftarrow \beta m + (1 - \beta) g, \qquad u \approx U V^\top \ \text{ with } \ \hat m = U \Sigma V^\top $$

    by a fixed number of Newton–Schulz iterations, which leave the singular values between 0.7 and 1.2. The step is
    steepest descent in the spectral norm, which is no diagonal metric: the step size is unchanged, and a set after it
    is projected onto in the Euclidean metric.

    Args:
        ns_coeffs: The coefficients of an iteration, or of each one, or "standard" or "dion".
        ns_steps: The number of iterations, if ``ns_coeffs`` are those of one.
        beta: β.
        eps: Added to the norm that is divided by.
        nesterov: Look ahead by one step.
        adaptive: Whether to multiply by the dual norm $\langle \hat m, u \rangle$.
        preconditioning: How the singular values are brought below 1 first: ``"frobenius"``; ``"spectral"``, dearer and
            without a second derivative where singular values coincide; ``"aol"`` or ``"schatten"``.
        weight_dimension_numbers: `MuonDimensionNumbers` for all leaves, a prefix of them, or a function from the
            parameters to one. Left out, all leaves are matrices.

    Returns:
        A gradient-space transformation with a `MuonState`.

    Raises:
        ValueError: In ``update``, a leaf is not a matrix; the message names it.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_muon(ns_steps=10, ns_coeffs=(1.5, -0.5, 0.0)), torch.zeros(2, 2)
        >>> tx.update(torch.tensor([[0.0, 5.0], [3.0, 0.0]]), tx.init(params), params)[0].round(decimals=3)
        tensor([[0., 1.],
                [1., 0.]])

    Source:
        K. Jordan et al., "Muon: an optimizer for hidden layers in neural networks", 2024; J. Bernstein and L. Newhouse,
        "Old optimizer, new norm", 2024; `optax.contrib.scale_by_muon`.
    """
    return GradientTransformation(
        _muon_init,
        bind(
            _muon_update,
            coefficients=iterations(ns_coeffs, ns_steps),
            beta=beta,
            eps=eps,
            nesterov=nesterov,
            adaptive=adaptive,
            preconditioning=preconditioning,
            dimension_numbers=weight_dimension_numbers,
        ),
    )


def _muon_init(params: Any) -> MuonState:
    tree.check_parameters(params)
    return MuonState(zero_count(params), zeros_like(params))


def _muon_update(
    updates: P,
    state: MuonState,
    params: P,
    *,
    coefficients: list[tuple[Any, Any, Any]],
    beta: Scalar,
    eps: Scalar,
    nesterov: bool,
    adaptive: bool,
    preconditioning: Preconditioning,
    dimension_numbers: Any,
) -> tuple[P, MuonState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, beta, 1)
    now, ahead = bias_correction(beta, count), bias_correction(beta, count + 1)

    def mean(m: Tensor, g: Tensor) -> Tensor:
        if not nesterov:
            return m / exact.like(now, m)
        old, new = exact.like(beta / ahead, m), exact.like((1 - beta) / now, m)
        return old * m + new * g

    def direction(m: Tensor, numbers: MuonDimensionNumbers) -> Tensor:
        wide = sharded.whole(exact.wide(m))
        matrices, restore = as_matrices(wide, numbers)
        orthogonal = restore(orthogonalize(matrices, coefficients, preconditioning, eps))
        if adaptive:
            orthogonal = (wide * orthogonal).sum() * orthogonal
        return exact.like(orthogonal, m)  # of a sharded leaf, this process's part

    means = map_wide(mean, mu, updates)
    return tree.map(direction, means, dimension_numbers_of(dimension_numbers, updates)), MuonState(count, mu)


def as_matrices(x: Tensor, numbers: MuonDimensionNumbers) -> tuple[Tensor, Callable[[Tensor], Tensor]]:
    """A leaf as a matrix, or a batch of them, and the way back."""
    rows, columns, batch = _axes(x, numbers)
    order = batch + rows + columns
    moved = x.permute(order)
    shape = moved.shape
    if not batch and len(rows) == len(columns) == 1:
        flat = moved
    else:
        sizes = [math.prod(x.shape[axis] for axis in axes) for axes in (batch, rows, columns)]
        flat = moved.reshape(sizes)
    back = sorted(range(x.ndim), key=order.__getitem__)
    return flat, lambda y: y.reshape(shape).permute(back)


def fans(x: Tensor, numbers: MuonDimensionNumbers) -> tuple[int, int]:
    """The numbers of rows and of columns of a leaf as a matrix."""
    rows, columns, _ = _axes(x, numbers)
    return math.prod(x.shape[axis] for axis in rows), math.prod(x.shape[axis] for axis in columns)


def _axes(x: Tensor, numbers: MuonDimensionNumbers) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    if not isinstance(numbers, MuonDimensionNumbers) or x.ndim < 2:
        raise ValueError(f"expected a matrix and its dimension numbers, got the shape {tuple(x.shape)} and {numbers!r}")

    def normalized(axes: int | Sequence[int]) -> tuple[int, ...]:
        return tuple(axis % x.ndim for axis in ((axes,) if isinstance(axes, int) else axes))

    rows, columns = normalized(numbers.reduction_axis), normalized(numbers.output_axis)
    if set(rows) & set(columns):
        raise ValueError(f"the dimensions of rows and columns differ, got {numbers} for the shape {tuple(x.shape)}")
    return rows, columns, tuple(axis for axis in range(x.ndim) if axis not in rows + columns)


class ScaleByShapeState(NamedTuple):
    """The state of `scale_by_shape`: the ``factor`` of each leaf, a scalar."""

    factor: Any


def scale_by_shape(
    weight_dimension_numbers: Any | Callable[[Any], Any] | None = None, consistent_rms: Scalar | None = None
) -> GradientTransformation:
    r"""Multiply the updates of a matrix by $\sqrt{\max(1, \text{columns}/\text{rows})}$.

    With ``consistent_rms``, by $\sqrt{\max(\text{rows}, \text{columns})}$ times it, so that orthogonal updates have
    that root mean square. The factor is one of the step size.

    Args:
        weight_dimension_numbers: See `scale_by_muon`.
        consistent_rms: The root mean square; 0.2 is about Adam's.

    Returns:
        A gradient-space transformation with a `ScaleByShapeState`.

    Example:
        >>> import torch
        >>> from boxopt.scale.muon import scale_by_shape
        >>> tx, params = scale_by_shape(), torch.zeros(1, 4)
        >>> tx.update(torch.ones(1, 4), tx.init(params), params)[0]
        tensor([[2., 2., 2., 2.]])

    Source:
        J. Liu et al., "Muon is scalable for LLM training", 2025; optax's ``scale_by_shape``.
    """
    return GradientTransformation(
        bind(_shape_init, dimension_numbers=weight_dimension_numbers, consistent_rms=consistent_rms),
        _shape_update,
        _shape_step_size,
    )


def _shape_init(params: Any, *, dimension_numbers: Any, consistent_rms: Scalar | None) -> ScaleByShapeState:
    tree.check_parameters(params)

    def factor(x: Tensor, numbers: MuonDimensionNumbers) -> Tensor:
        rows, columns = fans(x, numbers)
        x = exact.wide(x)
        if consistent_rms is not None:
            return exact.as_tensor(consistent_rms, x) * math.sqrt(max(rows, columns))
        return torch.full((), math.sqrt(max(1.0, columns / max(rows, 1))), dtype=x.dtype, device=x.device)

    return ScaleByShapeState(tree.map(factor, params, dimension_numbers_of(dimension_numbers, params)))


def _shape_update(updates: P, state: ScaleByShapeState, params: P) -> tuple[P, ScaleByShapeState]:
    return map_wide(lambda u, factor: u * factor, updates, state.factor), state


def _shape_step_size(state: ScaleByShapeState, step_size: Any) -> Any:
    return tree.map(
        lambda factor, size: exact.like(factor, size) * size if isinstance(size, Tensor) else factor * size,
        state.factor,
        tree.expand(step_size, state.factor),
    )
