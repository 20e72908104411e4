"""The spectral projected gradient method: a projection an iteration, and no memory but the last step's curvature."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation
from boxopt.sets.base import ConstraintSet
from boxopt.solve.flat import Flat
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

_SHORTEST, _LONGEST = 1e-20, 1e20
_ENOUGH = 1e-4  # of the decrease that the slope promises
_SHORT = 0.1  # below which share of the long step the short one is taken


class SpgState(NamedTuple):
    """The state of `spg`.

    Attributes:
        iterate: The last point accepted, whose loss may be larger than before.
        best: The best point accepted.
        trial: Where the loss is wanted next, a vector.
        direction: P(x − αg) − x at the last point accepted, a vector.
        fraction: How much of the direction the trial goes, a scalar.
        recent: The losses of the last points accepted, a vector; −inf before there are so many.
        stalled: Whether the trial cannot be told from the last point accepted.
    """

    iterate: Iterate
    best: Iterate
    trial: Tensor
    direction: Tensor
    fraction: Tensor
    recent: Tensor
    stalled: Tensor


def spg(constraint: ConstraintSet, *, memory: int = 10) -> GradientTransformation:
    r"""Spectral projected gradient: minimize a smooth loss over any convex set that has a projection.

    $$ d = P_C(x - \alpha g) - x, \qquad \alpha = \frac{s \cdot s}{s \cdot y} \ \text{ or } \
       \frac{s \cdot y}{y \cdot y}, \qquad s = x - x_-, \; y = g - g_- $$

    α is one of Barzilai and Borwein's steps, inverses of the curvature along the last step: the second, which is
    shorter, where it is less than a tenth of the first. The loss may rise: a trial
    x + λd is accepted if

    $$ f(x + \lambda d) \le \max_{\text{last } M} f + 10^{-4} \lambda\, g \cdot d, $$

    and otherwise λ shrinks, to the minimum of the parabola through what is known or by half. All trials are in the set,
    one is evaluated in each update. ``state.best`` is the best point so far.

    It takes O(n) numbers, and between two gradients only a projection. For boxes `lbfgsb` needs fewer evaluations.

    Args:
        constraint: A convex set.
        memory: M, of how many losses the largest is compared with; 1 for a loss that never rises.

    Returns:
        A solver, for `minimize` or a loop of your own, with a `SpgState`. ``update`` takes ``value=``, the loss.

    Raises:
        ValueError: ``memory`` is less than 1; or, in ``init``, the set does not fit the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> target = torch.tensor([0.5, 0.75, -1.0])
        >>> solver, params = bx.spg(bx.sets.Simplex()), torch.tensor([1.0, 0.0, 0.0])
        >>> state = solver.init(params)
        >>> for _ in range(5):
        ...     value = (params - target).square().sum()
        ...     updates, state = solver.update(2 * (params - target), state, params, value=value)
        ...     params = bx.apply_updates(params, updates)
        >>> state.best.params
        tensor([0.3750, 0.6250, 0.0000])

    Source:
        E. G. Birgin, J. M. Martínez and M. Raydan, "Nonmonotone spectral projected gradient methods on convex sets",
        SIAM Journal on Optimization 10, 2000; L. Grippo, F. Lampariello and S. Lucidi, "A nonmonotone line search
        technique for Newton's method", SIAM Journal on Numerical Analysis 23, 1986; B. Zhou, L. Gao and Y.-H. Dai,
        "Gradient methods with adaptive step-sizes", Computational Optimization and Applications 35, 2006.
    """
    if memory < 1:
        raise ValueError(f"spg compares with the losses of at least one point, got memory={memory}")
    return make_solver(_spg_start, _spg_advance, constraint, memory=memory)


def _spg_start(flat: Flat, constraint: ConstraintSet, point: Tensor, *, memory: int) -> SpgState:
    first = first_iterate(point)
    recent = torch.full((memory,), -torch.inf, dtype=point.dtype, device=point.device)
    one, never = zero_like(point) + 1, zero_like(point, torch.bool)
    return SpgState(first, tree.map(torch.clone, first), point.clone(), torch.zeros_like(point), one, recent, never)


def _spg_advance(
    flat: Flat, constraint: ConstraintSet, state: SpgState, gradient: Tensor, value: Tensor, *, memory: int
) -> SpgState:
    old = state.iterate
    is_first = old.accepted == 0
    slope = (old.gradient * state.direction).sum()
    worst = state.recent.amax()
    rounding = 4 * torch.finfo(value.dtype).eps * worst.abs()
    accept = (value <= worst + _ENOUGH * state.fraction * slope + rounding) | (is_first & (value < torch.inf))

    current = next_iterate(flat, constraint, old, accept, state.trial, gradient, value)
    recent = torch.where(accept, torch.cat([state.recent[1:], value[None]]), state.recent)
    step_size = _spectral_step(current, old, is_first)
    onwards = flat.project(constraint, current.params - step_size * current.gradient)
    direction = torch.where(accept, onwards - current.params, state.direction)
    fraction = torch.where(accept, 1.0, shorter(state.fraction, state.fraction * slope, value - old.value))
    between = flat.project(constraint, current.params + fraction * direction)
    trial = torch.where(accept, onwards, between)
    return SpgState(
        current,
        _better(state.best, current, accept),
        trial,
        direction,
        fraction,
        recent,
        (current.accepted > 0) & is_stuck(trial, current.params, fraction),
    )


def _spectral_step(new: Iterate, old: Iterate, is_first: Tensor) -> Tensor:
    """α; where the loss is not curved upwards along the last step, what moves x by its own size."""
    moved = new.params - old.params
    square, curvature = (moved * moved).sum(), (moved * (new.gradient - old.gradient)).sum()
    without = torch.where(is_first, 1.0, at_least_one(max_norm(new.params))) / nonzero(new.optimality)
    known = (curvature > 0) & ~is_first
    curvature = torch.where(known, curvature, 1.0)
    turned = new.gradient - old.gradient
    long, short = square / curvature, curvature / nonzero((turned * turned).sum())
    step = torch.where(known, torch.where(short < _SHORT * long, short, long), without)
    return step.clamp(_SHORTEST, _LONGEST)


def _better(best: Iterate, current: Iterate, accept: Tensor) -> Iterate:
    """The better of two points: of lower loss or, if the losses differ by roundings, nearer to optimality."""
    rounding = 4 * torch.finfo(best.value.dtype).eps * best.value.abs()
    lower = (current.value < best.value - rounding) | (best.accepted == 0)
    nearer = (current.value <= best.value + rounding) & (current.optimality < best.optimality)
    better = accept & (lower | nearer)
    return tree.map(lambda one, other: torch.where(better, one, other), current, best)
