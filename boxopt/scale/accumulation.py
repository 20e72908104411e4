"""Updates that are gathered and applied now and then."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P
from boxopt.core.values import zero_count
from boxopt.scale.moments import map_wide, multiply_step_size, precise, zeros_like


class ApplyEvery(NamedTuple):
    """The state of `apply_every`; the name is optax's.

    Attributes:
        count: The number of updates made, an int64 scalar.
        grad_acc: The sum of the updates since the last that was let through.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    grad_acc: Any


def apply_every(k: int | Tensor = 1) -> GradientTransformation:
    """Sum the updates and let the sum through at each k-th step; at the others, zeros.

    A scaler before it still moves at each step. To gather gradients before a whole optimizer, wrap that in
    `multi_steps`. The step size is 0 at the steps that are held back, so that a `barrier` or a `prox` after it rests.

    Args:
        k: How many updates make one, at least 1.

    Returns:
        A gradient-space transformation with an `ApplyEvery` state.

    Raises:
        ValueError: ``k`` is less than 1.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.apply_every(2), torch.zeros(1)
        >>> first, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> second, state = tx.update(torch.ones(1), state, params)
        >>> first, second
        (tensor([0.]), tensor([2.]))

    Source:
        `optax.apply_every`.
    """
    if not isinstance(k, Tensor) and k < 1:
        raise ValueError(f"k is at least 1, got {k!r}")
    return GradientTransformation(_every_init, bind(_every_update, k=k), bind(_every_step_size, k=k))


def _every_init(params: Any) -> ApplyEvery:
    tree.check_parameters(params)
    return ApplyEvery(zero_count(params), zeros_like(params))


@elementwise
def _every_update(updates: P, state: ApplyEvery, params: P, *, k: int | Tensor) -> tuple[P, ApplyEvery]:
    first, last = state.count % k == 0, (state.count + 1) % k == 0
    total = map_wide(lambda old, g: torch.where(first, g, old + g), state.grad_acc, updates)
    through = tree.map(lambda x: torch.where(last, x, 0.0), total)
    return through, ApplyEvery(state.count + 1, total)


def _every_step_size(state: ApplyEvery, step_size: Any, *, k: int | Tensor) -> Any:
    return multiply_step_size(precise(state.count % k == 0), step_size)
