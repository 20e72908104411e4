"""MoMo: momentum, or Adam, whose learning rate is the smaller of a given one and Polyak's."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import current, zero_count
from boxopt.scale.moments import bias_correction, map_wide, safe_sqrt, update_moment, zeros_like
from boxopt.scale.scalars import inner, maximum, minimum, scalar_like, squared_norm, step_size_times

_SMALL = torch.finfo(torch.float64).eps


class MomoState(NamedTuple):
    """The state of `momo`.

    Attributes:
        exp_avg: The running average of the gradients.
        barf: The running average of the losses, a scalar.
        gamma: The running average of the gradients' products with the parameters, a scalar.
        lb: The lower bound on the loss, a scalar.
        count: The number of updates made, an int64 scalar.
        tau: The learning rate of the last update, a scalar: for the step size.
    """

    exp_avg: Any
    barf: Tensor
    gamma: Tensor
    lb: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    tau: Tensor


def momo(
    learning_rate: ScalarOrSchedule = 1.0,
    beta: Scalar = 0.9,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    r"""Momentum with the learning rate at which a model of the loss, made of all past gradients, reaches its bound.

    $$ m, \bar f, \gamma \ \text{: averages of } g, f, \langle g, x \rangle, \qquad
       \tau = \min\left(\alpha, \frac{\max((1 + \alpha w)(\bar f - f_* - \gamma) + \langle m, x \rangle, 0)}
       {\lVert m \rVert^2}\right), \qquad u = -\tau m - \frac{\alpha w}{1 + \alpha w} x $$

    The averages start at their first values. The update descends already. The step size is τ, one number.

    Args:
        learning_rate: α, the largest learning rate: a number, a 0-d tensor or a schedule.
        beta: The decay of the averages.
        lower_bound: $f_*$, which no loss is below.
        weight_decay: w.
        adapt_lower_bound: Whether to raise the bound on the way.

    Returns:
        A gradient-space transformation with a `MomoState`; ``update`` takes the loss as ``value=``.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.momo(), torch.tensor([1.0, 2.0])
        >>> tx.update(2 * params, tx.init(params), params, value=torch.tensor(5.0))[0]
        tensor([-0.5000, -1.0000])

    Source:
        F. Schaipp et al., "MoMo: momentum models for adaptive learning rates", ICML 2024; `optax.contrib.momo`.
    """
    named = {
        "learning_rate": learning_rate,
        "beta": beta,
        "lower_bound": lower_bound,
        "weight_decay": weight_decay,
        "adapt_lower_bound": adapt_lower_bound,
    }
    return GradientTransformation(
        bind(_momo_init, lower_bound=lower_bound), bind(_momo_update, **named), _momo_step_size
    )


def _momo_init(params: Any, *, lower_bound: Scalar) -> MomoState:
    tree.check_parameters(params)
    zeros = [scalar_like(params, 0.0) for _ in range(3)]
    return MomoState(
        zeros_like(params), zeros[0], zeros[1], scalar_like(params, lower_bound), zero_count(params), zeros[2]
    )


@elementwise  # of a packed tree the products are the same
def _momo_update(
    updates: P,
    state: MomoState,
    params: P,
    *,
    learning_rate: ScalarOrSchedule,
    beta: Scalar,
    lower_bound: Scalar,
    weight_decay: Scalar,
    adapt_lower_bound: bool,
    value: Scalar,
) -> tuple[P, MomoState]:
    decay = torch.where(state.count == 0, 0.0, exact.as_tensor(beta, state.barf))
    alpha = exact.as_tensor(current(learning_rate, state), state.barf)
    barf = decay * state.barf + (1 - decay) * exact.like(value, state.barf)
    exp_avg = update_moment(updates, state.exp_avg, decay, 1)
    gamma = decay * state.gamma + (1 - decay) * inner(updates, params)
    one = alpha.new_ones(())
    tau, bound = _polyak(
        barf, gamma, inner(exp_avg, params), squared_norm(exp_avg), alpha, weight_decay, one, state.lb,
        lower_bound if adapt_lower_bound else None,
    )  # fmt: skip
    shrink = _shrinkage(alpha, weight_decay)

    def step(m: Tensor, p: Tensor) -> Tensor:
        return -exact.like(shrink, p) * p - exact.like(tau, p) * m

    return map_wide(step, exp_avg, params), MomoState(exp_avg, barf, gamma, bound, state.count + 1, tau)


def _momo_step_size(state: MomoState, step_size: Any) -> Any:
    return step_size_times(step_size, state.tau)


class MomoAdamState(NamedTuple):
    """The state of `momo_adam`.

    Attributes:
        exp_avg: The running average of the gradients.
        exp_avg_sq: The running average of their squares.
        barf: The running average of the losses, a scalar.
        gamma: The running average of the gradients' products with the parameters, a scalar.
        lb: The lower bound on the loss, a scalar.
        count: The number of updates made, an int64 scalar.
        tau: The learning rate of the last update, a scalar: for the step size.
    """

    exp_avg: Any
    exp_avg_sq: Any
    barf: Tensor
    gamma: Tensor
    lb: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    tau: Tensor


def momo_adam(
    learning_rate: ScalarOrSchedule = 1e-2,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    lower_bound: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
    adapt_lower_bound: bool = False,
) -> GradientTransformation:
    r"""`momo` in Adam's metric.

    With $D = \sqrt{\hat v} + \epsilon$, averages that start at 0, and $c = 1 - \beta_1^t$,

    $$ \tau = \min\left(\frac{\alpha}{c}, \frac{\max((1 + \alpha w)(\bar f - c f_* - \gamma) + \langle m, x \rangle, 0)}
       {\langle m, m/D \rangle}\right), \qquad u = -\tau \frac{m}{D} - \frac{\alpha w}{1 + \alpha w} x $$

    The update descends already. The step size is $c \tau/D$, coordinate by coordinate.

    Args:
        learning_rate: α, the largest learning rate: a number, a 0-d tensor or a schedule.
        b1: β₁, the decay of the averages.
        b2: The decay of the second moment.
        eps: ε.
        lower_bound: $f_*$, which no loss is below.
        weight_decay: w.
        adapt_lower_bound: Whether to raise the bound on the way.

    Returns:
        A gradient-space transformation with a `MomoAdamState`; ``update`` takes the loss as ``value=``.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.momo_adam(0.1), torch.tensor([1.0, 2.0])
        >>> tx.update(2 * params, tx.init(params), params, value=torch.tensor(5.0))[0]
        tensor([-0.1000, -0.1000])

    Source:
        F. Schaipp et al., ICML 2024; `optax.contrib.momo_adam`.
    """
    named = {
        "learning_rate": learning_rate,
        "b1": b1,
        "b2": b2,
        "eps": eps,
        "lower_bound": lower_bound,
        "weight_decay": weight_decay,
        "adapt_lower_bound": adapt_lower_bound,
    }
    return GradientTransformation(
        bind(_momo_adam_init, lower_bound=lower_bound),
        bind(_momo_adam_update, **named),
        bind(_momo_adam_step_size, b1=b1, b2=b2, eps=eps),
    )


def _momo_adam_init(params: Any, *, lower_bound: Scalar) -> MomoAdamState:
    tree.check_parameters(params)
    zeros = [scalar_like(params, 0.0) for _ in range(3)]
    return MomoAdamState(
        zeros_like(params),
        zeros_like(params),
        zeros[0],
        zeros[1],
        scalar_like(params, lower_bound),
        zero_count(params),
        zeros[2],
    )


@elementwise  # of a packed tree the products are the same
def _momo_adam_update(
    updates: P,
    state: MomoAdamState,
    params: P,
    *,
    learning_rate: ScalarOrSchedule,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    lower_bound: Scalar,
    weight_decay: Scalar,
    adapt_lower_bound: bool,
    value: Scalar,
) -> tuple[P, MomoAdamState]:
    count = state.count + 1
    decay = exact.like(b1, state.barf)
    alpha = exact.as_tensor(current(learning_rate, state), state.barf)
    mean_scale = exact.like(bias_correction(b1, count), state.barf)
    barf = decay * state.barf + (1 - decay) * exact.like(value, state.barf)
    exp_avg = update_moment(updates, state.exp_avg, b1, 1)
    exp_avg_sq = update_moment(updates, state.exp_avg_sq, b2, 2)
    gamma = decay * state.gamma + (1 - decay) * inner(updates, params)
    root = _root(bias_correction(b2, count), eps)
    weighted = map_wide(lambda m, v: m / root(v), exp_avg, exp_avg_sq)
    tau, bound = _polyak(
        barf, gamma, inner(exp_avg, params), inner(exp_avg, weighted), alpha, weight_decay, mean_scale, state.lb,
        lower_bound if adapt_lower_bound else None,
    )  # fmt: skip
    shrink = _shrinkage(alpha, weight_decay)

    def step(m: Tensor, v: Tensor, p: Tensor) -> Tensor:
        return -exact.like(shrink, p) * p - exact.like(tau, p) * m / root(v)

    new = MomoAdamState(exp_avg, exp_avg_sq, barf, gamma, bound, count, tau)
    return map_wide(step, exp_avg, exp_avg_sq, params), new


def _momo_adam_step_size(state: MomoAdamState, step_size: Any, *, b1: Scalar, b2: Scalar, eps: Scalar) -> Any:
    root = _root(bias_correction(b2, state.count), eps)
    rate = state.tau * exact.like(bias_correction(b1, state.count), state.tau)

    def size(v: Tensor, outer: Any) -> Tensor:
        v = exact.wide(v)
        return exact.like(outer, v) * exact.like(rate, v) / root(v)

    return tree.map(size, state.exp_avg_sq, tree.expand(step_size, state.exp_avg_sq))


def _root(square_scale: Tensor, eps: Scalar) -> Any:
    return lambda v: exact.like(eps, v) + safe_sqrt(v / exact.like(square_scale, v))


def _shrinkage(alpha: Tensor, weight_decay: Scalar) -> Tensor:
    decay = alpha * exact.like(weight_decay, alpha)
    return decay / (1 + decay)


def _polyak(
    barf: Tensor,
    gamma: Tensor,
    product: Tensor,
    square: Tensor,
    alpha: Tensor,
    weight_decay: Scalar,
    mean_scale: Tensor,
    bound: Tensor,
    least: Scalar | None,
) -> tuple[Tensor, Tensor]:
    """τ, and the bound on the loss for the next step: raised, but not below ``least``, unless that is None."""
    growth = 1 + alpha * exact.like(weight_decay, alpha)
    used = bound
    if least is not None:
        cap = growth * (barf - gamma) + product
        lowered = maximum(cap / (2 * growth * mean_scale), exact.like(least, cap))
        used = torch.where(cap < growth * mean_scale * bound, lowered, bound)
    gap = maximum(growth * (barf - mean_scale * used - gamma) + product, torch.zeros_like(barf))
    is_small = square <= _SMALL
    polyak = torch.where(is_small, 0.0, gap / torch.where(is_small, 1.0, square))
    tau = minimum(polyak, alpha / mean_scale)
    if least is None:
        return tau, bound
    raised = (barf + product - gamma - tau * square / 2) / mean_scale
    return tau, maximum(raised, exact.like(least, raised))
