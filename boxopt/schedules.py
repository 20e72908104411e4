"""Schedules: from the number of updates made so far, an integer tensor, to a value, a float64 tensor.

They are functions of tensors without branches, so that a compiled step is not compiled again as the count grows, and
each vmapped member may have its own numbers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from boxopt.core.transform import bind
from boxopt.core.types import Scalar, Schedule


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
    return _real(count) * 0 + value


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
    _check_steps("transition_steps", transition_steps)
    return bind(_linear, start=init_value, end=end_value, steps=transition_steps, begin=transition_begin)


def _linear(count: Tensor, *, start: Scalar, end: Scalar, steps: Scalar, begin: Scalar) -> Tensor:
    passed = _fraction(_real(count) - begin, steps)
    return (start - end) * (1 - passed) + end


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
    _check_steps("decay_steps", decay_steps)
    return bind(_cosine, start=init_value, steps=decay_steps, alpha=alpha, exponent=exponent)


def _cosine(count: Tensor, *, start: Scalar, steps: Scalar, alpha: Scalar, exponent: Scalar) -> Tensor:
    falling = (1 + torch.cos(math.pi * _fraction(_real(count), steps))) / 2
    return start * ((1 - alpha) * falling**exponent + alpha)


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
    _check_steps("transition_steps", transition_steps)
    return bind(
        _exponential,
        start=init_value,
        steps=transition_steps,
        rate=decay_rate,
        begin=transition_begin,
        staircase=staircase,
        end=end_value,
    )


def _exponential(
    count: Tensor,
    *,
    start: Scalar,
    steps: Scalar,
    rate: Scalar,
    begin: Scalar,
    staircase: bool,
    end: Scalar | None,
) -> Tensor:
    passed = (_real(count) - begin) / steps
    passed = torch.floor(passed) if staircase else passed
    passed = torch.where(passed > 0, passed, 0.0)
    rate = _tensor(rate, passed)
    value = start * rate**passed
    if end is None:
        return value
    end = _tensor(end, value)
    return torch.where(rate < 1, torch.maximum(value, end), torch.minimum(value, end))


def warmup_cosine_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    decay_steps: Scalar,
    end_value: Scalar = 0.0,
    exponent: Scalar = 1.0,
) -> Schedule:
    """A straight line up to a peak, then half a cosine down.

    Args:
        init_value: The first value.
        peak_value: The value after the warm-up.
        warmup_steps: The length of the warm-up, in updates.
        decay_steps: The length of the whole, the warm-up included.
        end_value: The last value.
        exponent: The power of the cosine.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.warmup_cosine_decay_schedule(0.0, 1.0, warmup_steps=10, decay_steps=30)
        >>> [float(schedule(torch.tensor(step))) for step in (0, 5, 10, 20)]
        [0.0, 0.5, 1.0, 0.5]

    Source:
        `optax.warmup_cosine_decay_schedule`.
    """
    _check_steps("decay_steps - warmup_steps", decay_steps - warmup_steps)
    return bind(
        _warmup_cosine,
        start=init_value,
        peak=peak_value,
        warmup=warmup_steps,
        steps=decay_steps,
        end=end_value,
        exponent=exponent,
    )


def _warmup_cosine(
    count: Tensor, *, start: Scalar, peak: Scalar, warmup: Scalar, steps: Scalar, end: Scalar, exponent: Scalar
) -> Tensor:
    t = _real(count)
    rising = start + (peak - start) * _fraction(t, warmup)
    falling = ((1 + torch.cos(math.pi * _fraction(t - warmup, steps - warmup))) / 2) ** exponent
    return torch.where(t < warmup, rising, end + (peak - end) * falling)


def _real(count: Any) -> Tensor:
    count = torch.as_tensor(count)
    return count.to(torch.float32 if count.device.type == "mps" else torch.float64)


def _tensor(value: Scalar, x: Tensor) -> Tensor:
    return value.to(x) if isinstance(value, Tensor) else torch.full_like(x, value)


def _fraction(passed: Tensor, steps: Scalar) -> Tensor:
    """passed/steps held in [0, 1]; 1 where there are no steps."""
    steps = _tensor(steps, passed)
    share = passed / torch.where(steps > 0, steps, 1.0)
    share = torch.where(share < 0, 0.0, torch.where(share > 1, 1.0, share))
    return torch.where(steps > 0, share, 1.0)


def _check_steps(name: str, steps: Any) -> None:
    if not isinstance(steps, Tensor) and not steps > 0:
        raise ValueError(f"{name} is positive, got {steps!r}")
