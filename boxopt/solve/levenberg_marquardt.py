"""Levenberg–Marquardt in a box: damped Newton steps with a positive semidefinite curvature."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, finished
from boxopt.core.types import P, Scalar
from boxopt.sets.base import expect_set
from boxopt.sets.box import Box
from boxopt.solve.flat import Flat
from boxopt.solve.quadratic import add_diagonal, bounded_step, diagonal, times
from boxopt.solve.solver import Iterate, _representable, finite, first_iterate, is_near, zero_like

_ROUNDS = 2
"""Systems solved a step. In fits of peaks, half of them with active bounds, a third changed nothing."""


class LevenbergMarquardtState(NamedTuple):
    """The state of `levenberg_marquardt`; vectors are of all leaves.

    Attributes:
        iterate: The point reached, an `Iterate`, with the largest cosine as its optimality, see
            `levenberg_marquardt`.
        trial: The point at which the loss is wanted next, a vector.
        stalled: Whether no further decrease can be found in this arithmetic, a boolean scalar.
        curvature: The curvature at the iterate, a matrix; 0 until the first evaluation.
        active: −1 where the iterate is at its lower bound, 1 at the upper, 0 between them; an int8 vector.
        scale: The largest curvatures of each coordinate met lately, the diagonal D, a vector.
        damping: λ, a scalar.
        growth: By what the damping grows if the trial is rejected, a scalar; 2 unless the last one was.
        decrease: What the quadratic model promises of the trial, a scalar.
    """

    iterate: Iterate
    trial: Tensor
    stalled: Tensor
    curvature: Tensor
    active: Tensor
    scale: Tensor
    damping: Tensor
    growth: Tensor
    decrease: Tensor


def levenberg_marquardt(box: Box | None = None, *, damping: Scalar = 1e-3) -> GradientTransformation:
    r"""Minimize a loss in a box, whose Hessian is about H: JᵀJ for residuals of Jacobian J.

    $$ \min_p\; g^\top p + \tfrac12 p^\top (H + \lambda D)\, p \quad\text{subject to}\quad l \le x + p \le u $$

    The trial is x + p, where p comes of two rounds: coordinates at a bound that their gradient points out of have their
    rows and columns masked, and what a step would carry outside is held and the rest solved for again; p is at least as
    good as a projected gradient step, see `boxopt.solve.quadratic.bounded_step`. Clamping a
    step after it was solved for does neither, and stops at points that are not stationary.

    D is the diagonal of H, or more where it was larger lately, so that a change of units changes nothing. The trial is
    accepted if the loss decreases; the ratio of that decrease to the one promised sets λ, one a problem.
    Where the promise is below the roundings of the loss, the projected gradient has to decrease instead.

    **Optimality** is the largest cosine ``|gⱼ|/√(2f·Hⱼⱼ)`` between the residuals and a column of their Jacobian, 0 for
    what a bound holds. No change of units changes it, and its square is the share of the loss that coordinate j could
    still take away alone.

    ``update(gradients, state, params, value=, curvature=)`` takes what was found at the trial ``params``, one
    evaluation: ``curvature`` is the matrix H over all leaves as one vector. `gauss_newton` makes all three of
    residuals.

    Args:
        box: The bounds.
        damping: λ at the start. 1e-3 trusts the start, 1 does not.

    Returns:
        A solver with a `LevenbergMarquardtState`: a step-space transformation, not differentiable.

    Example:
        >>> import torch, boxopt as bx
        >>> t = torch.linspace(0.0, 1.0, 20)
        >>> evaluate = bx.gauss_newton(lambda p: p["height"] * torch.exp(-p["rate"] * t) - 2 * torch.exp(-3 * t))
        >>> solver = bx.levenberg_marquardt(bx.Box({"height": None, "rate": 0.0}, {"height": 1.5, "rate": None}))
        >>> params = {"height": torch.tensor(1.0), "rate": torch.tensor(1.0)}
        >>> state = solver.init(params)
        >>> for _ in range(10):
        ...     gradients, found = evaluate(params)
        ...     updates, state = solver.update(gradients, state, params, **found)
        ...     params = bx.apply_updates(params, updates)
        >>> params
        {'height': tensor(1.5000), 'rate': tensor(2.2382)}

    Source:
        K. Levenberg 1944, D. W. Marquardt 1963; the damping is H. B. Nielsen's ("Damping parameter in Marquardt's
        method", 1999), the scaling after J. J. Moré's (1978); for a box C. Kanzow, N. Yamashita and M. Fukushima, 2004.
    """
    box = Box() if box is None else box
    expect_set(box)
    return GradientTransformation(
        bind(_levenberg_marquardt_init, box=box, damping=damping),
        bind(_levenberg_marquardt_update, box=box),
        finished,
    )


def _levenberg_marquardt_init(params: Any, *, box: Box, damping: Scalar) -> LevenbergMarquardtState:
    box.check(params)
    flat = Flat.of(params)
    point = flat.project(box, flat.ravel(params))
    zero = zero_like(point)
    return LevenbergMarquardtState(
        iterate=first_iterate(point),
        trial=point.clone(),
        stalled=zero_like(point, torch.bool),
        curvature=point.new_zeros(len(point), len(point)),
        active=torch.zeros_like(point, dtype=torch.int8),
        scale=torch.zeros_like(point),
        damping=zero + exact.like(damping, zero),
        growth=zero + 2,
        decrease=zero.clone(),
    )


def _levenberg_marquardt_update(
    updates: P, state: LevenbergMarquardtState, params: P, *, value: Tensor, curvature: Tensor, box: Box
) -> tuple[P, LevenbergMarquardtState]:
    flat = Flat.of(params)
    point, gradient, state, value, curvature, lower, upper = tree.map(
        torch.detach, (flat.ravel(params), flat.ravel(updates), state, value, curvature, *flat.bounds(box))
    )
    new = _advance(lower, upper, state, gradient, value, curvature.to(gradient))
    arrived = is_near(flat, point, state.trial)
    new = _representable(flat, tree.map(lambda one, other: torch.where(arrived, one, other), new, state))
    return box.land(params, flat.unravel(new.trial)), new


def _advance(
    lower: Tensor, upper: Tensor, state: LevenbergMarquardtState, gradient: Tensor, value: Tensor, curvature: Tensor
) -> LevenbergMarquardtState:
    """Accept or reject the trial, and find the next."""
    old, epsilon = state.iterate, torch.finfo(gradient.dtype).eps
    largest = curvature.abs().amax() if curvature.numel() else torch.zeros_like(state.damping)
    gradient, value = finite(gradient, torch.where(largest < torch.inf, value, torch.inf))
    cosines = _cosines(state.trial, lower, upper, gradient, value, diagonal(curvature))
    optimality = cosines.amax() if cosines.numel() else torch.zeros_like(value)

    first = old.accepted == 0
    rounding = 8 * epsilon * old.value.abs()
    blurred = ~first & (state.decrease <= rounding)
    closer = (value <= old.value + rounding) & (optimality < old.optimality)
    ratio = torch.where(first | blurred, 1.0, (old.value - value) / state.decrease)
    accept = (value < torch.inf) & torch.where(blurred, closer, first | (ratio > 1e-4))
    met = Iterate(state.trial, gradient, value, optimality, old.accepted + 1)
    iterate = tree.map(lambda one, other: torch.where(accept, one, other), met, old)
    curvature = torch.where(accept, curvature, state.curvature)
    scale = torch.where(accept, torch.maximum(diagonal(curvature), state.scale / 4), state.scale)

    ease = torch.clamp(1 - (2 * torch.clamp(ratio, 0, 1) - 1) ** 3, min=0.1)
    damping = torch.where(accept, torch.where(first, 1.0, ease), state.growth) * state.damping
    damping = torch.clamp(damping, min=epsilon)
    growth = torch.where(accept, 2.0, 2 * state.growth)

    low, high = lower - iterate.params, upper - iterate.params
    damped = damping * torch.where(scale > 0, scale, 1.0)
    step = bounded_step(add_diagonal(curvature, damped), iterate.gradient, low, high, _ROUNDS)
    decrease = -(step * (iterate.gradient + times(curvature, step) / 2)).sum(-1)
    trial = torch.clamp(iterate.params + step, lower, upper)
    trial = torch.where(step <= low, lower, torch.where(step >= high, upper, trial))
    known = iterate.accepted > 0
    still = (trial == iterate.params).all() | (blurred & (growth > 16))
    active = torch.where(low >= 0, -1, torch.where(high <= 0, 1, 0)).to(torch.int8)
    return LevenbergMarquardtState(iterate, trial, still & known, curvature, active, scale, damping, growth, decrease)


def _cosines(
    point: Tensor, lower: Tensor, upper: Tensor, gradient: Tensor, value: Tensor, curvatures: Tensor
) -> Tensor:
    """|g| / √(2 f · H) of each coordinate: for residuals the cosine between them and a column of their Jacobian.

    Its square is the share of the loss that a step along the coordinate alone would take away, to where the model is
    least or to the bound. It is 0 where the gradient points out of a bound, and where the step would be lost in the
    coordinate's roundings.
    """
    slope = gradient.abs()
    room = torch.where(gradient > 0, point - lower, upper - point)
    step = torch.minimum(room, slope / curvatures)  # NaN where both are 0
    lost = (slope == 0) | (step <= 4 * torch.finfo(point.dtype).eps * point.abs())
    rise = torch.where(curvatures > 0, curvatures * step, 0.0)  # of the slope, on the way; the step may be infinite
    decrease = torch.where(lost, 0.0, step * (slope - rise / 2))
    return (decrease / torch.where(value == 0, torch.inf, value.abs())).sqrt()
