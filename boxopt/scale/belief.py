"""Second moments that measure something else than the mean square: AdaBelief and Yogi."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.adam import ScaleByAdamState, adam_ratio, adam_step_size
from boxopt.scale.moments import full_like, map_wide, update_moment, zeros_like


class ScaleByBeliefState(NamedTuple):
    """The state of `scale_by_belief`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
        nu: The running average of their squared distances from it.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any
    nu: Any


def scale_by_belief(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-16, eps_root: Scalar = 1e-16, *, nesterov: bool = False
) -> GradientTransformation:
    r"""Rescale gradients by how far they are from what was expected.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
       v \leftarrow \beta_2 v + (1 - \beta_2)(g - m)^2 + \epsilon_r, \qquad
       u = \frac{\hat m}{\sqrt{\hat v} + \epsilon} $$

    The step size is $1/(\sqrt{\hat v} + \epsilon)$, coordinate by coordinate.

    Args:
        b1: β₁, the decay of the first moment.
        b2: β₂, the decay of the second moment.
        eps: ε, added to the root.
        eps_root: εᵣ, added to the second moment at each step.
        nesterov: Look ahead by one step, as NAdam does.

    Returns:
        A gradient-space transformation with a `ScaleByBeliefState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_belief(b1=0.5)
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 2.0000, -2.0000])

    Source:
        J. Zhuang et al., "AdaBelief optimizer: adapting stepsizes by the belief in observed gradients", NeurIPS 2020;
        `optax.scale_by_belief`.
    """
    return GradientTransformation(
        _belief_init,
        bind(_belief_update, b1=b1, b2=b2, eps=eps, eps_root=eps_root, nesterov=nesterov),
        bind(adam_step_size, b2=b2, eps=eps, eps_root=0.0),
    )


def _belief_init(params: Any) -> ScaleByBeliefState:
    tree.check_parameters(params)
    return ScaleByBeliefState(zero_count(params), zeros_like(params), zeros_like(params))


@elementwise
def _belief_update(
    updates: P,
    state: ScaleByBeliefState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    nesterov: bool,
) -> tuple[P, ScaleByBeliefState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, b1, 1)
    decay, rest, added = exact.cast_once(b2), exact.cast_once(1 - b2), exact.cast_once(eps_root)

    def average(v: Tensor, g: Tensor, m: Tensor) -> Tensor:
        error = g - m
        return decay(v) * v + rest(v) * (error * error) + added(v)

    nu = map_wide(average, state.nu, updates, mu)
    return adam_ratio(updates, count, mu, nu, b1, b2, eps, 0.0, nesterov), ScaleByBeliefState(count, mu, nu)


def scale_by_yogi(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-3,
    eps_root: Scalar = 0.0,
    initial_accumulator_value: float = 1e-6,
) -> GradientTransformation:
    r"""Adam whose second moment moves by a bounded amount, so that it forgets slowly.

    $$ v \leftarrow v - (1 - \beta_2) \operatorname{sign}(v - g^2)\, g^2 $$

    and the rest as in `scale_by_adam`, as is the step size.

    Args:
        b1: β₁, the decay of the first moment.
        b2: β₂, the decay of the second moment.
        eps: ε, added to the root.
        eps_root: εᵣ, added under the root.
        initial_accumulator_value: The first value of both moments, as in optax.

    Returns:
        A gradient-space transformation with a `ScaleByAdamState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_yogi(b2=0.75)
        >>> tx.update(torch.tensor([2.0]), tx.init(torch.zeros(1)), torch.zeros(1))[1].nu
        tensor([1.0000])

    Source:
        M. Zaheer et al., "Adaptive methods for nonconvex optimization", NeurIPS 2018; `optax.scale_by_yogi`.
    """
    return GradientTransformation(
        bind(_yogi_init, initial=initial_accumulator_value),
        bind(_yogi_update, b1=b1, b2=b2, eps=eps, eps_root=eps_root),
        bind(adam_step_size, b2=b2, eps=eps, eps_root=eps_root),
    )


def _yogi_init(params: Any, *, initial: float) -> ScaleByAdamState:
    tree.check_parameters(params)
    return ScaleByAdamState(zero_count(params), full_like(params, initial), full_like(params, initial))


@elementwise
def _yogi_update(
    updates: P, state: ScaleByAdamState, params: P, *, b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar
) -> tuple[P, ScaleByAdamState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, b1, 1)
    rest = exact.cast_once(1 - b2)

    def move(v: Tensor, g: Tensor) -> Tensor:
        square = g * g
        return v - rest(v) * torch.sign(v - square) * square

    nu = map_wide(move, state.nu, updates)
    return adam_ratio(updates, count, mu, nu, b1, b2, eps, eps_root), ScaleByAdamState(count, mu, nu)
