"""Projection of the step: after it, the parameters are in the set."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import EmptyState, GradientTransformation, bind, elementwise, finished
from boxopt.core.types import P
from boxopt.sets.base import ConstraintSet, expect_set


def project(constraint: ConstraintSet, *, straight_through: bool = False) -> GradientTransformation:
    r"""Project the step onto a set: projected gradient descent, whatever made the step.

    $$ u \mapsto P_C(x + u) - x $$

    The nearest point is that in the metric 1/η, η being the step size that made the update: a number for SGD, one a
    coordinate for Adam and its like. For a box the metric makes no difference; for a simplex or a ball it decides
    whether the iteration converges to the minimizer at all (see the example in ``docs/sets.md``).

    It comes after the learning rate, and after decoupled weight decay. From feasible parameters,
    ``apply_updates(params, updates)`` is in the set exactly, in every dtype, eager, compiled and vmapped: the update is
    shortened by an ulp where the rounding of the sum would carry it out. It ends *on* a bound wherever the sum can; for
    exactly active bounds, and infeasible starts in one step, use ``apply_updates(params, updates, within=constraint)``.

    Args:
        constraint: The set.
        straight_through: Whether the derivative *through* the update is that of the step without the projection. It is
            wrong (biased): it moves hyperparameters on as if there were no bounds, where the right derivative is 0 and
            nothing would move. See ``docs/meta.md``.

    Returns:
        A step-space transformation without state.

    Raises:
        TypeError: The constraint is not a set.
        ValueError, TypeError: In ``init``, the set does not fit the parameters; the message names the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.chain(bx.adam(0.1), bx.project(bx.Box(-1.0, 1.0)))
        >>> params = torch.tensor([0.95, 0.0])
        >>> updates, state = tx.update(torch.tensor([-1.0, 1.0]), tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([ 1.0000, -0.1000])

    Source:
        A. A. Goldstein, "Convex programming in Hilbert space", Bulletin of the AMS 70, 1964; D. P. Bertsekas, Nonlinear
        Programming, 2016, section 3.3.
    """
    expect_set(constraint)
    update = _project_update if constraint.separable else _project_in_metric_update
    update = _straight_through_update if straight_through else update
    return on_leaves(
        GradientTransformation(
            bind(_constraint_init, constraint=constraint), bind(update, constraint=constraint), finished
        )
    )


def _constraint_init(params: Any, *, constraint: ConstraintSet) -> EmptyState:
    constraint.check(params)
    return EmptyState()


@elementwise
def _project_update(updates: P, state: Any, params: P, *, constraint: ConstraintSet) -> tuple[P, Any]:
    return constraint.step(params, updates), state


def _project_in_metric_update(
    updates: P, state: Any, params: P, *, constraint: ConstraintSet, step_size: Any = 1.0
) -> tuple[P, Any]:
    return constraint.step(params, updates, step_size), state


def _straight_through_update(
    updates: P, state: Any, params: P, *, constraint: ConstraintSet, step_size: Any = 1.0
) -> tuple[P, Any]:
    def unbounded_derivative(landed: Tensor, update: Tensor) -> Tensor:
        return exact.replaced(update.to(landed.dtype), landed)

    return tree.map(unbounded_derivative, constraint.step(params, updates, step_size), updates), state
