"""RAdam: Adam that waits until its second moment can be trusted."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.adam import ScaleByAdamState
from boxopt.scale.moments import bias_correction, look_ahead, map_wide, over_root, times, update_moment, zeros_like


def scale_by_radam(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    r"""Adam with its scaling rectified for the variance of the second moment, and left out while that is infinite.

    With $\rho_\infty = 2/(1 - \beta_2) - 1$ and $\rho = \rho_\infty - 2t\beta_2^t/(1 - \beta_2^t)$,

    $$ u = \sqrt{\frac{(\rho - 4)(\rho - 2)\rho_\infty}{(\rho_\infty - 4)(\rho_\infty - 2)\rho}}\,
       \frac{\hat m}{\sqrt{\hat v + \epsilon_r} + \epsilon} \ \text{ where } \rho \ge \text{threshold}, \quad
       u = \hat m \ \text{ before} $$

    The step size is the factor of $\hat m$.

    Args:
        b1: β₁, the decay of the first moment.
        b2: β₂, the decay of the second moment.
        eps: ε, added to the root.
        eps_root: εᵣ, added under the root.
        threshold: From what ρ on to scale; more than 4.
        nesterov: Look ahead by one step, as NAdam does.

    Returns:
        A gradient-space transformation with a `ScaleByAdamState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_radam()
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 3.0000, -0.1000])

    Source:
        L. Liu et al., "On the variance of the adaptive learning rate and beyond", ICLR 2020; `optax.scale_by_radam`;
        `torch.optim.RAdam`, which has ε before the correction of the bias.
    """
    return GradientTransformation(
        _radam_init,
        bind(_radam_update, b1=b1, b2=b2, eps=eps, eps_root=eps_root, threshold=threshold, nesterov=nesterov),
        bind(_radam_step_size, b2=b2, eps=eps, eps_root=eps_root, threshold=threshold),
    )


def _radam_init(params: Any) -> ScaleByAdamState:
    tree.check_parameters(params)
    return ScaleByAdamState(zero_count(params), zeros_like(params), zeros_like(params))


@elementwise
def _radam_update(
    updates: P,
    state: ScaleByAdamState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    threshold: Scalar,
    nesterov: bool,
) -> tuple[P, ScaleByAdamState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, b1, 1)
    nu = update_moment(updates, state.nu, b2, 2)
    weight = exact.cast_once(1 / bias_correction(b1, count))
    ahead, rectified = look_ahead(b1, count), _rectified(count, b2, eps, eps_root, threshold)

    def direction(m: Tensor, v: Tensor, g: Tensor) -> Tensor:
        return rectified((ahead(m, g) if nesterov else m) * weight(m), v)

    return map_wide(direction, mu, nu, updates), ScaleByAdamState(count, mu, nu)


def _radam_step_size(
    state: ScaleByAdamState, step_size: Any, *, b2: Scalar, eps: Scalar, eps_root: Scalar, threshold: Scalar
) -> Any:
    rectified = _rectified(state.count, b2, eps, eps_root, threshold)
    return times(step_size, lambda v: rectified(torch.ones_like(v), v), state.nu)


def _rectified(count: Tensor, b2: Scalar, eps: Scalar, eps_root: Scalar, threshold: Scalar) -> Callable[..., Tensor]:
    """The corrected mean, scaled and rectified, or as it is, as a function of it and of v."""
    received = bias_correction(b2, count)
    longest = 2 / (1 - b2) - 1
    length = longest - 2 * count * (1 - received) / received
    trusted = length >= threshold
    # Before the threshold the root is of a negative number: its derivative must not be taken.
    over, under = (length - 4) * (length - 2) * longest, (longest - 4) * (longest - 2) * length
    rectification = torch.sqrt(torch.where(trusted, over, 1.0) / torch.where(trusted, under, 1.0))
    factor = exact.cast_once(rectification)
    ratio = over_root(1.0, received, eps, eps_root)

    def rectified(mean: Tensor, v: Tensor) -> Tensor:
        return torch.where(trusted, factor(mean) * ratio(mean, v), mean)

    return rectified
