"""Hyperparameters: checked where their values can be read, and looked up where they follow a schedule."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.core.expect import expect_numbers, places
from boxopt.core.transform import EmptyState


def is_true(condition: Any) -> bool:
    """Whether a condition holds anywhere; False where its values cannot be read."""
    if not isinstance(condition, Tensor):
        return bool(condition)
    if torch.compiler.is_compiling():
        return False
    try:
        return bool(sharded.reduced(condition.any()))
    except RuntimeError:  # under vmap, and of fake and meta tensors
        return False


def check_nonnegative(name: str, value: Any) -> None:
    """Raise a ``ValueError`` if a hyperparameter, or a value in a prefix of them, is negative or NaN."""
    if tree.is_function(value) or torch.compiler.is_compiling():
        return
    expect_numbers(name, value)
    for place, number in places(name, value):
        if number is not None and (is_true(number < 0) or is_true(number != number)):
            raise ValueError(f"{place} is not negative, got {number!r}")


def check_broadcasts(name: str, value: Any, shape: torch.Size, whose: str) -> None:
    """Raise a ``ValueError`` if a hyperparameter is a tensor that does not broadcast to a shape."""
    if isinstance(value, Tensor) and not _broadcasts(value.shape, shape):
        raise ValueError(
            f"{name} has shape {tuple(value.shape)}, which does not broadcast to {tuple(shape)}, the shape of the "
            f"{whose}"
        )


def _broadcasts(shape: torch.Size, target: torch.Size) -> bool:
    try:
        return torch.broadcast_shapes(shape, target) == target
    except RuntimeError:
        return False


class CountState(NamedTuple):
    """The state of a transformation with a schedule.

    Attributes:
        count: The number of updates made so far, an int64 scalar.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)


def zero_count(params: Any) -> Tensor:
    """A counter on the parameters' device."""
    return torch.zeros((), dtype=torch.int64, device=tree.device_of(params))


def init_scheduled(params: Any, *, value: Any) -> CountState | EmptyState:
    """The ``init`` of a transformation whose one hyperparameter may be a schedule."""
    tree.check_parameters(params)
    if tree.is_function(value):
        return CountState(zero_count(params))
    tree.expand(value, params)  # raises unless it is a prefix
    return EmptyState()


def current(value: Any, state: Any) -> Any:
    """The hyperparameter for the update to be made from this state."""
    return value(state.count) if tree.is_function(value) else value


def latest(value: Any, state: Any) -> Any:
    """The hyperparameter of the update that led to this state."""
    return value(state.count - 1) if tree.is_function(value) else value


def advance(state: Any) -> Any:
    """The state after one more update."""
    return CountState(state.count + 1) if isinstance(state, CountState) else state
