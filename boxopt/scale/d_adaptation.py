"""D-Adaptation and Prodigy: Adam whose learning rate is an estimate of the distance to the solution."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import current, latest, zero_count
from boxopt.scale.moments import bias_correction, map_wide, safe_sqrt, zeros_like
from boxopt.scale.scalars import inner, maximum, ratio, scalar_like


class DAdaptAdamWState(NamedTuple):
    """The state of `dadapt_adamw`.

    Attributes:
        exp_avg: The running average of the gradients, times the learning rates.
        exp_avg_sq: The running average of their squares.
        grad_sum: The running average of the gradients, times the learning rates, that the estimate is made of.
        estim_lr: The estimate, a scalar.
        numerator_weighted: What it is a quotient of, a scalar.
        count: The number of updates made, an int64 scalar.
        used_lr: The estimate that made the last update, a scalar: for the step size.
    """

    exp_avg: Any
    exp_avg_sq: Any
    grad_sum: Any
    estim_lr: Tensor
    numerator_weighted: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    used_lr: Tensor


def dadapt_adamw(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    weight_decay: Scalar = 0.0,
) -> GradientTransformation:
    r"""AdamW by D-Adaptation: the learning rate is an estimate d of the distance to the solution.

    $$ \lambda = d\,\gamma_t \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}, \quad
       r \leftarrow \sqrt{\beta_2} r + (1 - \sqrt{\beta_2}) \lambda \left\langle g, \frac{s}{\sqrt v + \epsilon}
       \right\rangle, \quad
       s \leftarrow \sqrt{\beta_2} s + (1 - \sqrt{\beta_2}) \lambda g, \quad
       d \leftarrow \max\left(d, \frac{r}{(1 - \sqrt{\beta_2}) \lVert s \rVert_1}\right) $$

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) \lambda g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
       u = -\frac{m}{\sqrt v + \epsilon} - w \lambda x $$

    with norms and products over all leaves. Where all gradients so far are zero, where optax has NaN, d stays. The
    update descends already. The step size is $d \gamma_t \sqrt{1 - \beta_2^t}/(\sqrt v + \epsilon)$.

    Args:
        learning_rate: γ, a multiple of the estimate: a number, a 0-d tensor or a schedule.
        betas: β₁ and β₂.
        eps: ε.
        estim_lr0: The first d, smaller than the distance.
        weight_decay: w.

    Returns:
        A gradient-space transformation with a `DAdaptAdamWState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.dadapt_adamw(estim_lr0=0.1), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, -4.0]), tx.init(params), params)[0]
        tensor([-0.1000,  0.1000])

    Source:
        A. Defazio and K. Mishchenko, "Learning-rate-free learning by D-adaptation", ICML 2023;
        `optax.contrib.dadapt_adamw`.
    """
    return GradientTransformation(
        bind(_dadapt_init, estim_lr0=estim_lr0),
        bind(_dadapt_update, learning_rate=learning_rate, betas=betas, eps=eps, weight_decay=weight_decay),
        bind(_dadapt_step_size, learning_rate=learning_rate, b2=betas[1], eps=eps),
    )


def _dadapt_init(params: Any, *, estim_lr0: Scalar) -> DAdaptAdamWState:
    tree.check_parameters(params)
    first = scalar_like(params, estim_lr0)
    m, v, s = (zeros_like(params) for _ in range(3))
    return DAdaptAdamWState(m, v, s, first, scalar_like(params, 0.0), zero_count(params), first.clone())


@elementwise  # of a packed tree the products are the same
def _dadapt_update(
    updates: P,
    state: DAdaptAdamWState,
    params: P,
    *,
    learning_rate: ScalarOrSchedule,
    betas: tuple[Scalar, Scalar],
    eps: Scalar,
    weight_decay: Scalar,
) -> tuple[P, DAdaptAdamWState]:
    beta1, beta2 = betas
    slow = beta2**0.5
    count = state.count + 1
    rate = _rate(state.estim_lr, current(learning_rate, state), betas, count)

    def average(old: Tensor, g: Tensor, decay: Scalar) -> Tensor:
        return exact.like(decay, old) * old + exact.like(1 - decay, old) * exact.like(rate, old) * g

    def divided(m: Tensor, v: Tensor) -> Tensor:
        return m / (safe_sqrt(v) + exact.like(eps, v))

    product = inner(updates, map_wide(divided, state.grad_sum, state.exp_avg_sq))
    exp_avg = map_wide(lambda m, g: average(m, g, beta1), state.exp_avg, updates)
    exp_avg_sq = map_wide(_square_average(beta2), state.exp_avg_sq, updates)
    grad_sum = map_wide(lambda s, g: average(s, g, slow), state.grad_sum, updates)
    decay = exact.like(slow, rate)
    numerator = decay * state.numerator_weighted + (1 - decay) * rate * product
    estimate = ratio(numerator, (1 - decay) * _sum_of_magnitudes(grad_sum))

    def step(m: Tensor, v: Tensor, p: Tensor) -> Tensor:
        return -exact.like(weight_decay, p) * exact.like(rate, p) * p - divided(m, v)

    new = DAdaptAdamWState(
        exp_avg, exp_avg_sq, grad_sum, maximum(state.estim_lr, estimate), numerator, count, state.estim_lr
    )
    return map_wide(step, exp_avg, exp_avg_sq, params), new


def _dadapt_step_size(
    state: DAdaptAdamWState,
    step_size: Any,
    *,
    learning_rate: ScalarOrSchedule,
    b2: Scalar,
    eps: Scalar,
) -> Any:
    rate = _size(state.used_lr, latest(learning_rate, state), b2, state.count)

    def size(v: Tensor, outer: Any) -> Tensor:
        v = exact.wide(v)
        return exact.like(outer, v) * exact.like(rate, v) / (safe_sqrt(v) + exact.like(eps, v))

    return tree.map(size, state.exp_avg_sq, tree.expand(step_size, state.exp_avg_sq))


class ProdigyState(NamedTuple):
    """The state of `prodigy`.

    Attributes:
        exp_avg: The running average of the gradients, times the estimates.
        exp_avg_sq: The running average of their squares.
        grad_sum: The decaying sum of the gradients that the estimate is made of.
        params0: The first parameters.
        estim_lr: The estimate, a scalar.
        numerator_weighted: What it is a quotient of, a scalar.
        count: The number of updates made, an int64 scalar.
        used_lr: The estimate that made the last update, a scalar: for the step size.
    """

    exp_avg: Any
    exp_avg_sq: Any
    grad_sum: Any
    params0: Any
    estim_lr: Tensor
    numerator_weighted: Tensor
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    used_lr: Tensor


def prodigy(
    learning_rate: ScalarOrSchedule = 1.0,
    betas: tuple[Scalar, Scalar] = (0.9, 0.999),
    beta3: Scalar | None = None,
    eps: Scalar = 1e-8,
    estim_lr0: Scalar = 1e-6,
    estim_lr_coef: Scalar = 1.0,
    weight_decay: Scalar = 0.0,
    safeguard_warmup: bool = False,
) -> GradientTransformation:
    r"""AdamW by Prodigy, which finds the distance to the solution faster than `dadapt_adamw`.

    $$ \lambda = d\,\gamma_t \frac{\sqrt{1 - \beta_2^t}}{1 - \beta_1^t}, \quad
       r \leftarrow \beta_3 r + \frac{d}{d_0} \lambda \langle g, x_0 - x \rangle, \quad
       s \leftarrow \beta_3 s + \frac{d}{d_0} \lambda g, \quad
       m \leftarrow \beta_1 m + (1 - \beta_1) d g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) d^2 g^2 $$

    $$ d^+ = \max\left(d, c \frac{r}{\lVert s \rVert_1}\right), \qquad
       u = -\lambda \frac{m}{\sqrt v + d^+ \epsilon} - w \lambda x $$

    with norms and products over all leaves. Where all gradients so far are zero, where optax has NaN, d stays. The
    update descends already. The step size is $d^2 \gamma_t \sqrt{1 - \beta_2^t}/(\sqrt v + d^+ \epsilon)$.

    Args:
        learning_rate: γ, a multiple of the estimate: a number, a 0-d tensor or a schedule.
        betas: β₁ and β₂.
        beta3: β₃; the root of β₂ if left out.
        eps: ε.
        estim_lr0: $d_0$, the first d, smaller than the distance.
        estim_lr_coef: c.
        weight_decay: w.
        safeguard_warmup: Whether s is summed with d in the place of λ, for schedules that start near 0.

    Returns:
        A gradient-space transformation with a `ProdigyState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.prodigy(estim_lr0=0.1), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, -4.0]), tx.init(params), params)[0]
        tensor([-0.1000,  0.1000])

    Source:
        K. Mishchenko and A. Defazio, "Prodigy: an expeditiously adaptive parameter-free learner", ICML 2024;
        `optax.contrib.prodigy`.
    """
    return GradientTransformation(
        bind(_prodigy_init, estim_lr0=estim_lr0),
        bind(
            _prodigy_update,
            learning_rate=learning_rate,
            betas=betas,
            beta3=betas[1] ** 0.5 if beta3 is None else beta3,
            eps=eps,
            estim_lr0=estim_lr0,
            estim_lr_coef=estim_lr_coef,
            weight_decay=weight_decay,
            safeguard_warmup=safeguard_warmup,
        ),
        bind(_prodigy_step_size, learning_rate=learning_rate, b2=betas[1], eps=eps),
    )


def _prodigy_init(params: Any, *, estim_lr0: Scalar) -> ProdigyState:
    tree.check_parameters(params)
    first = scalar_like(params, estim_lr0)
    m, v, s = (zeros_like(params) for _ in range(3))
    start = tree.map(Tensor.clone, params)
    return ProdigyState(m, v, s, start, first, scalar_like(params, 0.0), zero_count(params), first.clone())


@elementwise  # of a packed tree the products are the same
def _prodigy_update(
    updates: P,
    state: ProdigyState,
    params: P,
    *,
    learning_rate: ScalarOrSchedule,
    betas: tuple[Scalar, Scalar],
    beta3: Scalar,
    eps: Scalar,
    estim_lr0: Scalar,
    estim_lr_coef: Scalar,
    weight_decay: Scalar,
    safeguard_warmup: bool,
) -> tuple[P, ProdigyState]:
    beta1, beta2 = betas
    count = state.count + 1
    d = state.estim_lr
    rate = _rate(d, current(learning_rate, state), betas, count)
    relative = d / exact.like(estim_lr0, d)
    summed = relative * (d if safeguard_warmup else rate)
    slow = exact.like(beta3, d)

    def average(m: Tensor, g: Tensor) -> Tensor:
        return exact.like(beta1, m) * m + exact.like(1 - beta1, m) * exact.like(d, m) * g

    product = inner(updates, map_wide(lambda p0, p: p0 - p, state.params0, params))
    exp_avg = map_wide(average, state.exp_avg, updates)
    exp_avg_sq = map_wide(lambda v, g: _square_average(beta2)(v, exact.like(d, v) * g), state.exp_avg_sq, updates)
    grad_sum = map_wide(lambda s, g: exact.like(beta3, s) * s + exact.like(summed, s) * g, state.grad_sum, updates)
    numerator = slow * state.numerator_weighted + relative * rate * product
    estimate = exact.like(estim_lr_coef, d) * ratio(numerator, _sum_of_magnitudes(grad_sum))

    estimate = maximum(d, estimate)

    def step(m: Tensor, v: Tensor, p: Tensor) -> Tensor:
        by = exact.like(rate, p)
        root = safe_sqrt(v) + exact.like(estimate, v) * exact.like(eps, v)
        return -exact.like(weight_decay, p) * by * p - by * m / root

    new = ProdigyState(exp_avg, exp_avg_sq, grad_sum, state.params0, estimate, numerator, count, state.estim_lr)
    return map_wide(step, exp_avg, exp_avg_sq, params), new


def _prodigy_step_size(
    state: ProdigyState, step_size: Any, *, learning_rate: ScalarOrSchedule, b2: Scalar, eps: Scalar
) -> Any:
    d = state.used_lr
    rate = d * _size(d, latest(learning_rate, state), b2, state.count)

    def size(v: Tensor, outer: Any) -> Tensor:
        v = exact.wide(v)
        root = safe_sqrt(v) + exact.like(state.estim_lr, v) * exact.like(eps, v)
        return exact.like(outer, v) * exact.like(rate, v) / root

    return tree.map(size, state.exp_avg_sq, tree.expand(step_size, state.exp_avg_sq))


def _rate(d: Tensor, learning_rate: Any, betas: tuple[Scalar, Scalar], count: Tensor) -> Tensor:
    """λ: the estimate times the learning rate and Adam's bias corrections."""
    corrections = safe_sqrt(bias_correction(betas[1], count)) / bias_correction(betas[0], count)
    return d * exact.like(learning_rate, d) * exact.like(corrections, d)


def _size(d: Tensor, learning_rate: Any, b2: Scalar, count: Tensor) -> Tensor:
    """λ times the weight that the average of gradients has received, so that it counts as Adam's corrected one."""
    return d * exact.like(learning_rate, d) * exact.like(safe_sqrt(bias_correction(b2, count)), d)


def _square_average(decay: Scalar) -> Any:
    def average(v: Tensor, g: Tensor) -> Tensor:
        return exact.like(decay, v) * v + exact.like(1 - decay, v) * g * g

    return average


def _sum_of_magnitudes(values: Any) -> Tensor:
    return tree.reduce(torch.add, tree.map(lambda x: exact.wide(x).abs().sum(), values))
