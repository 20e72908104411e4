"""Any transformation as a solver: the points that it visits are its trials, and what it has reached is remembered."""

from __future__ import annotations

from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.constrain.penalty import _penalize_update
from boxopt.core import tree
from boxopt.core.combine import _as_node, _keep, _merge, _resolve
from boxopt.core.transform import GradientTransformation, accepted, apply_updates, bind, finished, members
from boxopt.core.types import P
from boxopt.sets.base import ConstraintSet
from boxopt.solve.flat import Flat
from boxopt.solve.solver import Iterate, finite, first_iterate, projected_gradient
from boxopt.wrap.select import select


class TrackedState(NamedTuple):
    """The state of `tracked`: that of a solver, around another state.

    Attributes:
        inner: The state of the transformation.
        iterate: The last point at which loss and gradient were finite.
        best: That of the least loss among them, of those in the set if any was.
        trial: The next point, a vector.
        stalled: Whether a loss or a gradient was not finite, from which a transformation does not come back.
    """

    inner: Any
    iterate: Iterate
    best: Iterate
    trial: Tensor
    stalled: Tensor


def is_solver_state(state: Any) -> bool:
    """Whether a state is that of a solver, see `boxopt.solve.solver.SolverState`."""
    return all(hasattr(state, name) for name in ("iterate", "trial", "stalled"))


def tracked(transformation: GradientTransformation, constraint: ConstraintSet | None) -> GradientTransformation:
    """A transformation with the state of a solver.

    Args:
        transformation: Any.
        constraint: The set in which it keeps its parameters: what feasible and optimal mean, and where it starts.
    """
    return GradientTransformation(
        bind(_tracked_init, transformation=transformation, constraint=constraint),
        bind(_tracked_update, transformation=transformation, constraint=constraint),
        finished,
    )


def _tracked_init(
    params: Any, *, transformation: GradientTransformation, constraint: ConstraintSet | None
) -> TrackedState:
    tree.check_parameters(params)
    start = params if constraint is None else constraint.project(params)
    point = Flat.of(params).ravel(start)
    going = torch.zeros((), dtype=torch.bool, device=point.device)
    return TrackedState(transformation.init(start), first_iterate(point), first_iterate(point), point, going)


def _tracked_update(
    updates: P,
    state: TrackedState,
    params: P,
    *,
    transformation: GradientTransformation,
    constraint: ConstraintSet | None,
    value: Tensor,
    **extra: Any,
) -> tuple[P, TrackedState]:
    flat = Flat.of(params)
    point = flat.ravel(params)
    gradient, loss = finite(flat.ravel(updates), value)
    fine = loss < torch.inf
    free = gradient if constraint is None else projected_gradient(flat, constraint, point, gradient)
    optimality = free.abs().amax() if free.numel() else loss * 0
    here = Iterate(point, gradient, loss, optimality, state.iterate.accepted + 1)
    better = fine & (loss <= state.best.value)
    if constraint is not None:
        better = better & _is_feasible(constraint, params, point)

    given = {"value": value, "grad": updates, **extra}
    names = accepted(transformation)
    given = {name: item for name, item in given.items() if names is None or name in names}
    updates, inner = transformation.update(updates, state.inner, params, **given)
    return updates, TrackedState(
        inner,
        select(fine, here, state.iterate),
        select(better, here, state.best),
        flat.ravel(apply_updates(params, updates)),
        ~fine,
    )


def _is_feasible(constraint: ConstraintSet, params: Any, point: Tensor) -> Tensor:
    """Whether a point is in the set, up to the roundings of sums over its coordinates."""
    if not point.numel():
        return torch.ones((), dtype=torch.bool, device=point.device)
    eps = max(torch.finfo(leaf.dtype).eps for leaf in tree.leaves(params))
    return constraint.violation(params) <= eps * point.abs().sum()


def constraint_of(transformation: GradientTransformation) -> ConstraintSet | None:
    """The set in which a transformation keeps its parameters: those bound in it and its members, for their leaves.

    Passed over are sets without a projection, those that only serve for a penalty, and what a closure hides.
    """
    found = _sets_of(transformation)
    if not found:
        return None
    return found[0] if len(found) == 1 else Several(found)


def _sets_of(transformation: GradientTransformation) -> tuple[ConstraintSet, ...]:
    update = transformation.update
    found: list[ConstraintSet] = []
    if transformation.step_size is finished and isinstance(update, partial) and update.func is not _penalize_update:
        found += [value for value in update.keywords.values() if _has_projection(value)]
    for member in members(transformation):
        found += _sets_of(member)
    init = transformation.init
    if isinstance(init, partial) and "mask" in init.keywords:
        found = [OnSelected(init.keywords["mask"], item) for item in found]
    return tuple(item for place, item in enumerate(found) if all(item is not other for other in found[:place]))


def _has_projection(value: Any) -> bool:
    return isinstance(value, ConstraintSet) and type(value).project is not ConstraintSet.project


@tree.register("sets")
class Several(ConstraintSet):
    """Sets of different leaves, all at once; of the same leaves, a step towards each of them in turn."""

    def __init__(self, sets: tuple[ConstraintSet, ...]) -> None:
        self.sets = sets

    def project(self, x: P, step_size: Any = 1.0) -> P:
        for member in self.sets:
            x = member.project(x)
        return x

    def violation(self, x: Any) -> Tensor:
        return tree.reduce(torch.maximum, [member.violation(x) for member in self.sets])


@tree.register("mask", "constraint")
class OnSelected(ConstraintSet):
    """A set of the leaves that `boxopt.masked` selects; the others are free."""

    def __init__(self, mask: Any, constraint: ConstraintSet) -> None:
        self.mask = mask
        self.constraint = constraint

    def _selection(self, x: Any) -> Any:
        return tree.map(_as_node, tree.expand(_resolve(self.mask, x), x))

    def project(self, x: P, step_size: Any = 1.0) -> P:
        selection = self._selection(x)
        return _merge(selection, self.constraint.project(_keep(selection, x)), x)

    def violation(self, x: Any) -> Tensor:
        return self.constraint.violation(_keep(self._selection(x), x))
