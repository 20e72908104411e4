"""General constraints on top of a solver for simple ones: h(x) = 0 and g(x) ≤ 0 by the augmented Lagrangian."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, accepted, bind, bound_in, finished
from boxopt.core.types import P, Scalar
from boxopt.core.values import check_nonnegative
from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box
from boxopt.solve.flat import Flat
from boxopt.solve.solver import Iterate, finite, first_iterate, max_norm, zero_like
from boxopt.solve.track import constraint_of, is_solver_state

Function = Callable[[Any], Any]
"""From the parameters to a tensor, or a tree of tensors, of constraint values."""

_ENOUGH = 0.25  # of the last infeasibility; where more is left, the penalty grows
_GROWTH = 10.0
_TIGHTER = 0.1
_IDLE = 10  # how often in a row the solver may have nothing to improve


class Multipliers(NamedTuple):
    """What the constraints weigh.

    Attributes:
        equality: λ, a vector.
        inequality: ν ≥ 0, a vector.
        penalty: ρ > 0, a scalar.
    """

    equality: Tensor
    inequality: Tensor
    penalty: Tensor


class Measured(NamedTuple):
    """What is known of a point.

    Attributes:
        loss: f, a scalar.
        gradient: ∇f, a vector.
        equality: h, a vector.
        inequality: g, a vector.
    """

    loss: Tensor
    gradient: Tensor
    equality: Tensor
    inequality: Tensor


class AugmentedLagrangianState(NamedTuple):
    """The state of `augmented_lagrangian`.

    Attributes:
        iterate: The point reached. Value and gradient are the loss's, and optimality is the largest of what is missed
            of stationarity, feasibility and complementarity.
        multipliers: λ, ν and ρ.
        infeasibility: max(‖h‖∞, ‖max(g, 0)‖∞) at the iterate, a scalar.
        inner: The state of the solver.
        measured: What is known of the solver's iterate.
        inner_tol: To what optimality the solver runs before the multipliers change, a scalar.
        inner_steps: How many updates it has made since they did, an int64 scalar.
        missed: By how much the constraints and the complementarity were missed when they last changed, a scalar.
        idle: How often in a row they changed without a step of the solver, an int64 scalar.
        stalled: Whether that was too often.
    """

    iterate: Iterate
    multipliers: Multipliers
    infeasibility: Tensor
    inner: Any
    measured: Measured
    inner_tol: Tensor
    inner_steps: Tensor
    missed: Tensor
    idle: Tensor
    stalled: Tensor

    @property
    def trial(self) -> Tensor:
        """Where the loss is wanted next, a vector."""
        return self.inner.trial


def augmented_lagrangian(
    solver: GradientTransformation,
    *,
    equality: Function | None = None,
    inequality: Function | None = None,
    penalty: Scalar | None = None,
    inner_steps: int = 200,
) -> GradientTransformation:
    r"""Minimize f(x) in the solver's set under h(x) = 0 and g(x) ≤ 0.

    The solver minimizes the augmented Lagrangian

    $$ f(x) + \lambda \cdot h(x) + \tfrac{\rho}{2} \|h(x)\|^2
       + \tfrac{1}{2\rho} \big\|\max(0, \nu + \rho g(x))\big\|^2 - \tfrac{1}{2\rho}\|\nu\|^2, $$

    each time to a tenth of the last tolerance. Then λ becomes λ + ρh(x) and ν becomes max(0, ν + ρg(x)); where the
    constraints are missed by more than stationarity, and by more than a quarter of what they were missed by before,
    ρ becomes 10ρ; and the solver begins anew where it is. Each update takes one evaluation of f, and evaluates h and g,
    and one product with each of their transposed Jacobians, at the same point.

    ``state.iterate.optimality`` is the largest of ‖P(x − ∇L) − x‖∞, ‖h(x)‖∞ and ‖min(−g(x), ν)‖∞, L being the
    Lagrangian with the multipliers that the point stands for. So a `minimize` that has converged is feasible to its
    tolerance; the set itself always holds exactly.

    Args:
        solver: A solver, such as `spg` or `projected_newton`, for what is easy.
        equality: h, from the parameters to a tensor, or a tree of them. Numbers of its own for each problem of a batch
            are bound in a ``functools.partial``, as tensors whose leading dimensions are the batch's.
        inequality: g, likewise.
        penalty: The first ρ > 0; unless given, such that the penalty has ten times the size of the loss, or of 1, and
            at most 10: a start that is feasible tells nothing, and ρ is never made smaller.
        inner_steps: After how many updates the multipliers change at the latest.

    Returns:
        A solver, for `minimize` or a loop of your own, with an `AugmentedLagrangianState`. ``update`` takes ``value=``,
        the loss, and ``value_fn=`` if the solver does.

    Raises:
        ValueError: There is no constraint, or the penalty is negative.
        TypeError: In ``init``, the transformation is not a solver.

    Example:
        >>> import torch, boxopt as bx
        >>> solver = bx.augmented_lagrangian(bx.spg(bx.Box(0.0, None)), equality=lambda x: x.sum() - 1)
        >>> result = bx.minimize(lambda x: ((x - torch.tensor([1.0, 0.5, -1.0])) ** 2).sum(), torch.ones(3), solver)
        >>> result.params
        tensor([0.7500, 0.2500, 0.0000])
        >>> result.state.multipliers.equality
        tensor([0.5000])

    Source:
        R. Andreani, E. G. Birgin, J. M. Martínez and M. L. Schuverdt, "On augmented Lagrangian methods with general
        lower-level constraints", SIAM Journal on Optimization 18, 2007.
    """
    if equality is None and inequality is None:
        raise ValueError("augmented_lagrangian is for constraints, got neither an equality nor an inequality")
    if penalty is not None:
        check_nonnegative("penalty", penalty)
    constraint = constraint_of(solver)
    bound = {"solver": solver, "equality": equality, "inequality": inequality}
    return GradientTransformation(
        bind(_lagrangian_init, **bound),
        bind(
            _lagrangian_update,
            **bound,
            constraint=Box() if constraint is None else constraint,
            strictly=bound_in(solver.update).get("strictly", False),
            first_penalty=penalty,
            limit=inner_steps,
        ),
        finished,
    )


def _lagrangian_init(
    params: Any, *, solver: GradientTransformation, equality: Function | None, inequality: Function | None
) -> AugmentedLagrangianState:
    inner = solver.init(params)
    if not is_solver_state(inner):
        raise TypeError(f"augmented_lagrangian needs a solver, such as spg, got {solver}")
    flat, trial = Flat.of(params), inner.trial
    h, g = (torch.zeros_like(values) for values in _values(flat, equality, inequality, trial.detach()))
    count, unknown = zero_like(trial, torch.int64), zero_like(trial) + torch.inf
    return AugmentedLagrangianState(
        iterate=first_iterate(trial.clone()),
        multipliers=Multipliers(h, g, zero_like(trial) + 1),
        infeasibility=unknown,
        inner=inner,
        measured=Measured(unknown.clone(), torch.zeros_like(trial), h.clone(), g.clone()),
        inner_tol=unknown.clone(),
        inner_steps=count,
        missed=unknown.clone(),
        idle=count.clone(),
        stalled=zero_like(trial, torch.bool),
    )


def _lagrangian_update(
    updates: P,
    state: AugmentedLagrangianState,
    params: P,
    *,
    value: Tensor,
    value_fn: Function | None = None,
    solver: GradientTransformation,
    equality: Function | None,
    inequality: Function | None,
    constraint: ConstraintSet,
    strictly: bool,
    first_penalty: Scalar | None,
    limit: int,
) -> tuple[P, AugmentedLagrangianState]:
    flat, state = Flat.of(params), tree.map(torch.detach, state)
    constraints = bind(_values, flat, equality, inequality)
    point = flat.ravel(params).detach()
    gradient, loss = finite(flat.ravel(updates).detach(), value.detach())
    (h, g), pull, *_ = torch.func.vjp(constraints, point)
    here = Measured(loss, gradient, h.detach(), g.detach())
    is_first = state.inner.iterate.accepted + state.iterate.accepted == 0
    multipliers = _with_penalty(state.multipliers, here, first_penalty, is_first)

    # One update of the solver, for the loss with the constraints.
    slope = gradient + pull(_moved(multipliers, here))[0].detach()
    extra: dict[str, Any] = {"value": loss + _addition(multipliers, here.equality, here.inequality)}
    names = accepted(solver)
    if value_fn is not None and (names is None or "value_fn" in names):
        extra["value_fn"] = bind(_augmented, value_fn=value_fn, multipliers=multipliers, constraints=constraints)
    _, inner = solver.update(flat.unravel(slope), state.inner, params, **extra)

    # What it has reached, at its iterate, which may be this point.
    count = inner.iterate.accepted
    arrived = count > state.inner.iterate.accepted
    measured = _choose(arrived, here, state.measured)
    anew = arrived & ((count > 1) | is_first)
    iterate, infeasibility = _reached(state, inner.iterate, measured, multipliers)
    iterate = _choose(anew, iterate, state.iterate)
    infeasibility = torch.where(anew, infeasibility, state.infeasibility)

    # If that is near enough to its solution, new multipliers, and a new beginning.
    steps = state.inner_steps + 1
    tol = torch.where(is_first & arrived, _TIGHTER * inner.iterate.optimality, state.inner_tol)
    solved = (count > 0) & ((inner.iterate.optimality <= tol) | inner.stalled | (steps >= limit))
    missed = _missed(measured, multipliers)
    is_enough = (missed <= _ENOUGH * state.missed) | (missed <= inner.iterate.optimality)
    multipliers = _choose(solved, _renewed(multipliers, measured, is_enough), multipliers)
    floor = torch.finfo(tol.dtype).eps ** 0.75
    fresh = solver.init(flat.unravel(inner.iterate.params))
    inner = _choose(solved, fresh, inner)
    idle = torch.where(solved, torch.where(count > 1, 0, state.idle + 1), state.idle)
    new = AugmentedLagrangianState(
        iterate=iterate,
        multipliers=multipliers,
        infeasibility=infeasibility,
        inner=inner,
        measured=measured,
        inner_tol=torch.where(solved, (_TIGHTER * tol).clamp_min(floor), tol),
        inner_steps=torch.where(solved, 0, steps),
        missed=torch.where(solved, missed, state.missed),
        idle=idle,
        stalled=idle >= _IDLE,
    )
    return constraint.land(params, flat.unravel(new.trial), strictly=strictly), new


def _values(flat: Flat, equality: Function | None, inequality: Function | None, point: Tensor) -> tuple[Tensor, Tensor]:
    """The values of both kinds of constraints at a vector, as two vectors."""
    params = flat.unravel(point)

    def vector(function: Function | None) -> Tensor:
        leaves = [] if function is None else tree.leaves(function(params))
        parts = [leaf.reshape(-1).to(device=point.device, dtype=point.dtype) for leaf in leaves]
        return torch.cat([point.new_zeros(0), *parts])

    return vector(equality), vector(inequality)


def _addition(multipliers: Multipliers, h: Tensor, g: Tensor) -> Tensor:
    """What the augmented Lagrangian adds to the loss."""
    weight = multipliers.penalty
    shifted = (multipliers.inequality + weight * g).clamp_min(0)
    equality = (multipliers.equality * h).sum() + weight / 2 * (h * h).sum()
    return equality + (shifted * shifted - multipliers.inequality.square()).sum() / (2 * weight)


def _augmented(params: Any, *, value_fn: Function, multipliers: Multipliers, constraints: Any) -> Tensor:
    """The augmented Lagrangian as a function of the parameters."""
    return value_fn(params) + _addition(multipliers, *constraints(Flat.of(params).ravel(params)))


def _moved(multipliers: Multipliers, measured: Measured) -> tuple[Tensor, Tensor]:
    """λ + ρh and max(0, ν + ρg): the multipliers that a point stands for."""
    weight = multipliers.penalty
    equality = multipliers.equality + weight * measured.equality
    return equality, (multipliers.inequality + weight * measured.inequality).clamp_min(0)


def _with_penalty(
    multipliers: Multipliers, measured: Measured, penalty: Scalar | None, is_first: Tensor
) -> Multipliers:
    """With the first ρ, at the first evaluation."""
    if penalty is None:
        square = (measured.equality.square().sum() + measured.inequality.clamp_min(0).square().sum()) / 2
        first = (10 * measured.loss.abs().clamp_min(1) / square.clamp_min(1)).clamp(1e-6, 10.0)
        first = torch.where(first < torch.inf, first, 1.0)
    else:
        first = exact.as_tensor(penalty, multipliers.penalty).detach()
    return multipliers._replace(penalty=torch.where(is_first, first, multipliers.penalty))


def _reached(
    state: AugmentedLagrangianState, inner: Iterate, measured: Measured, multipliers: Multipliers
) -> tuple[Iterate, Tensor]:
    """The solver's point as a solution of the whole problem, and its infeasibility."""
    infeasibility = torch.maximum(max_norm(measured.equality), max_norm(measured.inequality.clamp_min(0)))
    _, dual = _moved(multipliers, measured)
    complementarity = max_norm(torch.minimum(-measured.inequality, dual))
    optimality = torch.maximum(torch.maximum(inner.optimality, infeasibility), complementarity)
    count = state.iterate.accepted + 1
    return Iterate(inner.params, measured.gradient, measured.loss, optimality, count), infeasibility


def _missed(measured: Measured, multipliers: Multipliers) -> Tensor:
    """How far the constraints are from holding, those of inequality with the multiplier that the point stands for."""
    slack = torch.maximum(measured.inequality, -multipliers.inequality / multipliers.penalty)
    return torch.maximum(max_norm(measured.equality), max_norm(slack))


def _renewed(multipliers: Multipliers, measured: Measured, is_enough: Tensor) -> Multipliers:
    """The multipliers that the point stands for, within what the arithmetic bears, and a larger ρ if that is needed."""
    largest = torch.finfo(measured.loss.dtype).eps ** -0.75
    equality, inequality = _moved(multipliers, measured)
    penalty = torch.where(is_enough, 1.0, _GROWTH) * multipliers.penalty
    return Multipliers(equality.clamp(-largest, largest), inequality.clamp_max(largest), penalty.clamp_max(largest))


def _choose(condition: Tensor, one: Any, other: Any) -> Any:
    return tree.map(lambda x, y: torch.where(condition, x, y), one, other)
