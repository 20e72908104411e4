"""Momentum: decaying sums and averages of gradients."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import bias_correction, map_wide, multiply_step_size, update_moment, zeros_like


class TraceState(NamedTuple):
    """The state of `trace`: the decaying sum of gradients, ``trace``."""

    trace: Any


def trace(decay: Scalar, nesterov: bool = False) -> GradientTransformation:
    r"""Sum gradients with a decay: momentum.

    $$ m \leftarrow g + \beta m, \qquad u = m \ \text{ or, with Nesterov, } \ g + \beta m $$

    A gradient that stays the same adds up to g/(1 − β), and so the step size is multiplied by 1/(1 − β): otherwise a
    penalty, a barrier or a regularizer that follows would count 1 − β times as much as its weight says.

    Args:
        decay: β. The step size of a sum without decay, β ≥ 1, has no limit, and is left as it is.
        nesterov: Look ahead by one step.

    Returns:
        A gradient-space transformation with a `TraceState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.trace(0.9), torch.zeros(1)
        >>> updates, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> tx.update(torch.ones(1), state, params)[0]
        tensor([1.9000])

    Source:
        B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Y. Nesterov, 1983;
        `optax.trace`, and the momentum of `torch.optim.SGD` without dampening.
    """
    return GradientTransformation(
        _trace_init, bind(_trace_update, decay=decay, nesterov=nesterov), bind(_trace_step_size, decay=decay)
    )


def _trace_init(params: Any) -> TraceState:
    tree.check_parameters(params)
    return TraceState(zeros_like(params))


@elementwise
def _trace_update(updates: P, state: TraceState, params: P, *, decay: Scalar, nesterov: bool) -> tuple[P, TraceState]:
    def accumulate(m: Tensor, g: Tensor) -> Tensor:
        return g + exact.like(decay, m) * m

    new = map_wide(accumulate, state.trace, updates)
    return map_wide(accumulate, new, updates) if nesterov else new, TraceState(new)


def _trace_step_size(state: TraceState, step_size: Any, *, decay: Scalar) -> Any:
    if not isinstance(decay, Tensor):
        return multiply_step_size(1 / (1 - decay) if decay < 1 else 1.0, step_size)
    converges = decay < 1
    return multiply_step_size(torch.where(converges, 1 / torch.where(converges, 1 - decay, 1.0), 1.0), step_size)


class EmaState(NamedTuple):
    """The state of `ema`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        ema: The running average of the updates.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    ema: Any


def ema(decay: Scalar, debias: bool = True) -> GradientTransformation:
    r"""Average the updates with exponentially decaying weights.

    $$ m \leftarrow \beta m + (1 - \beta) g, \qquad u = m/(1 - \beta^t) \ \text{ or } \ m $$

    The step size is unchanged.

    Args:
        decay: β.
        debias: Whether to correct the bias towards 0, where the average started.

    Returns:
        A gradient-space transformation with an `EmaState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.ema(0.9)
        >>> tx.update(torch.tensor([2.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([2.])

    Source:
        `optax.ema`.
    """
    return GradientTransformation(_ema_init, bind(_ema_update, decay=decay, debias=debias))


def _ema_init(params: Any) -> EmaState:
    tree.check_parameters(params)
    return EmaState(zero_count(params), zeros_like(params))


@elementwise
def _ema_update(updates: P, state: EmaState, params: P, *, decay: Scalar, debias: bool) -> tuple[Any, EmaState]:
    count = state.count + 1
    average = update_moment(updates, state.ema, decay, 1)
    if not debias:
        return average, EmaState(count, average)
    weight = exact.cast_once(1 / bias_correction(decay, count))
    return map_wide(lambda m: m * weight(m), average), EmaState(count, average)
