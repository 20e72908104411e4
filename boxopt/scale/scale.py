"""Scaling by a number, a schedule or a learning rate; and weight decay."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from boxopt.core import exact, foreach, tree
from boxopt.core.combine import masked
from boxopt.core.expect import expect_numbers
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar, ScalarOrSchedule, Schedule
from boxopt.core.values import advance, current, init_scheduled, latest
from boxopt.scale.moments import multiply_step_size


def scale(step_size: Scalar) -> GradientTransformation:
    """Multiply the updates by a number.

    Args:
        step_size: A number, a tensor, or a pytree prefix of the parameters; its absolute value enters the step size.

    Returns:
        A gradient-space transformation without state.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale(-0.5)
        >>> tx.update(torch.tensor([2.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([-1.])

    Source:
        `optax.scale`.
    """
    expect_numbers("step_size", step_size)
    return _scaled_by(step_size, 1)


def scale_by_schedule(step_size_fn: Schedule) -> GradientTransformation:
    """Multiply the updates by a schedule's value.

    Args:
        step_size_fn: From the number of updates made so far, an int64 scalar, to a factor.

    Returns:
        A gradient-space transformation with a `CountState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_schedule(bx.linear_schedule(1.0, 0.0, 2)), torch.zeros(1)
        >>> updates, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> tx.update(torch.ones(1), state, params)[0]
        tensor([0.5000])

    Source:
        `optax.scale_by_schedule`.
    """
    return _scaled_by(step_size_fn, 1)


def scale_by_learning_rate(learning_rate: ScalarOrSchedule, *, flip_sign: bool = True) -> GradientTransformation:
    """Multiply the updates by the learning rate, and by −1, so that they descend.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        flip_sign: Whether to multiply by −1.

    Returns:
        A gradient-space transformation; its state is a `CountState` with a schedule, and empty otherwise.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_learning_rate(0.5)
        >>> tx.update(torch.tensor([2.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([-1.])

    Source:
        `optax.scale_by_learning_rate`.
    """
    expect_numbers("learning_rate", learning_rate)
    return _scaled_by(learning_rate, -1 if flip_sign else 1)


def _scaled_by(factor: Any, sign: int) -> GradientTransformation:
    return GradientTransformation(
        bind(init_scheduled, value=factor),
        bind(_scale_update, factor=factor, sign=sign),
        bind(_scale_step_size, factor=factor),
    )


@elementwise
def _scale_update(updates: P, state: Any, params: P, *, factor: ScalarOrSchedule, sign: int) -> tuple[P, Any]:
    value = current(factor, state)
    if tree.is_leaf(value) and not (isinstance(value, Tensor) and value.ndim):
        one = exact.cast_once(sign * value)
        return foreach.map(lambda update: _times(update, one), updates), advance(state)

    def multiply(update: Tensor, by: Any) -> Tensor:
        return _times(update, lambda u: sign * exact.like(by, u))

    return tree.map(multiply, updates, tree.expand(value, updates)), advance(state)


def _times(update: Tensor, factor: Callable[[Tensor], Any]) -> Tensor:
    u = exact.wide(update)
    return exact.like(u * factor(u), update)


def _scale_step_size(state: Any, step_size: Any, *, factor: Any) -> Any:
    return multiply_step_size(latest(factor, state), step_size)


def add_decayed_weights(weight_decay: ScalarOrSchedule = 0.0, mask: Any = None) -> GradientTransformation:
    """Add the parameters, times a number, to the updates.

    Before an adaptive scaler this is L2 regularization; after it, decoupled weight decay, as in AdamW. Either way it
    comes before the projection.

    Args:
        weight_decay: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        mask: Which leaves to decay: see `masked`. All of them if left out.

    Returns:
        A gradient-space transformation; its state is a `CountState` with a schedule, and empty otherwise.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.add_decayed_weights(0.1), torch.tensor([2.0])
        >>> tx.update(torch.zeros(1), tx.init(params), params)[0]
        tensor([0.2000])

    Source:
        I. Loshchilov and F. Hutter, "Decoupled weight decay regularization", ICLR 2019; `optax.add_decayed_weights`.
    """
    transformation = GradientTransformation(
        bind(init_scheduled, value=weight_decay), bind(_decay_update, weight_decay=weight_decay)
    )
    return transformation if mask is None else masked(transformation, mask)


@elementwise
def _decay_update(updates: P, state: Any, params: P, *, weight_decay: ScalarOrSchedule) -> tuple[P, Any]:
    return tree.add_scaled(updates, current(weight_decay, state), params), advance(state)
