"""Schedules with a warm-up, and schedules one after the other."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from boxopt.core.expect import expects_numbers
from boxopt.core.transform import bind
from boxopt.core.types import Scalar, Schedule
from boxopt.schedules.counts import check_steps, fraction, real
from boxopt.schedules.decay import exponential_decay, linear_schedule


def join_schedules(schedules: Sequence[Schedule], boundaries: Sequence[Scalar]) -> Schedule:
    """Schedules one after the other, each with a count that begins at 0.

    Args:
        schedules: The schedules.
        boundaries: The updates at which the second and the following ones begin, ascending.

    Raises:
        ValueError: There is not one boundary fewer than there are schedules.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.join_schedules([bx.constant_schedule(1.0), bx.linear_schedule(0.5, 0.0, 10)], [3])
        >>> [float(schedule(torch.tensor(count))) for count in (2, 3, 8)]
        [1.0, 0.5, 0.25]

    Source:
        `optax.join_schedules`.
    """
    if len(boundaries) != len(schedules) - 1:
        raise ValueError(f"{len(schedules)} schedules need {len(schedules) - 1} boundaries, got {len(boundaries)}")
    return bind(_join, schedules=tuple(schedules), boundaries=tuple(boundaries))


def _join(count: Tensor, *, schedules: tuple[Schedule, ...], boundaries: tuple[Scalar, ...]) -> Tensor:
    count = torch.as_tensor(count)
    value = schedules[0](count)
    for boundary, schedule in zip(boundaries, schedules[1:], strict=True):
        value = torch.where(count < boundary, value, schedule(count - boundary))
    return value


@expects_numbers
def warmup_constant_schedule(init_value: Scalar, peak_value: Scalar, warmup_steps: Scalar) -> Schedule:
    """A straight line up to a peak, and constant from there.

    Args:
        init_value: The first value.
        peak_value: The value after the warm-up.
        warmup_steps: The length of the warm-up, in updates.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.warmup_constant_schedule(0.0, 1.0, warmup_steps=10)
        >>> [float(schedule(torch.tensor(count))) for count in (0, 5, 10, 20)]
        [0.0, 0.5, 1.0, 1.0]

    Source:
        `optax.warmup_constant_schedule`.
    """
    return linear_schedule(init_value, peak_value, warmup_steps)


@expects_numbers
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
    check_steps("decay_steps - warmup_steps", decay_steps - warmup_steps)
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
    t = real(count)
    rising = start + (peak - start) * fraction(t, warmup)
    falling = ((1 + torch.cos(math.pi * fraction(t - warmup, steps - warmup))) / 2) ** exponent
    return torch.where(t < warmup, rising, end + (peak - end) * falling)


@expects_numbers
def warmup_exponential_decay_schedule(
    init_value: Scalar,
    peak_value: Scalar,
    warmup_steps: Scalar,
    transition_steps: Scalar,
    decay_rate: Scalar,
    transition_begin: Scalar = 0,
    staircase: bool = False,
    end_value: Scalar | None = None,
) -> Schedule:
    """A straight line up to a peak, then an `exponential_decay`.

    Args:
        init_value: The first value.
        peak_value: The value after the warm-up.
        warmup_steps: The length of the warm-up, in updates.
        transition_steps: In how many updates the value decays by the rate.
        decay_rate: The rate.
        transition_begin: How many updates after the warm-up the decay begins.
        staircase: Whether it goes in steps.
        end_value: Where to stop.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.warmup_exponential_decay_schedule(0.0, 1.0, 10, transition_steps=10, decay_rate=0.25)
        >>> [float(schedule(torch.tensor(count))) for count in (0, 5, 10, 15)]
        [0.0, 0.5, 1.0, 0.5]

    Source:
        `optax.warmup_exponential_decay_schedule`.
    """
    decay = exponential_decay(peak_value, transition_steps, decay_rate, transition_begin, staircase, end_value)
    return join_schedules([linear_schedule(init_value, peak_value, warmup_steps), decay], [warmup_steps])


def sgdr_schedule(cosine_kwargs: Iterable[Mapping[str, Any]]) -> Schedule:
    """Warm restarts: one `warmup_cosine_decay_schedule` after the other.

    Args:
        cosine_kwargs: The arguments of each; its ``decay_steps`` are how long it lasts.

    Example:
        >>> import torch, boxopt as bx
        >>> cycle = {"init_value": 0.0, "peak_value": 1.0, "warmup_steps": 2, "decay_steps": 10}
        >>> schedule = bx.sgdr_schedule([cycle, {**cycle, "peak_value": 0.5}])
        >>> [float(schedule(torch.tensor(count))) for count in (0, 2, 6, 10, 12)]
        [0.0, 1.0, 0.5, 0.0, 0.5]

    Source:
        I. Loshchilov and F. Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017;
        `optax.sgdr_schedule`.
    """
    cycles = [dict(arguments) for arguments in cosine_kwargs]
    if not cycles:
        raise ValueError("a schedule with restarts has at least one cycle")
    ends: list[Scalar] = []
    for arguments in cycles:
        ends.append((ends[-1] if ends else 0) + arguments["decay_steps"])
    return join_schedules([warmup_cosine_decay_schedule(**arguments) for arguments in cycles], ends[:-1])
