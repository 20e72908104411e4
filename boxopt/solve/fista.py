"""Accelerated proximal gradient: a smooth loss with a regularizer, in a set, or both."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core.transform import GradientTransformation
from boxopt.core.types import P
from boxopt.regularizers.base import Regularizer
from boxopt.regularizers.sum import Sum
from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box
from boxopt.solve.flat import Flat
from boxopt.solve.solver import (
    Iterate,
    at_least_one,
    first_iterate,
    make_solver,
    max_norm,
    next_iterate,
    nonzero,
    zero_like,
)
from boxopt.wrap.select import select


class Base(NamedTuple):
    """A point from which proximal steps are made.

    Attributes:
        params: The point, a vector.
        gradient: The gradient of the loss there.
        value: The loss there, without the regularizer.
    """

    params: Tensor
    gradient: Tensor
    value: Tensor


class FistaState(NamedTuple):
    """The state of `fista`.

    Attributes:
        iterate: The point reached; its value includes the regularizer's.
        trial: Where the loss is wanted next, a vector.
        loss: The loss at the iterate without the regularizer, a scalar.
        base: y, from which the last proximal step was made.
        at_base: Whether the trial is the next base, and not the end of a proximal step from one.
        curvature: L, the inverse of the step size, a scalar.
        momentum: t ≥ 1, a scalar.
        stalled: Whether a proximal step from the iterate does not lead anywhere.
    """

    iterate: Iterate
    trial: Tensor
    loss: Tensor
    base: Base
    at_base: Tensor
    curvature: Tensor
    momentum: Tensor
    stalled: Tensor


def fista(constraint: ConstraintSet | None = None, regularizer: Regularizer | None = None) -> GradientTransformation:
    r"""Accelerated proximal gradient steps: minimize f(x) + r(x) over a set, f smooth, r with a proximal step.

    $$ x_+ = \operatorname{prox}_{r + C}\big(y - g(y)/L\big), \qquad
       y_+ = P_C\big(x_+ + \tfrac{t - 1}{t_+} (x_+ - x)\big) $$

    with $t_+ = (1 + \sqrt{1 + 4 t^2})/2$. L is found by doubling, until the loss lies below the parabola with this
    curvature, and sinks by a tenth in between. Momentum that leads uphill starts anew: t = 1 where the loss rises, and
    then the point is not taken, or where $(y - x_+) \cdot (x_+ - x) > 0$. Each update takes one evaluation, at y and at
    x₊ in turns; where t = 1 they are the same.

    The loss given to ``update`` is f alone; ``state.iterate.value`` is f + r, and its optimality
    ‖prox(x − g) − x‖∞. Zeros of an L1 regularizer are exact. y is projected, since f need not be defined elsewhere.

    Args:
        constraint: A convex set; all of space unless given.
        regularizer: One of `boxopt.regularizers`. With a box and one that is separable the proximal step of both is
            exact; with others it is that of a `boxopt.regularizers.Sum`.

    Returns:
        A solver, for `minimize` or a loop of your own, with a `FistaState`. ``update`` takes ``value=``, the loss
        without the regularizer.

    Raises:
        TypeError: The one is not a set, or the other not a regularizer.
        ValueError, TypeError: In ``init``, they do not fit the parameters; the message names the leaf.

    Example:
        The lasso with coefficients that are not negative:

        >>> import torch, boxopt as bx
        >>> target = torch.tensor([2.0, 0.5, -3.0])
        >>> solver, params = bx.fista(bx.sets.NonNegative(), bx.L1(1.0)), torch.zeros(3)
        >>> state = solver.init(params)
        >>> for _ in range(10):
        ...     value = (params - target).square().sum() / 2
        ...     updates, state = solver.update(params - target, state, params, value=value)
        ...     params = bx.apply_updates(params, updates)
        >>> state.iterate.params
        tensor([1., 0., 0.])

    Source:
        A. Beck and M. Teboulle, "A fast iterative shrinkage-thresholding algorithm for linear inverse problems", SIAM
        Journal on Imaging Sciences 2, 2009; B. O'Donoghue and E. Candès, "Adaptive restart for accelerated gradient
        schemes", Foundations of Computational Mathematics 15, 2015; S. R. Becker, E. J. Candès and M. C. Grant,
        "Templates for convex cone problems with applications to sparse signal recovery", Mathematical Programming
        Computation 3, 2011, for L.
    """
    constraint = Box() if constraint is None else constraint
    if not isinstance(constraint, ConstraintSet):
        raise TypeError(f"fista takes a set, then a regularizer; got {type(constraint).__name__} for the set")
    if not isinstance(regularizer, Regularizer | None):
        raise TypeError(f"fista takes a set, then a regularizer; got {type(regularizer).__name__} for the regularizer")
    return make_solver(_fista_start, _fista_advance, constraint, regularizer=regularizer)


class _Composite(ConstraintSet):
    """A set whose projection is the proximal step of a regularizer within it."""

    def __init__(self, constraint: ConstraintSet, regularizer: Regularizer) -> None:
        self._constraint = constraint
        self._regularizer = regularizer

    def project(self, x: P, step_size: Any = 1.0) -> P:
        """The proximal step of both."""
        if isinstance(self._constraint, Box) and self._regularizer.separable:
            return self._constraint.project(self._regularizer.prox(x, step_size), step_size)
        return Sum(self._regularizer, self._constraint).prox(x, step_size)


def _fista_start(
    flat: Flat, constraint: ConstraintSet, point: Tensor, *, regularizer: Regularizer | None
) -> FistaState:
    if regularizer is not None:
        regularizer.check(flat.unravel(point))
    first = first_iterate(point)
    one, no = zero_like(point) + 1, zero_like(point, torch.bool)
    base = Base(point.clone(), torch.zeros_like(point), first.value.clone())
    return FistaState(first, point.clone(), first.value.clone(), base, ~no, one, one.clone(), no)


def _fista_advance(
    flat: Flat,
    constraint: ConstraintSet,
    state: FistaState,
    gradient: Tensor,
    value: Tensor,
    *,
    regularizer: Regularizer | None,
) -> FistaState:
    old, base, here = state.iterate, state.base, Base(state.trial, gradient, value)
    known, is_first, at_base = value < torch.inf, old.accepted == 0, state.at_base
    penalty = zero_like(value) if regularizer is None else regularizer(flat.unravel(here.params)).to(value)
    composite = constraint if regularizer is None else _Composite(constraint, regularizer)

    # At the end of a proximal step: is L large enough, and if so, is the point a better one?
    curvature = _curvature(base, here)
    fits = ~at_base & known & (curvature <= state.curvature)
    rounding = 4 * torch.finfo(value.dtype).eps * old.value.abs()
    falls = value + penalty <= old.value + rounding
    accept = (fits & falls) | (is_first & known)
    new = next_iterate(flat, composite, old, accept, here.params, gradient, value + penalty)
    loss = torch.where(accept, value, state.loss)

    # Momentum, and whether it leads to a base of its own.
    lost = (fits & ~falls) | (at_base & ~known)
    step = new.params - old.params
    uphill = ((base.params - here.params) * step).sum() > 0
    momentum = torch.where(lost | (accept & uphill), 1.0, state.momentum)
    larger = (1 + (1 + 4 * momentum * momentum).sqrt()) / 2
    share = torch.where(accept & ~is_first, (momentum - 1) / larger, 0.0)
    momentum = torch.where(accept & ~is_first, larger, momentum)
    to_base = share > 0

    # The next proximal step is from this trial if it was to be a base, from the iterate if that is, or from where the
    # last one was, with a larger L.
    reached = Base(new.params, new.gradient, loss)
    from_reached = accept | lost
    base = select(at_base & known, here, select(from_reached, reached, base))
    curvature = _next_curvature(state, new, curvature, accept, ~at_base & ~fits, is_first)
    stepped = flat.project(composite, base.params - base.gradient / curvature, 1 / curvature)
    extrapolated = flat.project(constraint, new.params + share * step)
    trial = torch.where(to_base, extrapolated, stepped)

    was_from_iterate = (state.base.params == old.params).all()
    nowhere = ~to_base & (base.params == new.params).all() & (trial == new.params).all()
    stalled = (new.accepted > 0) & (nowhere | (fits & ~falls & was_from_iterate))
    return FistaState(new, trial, loss, base, to_base, curvature, momentum, stalled)


def _curvature(base: Base, end: Base) -> Tensor:
    """The curvature of the parabola through the loss at both points with the slope at the first; 0 without a step.

    Where the losses differ by roundings, that which the gradients say.
    """
    step = end.params - base.params
    square = (step * step).sum()
    excess = 2 * (end.value - base.value - (base.gradient * step).sum())
    turned = (step * (end.gradient - base.gradient)).sum()
    same = (end.value - base.value).abs() <= 1e6 * torch.finfo(square.dtype).eps * base.value.abs()
    found = torch.where(same, turned, excess) / nonzero(square)
    return torch.where(square > 0, found, 0.0)


def _next_curvature(
    state: FistaState, new: Iterate, found: Tensor, accept: Tensor, too_low: Tensor, is_first: Tensor
) -> Tensor:
    """L: at first such that the step has the size of the parameters, then as found, then a little less each time."""
    last = state.curvature
    guess = new.optimality / at_least_one(max_norm(new.params))
    guess = torch.where(guess > 0, guess, 1.0)
    sunk = torch.where(new.accepted == 2, torch.minimum(torch.maximum(found, 0.1 * last), last), 0.9 * last)
    raised = torch.where(found < torch.inf, found, torch.inf).clamp(2 * last, 4 * last)
    kept = torch.where(too_low, raised, torch.where(accept, sunk, last))
    tiny = torch.finfo(last.dtype).tiny
    return torch.where(is_first, guess, kept).clamp(1e8 * tiny, 1e-8 / tiny)
