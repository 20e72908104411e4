"""Limits on the size of the gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise, no_state
from boxopt.core.types import P, Scalar
from boxopt.core.values import check_nonnegative
from boxopt.scale.moments import safe_sqrt


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
    squares = tree.map(lambda u: exact.wide(u).square().sum(), updates)
    norm = safe_sqrt(tree.reduce(torch.add, squares))
    limit = exact.as_tensor(max_norm, norm)
    factor = torch.where(norm > limit, limit / norm, 1.0)
    return tree.map(lambda u: (exact.wide(u) * exact.like(factor, exact.wide(u))).to(u.dtype), updates), state
