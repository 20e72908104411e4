"""NovoGrad's scaling: a second moment for each leaf."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import map_wide, safe_sqrt, times, zeros_like


class ScaleByNovogradState(NamedTuple):
    """The state of `scale_by_novograd`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The decaying sum of the scaled gradients.
        nu: For each leaf the running average of the gradient's squared norm, a scalar.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any
    nu: Any


def scale_by_novograd(
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
) -> GradientTransformation:
    r"""Momentum of gradients divided, leaf by leaf, by the running average of their norm.

    $$ v \leftarrow \beta_2 v + (1 - \beta_2) \lVert g \rVert_2^2, \qquad
       m \leftarrow \beta_1 m + \frac{g}{\sqrt{v + \epsilon_r} + \epsilon} + \lambda x, \qquad u = m $$

    with $v = \lVert g \rVert_2^2$ at the first update. The step size is $1/(\sqrt{v + \epsilon_r} + \epsilon)$, a
    number for each leaf.

    Args:
        b1: β₁, the decay of the momentum.
        b2: β₂, the decay of the squared norms.
        eps: ε, added to the root.
        eps_root: εᵣ, added under the root.
        weight_decay: λ.

    Returns:
        A gradient-space transformation with a `ScaleByNovogradState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_novograd(), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.6000, 0.8000])

    Source:
        B. Ginsburg et al., "Stochastic gradient methods with layer-wise adaptive moments for training of deep
        networks", 2019; `optax.scale_by_novograd`.
    """
    return GradientTransformation(
        _novograd_init,
        bind(_novograd_update, b1=b1, b2=b2, eps=eps, eps_root=eps_root, weight_decay=weight_decay),
        bind(_novograd_step_size, eps=eps, eps_root=eps_root),
    )


def _novograd_init(params: Any) -> ScaleByNovogradState:
    tree.check_parameters(params)
    nu = tree.map(lambda x: torch.zeros((), dtype=exact.wide(x).dtype, device=x.device), params)
    return ScaleByNovogradState(zero_count(params), zeros_like(params), nu)


def _novograd_update(
    updates: P,
    state: ScaleByNovogradState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    weight_decay: Scalar,
) -> tuple[P, ScaleByNovogradState]:
    first = state.count == 0

    def average(v: Tensor, g: Tensor) -> Tensor:
        square = exact.wide(g).square().sum()
        return torch.where(first, square, exact.like(b2, v) * v + exact.like(1 - b2, v) * square)

    def accumulate(m: Tensor, g: Tensor, p: Tensor, v: Tensor) -> Tensor:
        return exact.like(b1, m) * m + (g * _inverse(v, eps, eps_root) + exact.like(weight_decay, m) * p)

    nu = tree.map(average, state.nu, updates)
    mu = map_wide(accumulate, state.mu, updates, params, nu)
    return mu, ScaleByNovogradState(state.count + 1, mu, nu)


def _novograd_step_size(state: ScaleByNovogradState, step_size: Any, *, eps: Scalar, eps_root: Scalar) -> Any:
    return times(step_size, lambda v: _inverse(v, eps, eps_root), state.nu)


def _inverse(v: Tensor, eps: Scalar, eps_root: Scalar) -> Tensor:
    return 1 / (safe_sqrt(v + exact.like(eps_root, v)) + exact.like(eps, v))
