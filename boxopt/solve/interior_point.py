"""A primal–dual interior point method for boxes: no iterate ever touches a bound."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation
from boxopt.sets.box import Box
from boxopt.solve.flat import Flat
from boxopt.solve.newton import hessian, hessian_product, newton_direction, shortened, truncated_cg
from boxopt.solve.solver import (
    Iterate,
    at_least_one,
    first_iterate,
    is_stuck,
    make_solver,
    max_norm,
    next_iterate,
    nonzero,
    shorter,
    zero_like,
)

_ENOUGH = 1e-4  # of the decrease that the slope promises
_SOLVED = 10.0  # a barrier problem counts as solved when its residual is this many μ
_APART = 1e10  # how far a dual may be from μ/slack, as a factor
_INSIDE = 1e-2  # how far inside the first trial is, relative to the bound and to the width


class InteriorPointState(NamedTuple):
    """The state of `interior_point`.

    Attributes:
        iterate: The point reached, strictly inside.
        trial: Where the loss is wanted next, a vector, strictly inside.
        direction: Newton's step from the iterate, a vector.
        reach: How much of the direction stays inside, a scalar.
        fraction: How much of that the trial goes, a scalar.
        lower_dual: The multipliers of the lower bounds, a vector; 0 where there is none.
        upper_dual: Those of the upper bounds.
        mu: The strength of the barrier, a scalar.
        radius: The largest length of the next direction, in the metric 1 + Σ, a scalar.
        stalled: Whether no lower trial is found with the least barrier.
    """

    iterate: Iterate
    trial: Tensor
    direction: Tensor
    reach: Tensor
    fraction: Tensor
    lower_dual: Tensor
    upper_dual: Tensor
    mu: Tensor
    radius: Tensor
    stalled: Tensor


class _Walls(NamedTuple):
    """A box as vectors: its bounds, the numbers next to them inside, and which coordinates have room to move."""

    lower: Tensor
    upper: Tensor
    least: Tensor
    greatest: Tensor
    free: Tensor

    def slacks(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The distances to the bounds; infinite where there is none, or no room."""
        below, above = nonzero(x - self.lower), nonzero(self.upper - x)
        return torch.where(self.free, below, torch.inf), torch.where(self.free, above, torch.inf)


def interior_point(constraint: Box, *, cg_steps: int | None = None) -> GradientTransformation:
    r"""Minimize in a box from within: Newton's method on the loss with a log-barrier, whose strength μ goes to 0.

    $$ (H + \Sigma)\, d = -\Big(g - \frac{\mu}{x - l} + \frac{\mu}{u - x}\Big), \qquad
       \Sigma = \frac{z_l}{x - l} + \frac{z_u}{u - x} $$

    The multipliers z make a step of their own, to $z (x - l) = \mu$ to first order. Each step goes at most 0.99 of the
    way to the nearest bound, and is halved, or less, until the loss with the barrier falls enough; one trial is
    evaluated in each update. When the residual of the first-order conditions is at most 10 μ, μ falls, in the end
    faster than linearly. Where H + Σ is indefinite, the absolute values of its eigenvalues take their place.

    For losses that are not defined on the boundary, and where many bounds compete. The result is strictly inside: at a
    bound that is active with multiplier z, μ/z away from it. A coordinate whose bounds leave no number between them
    stays.

    Args:
        constraint: A box.
        cg_steps: How many conjugate-gradient steps at most, scaled by Σ, in the place of the whole Hessian; None for
            the whole Hessian, with n products with it in each update.

    Returns:
        A solver, for `minimize` or a loop of your own, with an `InteriorPointState`. ``update`` takes ``value=``, the
        loss, and ``value_fn=``, a function from the parameters to the loss, twice differentiable.

    Raises:
        TypeError: The set is not a box.
        ValueError: ``cg_steps`` is less than 1; or, in ``init``, the box does not fit the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> loss = lambda x: (x[0] - 2) ** 2 + x[1] - x[1].log()
        >>> solver, params = bx.interior_point(bx.Box(0.0, 1.5)), torch.tensor([0.5, 0.5])
        >>> state = solver.init(params)
        >>> for _ in range(25):
        ...     gradient, value = torch.func.grad_and_value(loss)(params)
        ...     updates, state = solver.update(gradient, state, params, value=value, value_fn=loss)
        ...     params = bx.apply_updates(params, updates)
        >>> state.iterate.params
        tensor([1.5000, 1.0000])

    Source:
        A. Wächter and L. T. Biegler, "On the implementation of an interior-point filter line-search algorithm for
        large-scale nonlinear programming", Mathematical Programming 106, 2006. With bounds alone every trial is
        feasible, so that the loss with the barrier takes the filter's place.
    """
    if not isinstance(constraint, Box):
        raise TypeError(f"interior_point is for a box, got {type(constraint).__name__}")
    if cg_steps is not None and cg_steps < 1:
        raise ValueError(f"interior_point takes at least one conjugate-gradient step, got cg_steps={cg_steps}")
    return make_solver(
        _interior_start, _interior_advance, constraint, takes_value_fn=True, strictly=True, cg_steps=cg_steps
    )


