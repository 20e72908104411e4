"""COCOB: stochastic subgradient descent without a learning rate, by betting on coins."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.scale.moments import full_like, map_wide, zeros_like
from boxopt.scale.scalars import maximum


class COCOBState(NamedTuple):
    """The state of `scale_by_cocob`.

    Attributes:
        init_particles: The first parameters.
        cumulative_gradients: The sum of the negative gradients.
        scale: The largest gradient so far, in magnitude.
        subgradients: The sum of the gradients' magnitudes.
        reward: What the bets have won.
    """

    init_particles: Any
    cumulative_gradients: Any
    scale: Any
    subgradients: Any
    reward: Any


def scale_by_cocob(alpha: Scalar = 100.0, eps: Scalar = 1e-8) -> GradientTransformation:
    r"""Bet a fraction of what was won so far on each coordinate's next gradient.

    $$ L \leftarrow \max(L, |g|), \quad G \leftarrow G + |g|, \quad R \leftarrow \max(R - g (x - x_0), 0), \quad
       \theta \leftarrow \theta - g, \qquad
       x^+ = x_0 + \eta\,\theta, \quad \eta = \frac{L + R}{L \max(G + L, \alpha L)} $$

    The update descends already; no learning rate follows it. The step size is $\eta$, by which the gradient enters.

    Args:
        alpha: α, which bounds the first bets.
        eps: The first value of L, so that nothing is divided by 0.

    Returns:
        A gradient-space transformation with a `COCOBState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_cocob(), torch.zeros(1)
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.0100])

    Source:
        F. Orabona and T. Tommasi, "Training deep networks without learning rates through coin betting", NeurIPS 2017;
        `optax.contrib.scale_by_cocob`.
    """
    return GradientTransformation(
        bind(_cocob_init, eps=eps), bind(_cocob_update, alpha=alpha), bind(_cocob_step_size, alpha=alpha)
    )


def _cocob_init(params: Any, *, eps: Scalar) -> COCOBState:
    tree.check_parameters(params)
    first = full_like(params, eps) if not isinstance(eps, Tensor) else tree.map(lambda x: x * 0 + eps.to(x), params)
    zeros = zeros_like(params)
    return COCOBState(tree.map(Tensor.clone, params), zeros, first, zeros_like(params), zeros_like(params))


@elementwise
def _cocob_update(updates: P, state: COCOBState, params: P, *, alpha: Scalar) -> tuple[P, COCOBState]:
    start, theta, largest, total, reward = state
    largest = map_wide(lambda most, g: maximum(most, g.abs()), largest, updates)
    total = map_wide(lambda s, g: s + g.abs(), total, updates)
    reward = map_wide(lambda r, g, p, p0: maximum(r - g * (p - p0), 0.0), reward, updates, params, start)
    theta = map_wide(lambda s, g: s - g, theta, updates)

    def step(p: Tensor, p0: Tensor, s: Tensor, most: Tensor, g: Tensor, r: Tensor) -> Tensor:
        return p0 + s * _bet(most, g, r, alpha) - p

    new = map_wide(step, params, start, theta, largest, total, reward)
    return new, COCOBState(start, theta, largest, total, reward)


def _cocob_step_size(state: COCOBState, step_size: Any, *, alpha: Scalar) -> Any:
    def size(most: Tensor, g: Tensor, r: Tensor, outer: Any) -> Tensor:
        most = exact.wide(most)
        return exact.like(outer, most) * _bet(most, exact.wide(g), exact.wide(r), alpha)

    return tree.map(size, state.scale, state.subgradients, state.reward, tree.expand(step_size, state.scale))


def _bet(largest: Tensor, total: Tensor, reward: Tensor, alpha: Scalar) -> Tensor:
    bound = maximum(total + largest, exact.like(alpha, largest) * largest)
    return (largest + reward) / (largest * bound)
