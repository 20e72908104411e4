"""Smaller steps once a value has stopped to improve."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import is_true, zero_count
from boxopt.scale.scalars import maximum, scalar_like, scaled, step_size_times


class ReduceLROnPlateauState(NamedTuple):
    """The state of `reduce_on_plateau`; all are scalars.

    Attributes:
        scale: The factor of the updates.
        best_value: The best average so far.
        plateau_count: For how many averages it has not improved.
        cooldown_count: How many averages will still be passed over.
        count: How many values the current average is made of.
        avg_value: That average.
    """

    scale: Tensor
    best_value: Tensor
    plateau_count: Tensor
    cooldown_count: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    avg_value: Tensor


@expects_numbers
def reduce_on_plateau(
    factor: Scalar = 0.1,
    patience: Scalar = 10,
    rtol: Scalar = 1e-4,
    atol: Scalar = 0.0,
    cooldown: Scalar = 0,
    accumulation_size: Scalar = 1,
    min_scale: Scalar = 0.0,
) -> GradientTransformation:
    """Multiply the updates by a factor that falls when a value has not improved for a while.

    A value, or an average of some, improves if it is less than (1 − rtol) · best − atol. After ``patience`` ones that
    are not, the scale is multiplied by ``factor``. The scale is a factor of the step size.

    Args:
        factor: Between 0 and 1.
        patience: How many values without improvement it takes.
        rtol: The relative tolerance, at most 1.
        atol: The absolute tolerance.
        cooldown: How many values are passed over after a reduction.
        accumulation_size: How many values are averaged first.
        min_scale: The least scale.

    Returns:
        A gradient-space transformation with a `ReduceLROnPlateauState`; ``update`` takes ``value=``.

    Raises:
        ValueError: A hyperparameter is outside of its range, or both tolerances are zero.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.reduce_on_plateau(factor=0.5, patience=1), torch.zeros(1)
        >>> _, state = tx.update(torch.ones(1), tx.init(params), params, value=1.0)
        >>> tx.update(torch.ones(1), state, params, value=1.0)[0]
        tensor([0.5000])

    Source:
        `optax.contrib.reduce_on_plateau`; `torch.optim.lr_scheduler.ReduceLROnPlateau`.
    """
    if is_true(factor <= 0) or is_true(factor >= 1):
        raise ValueError(f"factor is between 0 and 1, got {factor!r}")
    if is_true(rtol < 0) or is_true(rtol > 1) or is_true(atol < 0):
        raise ValueError(f"rtol is between 0 and 1, and atol is not negative, got rtol={rtol!r} and atol={atol!r}")
    if not isinstance(rtol, Tensor) and not isinstance(atol, Tensor) and rtol == 0 and atol == 0:
        raise ValueError("one of rtol and atol is positive, got zero for both")
    return GradientTransformation(
        _plateau_init,
        bind(
            _plateau_update,
            factor=factor,
            patience=patience,
            rtol=rtol,
            atol=atol,
            cooldown=cooldown,
            accumulation_size=accumulation_size,
            min_scale=min_scale,
        ),
        _plateau_step_size,
    )


def _plateau_init(params: Any) -> ReduceLROnPlateauState:
    tree.check_parameters(params)
    plateau, cooldown, count = (zero_count(params) for _ in range(3))
    return ReduceLROnPlateauState(
        scalar_like(params, 1.0), scalar_like(params, float("inf")), plateau, cooldown, count, scalar_like(params, 0.0)
    )


@elementwise
def _plateau_update(
    updates: P,
    state: ReduceLROnPlateauState,
    params: P,
    *,
    factor: Scalar,
    patience: Scalar,
    rtol: Scalar,
    atol: Scalar,
    cooldown: Scalar,
    accumulation_size: Scalar,
    min_scale: Scalar,
    value: Scalar,
) -> tuple[P, ReduceLROnPlateauState]:
    scale, best, zero = state.scale, state.best_value, torch.zeros_like(state.count)
    count = state.count + 1
    average = (state.count * state.avg_value + exact.like(value, best)) / count.to(best.dtype)
    full = count == accumulation_size

    improved = average < (1 - exact.like(rtol, best)) * best - exact.like(atol, best)
    plateau = torch.where(improved, zero, state.plateau_count + 1)
    cooling = state.cooldown_count > 0
    reached = (plateau == patience) & ~cooling
    reduced = torch.where(reached, scale * exact.like(factor, scale), scale)
    reduced = torch.where(cooling, scale, maximum(reduced, min_scale))
    cooldown_count = torch.where(cooling, state.cooldown_count - 1, torch.where(reached, cooldown, zero))

    new = ReduceLROnPlateauState(
        torch.where(full, reduced, scale),
        torch.where(full & improved, average, best),
        torch.where(full, torch.where(cooling | reached, zero, plateau), state.plateau_count),
        torch.where(full, cooldown_count, state.cooldown_count).to(state.cooldown_count.dtype),
        torch.where(full, zero, count),
        torch.where(full, 0.0, average),
    )
    return scaled(updates, new.scale), new


def _plateau_step_size(state: ReduceLROnPlateauState, step_size: Any) -> Any:
    return step_size_times(step_size, state.scale)