def _walls(flat: Flat, box: Box) -> _Walls:
    lower, upper = (bound.detach() for bound in flat.bounds(box))
    least = flat.ravel(tree.map(exact.next_up, flat.unravel(lower)))
    greatest = flat.ravel(tree.map(exact.next_down, flat.unravel(upper)))
    free = least <= greatest
    return _Walls(lower, upper, torch.where(free, least, lower), torch.where(free, greatest, upper), free)


def _inside(flat: Flat, walls: _Walls, vector: Tensor) -> Tensor:
    """The nearest trial strictly inside, as the leaves' dtypes can hold it."""
    return flat.ravel(flat.unravel(vector)).clamp(walls.least, walls.greatest)


def _interior_start(flat: Flat, constraint: Box, point: Tensor, *, cg_steps: int | None) -> InteriorPointState:
    walls = _walls(flat, constraint)
    width = _INSIDE * (walls.upper - walls.lower)
    low = walls.lower + torch.minimum(_INSIDE * walls.lower.abs().clamp_min(1), width)
    high = walls.upper - torch.minimum(_INSIDE * walls.upper.abs().clamp_min(1), width)
    low = torch.where(walls.lower > -torch.inf, low, -torch.inf)
    high = torch.where(walls.upper < torch.inf, high, torch.inf)
    point = _inside(flat, walls, torch.where(low <= high, point.clamp(low, high), point))
    one = zero_like(point) + 1
    return InteriorPointState(
        first_iterate(point),
        point.clone(),
        torch.zeros_like(point),
        one,
        one.clone(),
        torch.zeros_like(point),
        torch.zeros_like(point),
        zero_like(point),
        10 * at_least_one(max_norm(point)),
        zero_like(point, torch.bool),
    )


def _interior_advance(
    flat: Flat,
    constraint: Box,
    state: InteriorPointState,
    gradient: Tensor,
    value: Tensor,
    *,
    value_fn: Callable[[Any], Tensor],
    cg_steps: int | None,
) -> InteriorPointState:
    old, walls = state.iterate, _walls(flat, constraint)
    is_first = old.accepted == 0
    before, after = _barrier(walls, old.params), _barrier(walls, state.trial)
    slope = ((old.gradient + state.mu * _barrier_slope(walls, old.params)) * state.direction).sum()
    promised = state.fraction * state.reach * slope
    rise = value - old.value + state.mu * (after - before)
    rounding = 4 * torch.finfo(value.dtype).eps * (old.value.abs() + state.mu * before.abs())
    accept = ((rise <= _ENOUGH * promised + rounding) | is_first) & (value < torch.inf)

    new = next_iterate(flat, constraint, old, accept, state.trial, gradient, value)
    fraction = shorter(state.fraction, promised, rise)
    attempt = _inside(flat, walls, new.params + fraction * state.reach * state.direction)
    stuck = ~accept & is_stuck(attempt, new.params, fraction) & (old.accepted > 0)
    renew = accept | stuck

    duals = _moved_duals(walls, state, new.params, accept & ~is_first)
    mu = torch.where(accept & is_first, _first_mu(walls, new), state.mu)
    least = torch.finfo(mu.dtype).eps ** 1.25
    smaller = torch.minimum(0.2 * mu, mu**1.5).clamp_min(least)
    solved = stuck | (accept & ~is_first & (_residual(walls, new, duals, mu) <= _SOLVED * mu))
    mu = torch.where(solved, torch.minimum(smaller, mu), mu)
    apart = torch.where(is_first, 1.0, _APART)
    duals = tree.map(lambda dual, slack: _safeguarded(dual, mu / slack, apart), duals, walls.slacks(new.params))

    scale = _scale(walls, old.params, (state.lower_dual, state.upper_dual))
    length = torch.linalg.vector_norm((state.trial - old.params) / scale)
    grown = torch.where(state.fraction == 1, torch.maximum(state.radius, 4 * length), 2 * length)
    radius = torch.where(accept & ~is_first, grown, state.radius)
    onwards = _direction(flat, walls, value_fn, new, duals, mu, radius, cg_steps)
    direction = torch.where(renew, onwards, state.direction)
    reach = torch.where(renew, _reach(walls, new.params, direction, mu), state.reach)
    trial = torch.where(renew, _inside(flat, walls, new.params + reach * direction), attempt)
    return InteriorPointState(
        new,
        trial,
        direction,
        reach,
        torch.where(renew, 1.0, fraction),
        duals[0],
        duals[1],
        mu,
        radius,
        stuck & (state.mu <= least) | ((new.accepted > 0) & (mu <= least) & (trial == new.params).all()),
    )


