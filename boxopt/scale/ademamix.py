"""AdEMAMix: Adam with a second, much slower, average of the gradients; and its simplified form."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import current, zero_count
from boxopt.scale.moments import bias_correction, map_wide, safe_sqrt, update_moment, zeros_like


class ScaleByAdemamixState(NamedTuple):
    """The state of `scale_by_ademamix`.

    Attributes:
        count: The number of updates made, an int64 scalar. (optax has two, which are always equal.)
        m1: The fast average of the gradients.
        m2: The slow average of the gradients.
        nu: The running average of their squares.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    m1: Any
    m2: Any
    nu: Any


def scale_by_ademamix(
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 6.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
) -> GradientTransformation:
    r"""Rescale a mixture of a fast and a slow average of gradients by the average of their squares.

    $$ u = \frac{\hat m_1 + \alpha m_2}{\sqrt{\hat v + \epsilon_r} + \epsilon}, \qquad
       m_i \leftarrow \beta m_i + (1 - \beta) g \ \text{ with } \ \beta = \beta_1, \beta_3 $$

    Only $m_1$ and $v$ are corrected for bias. The step size is $1/(\sqrt{\hat v + \epsilon_r} + \epsilon)$.

    Args:
        b1: β₁, of the fast average.
        b2: β₂, of the second moment.
        b3: β₃, of the slow average; a number or a schedule.
        alpha: α, the weight of the slow average; a number or a schedule.
        eps: ε.
        eps_root: εᵣ.

    Returns:
        A gradient-space transformation with a `ScaleByAdemamixState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.contrib.scale_by_ademamix(b3=0.9)
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 1.6000, -1.6000])

    Source:
        M. Pagliardini, P. Ablin and D. Grangier, "The AdEMAMix optimizer: better, faster, older", 2024;
        `optax.contrib.scale_by_ademamix`.
    """
    return GradientTransformation(
        _ademamix_init,
        bind(_ademamix_update, b1=b1, b2=b2, b3=b3, alpha=alpha, eps=eps, eps_root=eps_root),
        bind(_second_moment_step_size, b2=b2, eps=eps, eps_root=eps_root),
    )


def _ademamix_init(params: Any) -> ScaleByAdemamixState:
    tree.check_parameters(params)
    return ScaleByAdemamixState(zero_count(params), zeros_like(params), zeros_like(params), zeros_like(params))


@elementwise
def _ademamix_update(
    updates: P,
    state: ScaleByAdemamixState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    b3: ScalarOrSchedule,
    alpha: ScalarOrSchedule,
    eps: Scalar,
    eps_root: Scalar,
) -> tuple[P, ScaleByAdemamixState]:
    count = state.count + 1
    slow_weight = current(alpha, state)
    m1 = update_moment(updates, state.m1, b1, 1)
    m2 = update_moment(updates, state.m2, current(b3, state), 1)
    nu = update_moment(updates, state.nu, b2, 2)
    fast_scale, square_scale = bias_correction(b1, count), bias_correction(b2, count)

    def direction(fast: Tensor, slow: Tensor, v: Tensor) -> Tensor:
        mixed = fast / exact.like(fast_scale, v) + exact.like(slow_weight, v) * slow
        return mixed / _root(v, square_scale, eps, eps_root)

    return map_wide(direction, m1, m2, nu), ScaleByAdemamixState(count, m1, m2, nu)


class ScaleBySimplifiedAdEMAMixState(NamedTuple):
    """The state of `scale_by_simplified_ademamix`.

    Attributes:
        count: The number of updates made, an int64 scalar; optax's ``t``.
        m: The decaying sum of the gradients.
        nu: The running average of their squares; optax's ``n``.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    m: Any
    nu: Any


def scale_by_simplified_ademamix(
    b1: Scalar = 0.99,
    b2: Scalar = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
) -> GradientTransformation:
    r"""Rescale a decaying sum of gradients, plus a multiple of the latest, by the average of their squares.

    $$ m \leftarrow \beta_1 m + g, \qquad u = \frac{m + \alpha g}{\sqrt{\hat v + \epsilon_r} + \epsilon} $$

    The step size is $1/(\sqrt{\hat v + \epsilon_r} + \epsilon)$.

    Args:
        b1: β₁, of the sum.
        b2: β₂, of the second moment.
        alpha: α, the additional weight of the latest gradient; a number or a schedule.
        eps: ε.
        eps_root: εᵣ.

    Returns:
        A gradient-space transformation with a `ScaleBySimplifiedAdEMAMixState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.contrib.scale_by_simplified_ademamix(alpha=1.0)
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 2.0000, -2.0000])

    Source:
        D. Morwani et al., "Connections between schedule-free optimizers, AdEMAMix, and accelerated SGD variants", 2025;
        `optax.contrib.scale_by_simplified_ademamix`.
    """
    return GradientTransformation(
        _simplified_init,
        bind(_simplified_update, b1=b1, b2=b2, alpha=alpha, eps=eps, eps_root=eps_root),
        bind(_second_moment_step_size, b2=b2, eps=eps, eps_root=eps_root),
    )


def _simplified_init(params: Any) -> ScaleBySimplifiedAdEMAMixState:
    tree.check_parameters(params)
    return ScaleBySimplifiedAdEMAMixState(zero_count(params), zeros_like(params), zeros_like(params))


@elementwise
def _simplified_update(
    updates: P,
    state: ScaleBySimplifiedAdEMAMixState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    alpha: ScalarOrSchedule,
    eps: Scalar,
    eps_root: Scalar,
) -> tuple[P, ScaleBySimplifiedAdEMAMixState]:
    count = state.count + 1
    latest_weight = current(alpha, state)
    m = map_wide(lambda m, g: exact.like(b1, m) * m + g, state.m, updates)
    nu = update_moment(updates, state.nu, b2, 2)
    square_scale = bias_correction(b2, count)

    def direction(m: Tensor, g: Tensor, v: Tensor) -> Tensor:
        return (m + exact.like(latest_weight, v) * g) / _root(v, square_scale, eps, eps_root)

    return map_wide(direction, m, updates, nu), ScaleBySimplifiedAdEMAMixState(count, m, nu)


def _second_moment_step_size(state: Any, step_size: Any, *, b2: Scalar, eps: Scalar, eps_root: Scalar) -> Any:
    square_scale = bias_correction(b2, state.count)

    def size(v: Tensor, outer: Any) -> Tensor:
        v = exact.wide(v)
        return exact.like(outer, v) / _root(v, square_scale, eps, eps_root)

    return tree.map(size, state.nu, tree.expand(step_size, state.nu))


def _root(v: Tensor, square_scale: Tensor, eps: Scalar, eps_root: Scalar) -> Tensor:
    """√(v̂ + εᵣ) + ε."""
    return safe_sqrt(v / exact.like(square_scale, v) + exact.like(eps_root, v)) + exact.like(eps, v)
