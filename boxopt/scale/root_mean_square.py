"""Scaling by the root of averaged or summed squares: RMSProp and Adagrad."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import bias_correction as weight_received
from boxopt.scale.moments import full_like, map_wide, safe_sqrt, times, update_moment, zeros_like


class ScaleByRmsWithCountState(NamedTuple):
    """The state of `scale_by_rms` that corrects the bias.

    Attributes:
        count: The number of updates made, an int64 scalar.
        nu: The running average of squared gradients.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    nu: Any


class ScaleByRmsState(NamedTuple):
    """The state of `scale_by_rms`: ``nu``, the running average of squared gradients."""

    nu: Any


def scale_by_rms(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: float = 0.0,
    *,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    r"""Rescale gradients by the root of the running average of their squares.

    $$ v \leftarrow \beta v + (1 - \beta) g^2, \qquad
       u = g/\sqrt{v + \epsilon} \ \text{ or } \ g/(\sqrt v + \epsilon) $$

    The step size is the factor of $g$.

    Args:
        decay: β.
        eps: ε.
        initial_scale: The first value of v.
        eps_in_sqrt: ε under the root, as in optax, or outside, as in torch.optim.
        bias_correction: Whether to divide v by $1 - \beta^t$, as Adam does.

    Returns:
        A gradient-space transformation with a `ScaleByRmsState`, or a `ScaleByRmsWithCountState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_rms(decay=0.75)
        >>> tx.update(torch.tensor([3.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([2.])

    Source:
        T. Tieleman and G. Hinton, "Lecture 6.5: RMSProp", Coursera, 2012; `optax.scale_by_rms`.
    """
    return GradientTransformation(
        bind(_rms_init, initial_scale=initial_scale, corrected=bias_correction),
        bind(_rms_update, decay=decay, eps=eps, eps_in_sqrt=eps_in_sqrt),
        bind(_rms_step_size, decay=decay, eps=eps, eps_in_sqrt=eps_in_sqrt),
    )


def _rms_init(params: Any, *, initial_scale: float, corrected: bool) -> ScaleByRmsState | ScaleByRmsWithCountState:
    tree.check_parameters(params)
    nu = full_like(params, initial_scale)
    return ScaleByRmsWithCountState(zero_count(params), nu) if corrected else ScaleByRmsState(nu)


@elementwise
def _rms_update(
    updates: P, state: Any, params: P, *, decay: Scalar, eps: Scalar, eps_in_sqrt: bool
) -> tuple[P, ScaleByRmsState | ScaleByRmsWithCountState]:
    nu = update_moment(updates, state.nu, decay, 2)
    state = state._replace(nu=nu, **_counted(state))
    unbiased = _unbiased(state, decay)
    scaled = map_wide(lambda g, v: g * _rms_factor(unbiased(v), eps, eps_in_sqrt), updates, nu)
    return scaled, state


def _rms_step_size(state: Any, step_size: Any, *, decay: Scalar, eps: Scalar, eps_in_sqrt: bool) -> Any:
    unbiased = _unbiased(state, decay)
    return times(step_size, lambda v: _rms_factor(unbiased(v), eps, eps_in_sqrt), state.nu)


def _counted(state: Any) -> dict[str, Tensor]:
    """One update more, in a state that counts."""
    return {"count": state.count + 1} if "count" in state._fields else {}


def _unbiased(state: Any, decay: Scalar) -> Callable[[Tensor], Tensor]:
    """The correction of a moment's bias, in a state that counts."""
    if "count" not in state._fields:
        return lambda moment: moment
    weight = exact.cast_once(1 / weight_received(decay, state.count))
    return lambda moment: moment * weight(moment)


def _rms_factor(v: Tensor, eps: Scalar, eps_in_sqrt: bool) -> Tensor:
    eps = exact.like(eps, v)
    return 1 / (torch.sqrt(v + eps) if eps_in_sqrt else safe_sqrt(v) + eps)


class ScaleByStddevWithCountState(NamedTuple):
    """The state of `scale_by_stddev` that corrects the bias.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
        nu: The running average of their squares.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any
    nu: Any


class ScaleByStddevState(NamedTuple):
    """The state of `scale_by_stddev`: running averages of the gradients, ``mu``, and of their squares, ``nu``."""

    mu: Any
    nu: Any


def scale_by_stddev(
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: float = 0.0,
    *,
    eps_in_sqrt: bool = True,
    bias_correction: bool = False,
) -> GradientTransformation:
    r"""Rescale gradients by the root of their running variance $v - m^2$: centred RMSProp.

    Args:
        decay: β, of both averages.
        eps: ε.
        initial_scale: The first value of v.
        eps_in_sqrt: ε under the root, as in optax, or outside, as in torch.optim.
        bias_correction: Whether to correct the bias of both averages, as Adam does.

    Returns:
        A gradient-space transformation with a `ScaleByStddevState`, or a `ScaleByStddevWithCountState`; its step size
        is the factor of the gradient.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_stddev(decay=0.5)
        >>> tx.update(torch.tensor([3.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([2.])

    Source:
        A. Graves, "Generating sequences with recurrent neural networks", 2013; `optax.scale_by_stddev`.
    """
    return GradientTransformation(
        bind(_stddev_init, initial_scale=initial_scale, corrected=bias_correction),
        bind(_stddev_update, decay=decay, eps=eps, eps_in_sqrt=eps_in_sqrt),
        bind(_stddev_step_size, decay=decay, eps=eps, eps_in_sqrt=eps_in_sqrt),
    )


def _stddev_init(
    params: Any, *, initial_scale: float, corrected: bool
) -> ScaleByStddevState | ScaleByStddevWithCountState:
    tree.check_parameters(params)
    mu, nu = zeros_like(params), full_like(params, initial_scale)
    return ScaleByStddevWithCountState(zero_count(params), mu, nu) if corrected else ScaleByStddevState(mu, nu)


@elementwise
def _stddev_update(
    updates: P, state: Any, params: P, *, decay: Scalar, eps: Scalar, eps_in_sqrt: bool
) -> tuple[P, ScaleByStddevState | ScaleByStddevWithCountState]:
    mu = update_moment(updates, state.mu, decay, 1)
    nu = update_moment(updates, state.nu, decay, 2)
    state = state._replace(mu=mu, nu=nu, **_counted(state))
    unbiased = _unbiased(state, decay)

    def scale(g: Tensor, m: Tensor, v: Tensor) -> Tensor:
        return g * _rms_factor(_variance(unbiased(m), unbiased(v)), eps, eps_in_sqrt)

    return map_wide(scale, updates, mu, nu), state


def _stddev_step_size(state: Any, step_size: Any, *, decay: Scalar, eps: Scalar, eps_in_sqrt: bool) -> Any:
    unbiased = _unbiased(state, decay)

    def factor(v: Tensor, m: Tensor) -> Tensor:
        return _rms_factor(_variance(unbiased(m), unbiased(v)), eps, eps_in_sqrt)

    return times(step_size, factor, state.nu, state.mu)


def _variance(m: Tensor, v: Tensor) -> Tensor:
    """V − m², which rounding can take below 0."""
    variance = v - m * m
    return torch.where(variance > 0, variance, 0.0)


class ScaleByRssState(NamedTuple):
    """The state of `scale_by_rss`: ``sum_of_squares``, of all gradients so far."""

    sum_of_squares: Any


def scale_by_rss(
    initial_accumulator_value: float = 0.1, eps: Scalar = 1e-7, *, eps_in_sqrt: bool = True
) -> GradientTransformation:
    r"""Rescale gradients by the root of the sum of all their squares.

    $$ s \leftarrow s + g^2, \qquad u = g/\sqrt{s + \epsilon} \ \text{ or } \ g/(\sqrt s + \epsilon) $$

    and 0 where $s = 0$. The step size is the factor of $g$.

    Args:
        initial_accumulator_value: The first value of s.
        eps: ε.
        eps_in_sqrt: ε under the root, as in optax, or outside, as in torch.optim.

    Returns:
        A gradient-space transformation with a `ScaleByRssState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_rss(initial_accumulator_value=0.0)
        >>> tx.update(torch.tensor([3.0, 0.0]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([1., 0.])

    Source:
        J. Duchi, E. Hazan and Y. Singer, "Adaptive subgradient methods for online learning and stochastic
        optimization", JMLR 12, 2011; `optax.scale_by_rss`.
    """
    return GradientTransformation(
        bind(_rss_init, initial=initial_accumulator_value),
        bind(_rss_update, eps=eps, eps_in_sqrt=eps_in_sqrt),
        bind(_rss_step_size, eps=eps, eps_in_sqrt=eps_in_sqrt),
    )


def _rss_init(params: Any, *, initial: float) -> ScaleByRssState:
    tree.check_parameters(params)
    return ScaleByRssState(full_like(params, initial))


@elementwise
def _rss_update(
    updates: P, state: ScaleByRssState, params: P, *, eps: Scalar, eps_in_sqrt: bool
) -> tuple[P, ScaleByRssState]:
    total = map_wide(lambda s, g: s + g * g, state.sum_of_squares, updates)
    scaled = map_wide(lambda g, s: g * _rss_factor(s, eps, eps_in_sqrt), updates, total)
    return scaled, ScaleByRssState(total)


def _rss_step_size(state: ScaleByRssState, step_size: Any, *, eps: Scalar, eps_in_sqrt: bool) -> Any:
    return times(step_size, lambda s: _rss_factor(s, eps, eps_in_sqrt), state.sum_of_squares)


def _rss_factor(s: Tensor, eps: Scalar, eps_in_sqrt: bool) -> Tensor:
    positive = s > 0
    return torch.where(positive, _rms_factor(torch.where(positive, s, 1.0), eps, eps_in_sqrt), 0.0)
