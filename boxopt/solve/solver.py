r"""What a solver is: a transformation that is told the loss at a point, and proposes the next one.

One update takes one evaluation of the loss and its gradient, whatever becomes of it. A line search is not a loop inside
of the update: a trial that does not decrease the loss enough makes the next update propose a shorter step. So a
thousand problems side by side never wait for the one whose line search is long, nothing branches on a value, and no
evaluation is wasted.

For the loop that calls it a solver is a transformation like any other:

    updates, state = solver.update(gradients, state, params, value=value)
    params = apply_updates(params, updates)

with one difference: ``params`` are *trials*. The best point is in ``state.iterate``, as `boxopt.minimize` returns it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation, bind, bound_in, finished
from boxopt.core.types import P
from boxopt.sets.base import ConstraintSet, expect_set
from boxopt.solve.flat import Flat


class Iterate(NamedTuple):
    """The point that a solver has reached: the last that it accepted.

    Attributes:
        params: The point, a vector of all leaves; in the set.
        gradient: The gradient of the loss there, a vector.
        value: The loss there, a scalar; infinite until the first evaluation.
        optimality: ‖P(x − g) − x‖∞, a scalar; infinite until the first evaluation.
        accepted: How many points were accepted, an int64 scalar; 0 until the first evaluation.
    """

    params: Tensor
    gradient: Tensor
    value: Tensor
    optimality: Tensor
    accepted: Tensor


class SolverState(Protocol):
    """What the state of every solver holds, a ``NamedTuple`` with these fields among others.

    A solver that accepts points which are worse than those before also has ``best``, the `Iterate` of the least loss.
    """

    @property
    def iterate(self) -> Iterate:
        """The point reached."""
        ...

    @property
    def trial(self) -> Tensor:
        """The point at which the loss is wanted next, a vector; in the set."""
        ...

    @property
    def stalled(self) -> Tensor:
        """Whether no further decrease can be found in this floating-point arithmetic, a boolean scalar."""
        ...


Start = Callable[..., Any]
"""``start(flat, constraint, point) -> state``: ``point`` is the first trial, in the set."""

Advance = Callable[..., Any]
"""``advance(flat, constraint, state, gradient, value) -> state``, on vectors. A loss or a gradient that is not finite
comes as an infinite value and a zero gradient: a trial to be rejected."""


class Within(NamedTuple):
    """A method for boxes that takes the problems of a batch side by side.

    Attributes:
        advance: ``advance(lower, upper, state, gradient, value) -> state``, on matrices whose columns are the vectors
            of problems, and vectors with a number for each.
        size: Up to how many parameters a problem may have.
    """

    advance: Callable[..., Any]
    size: int


def make_solver(
    start: Start,
    advance: Advance,
    constraint: ConstraintSet,
    *,
    takes_value_fn: bool = False,
    strictly: bool = False,
    within: Within | None = None,
    **options: Any,
) -> GradientTransformation:
    """The transformation of a method written in vectors.

    Args:
        start: As `Start`, a module-level function.
        advance: As `Advance`, a module-level function.
        constraint: The set.
        takes_value_fn: Whether ``update`` takes ``value_fn=`` too, and passes it on to ``advance``.
        strictly: Whether trials are in the interior of the set.
        within: As `Within`, for a method that can take the problems of a batch side by side.
        **options: Further keyword arguments of these functions.
    """
    expect_set(constraint)
    update = second_order_update if takes_value_fn else solver_update
    return GradientTransformation(
        bind(solver_init, constraint=constraint, start=start, options=options),
        bind(update, constraint=constraint, advance=advance, strictly=strictly, within=within, options=options),
        finished,
    )


def solver_init(params: Any, *, constraint: ConstraintSet, start: Start, options: dict[str, Any]) -> Any:
    """The state before the first evaluation, whose trial is the projection of the parameters."""
    constraint.check(params)
    flat = Flat.of(params)
    return _representable(flat, start(flat, constraint, flat.project(constraint, flat.ravel(params)), **options))


def solver_update(
    updates: P,
    state: Any,
    params: P,
    *,
    value: Tensor,
    constraint: ConstraintSet,
    advance: Advance,
    strictly: bool,
    within: Within | None,
    options: dict[str, Any],
) -> tuple[P, Any]:
    """Advance by what was found at the trial; at any other point, as an infeasible start is, only move to the trial."""
    flat = Flat.of(params)
    new = _advanced(flat, updates, state, value, constraint, advance, options)
    arrived = is_near(flat, flat.ravel(params), state.trial)
    new = _representable(flat, tree.map(lambda one, other: torch.where(arrived, one, other), new, state))
    return constraint.land(params, flat.unravel(new.trial), strictly=strictly), new


def second_order_update(
    updates: P,
    state: Any,
    params: P,
    *,
    value: Tensor,
    value_fn: Callable[[P], Tensor],
    constraint: ConstraintSet,
    advance: Advance,
    strictly: bool,
    within: Within | None,
    options: dict[str, Any],
) -> tuple[P, Any]:
    """`solver_update` for a method that differentiates the loss itself, and is a constant to further derivatives."""
    return solver_update(
        tree.map(torch.detach, updates),
        tree.map(torch.detach, state),
        params,
        value=value.detach(),
        constraint=constraint,
        advance=advance,
        strictly=strictly,
        within=within,
        options=options | {"value_fn": value_fn},
    )


def state_after(solver: GradientTransformation, flat: Flat, gradients: Any, state: Any, extra: dict[str, Any]) -> Any:
    """The state after an evaluation at the trial: that of ``update``, which also looks where the parameters are.

    Args:
        solver: A solver.
        flat: How its parameters lie in a vector.
        gradients: Those of the loss at the trial.
        state: The solver's state.
        extra: What its ``update`` takes beside them.
    """
    bound = bound_in(solver.update)
    if "advance" not in bound:
        return solver.update(gradients, state, flat.unravel(state.trial), **extra)[1]
    options = bound["options"] | {name: extra[name] for name in extra if name != "value"}
    new = _advanced(flat, gradients, state, extra["value"], bound["constraint"], bound["advance"], options)
    return _representable(flat, new)


def _advanced(
    flat: Flat,
    gradients: Any,
    state: Any,
    value: Tensor,
    constraint: ConstraintSet,
    advance: Advance,
    options: dict[str, Any],
) -> Any:
    return advance(flat, constraint, state, *finite(flat.ravel(gradients), value), **options)


def finite(gradient: Tensor, value: Tensor) -> tuple[Tensor, Tensor]:
    """The gradient and the value, zeros and inf where they are not finite numbers."""
    value = torch.as_tensor(value).to(dtype=gradient.dtype, device=gradient.device)
    known = max_norm(gradient) + value.abs() < torch.inf
    return torch.where(known, gradient, torch.zeros_like(gradient)), torch.where(known, value, torch.inf)


def _representable(flat: Flat, state: Any) -> Any:
    """The state whose trial is what the loss will be asked at: rounded to the dtypes of the leaves."""
    if all(dtype == flat.dtype for dtype in flat.dtypes):
        return state
    return state._replace(trial=flat.ravel(flat.unravel(state.trial)))


def is_near(flat: Flat, point: Tensor, trial: Tensor) -> Tensor:
    """Whether a sum ``params + updates`` that was to reach the trial did, up to its roundings."""
    reach = 4 * max([0.0, *(torch.finfo(dtype).eps for dtype in flat.dtypes)])
    return ((point - trial).abs() <= reach * (1 + trial.abs())).all()


def first_iterate(point: Tensor) -> Iterate:
    """The iterate before the first evaluation."""
    unknown = torch.full((), torch.inf, dtype=point.dtype, device=point.device)
    return Iterate(point, torch.zeros_like(point), unknown, unknown.clone(), zero_like(unknown, torch.int64))


def next_iterate(
    flat: Flat, constraint: ConstraintSet, old: Iterate, accept: Tensor, point: Tensor, gradient: Tensor, value: Tensor
) -> Iterate:
    """The iterate at ``point`` where ``accept`` holds, the old one elsewhere."""
    optimality = max_norm(projected_gradient(flat, constraint, point, gradient))
    return moved(old, accept, point, gradient, value, optimality)


def moved(old: Iterate, accept: Tensor, point: Tensor, gradient: Tensor, value: Tensor, optimality: Tensor) -> Iterate:
    """The iterate with these entries where ``accept`` holds, the old one elsewhere."""
    new = Iterate(point, gradient, value, optimality, old.accepted + 1)
    return tree.map(lambda one, other: torch.where(accept, one, other), new, old)


def projected_gradient(flat: Flat, constraint: ConstraintSet, point: Tensor, gradient: Tensor) -> Tensor:
    """The gradient as far as the set lets a step along it go, x − P(x − g)."""
    return point - flat.project(constraint, point - gradient)


def is_stuck(trial: Tensor, point: Tensor, fraction: Tensor) -> Tensor:
    """Whether a search for a lower loss has come back to where it began: all steps longer than roundings are tried.

    Args:
        trial: The next trial.
        point: Where the search began.
        fraction: How much is left of the step that the search began with.
    """
    eps = torch.finfo(point.dtype).eps
    return ((trial - point).abs() <= eps * point.abs()).all() | (fraction < 1e-4 * eps)


def shorter(fraction: Tensor, promised: Tensor, rise: Tensor) -> Tensor:
    """What to try after a fraction of a step that failed: where a parabola is least, or half, or a tenth of it.

    Args:
        fraction: The fraction tried.
        promised: How much the loss would have risen if it were linear, a negative number.
        rise: How much it rose. The parabola has this rise, and at 0 the slope ``promised / fraction``.
    """
    lowest = -0.5 * promised / (rise - promised)
    within = (lowest >= 0.1) & (lowest <= 0.9)  # what is not finite is not
    return torch.where(within, lowest, torch.where(rise < torch.inf, 0.5, 0.1)) * fraction


def max_norm(x: Tensor) -> Tensor:
    """‖x‖∞ along the first dimension, 0 for a vector without entries."""
    return x.abs().amax(0) if x.shape[0] else x.sum(0)


def at_least_one(x: Tensor) -> Tensor:
    """max(x, 1); its derivative where x is 1 is the identity's, whatever torch's convention is."""
    return torch.where(x < 1, 1.0, x)


def nonzero(x: Tensor) -> Tensor:
    """``x`` to divide by: the least normal number where it is smaller."""
    return x.clamp_min(torch.finfo(x.dtype).tiny)


def zero_like(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """A scalar 0 on the device of ``x``."""
    return torch.zeros((), dtype=dtype or x.dtype, device=x.device)
