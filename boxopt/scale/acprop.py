"""ACProp's scaling: the gradient over the deviation of the gradients before it from their average."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import bias_correction, map_wide, safe_sqrt, update_moment, zeros_like


class ScaleByAcpropState(NamedTuple):
    """The state of `scale_by_acprop`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
        nu: The running average of the squared deviations.
        previous_nu: The one before, which scaled the last update: for the step size.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any
    nu: Any
    previous_nu: Any


def scale_by_acprop(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16
) -> GradientTransformation:
    r"""Rescale gradients by the root of the variance of those before them: AdaBelief, asynchronously.

    $$ u = \frac{g}{\sqrt{\hat s} + \epsilon}, \quad \hat s = \frac{s}{1 - \beta_2^{t-1}}, \qquad
       s \leftarrow \beta_2 s + (1 - \beta_2)(g - m)^2 + \epsilon_r, \qquad
       m \leftarrow \beta_1 m + (1 - \beta_1) g $$

    with $\hat s = 1$ in the first step. The step size is $1/(\sqrt{\hat s} + \epsilon)$.

    Args:
        b1: β₁.
        b2: β₂.
        eps: ε.
        eps_root: εᵣ, which adds up in the average.

    Returns:
        A gradient-space transformation with a `ScaleByAcpropState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_acprop(), torch.zeros(1)
        >>> updates, state = tx.update(torch.tensor([2.0]), tx.init(params), params)
        >>> updates, tx.update(torch.tensor([1.0]), state, params)[0]
        (tensor([2.]), tensor([0.5000]))

    Source:
        J. Zhuang et al., "Momentum centering and asynchronous update for adaptive gradient methods", NeurIPS 2021;
        `optax.contrib.scale_by_acprop`.
    """
    return GradientTransformation(
        _acprop_init,
        bind(_acprop_update, b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        bind(_acprop_step_size, b2=b2, eps=eps),
    )


def _acprop_init(params: Any) -> ScaleByAcpropState:
    tree.check_parameters(params)
    return ScaleByAcpropState(zero_count(params), zeros_like(params), zeros_like(params), zeros_like(params))


@elementwise
def _acprop_update(
    updates: P, state: ScaleByAcpropState, params: P, *, b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar
) -> tuple[P, ScaleByAcpropState]:
    def deviation(s: Tensor, g: Tensor, m: Tensor) -> Tensor:
        return exact.like(b2, s) * s + exact.like(1 - b2, s) * (g - m) ** 2 + exact.like(eps_root, s)

    scaled = map_wide(lambda g, s: g * _factor(s, state.count, b2, eps), updates, state.nu)
    nu = map_wide(deviation, state.nu, updates, state.mu)
    return scaled, ScaleByAcpropState(state.count + 1, update_moment(updates, state.mu, b1, 1), nu, state.nu)


def _acprop_step_size(state: ScaleByAcpropState, step_size: Any, *, b2: Scalar, eps: Scalar) -> Any:
    def size(s: Tensor, outer: Any) -> Tensor:
        s = exact.wide(s)
        return exact.like(outer, s) * _factor(s, state.count - 1, b2, eps)

    return tree.map(size, state.previous_nu, tree.expand(step_size, state.previous_nu))


def _factor(s: Tensor, count: Tensor, b2: Scalar, eps: Scalar) -> Tensor:
    started = count > 0
    weight = bias_correction(b2, torch.where(started, count, 1))
    corrected = torch.where(started, s / exact.like(weight, s), 1.0)
    return 1 / (safe_sqrt(corrected) + exact.like(eps, s))
