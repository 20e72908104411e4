"""Mechanic: learn the scale of another optimizer's updates."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.combine import refuse_finished
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import map_wide, safe_sqrt
from boxopt.scale.scalars import inner, maximum, norm, scalar_like, step_size_times


class MechanicState(NamedTuple):
    """The state of `mechanize`.

    Attributes:
        base_optimizer_state: The base optimizer's.
        count: The number of updates made, an int64 scalar.
        r: The wealth, for each β.
        m: The decaying largest correlation, for each β.
        v: The decaying sum of squared correlations, for each β.
        s: The scales, which are added up, for each β.
        x0: The first parameters.
    """

    base_optimizer_state: Any
    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    r: Tensor
    m: Tensor
    v: Tensor
    s: Tensor
    x0: Any


def mechanize(
    base_optimizer: GradientTransformation,
    weight_decay: Scalar = 1e-2,
    eps: Scalar = 1e-8,
    s_init: Scalar = 1e-6,
    num_betas: int = 6,
) -> GradientTransformation:
    r"""Sum up a base optimizer's updates and learn the number to multiply the sum by.

    With the base's sum $\Delta = (x - x_0)/\sum_i s_i$, its update $u_b$ and
    $\tilde g = g + w \sum_i s_i \frac{\lVert g \rVert}{\lVert x \rVert} x$,

    $$ h = -\langle \tilde g, \Delta \rangle, \quad
       r_i \leftarrow \beta_i r_i + s_i \operatorname{clip}(h, \pm m_i), \quad
       m_i \leftarrow \max(\beta_i m_i, |h|), \quad v_i \leftarrow \beta_i^2 v_i + h^2, $$

    $$ s_i \leftarrow \frac{m_i s_0/n + \max(r_i, 0)}{\sqrt{v_i} + \epsilon}, \qquad
       x^+ = x_0 + \sum_i s_i (\Delta + u_b), \qquad \beta_i = 1 - 10^{-i} $$

    The base optimizer has a learning rate of about 1, or a schedule with that maximum. The step size is the base's
    times $\sum_i s_i$, by which its latest update enters.

    Args:
        base_optimizer: A transformation whose updates descend. Sets come after: ``chain(mechanize(adam(1.0)),
            project(set))``.
        weight_decay: w.
        eps: ε, also added to m and to what is divided by.
        s_init: $s_0$, the first scale.
        num_betas: n.

    Returns:
        A transformation with a `MechanicState`; it takes the base's extra arguments.

    Raises:
        ValueError: The base optimizer ends in a step-space transformation.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.mechanize(bx.sgd(1.0), s_init=0.1), torch.ones(1)
        >>> updates, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> bool(updates < 0)
        True

    Source:
        A. Cutkosky, A. Defazio and H. Mehta, "Mechanic: a learning rate tuner", NeurIPS 2023;
        `optax.contrib.mechanize`.
    """
    refuse_finished("mechanize", base_optimizer)
    base = on_leaves(base_optimizer)
    return GradientTransformation(
        bind(_mechanic_init, base_optimizer=base, s_init=s_init, num_betas=num_betas),
        bind(_mechanic_update, base_optimizer=base, weight_decay=weight_decay, eps=eps, s_init=s_init),
        bind(_mechanic_step_size, base_optimizer=base),
    )


def _mechanic_init(
    params: Any, *, base_optimizer: GradientTransformation, s_init: Scalar, num_betas: int
) -> MechanicState:
    tree.check_parameters(params)
    r, m, v = (scalar_like(params, 0.0).repeat(num_betas) for _ in range(3))
    scales = scalar_like(params, s_init).repeat(num_betas)
    return MechanicState(
        base_optimizer.init(params), zero_count(params), r, m, v, scales, tree.map(Tensor.clone, params)
    )


def _mechanic_update(
    updates: P,
    state: MechanicState,
    params: P,
    *,
    base_optimizer: GradientTransformation,
    weight_decay: Scalar,
    eps: Scalar,
    s_init: Scalar,
    **extra: Any,
) -> tuple[P, MechanicState]:
    base_updates, base_state = base_optimizer.update(updates, state.base_optimizer_state, params, **extra)
    first = state.count == 0
    start = tree.map(lambda x0, p: torch.where(first, p, x0), state.x0, params)
    small = exact.like(eps, state.s)
    total = state.s.sum()
    decay = exact.like(weight_decay, total) * total * norm(updates) / (norm(params) + small)
    decayed = map_wide(lambda g, p: g + exact.like(decay, g) * p, updates, params)
    travelled = map_wide(lambda p, x0: (x0 - p) / exact.like(total + small, p), params, start)

    correlation = inner(decayed, travelled)
    clipped = exact.clamp(correlation * torch.ones_like(state.m), -state.m, state.m)
    betas = 1 - 0.1 ** torch.arange(1, state.s.shape[-1] + 1, dtype=state.s.dtype, device=state.s.device)
    m = maximum(betas * state.m, correlation.abs() + small)
    v = betas * betas * state.v + correlation * correlation
    r = betas * state.r + clipped * state.s
    wealth = exact.like(s_init, m) / state.s.shape[-1] * m + maximum(r, torch.zeros_like(r))
    s = wealth / (safe_sqrt(v) + small)
    new_total = s.sum()

    def step(p: Tensor, x0: Tensor, delta: Tensor, u: Tensor) -> Tensor:
        return x0 - exact.like(new_total, p) * (delta - u) - p

    new = MechanicState(base_state, state.count + 1, r, m, v, s, start)
    return map_wide(step, params, start, travelled, base_updates), new


def _mechanic_step_size(state: MechanicState, step_size: Any, *, base_optimizer: GradientTransformation) -> Any:
    return step_size_times(base_optimizer.step_size(state.base_optimizer_state, step_size), state.s.sum())
