"""One evaluation and one update of one problem, and whether it was the last."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation, accepted
from boxopt.solve.batching import put_together
from boxopt.solve.flat import Flat
from boxopt.solve.result import Status
from boxopt.solve.solver import Iterate, max_norm, state_after
from boxopt.solve.track import TrackedState, is_solver_state, tracked

Evaluate = Callable[..., tuple[Any, dict[str, Any]]]
"""``evaluate(params, *args) -> (gradients, extra)`` for one problem; ``extra`` holds ``value`` and what else the
solver's ``update`` may want, of which it gets what it names. Two that are equal and hash alike compute the same."""


# Plain integers: the compiler does not know members of an Enum.
RUNNING = int(Status.RUNNING)
_REASONS = tuple(
    int(reason)
    for reason in (Status.GRADIENT, Status.STEP, Status.VALUE, Status.NONFINITE, Status.STALLED, Status.LIMIT)
)


class Limits(NamedTuple):
    """When a problem stops: numbers, or tensors with one for each problem.

    Attributes:
        tol: The largest optimality ‖P(x − g) − x‖∞ of a solution.
        step_tol: How small a step, relative to the parameters where they are above 1, ends the search; 0 none.
        value_tol: How small a change of the loss, relative to it where it is above 1, ends the search; 0 none.
        max_steps: How many evaluations are allowed.
    """

    tol: Any
    step_tol: Any
    value_tol: Any
    max_steps: Any


class Run(NamedTuple):
    """How far a problem is.

    Attributes:
        state: The state of the solver.
        status: A code of `Status`, int8.
        steps: The evaluations used, int64.
    """

    state: Any
    status: Tensor
    steps: Tensor


class Setting(NamedTuple):
    """All that a step reads beside the run: what may hold tensors."""

    solver: GradientTransformation
    constraint: Any
    args: tuple[Any, ...]
    limits: Limits


@dataclass(frozen=True)
class Step:
    """One evaluation and one update of one problem, as functions of tensors.

    Attributes:
        evaluate: As `Evaluate`.
        key: What equal steps have in common beside it.
        flat: How the parameters lie in a vector.
        setting: A `Setting` without its tensors.
    """

    evaluate: Evaluate
    key: Hashable
    flat: Flat = field(compare=False)
    setting: Any = field(compare=False)
    problems_dim = 0  # in what a batch's run holds

    def start(self, params: Any, tensors: list[Tensor]) -> Run:
        """The run before the first evaluation."""
        setting = put_together(self.setting, tensors)
        state = setting.solver.init(params)
        if not is_solver_state(state):
            state = tracked(setting.solver, setting.constraint).init(params)
        zero = torch.zeros((), dtype=torch.int64, device=self.flat.device)
        return Run(state, zero.to(torch.int8), zero)

    def advance(self, run: Run, tensors: list[Tensor], all_running: bool = False) -> Run:
        """The run after one more evaluation; the same if it has ended, unless it is known that none has."""
        setting = put_together(self.setting, tensors)
        solver, names = setting.solver, accepted(setting.solver)
        if isinstance(run.state, TrackedState):
            solver, names = tracked(solver, setting.constraint), None
        gradients, extra = self.evaluate(self.flat.unravel(run.state.trial), *setting.args)
        extra = {name: value for name, value in extra.items() if names is None or name in names}
        state = state_after(solver, self.flat, gradients, run.state, extra)
        return next_run(run, state, setting.limits, all_running)


def next_run(old: Run, state: Any, limits: Limits, all_running: bool) -> Run:
    """The run that has come to a state; the old one where it had ended, which need not be looked at if none had."""
    steps = old.steps + 1
    new = Run(state, status_of(old.state.iterate, state, steps, limits), steps)
    if all_running:
        return new
    running = old.status == RUNNING
    return tree.map(lambda one, other: torch.where(running, one, other), new, old)


def status_of(old: Iterate, state: Any, steps: Tensor, limits: Limits) -> Tensor:
    """Whether the point reached is the last, and why."""
    new = state.iterate
    again = (new.accepted > old.accepted) & (old.accepted > 0)
    step, size = max_norm(new.params - old.params), max_norm(new.params)
    change, scale = (new.value - old.value).abs(), torch.maximum(new.value.abs(), old.value.abs())
    holds = (  # in the order of _REASONS, of which the first counts
        (new.optimality <= limits.tol) & (new.accepted > 0),
        again & (limits.step_tol > 0) & (step <= limits.step_tol * size.clamp_min(1)),
        again & (limits.value_tol > 0) & (change <= limits.value_tol * scale.clamp_min(1)),
        new.accepted == 0,
        state.stalled,
        steps >= limits.max_steps,
    )
    status = torch.full_like(steps, RUNNING, dtype=torch.int8)
    for reason, held in zip(reversed(_REASONS), reversed(holds), strict=True):
        status = torch.where(held, torch.full_like(status, reason), status)
    return status
