"""ADOPT's scaling: Adam that converges for any decay of the second moment."""

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
from boxopt.scale.moments import map_wide, safe_sqrt, zeros_like
from boxopt.scale.scalars import maximum


def fourth_root(count: Tensor) -> Tensor:
    """ADOPT's limit on the normalized gradient: the fourth root of the number of updates made so far."""
    return count.to(torch.float64 if count.device.type != "mps" else torch.float32) ** 0.25


def scale_by_adopt(
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Tensor], Tensor] = fourth_root,
) -> GradientTransformation:
    r"""Average gradients that were each normalized by the second moment *before* them.

    $$ d = \operatorname{clip}\left(\frac{g}{\max(\sqrt{v}, \epsilon)}, \pm c_t\right), \qquad
       m \leftarrow \beta_1 m + (1 - \beta_1) d, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad u = m $$

    With $t$ from 0, $v \leftarrow g^2$ and $m \leftarrow m$ at $t = 0$, so that the first update is zero.

    Each gradient in the average was scaled by a metric of its own, so that there is no one exact step size: it is
    $1/\max(\sqrt v, \epsilon)$ with the new $v$, the factor of the next gradient.

    Args:
        b1: β₁.
        b2: β₂.
        eps: ε.
        nesterov: Look ahead by one step.
        use_clipping: Whether to clip the normalized gradient.
        clip_value_fn: $c_t$, from the number of updates made so far, an int64 scalar.

    Returns:
        A gradient-space transformation with a `ScaleByAdamState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_adopt(), torch.zeros(2)
        >>> updates, state = tx.update(torch.tensor([3.0, -0.1]), tx.init(params), params)
        >>> tx.update(torch.tensor([1.5, -0.1]), state, params)[0]
        tensor([ 0.0500, -0.1000])

    Source:
        S. Taniguchi et al., "ADOPT: modified Adam can converge with any β₂ with the optimal rate", NeurIPS 2024;
        `optax.contrib.scale_by_adopt`.
    """
    return GradientTransformation(
        _adopt_init,
        bind(
            _adopt_update,
            b1=b1,
            b2=b2,
            eps=eps,
            nesterov=nesterov,
            clip_value_fn=clip_value_fn if use_clipping else None,
        ),
        bind(_adopt_step_size, eps=eps),
    )


def _adopt_init(params: Any) -> ScaleByAdamState:
    tree.check_parameters(params)
    return ScaleByAdamState(zero_count(params), zeros_like(params), zeros_like(params))


@elementwise
def _adopt_update(
    updates: P,
    state: ScaleByAdamState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    nesterov: bool,
    clip_value_fn: Callable[[Tensor], Tensor] | None,
) -> tuple[P, ScaleByAdamState]:
    started = state.count > 0

    def normalize(g: Tensor, v: Tensor) -> Tensor:
        direction = g / maximum(safe_sqrt(v), eps)
        if clip_value_fn is None:
            return direction
        limit = exact.like(clip_value_fn(state.count), g)
        return exact.clamp(direction, -limit, limit)

    def average(m: Tensor, d: Tensor) -> Tensor:
        return torch.where(started, exact.like(b1, m) * m + exact.like(1 - b1, m) * d, m)

    def square(v: Tensor, g: Tensor) -> Tensor:
        return torch.where(started, exact.like(b2, v) * v + exact.like(1 - b2, v) * g * g, g * g)

    normalized = map_wide(normalize, updates, state.nu)
    mu = map_wide(average, state.mu, normalized)
    nu = map_wide(square, state.nu, updates)
    new = map_wide(average, mu, normalized) if nesterov else mu
    return new, ScaleByAdamState(state.count + 1, mu, nu)


def _adopt_step_size(state: ScaleByAdamState, step_size: Any, *, eps: Scalar) -> Any:
    def size(v: Tensor, outer: Any) -> Tensor:
        v = exact.wide(v)
        return exact.like(outer, v) / maximum(safe_sqrt(v), eps)

    return tree.map(size, state.nu, tree.expand(step_size, state.nu))
