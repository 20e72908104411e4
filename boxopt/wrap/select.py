"""What wrappers share: to run a transformation or not, decided for each vmapped member by itself.

The transformation always runs, on zeros where it is not wanted, and ``torch.where`` picks. So one member's infinite
gradients touch neither another member nor, through 0 · inf, the derivatives of what was picked.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation
from boxopt.core.types import P


def select(condition: Tensor, chosen: P, other: P) -> P:
    """``chosen`` where the condition, a boolean scalar, holds, and ``other`` elsewhere, in the dtypes of ``other``."""

    def pick(one: Tensor, two: Tensor) -> Tensor:
        return torch.where(condition.to(two.device), one.to(two.dtype), two)

    return tree.map(pick, chosen, other)


def select_or_zero(condition: Tensor, values: P) -> P:
    """The values where the condition holds, and zeros elsewhere."""
    return tree.map(lambda x: torch.where(condition.to(x.device), x, torch.zeros_like(x)), values)


def update_where(
    condition: Tensor,
    transformation: GradientTransformation,
    updates: P,
    state: Any,
    params: P,
    extra: dict[str, Any],
) -> tuple[P, Any]:
    """The updates and the new state where the condition holds; zeros and the old state elsewhere."""
    changed, new = transformation.update(select_or_zero(condition, updates), state, params, **extra)
    return select_or_zero(condition, changed), select(condition, new, state)


def step_size_where(
    condition: Tensor, transformation: GradientTransformation, state: Any, step_size: Any, otherwise: Any = 0.0
) -> Any:
    """The step size of a transformation where it was run, and ``otherwise`` elsewhere.

    A counter at 0 may have no step size (Adam's is 0/0 before the first update). Where the transformation was not run
    its counters are read as 1, so that not even a derivative is undefined.
    """

    def begun(leaf: Tensor) -> Tensor:
        return leaf if leaf.is_floating_point() else torch.where(condition, leaf, torch.ones_like(leaf))

    inner = transformation.step_size(tree.map(begun, state), step_size)

    def pick(made: Any, instead: Any) -> Tensor:
        return torch.where(condition, _number(made, condition), _number(instead, condition))

    return tree.combine(pick, inner, otherwise)


def _number(value: Any, condition: Tensor) -> Tensor:
    if isinstance(value, Tensor):
        return value
    dtype = torch.float32 if condition.device.type == "mps" else torch.float64
    return torch.full((), value, dtype=dtype, device=condition.device)


def false(params: Any) -> Tensor:
    """A flag on the parameters' device."""
    return torch.zeros((), dtype=torch.bool, device=tree.device_of(params))
