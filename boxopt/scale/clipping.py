"""Limits on the size of the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise, no_state
from boxopt.core.types import P, Scalar
from boxopt.core.values import check_nonnegative
from boxopt.scale.norms import at_least, root, root_mean_square, shrinking
from boxopt.scale.scalars import norm, scaled


def clip(max_delta: Scalar) -> GradientTransformation:
    """Limit each number of the updates to [−max_delta, max_delta].

    Args:
        max_delta: The largest absolute value, in units of the updates, not negative.

    Returns:
        A gradient-space transformation without state.

    Raises:
        ValueError: ``max_delta`` is negative.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.clip(1.0)
        >>> tx.update(torch.tensor([3.0, -0.5]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 1.0000, -0.5000])

    Source:
        `optax.clip`.
    """
    check_nonnegative("max_delta", max_delta)
    return GradientTransformation(no_state, bind(_clip_update, max_delta=max_delta))


@elementwise
def _clip_update(updates: P, state: Any, params: P, *, max_delta: Scalar) -> tuple[P, Any]:
    def limit(u: Tensor) -> Tensor:
        bound = exact.like(max_delta, u)
        return exact.clamp(u, -bound, bound)

    return tree.map(limit, updates), state


def clip_by_global_norm(max_norm: Scalar) -> GradientTransformation:
    r"""Scale the updates down together where their common Euclidean norm exceeds a limit.

    $$ u \leftarrow u \cdot \min\left(1, \frac{\text{max_norm}}{\lVert u \rVert_2}\right) $$

    The norm is over all leaves, in float32 for 16-bit leaves; its derivative at zero updates is 0.

    Args:
        max_norm: The largest norm, not negative.

    Returns:
        A gradient-space transformation without state.

    Raises:
        ValueError: ``max_norm`` is negative.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.clip_by_global_norm(1.0), {"a": torch.zeros(1), "b": torch.zeros(1)}
        >>> tx.update({"a": torch.tensor([3.0]), "b": torch.tensor([4.0])}, tx.init(params), params)[0]
        {'a': tensor([0.6000]), 'b': tensor([0.8000])}

    Source:
        R. Pascanu, T. Mikolov and Y. Bengio, "On the difficulty of training recurrent neural networks", ICML 2013;
        `optax.clip_by_global_norm`.
    """
    check_nonnegative("max_norm", max_norm)
    return GradientTransformation(no_state, bind(_clip_by_global_norm_update, max_norm=max_norm))


@elementwise  # of a packed tree the norm is the same
def _clip_by_global_norm_update(updates: P, state: Any, params: P, *, max_norm: Scalar) -> tuple[P, Any]:
    length = norm(updates)
    return scaled(updates, shrinking(length, exact.as_tensor(max_norm, length))), state


def clip_by_block_rms(threshold: Scalar) -> GradientTransformation:
    r"""Scale each leaf of the updates down where its root mean square exceeds a limit.

    $$ u = g \cdot \min\left(1, \frac{\text{threshold}}{\operatorname{rms}(g)}\right) $$

    Args:
        threshold: The largest root mean square, not negative.

    Returns:
        A gradient-space transformation without state.

    Raises:
        ValueError: ``threshold`` is negative.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.clip_by_block_rms(1.0)
        >>> tx.update(torch.tensor([4.0, -4.0]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 1., -1.])

    Source:
        N. Shazeer and M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018;
        `optax.clip_by_block_rms`.
    """
    check_nonnegative("threshold", threshold)
    return GradientTransformation(no_state, bind(_clip_by_block_rms_update, threshold=threshold))


def _clip_by_block_rms_update(updates: P, state: Any, params: P, *, threshold: Scalar) -> tuple[P, Any]:
    def limit(u: Tensor) -> Tensor:
        wide = exact.wide(u)
        return exact.like(wide * shrinking(root_mean_square(u), exact.like(threshold, wide)), u)

    return tree.map(limit, updates), state


def adaptive_grad_clip(
    clipping: Scalar, eps: Scalar = 1e-3, axis: int | tuple[int, ...] | None = None
) -> GradientTransformation:
    r"""Limit the norm of each unit's updates to a fraction of the norm of its parameters.

    $$ u = g \cdot \min\left(1, \frac{c\,\max(\lVert x \rVert_2, \epsilon)}{\lVert g \rVert_2}\right) $$

    where the norms are over one unit, all numbers that feed one output: the whole of a leaf with at most one dimension
    longer than 1, and else along all dimensions of the leaf but its last (of three, along the first, as in optax).

    Args:
        clipping: c, not negative.
        eps: ε, so that parameters at zero can leave it.
        axis: Along which dimensions to take the norms instead.

    Returns:
        A gradient-space transformation without state.

    Raises:
        ValueError: ``clipping`` is negative; or, in ``update``, a leaf has more than 5 dimensions and there is no
            ``axis``.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adaptive_grad_clip(0.1), torch.tensor([3.0, 4.0])
        >>> tx.update(torch.tensor([0.0, 2.0]), tx.init(params), params)[0]
        tensor([0.0000, 0.5000])

    Source:
        A. Brock et al., "High-performance large-scale image recognition without normalization", ICML 2021;
        `optax.adaptive_grad_clip`.
    """
    check_nonnegative("clipping", clipping)
    return GradientTransformation(no_state, bind(_adaptive_update, clipping=clipping, eps=eps, axis=axis))


def _adaptive_update(
    updates: P, state: Any, params: P, *, clipping: Scalar, eps: Scalar, axis: int | tuple[int, ...] | None
) -> tuple[P, Any]:
    def limit(update: Tensor, param: Tensor) -> Tensor:
        u = exact.wide(update)
        length, most = _unit_norm(u, axis), at_least(_unit_norm(exact.wide(param), axis), eps)
        most = exact.like(clipping, u) * most
        return exact.like(torch.where(length < most, u, u * (most / at_least(length, 1e-6))), update)

    return tree.map(limit, updates, params), state


def _unit_norm(x: Tensor, axis: int | tuple[int, ...] | None) -> Tensor:
    """The norm of each unit, in the shape of ``x`` but for dimensions of length 1."""
    if axis is None:
        if sum(size != 1 for size in x.shape) <= 1:
            axis = tuple(range(x.ndim))
        elif x.ndim <= 5:
            axis = (0,) if x.ndim <= 3 else tuple(range(x.ndim - 1))
        else:
            raise ValueError(f"a leaf with more than 5 dimensions needs an axis, got shape {tuple(x.shape)}")
    square = x.square()
    return root(square if axis == () else square.sum(dim=axis, keepdim=True))
