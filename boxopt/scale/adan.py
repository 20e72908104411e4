"""Adan's scaling: moments of the gradient, of its change, and of the gradient extrapolated by the change."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import bias_correction, map_wide, over_root, times, update_moment, zeros_like


class ScaleByAdanState(NamedTuple):
    """The state of `scale_by_adan`.

    Attributes:
        m: The running average of the gradients.
        v: The running average of their changes.
        n: The running average of the squares of the extrapolated gradients.
        g: The last gradient.
        t: The number of updates made, an int64 scalar.
    """

    m: Any
    v: Any
    n: Any
    g: Any
    t: Tensor


def scale_by_adan(
    b1: Scalar = 0.98, b2: Scalar = 0.92, b3: Scalar = 0.99, eps: Scalar = 1e-8, eps_root: Scalar = 0.0
) -> GradientTransformation:
    r"""Adam with Nesterov's momentum estimated from the change of the gradient.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \quad v \leftarrow \beta_2 v + (1 - \beta_2) d, \quad
       n \leftarrow \beta_3 n + (1 - \beta_3)(g + (1 - \beta_2) d)^2, \quad
       u = \frac{\hat m + (1 - \beta_2)\hat v}{\sqrt{\hat n + \epsilon_r} + \epsilon} $$

    where $d$ is the change of the gradient since the last update, 0 at the first. The step size is
    $1/(\sqrt{\hat n + \epsilon_r} + \epsilon)$, coordinate by coordinate.

    Args:
        b1: β₁, the decay of the average of gradients.
        b2: β₂, the decay of the average of changes.
        b3: β₃, the decay of the average of squares.
        eps: ε, added to the root.
        eps_root: εᵣ, added under the root.

    Returns:
        A gradient-space transformation with a `ScaleByAdanState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_adan()
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 1.0000, -1.0000])

    Source:
        X. Xie et al., "Adan: adaptive Nesterov momentum algorithm for faster optimizing deep models", 2022;
        `optax.scale_by_adan`.
    """
    return GradientTransformation(
        _adan_init,
        bind(_adan_update, b1=b1, b2=b2, b3=b3, eps=eps, eps_root=eps_root),
        bind(_adan_step_size, b3=b3, eps=eps, eps_root=eps_root),
    )


def _adan_init(params: Any) -> ScaleByAdanState:
    tree.check_parameters(params)
    m, v, n, g = (zeros_like(params) for _ in range(4))
    return ScaleByAdanState(m, v, n, g, zero_count(params))


@elementwise
def _adan_update(
    updates: P, state: ScaleByAdanState, params: P, *, b1: Scalar, b2: Scalar, b3: Scalar, eps: Scalar, eps_root: Scalar
) -> tuple[P, ScaleByAdanState]:
    t = state.t + 1
    first = state.t == 0
    change = map_wide(lambda g, old: torch.where(first, 0.0, g - old), updates, state.g)
    extrapolated = map_wide(lambda g, d: g + (1 - exact.like(b2, g)) * d, updates, change)
    m = update_moment(updates, state.m, b1, 1)
    v = update_moment(change, state.v, b2, 1)
    n = update_moment(extrapolated, state.n, b3, 2)
    weight = exact.cast_once(1 / bias_correction(b1, t))
    weight_of_change = exact.cast_once((1 - b2) / bias_correction(b2, t))
    ratio = over_root(1.0, bias_correction(b3, t), eps, eps_root)
    scaled = map_wide(lambda m, v, n: ratio(m * weight(m) + v * weight_of_change(v), n), m, v, n)
    return scaled, ScaleByAdanState(m, v, n, updates, t)


def _adan_step_size(state: ScaleByAdanState, step_size: Any, *, b3: Scalar, eps: Scalar, eps_root: Scalar) -> Any:
    ratio = over_root(1.0, bias_correction(b3, state.t), eps, eps_root)
    return times(step_size, lambda n: ratio(torch.ones_like(n), n), state.n)
