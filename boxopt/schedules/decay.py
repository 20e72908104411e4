"""Schedules that go from one value to another: constant, polynomial, linear, cosine, exponential."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from boxopt.core.transform import bind
from boxopt.core.types import Scalar, Schedule
from boxopt.schedules.counts import check_steps, fraction, real, tensor_like


def constant_schedule(value: Scalar) -> Schedule:
    """Always the same value.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.constant_schedule(0.5)(torch.tensor(7))
        tensor(0.5000, dtype=torch.float64)

    Source:
        `optax.constant_schedule`.
    """
    return bind(_constant, value=value)


def _constant(count: Tensor, *, value: Scalar) -> Tensor:
    return real(count) * 0 + value


def polynomial_schedule(
    init_value: Scalar, end_value: Scalar, power: Scalar, transition_steps: Scalar, transition_begin: Scalar = 0
) -> Schedule:
    r"""A power of a straight line from one value to another, constant before and after.

    $$ (v_0 - v_1)\,\bigl(1 - (t - B)/T\bigr)^p + v_1, \quad B \le t \le B + T $$

    Args:
        init_value: v₀, the value until ``transition_begin``.
        end_value: v₁, the value from ``transition_begin + transition_steps`` on.
        power: p.
        transition_steps: T, the length of the transition, in updates.
        transition_begin: B, the update at which it begins.

    Raises:
        ValueError: ``transition_steps`` is not positive; optax then stays at ``init_value``.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.polynomial_schedule(1.0, 0.0, power=2, transition_steps=10)(torch.tensor(5))
        tensor(0.2500, dtype=torch.float64)

    Source:
        `optax.polynomial_schedule`.
    """
    check_steps("transition_steps", transition_steps)
    return bind(
        _polynomial,
        init_value=init_value,
        end_value=end_value,
        power=power,
        transition_steps=transition_steps,
        transition_begin=transition_begin,
    )


def _polynomial(
    count: Tensor,
    *,
    init_value: Scalar,
    end_value: Scalar,
    power: Scalar,
    transition_steps: Scalar,
    transition_begin: Scalar,
) -> Tensor:
    left = 1 - fraction(real(count) - _not_negative(transition_begin), transition_steps)
    return (init_value - end_value) * left ** tensor_like(power, left) + end_value


def _not_negative(begin: Scalar) -> Scalar:
    return begin.clamp_min(0) if isinstance(begin, Tensor) else max(begin, 0)


def linear_schedule(
    init_value: Scalar, end_value: Scalar, transition_steps: Scalar, transition_begin: Scalar = 0
) -> Schedule:
    """A straight line from one value to another, constant before and after.

    Args:
        init_value: The value until ``transition_begin``.
        end_value: The value from ``transition_begin + transition_steps`` on.
        transition_steps: The length of the transition, in updates.
        transition_begin: The update at which it begins.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.linear_schedule(1.0, 0.0, transition_steps=10)(torch.tensor(5))
        tensor(0.5000, dtype=torch.float64)

    Source:
        `optax.linear_schedule`.
    """
    check_steps("transition_steps", transition_steps)
    return bind(
        _linear,
        init_value=init_value,
        end_value=end_value,
        transition_steps=transition_steps,
        transition_begin=transition_begin,
    )


def _linear(
    count: Tensor, *, init_value: Scalar, end_value: Scalar, transition_steps: Scalar, transition_begin: Scalar
) -> Tensor:
    passed = fraction(real(count) - _not_negative(transition_begin), transition_steps)
    return (init_value - end_value) * (1 - passed) + end_value


def cosine_decay_schedule(
    init_value: Scalar, decay_steps: Scalar, alpha: Scalar = 0.0, exponent: Scalar = 1.0
) -> Schedule:
    r"""Half a cosine from ``init_value`` down to ``alpha · init_value``.

    $$ v_0\,\bigl((1 - \alpha)\,(\tfrac12(1 + \cos(\pi t/T)))^{p} + \alpha\bigr), \quad t \le T $$

    Args:
        init_value: v₀.
        decay_steps: T, in updates.
        alpha: α, the final value as a fraction of the first.
        exponent: p.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.cosine_decay_schedule(1.0, decay_steps=10)(torch.tensor(5))
        tensor(0.5000, dtype=torch.float64)

    Source:
        I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017;
        `optax.cosine_decay_schedule`.
    """
    check_steps("decay_steps", decay_steps)
    return bind(_cosine, init_value=init_value, decay_steps=decay_steps, alpha=alpha, exponent=exponent)


def _cosine(count: Tensor, *, init_value: Scalar, decay_steps: Scalar, alpha: Scalar, exponent: Scalar) -> Tensor:
    falling = (1 + torch.cos(math.pi * fraction(real(count), decay_steps))) / 2
    return init_value * ((1 - alpha) * falling**exponent + alpha)


def exponential_decay(
    init_value: Scalar,
    transition_steps: Scalar,
    decay_rate: Scalar,
    transition_begin: Scalar = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Schedule:
    r"""Exponential decay, or growth: $v_0 r^{t/T}$ for t updates after the beginning.

    Args:
        init_value: v₀.
        transition_steps: T, in updates.
        decay_rate: r.
        transition_begin: The update at which the decay begins.
        staircase: Whether t/T is rounded down.
        end_value: Where to stop: the least value if r < 1, the greatest otherwise.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.exponential_decay(1.0, transition_steps=10, decay_rate=0.25)(torch.tensor(5))
        tensor(0.5000, dtype=torch.float64)

    Source:
        `optax.exponential_decay`.
    """
    check_steps("transition_steps", transition_steps)
    return bind(
        _exponential,
        init_value=init_value,
        transition_steps=transition_steps,
        decay_rate=decay_rate,
        transition_begin=transition_begin,
        staircase=staircase,
        end_value=end_value,
    )


def _exponential(
    count: Tensor,
    *,
    init_value: Scalar,
    transition_steps: Scalar,
    decay_rate: Scalar,
    transition_begin: Scalar,
    staircase: bool,
    end_value: Scalar | None,
) -> Tensor:
    passed = (real(count) - _not_negative(transition_begin)) / transition_steps
    passed = torch.floor(passed) if staircase else passed
    passed = torch.where(passed > 0, passed, 0.0)
    rate = tensor_like(decay_rate, passed)
    value = init_value * rate**passed
    if end_value is None:
        return value
    end = tensor_like(end_value, value)
    return torch.where(rate < 1, torch.maximum(value, end), torch.minimum(value, end))
