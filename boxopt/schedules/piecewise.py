"""Schedules given at some updates, with jumps, lines or cosines between; and the one-cycle schedules made of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from boxopt.core.expect import expects_numbers
from boxopt.core.transform import bind
from boxopt.core.types import Scalar, Schedule
from boxopt.core.values import check_nonnegative
from boxopt.schedules.counts import check_steps, fraction, real

Knots = list[tuple[Any, Scalar]]


@expects_numbers
def piecewise_constant_schedule(
    init_value: Scalar, boundaries_and_scales: Mapping[int, Scalar] | None = None
) -> Schedule:
    """A value that is multiplied by a number at each of some updates.

    Args:
        init_value: The first value.
        boundaries_and_scales: From an update to the factor from there on.

    Raises:
        ValueError: A factor is negative.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.piecewise_constant_schedule(1.0, {10: 0.5, 20: 0.5})
        >>> [float(schedule(torch.tensor(count))) for count in (9, 10, 20)]
        [1.0, 0.5, 0.25]

    Source:
        `optax.piecewise_constant_schedule`.
    """
    knots = _sorted(boundaries_and_scales)
    return bind(_piecewise_constant, start=init_value, knots=knots)


def _piecewise_constant(count: Tensor, *, start: Scalar, knots: Knots) -> Tensor:
    t = real(count)
    value = t * 0 + start
    for boundary, factor in knots:
        value = torch.where(t < boundary, value, value * factor)
    return value


@expects_numbers
def piecewise_interpolate_schedule(
    interpolate_type: str, init_value: Scalar, boundaries_and_scales: Mapping[int, Scalar] | None = None
) -> Schedule:
    """Lines or cosines between values given at some updates.

    Args:
        interpolate_type: ``"linear"`` or ``"cosine"``.
        init_value: The first value.
        boundaries_and_scales: From an update to the factor by which the value there is that of the update before.

    Raises:
        ValueError: ``interpolate_type`` is neither, or a factor is negative.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.piecewise_interpolate_schedule("linear", 1.0, {10: 0.5, 20: 0.0})
        >>> [float(schedule(torch.tensor(count))) for count in (0, 5, 10, 15, 25)]
        [1.0, 0.75, 0.5, 0.25, 0.0]

    Source:
        `optax.piecewise_interpolate_schedule`.
    """
    return _interpolated(interpolate_type, init_value, _sorted(boundaries_and_scales))


def _interpolated(kind: str, init_value: Scalar, knots: Knots) -> Schedule:
    if kind not in _SHAPES:
        raise ValueError(f"interpolate_type is 'linear' or 'cosine', got {kind!r}")
    return bind(_piecewise_interpolate, kind=kind, start=init_value, knots=knots)


def _line(share: Tensor) -> Tensor:
    return share


def _half_cosine(share: Tensor) -> Tensor:
    return (1 - torch.cos(math.pi * share)) / 2


_SHAPES: dict[str, Callable[[Tensor], Tensor]] = {"linear": _line, "cosine": _half_cosine}


def _piecewise_interpolate(count: Tensor, *, kind: str, start: Scalar, knots: Knots) -> Tensor:
    t = real(count)
    value, before, begin = t * 0 + start, start, 0
    for boundary, factor in knots:
        after = before * factor
        share = _SHAPES[kind](fraction(t - begin, boundary - begin))
        value = torch.where(t < begin, value, before + (after - before) * share)
        before, begin = after, boundary
    return value


@expects_numbers
def linear_onecycle_schedule(
    transition_steps: Scalar,
    peak_value: Scalar,
    pct_start: Scalar = 0.3,
    pct_final: Scalar = 0.85,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
) -> Schedule:
    """Three lines: up to a peak, down to the first value, and down to the last.

    Args:
        transition_steps: The length of the whole, in updates.
        peak_value: The greatest value.
        pct_start: The share of the whole that the first line takes.
        pct_final: The share of the whole that the first two lines take.
        div_factor: The peak over the first value.
        final_div_factor: The first value over the last.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.linear_onecycle_schedule(100, 1.0)
        >>> [round(float(schedule(torch.tensor(count))), 4) for count in (0, 30, 85, 100)]
        [0.04, 1.0, 0.04, 0.0]

    Source:
        L. N. Smith and N. Topin, "Super-convergence", 2017; `optax.linear_onecycle_schedule`.
    """
    check_steps("transition_steps", transition_steps)
    knots: Knots = [
        (_whole(pct_start * transition_steps), div_factor),
        (_whole(pct_final * transition_steps), 1 / div_factor),
        (transition_steps, 1 / final_div_factor),
    ]
    return _interpolated("linear", peak_value / div_factor, knots)


@expects_numbers
def cosine_onecycle_schedule(
    transition_steps: Scalar,
    peak_value: Scalar,
    pct_start: Scalar = 0.3,
    div_factor: Scalar = 25.0,
    final_div_factor: Scalar = 1e4,
) -> Schedule:
    """Two half cosines: up to a peak, and down to the last value.

    Args:
        transition_steps: The length of the whole, in updates.
        peak_value: The greatest value.
        pct_start: The share of the whole that the way up takes.
        div_factor: The peak over the first value.
        final_div_factor: The first value over the last.

    Example:
        >>> import torch, boxopt as bx
        >>> schedule = bx.cosine_onecycle_schedule(100, 1.0)
        >>> [round(float(schedule(torch.tensor(count))), 4) for count in (0, 30, 65, 100)]
        [0.04, 1.0, 0.5, 0.0]

    Source:
        L. N. Smith and N. Topin, "Super-convergence", 2017; `optax.cosine_onecycle_schedule`; `OneCycleLR` of
        `torch.optim.lr_scheduler`.
    """
    check_steps("transition_steps", transition_steps)
    knots: Knots = [
        (_whole(pct_start * transition_steps), div_factor),
        (transition_steps, 1 / (div_factor * final_div_factor)),
    ]
    return _interpolated("cosine", peak_value / div_factor, knots)


def _whole(count: Scalar) -> Scalar:
    return torch.floor(count) if isinstance(count, Tensor) else int(count)


def _sorted(boundaries_and_scales: Mapping[int, Scalar] | None) -> Knots:
    knots = sorted((boundaries_and_scales or {}).items())
    for boundary, factor in knots:
        check_nonnegative(f"the factor at {boundary}", factor)
    return knots