def _barrier(walls: _Walls, x: Tensor) -> Tensor:
    """−Σ log of the slacks."""
    return -sum((torch.where(slack < torch.inf, slack, 1.0).log().sum() for slack in walls.slacks(x)), zero_like(x))


def _barrier_slope(walls: _Walls, x: Tensor) -> Tensor:
    below, above = walls.slacks(x)
    return 1 / above - 1 / below


def _first_mu(walls: _Walls, iterate: Iterate) -> Tensor:
    """A tenth of what the gradient times the way to the bounds is in the mean."""
    slack = torch.minimum(*walls.slacks(iterate.params))
    slack = torch.minimum(slack, iterate.params.abs().clamp_min(1))
    known = slack < torch.inf
    products = torch.where(known, slack * iterate.gradient.abs(), 0.0)
    return (0.1 * products.sum() / known.sum().clamp_min(1)).clamp_min(torch.finfo(slack.dtype).eps ** 1.25)


def _moved_duals(walls: _Walls, state: InteriorPointState, x: Tensor, accept: Tensor) -> tuple[Tensor, Tensor]:
    """The duals after their part of the accepted step."""
    moved = []
    duals, signs = (state.lower_dual, state.upper_dual), (1.0, -1.0)
    for dual, slack, sign in zip(duals, walls.slacks(state.iterate.params), signs, strict=True):
        step = (state.mu - sign * dual * state.direction) / slack - dual
        shares = torch.where(step < 0, 0.99 * dual / nonzero(-step), 1.0)
        share = shares.amin().clamp_max(1) if dual.numel() else 1.0
        moved.append(torch.where(accept, dual + share * step, dual))
    return moved[0], moved[1]


def _safeguarded(dual: Tensor, central: Tensor, apart: Tensor) -> Tensor:
    """A dual that is no more than a factor from μ/slack."""
    return dual.clamp(central / apart, central * apart)


def _residual(walls: _Walls, iterate: Iterate, duals: tuple[Tensor, Tensor], mu: Tensor) -> Tensor:
    """By how much the first-order conditions with the barrier are missed."""
    lower, upper = duals
    residual = max_norm(torch.where(walls.free, iterate.gradient - lower + upper, 0.0))
    for dual, slack in zip(duals, walls.slacks(iterate.params), strict=True):
        product = torch.where(slack < torch.inf, dual * slack - mu, 0.0)
        residual = torch.maximum(residual, max_norm(product))
    return residual


def _reach(walls: _Walls, x: Tensor, direction: Tensor, mu: Tensor) -> Tensor:
    """The share of a step, at most 1, that goes τ of the way to the first bound, τ = max(0.99, 1 − μ)."""
    if not x.numel():
        return mu * 0 + 1
    below, above = walls.slacks(x)
    way = torch.where(direction < 0, below, above)
    shares = way / nonzero(direction.abs())
    return (torch.clamp(1 - mu, min=0.99) * shares.amin()).clamp_max(1)


def _direction(
    flat: Flat,
    walls: _Walls,
    value_fn: Callable[[Any], Tensor],
    iterate: Iterate,
    duals: tuple[Tensor, Tensor],
    mu: Tensor,
    radius: Tensor,
    cg_steps: int | None,
) -> Tensor:
    """Newton's step for the loss with the barrier."""
    x, (below, above) = iterate.params, walls.slacks(iterate.params)
    gradient = torch.where(walls.free, iterate.gradient + mu * _barrier_slope(walls, x), 0.0)
    if not gradient.numel():
        return gradient
    scale = _scale(walls, x, duals)
    sigma = duals[0] / below + duals[1] / above
    if cg_steps is not None:
        product = hessian_product(flat, value_fn, x)

        def scaled(vector: Tensor) -> Tensor:
            within = torch.where(walls.free, scale * vector, 0.0)
            return torch.where(walls.free, scale * (product(within) + sigma * within), 0.0)

        return scale * truncated_cg(scaled, scale * gradient, radius, cg_steps)
    matrix = torch.where(walls.free[:, None] & walls.free, hessian(flat, value_fn, x), 0.0)
    matrix = matrix + torch.diag(torch.where(walls.free, sigma, 1.0))
    return scale * shortened(newton_direction(gradient, matrix) / scale, radius)


def _scale(walls: _Walls, x: Tensor, duals: tuple[Tensor, Tensor]) -> Tensor:
    """The length of a unit in each coordinate as its bounds let it move, (1 + Σ)^−½."""
    below, above = walls.slacks(x)
    return (1 + duals[0] / below + duals[1] / above).rsqrt()
