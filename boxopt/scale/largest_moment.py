"""Second moments that take a maximum: AMSGrad and Adamax."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.adam import ScaleByAdamState
from boxopt.scale.moments import bias_correction, map_wide, over_root, times, update_moment, zeros_like


class ScaleByAmsgradState(NamedTuple):
    """The state of `scale_by_amsgrad`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
        nu: The running average of their squares.
        nu_max: The largest that ``nu``, its bias corrected, has been.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any
    nu: Any
    nu_max: Any


def scale_by_amsgrad(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    *,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    r"""Adam whose second moment never decreases.

    $$ u = \frac{\hat m}{\sqrt{\bar v + \epsilon_r} + \epsilon}, \qquad \bar v \leftarrow \max(\bar v, \hat v) $$

    with $\hat m$ and $\hat v$ as in `scale_by_adam`. The step size is the factor of $\hat m$.

    Args:
        b1: β₁, the decay of the first moment.
        b2: β₂, the decay of the second moment.
        eps: ε, added to the root.
        eps_root: εᵣ, added under the root.
        bias_correction_mu: Whether to correct the bias of the first moment.
        bias_correction_nu: Whether to correct that of the second, before the maximum, as optax does.

    Returns:
        A gradient-space transformation with a `ScaleByAmsgradState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_amsgrad(), torch.zeros(1)
        >>> updates, state = tx.update(torch.tensor([3.0]), tx.init(params), params)
        >>> tx.update(torch.tensor([0.0]), state, params)[1].nu_max
        tensor([9.0000])

    Source:
        S. J. Reddi, S. Kale and S. Kumar, "On the convergence of Adam and beyond", ICLR 2018;
        `optax.scale_by_amsgrad`. `torch.optim.Adam(amsgrad=True)` takes the maximum before the correction.
    """
    return GradientTransformation(
        _amsgrad_init,
        bind(
            _amsgrad_update,
            b1=b1,
            b2=b2,
            eps=eps,
            eps_root=eps_root,
            correct_mu=bias_correction_mu,
            correct_nu=bias_correction_nu,
        ),
        bind(_amsgrad_step_size, eps=eps, eps_root=eps_root),
    )


def _amsgrad_init(params: Any) -> ScaleByAmsgradState:
    tree.check_parameters(params)
    return ScaleByAmsgradState(zero_count(params), zeros_like(params), zeros_like(params), zeros_like(params))


@elementwise
def _amsgrad_update(
    updates: P,
    state: ScaleByAmsgradState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    correct_mu: bool,
    correct_nu: bool,
) -> tuple[P, ScaleByAmsgradState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, b1, 1)
    nu = update_moment(updates, state.nu, b2, 2)
    weight = exact.cast_once(1 / bias_correction(b2, count)) if correct_nu else exact.cast_once(1.0)
    nu_max = map_wide(lambda old, v: larger(v * weight(v), old), state.nu_max, nu)
    ratio = over_root(bias_correction(b1, count) if correct_mu else 1.0, 1.0, eps, eps_root)
    return map_wide(ratio, mu, nu_max), ScaleByAmsgradState(count, mu, nu, nu_max)


def _amsgrad_step_size(state: ScaleByAmsgradState, step_size: Any, *, eps: Scalar, eps_root: Scalar) -> Any:
    ratio = over_root(1.0, 1.0, eps, eps_root)
    return times(step_size, lambda v: ratio(torch.ones_like(v), v), state.nu_max)


def larger(x: Tensor, y: Tensor) -> Tensor:
    """The maximum; at ties its derivative is that of ``y``."""
    return torch.where(x > y, x, y)


def scale_by_adamax(b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8) -> GradientTransformation:
    r"""Adam with the decaying maximum of the gradients in the place of their root mean square.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \max(\beta_2 v, |g| + \epsilon), \qquad
       u = \frac{m}{(1 - \beta_1^t)\, v} $$

    The step size is $1/v$, coordinate by coordinate.

    Args:
        b1: β₁, the decay of the first moment.
        b2: β₂, the decay of the maximum.
        eps: ε.

    Returns:
        A gradient-space transformation with a `ScaleByAdamState`, whose ``nu`` is the maximum.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_adamax()
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 1., -1.])

    Source:
        D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015, section 7.1;
        `optax.scale_by_adamax`.
    """
    return GradientTransformation(_adamax_init, bind(_adamax_update, b1=b1, b2=b2, eps=eps), _adamax_step_size)


def _adamax_init(params: Any) -> ScaleByAdamState:
    tree.check_parameters(params)
    return ScaleByAdamState(zero_count(params), zeros_like(params), zeros_like(params))


@elementwise
def _adamax_update(
    updates: P, state: ScaleByAdamState, params: P, *, b1: Scalar, b2: Scalar, eps: Scalar
) -> tuple[P, ScaleByAdamState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, b1, 1)
    decay, added = exact.cast_once(b2), exact.cast_once(eps)
    nu = map_wide(lambda v, g: larger(g.abs() + added(v), decay(v) * v), state.nu, updates)
    weight = exact.cast_once(1 / bias_correction(b1, count))
    scaled = map_wide(lambda m, v: m * weight(m) * _inverse(v), mu, nu)
    return scaled, ScaleByAdamState(count, mu, nu)


def _adamax_step_size(state: ScaleByAdamState, step_size: Any) -> Any:
    return times(step_size, _inverse, state.nu)


def _inverse(v: Tensor) -> Tensor:
    """1/v, and 0 where rounding to 16 bits has left v at 0."""
    positive = v > 0
    return torch.where(positive, 1 / torch.where(positive, v, 1.0), 0.0)
