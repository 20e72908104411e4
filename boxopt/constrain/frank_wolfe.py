"""Frank–Wolfe: steps towards the set's best point for the linearized loss, which need no projection to be feasible."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import EmptyState, GradientTransformation, bind, elementwise, finished
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import advance, check_nonnegative, current, init_scheduled, is_true
from boxopt.sets.base import ConstraintSet, expect_set


def frank_wolfe(
    constraint: ConstraintSet, step_size: ScalarOrSchedule | None = None, *, lipschitz: Scalar | None = None
) -> GradientTransformation:
    r"""Move towards the point of the set at which the linearized loss is least.

    $$ s = \arg\min_{z \in C}\, g \cdot z, \qquad u = \gamma\,(s - x) $$

    A convex combination of two points of the set is in the set, and after t steps x is one of t + 1 of its extreme
    points: few nonzero entries on a simplex or an L1 ball, low rank in a nuclear ball. The loss converges at the rate
    1/t if it is convex, whatever the scale of the gradients. Rounding of the combination is projected away, and zeros
    stay zeros. Start from a feasible point.

    The step γ is one of

    - the default, 2/(t + 2): no number to know, and no descent at each step either;
    - ``step_size``: a number or a schedule;
    - with ``lipschitz``, the short step $\min(g \cdot (x - s)\,/\,(L\,\|s - x\|^2),\ 1)$, which minimizes the quadratic
      upper bound of the loss and descends at each step.

    Args:
        constraint: A bounded set with a linear minimizer.
        step_size: γ, between 0 and 1: a number, a tensor, or a schedule from the number of updates made so far.
        lipschitz: L > 0, such that ‖∇f(x) − ∇f(y)‖ ≤ L‖x − y‖, over all leaves together.

    Returns:
        A step-space transformation, in the place of an optimizer: gradients come in. Its state is a `CountState` with a
        schedule, and empty otherwise.

    Raises:
        TypeError: The constraint is not a set, or has no linear minimizer.
        ValueError: Both ``step_size`` and ``lipschitz`` are given, or one of them is negative; or, in ``init``, the set
            is unbounded or does not fit the parameters; the message names the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.frank_wolfe(bx.sets.Simplex(), lipschitz=1.0), torch.tensor([1.0, 0.0, 0.0])
        >>> target = torch.tensor([0.5, 0.75, 0.0])
        >>> updates, state = tx.update(params - target, tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([0.3750, 0.6250, 0.0000])

    Source:
        M. Frank and P. Wolfe, "An algorithm for quadratic programming", Naval Research Logistics Quarterly 3, 1956;
        M. Jaggi, "Revisiting Frank–Wolfe: projection-free sparse convex optimization", ICML 2013.
    """
    expect_set(constraint, "linear_minimizer")
    if lipschitz is not None:
        if step_size is not None:
            raise ValueError("frank_wolfe takes a step size or a Lipschitz constant, got both")
        check_nonnegative("lipschitz", lipschitz)
        update = bind(_short_step_update, constraint=constraint, lipschitz=lipschitz)
        return GradientTransformation(bind(_frank_wolfe_init, constraint=constraint, rule=None), update, finished)
    rule = _open_loop if step_size is None else step_size
    check_nonnegative("step_size", rule)
    return GradientTransformation(
        bind(_frank_wolfe_init, constraint=constraint, rule=rule),
        bind(_frank_wolfe_update, constraint=constraint, rule=rule),
        finished,
    )


def frank_wolfe_gap(constraint: ConstraintSet, params: Any, gradients: Any) -> Tensor:
    r"""The Frank–Wolfe gap, a bound on how far a convex loss is from its least value in the set.

    $$ \max_{z \in C}\ g \cdot (x - z) \;\ge\; f(x) - \min_C f $$

    Args:
        constraint: A bounded set with a linear minimizer.
        params: A tree of tensors in the set, x.
        gradients: The gradients of the loss at ``params``, g.

    Returns:
        A scalar tensor in the units of the loss; 0 exactly where the first-order conditions hold.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.frank_wolfe_gap(bx.Box(0.0, 1.0), torch.tensor([0.5, 1.0]), torch.tensor([3.0, -1.0]))
        tensor(1.5000)

    Source:
        M. Jaggi, ICML 2013.
    """
    return _inner(gradients, tree.map(torch.sub, params, constraint.linear_minimizer(gradients)))


def _open_loop(count: Tensor) -> Tensor:
    return 2 / (count.to(torch.float32 if count.device.type == "mps" else torch.float64) + 2)


def _frank_wolfe_init(params: Any, *, constraint: ConstraintSet, rule: Any) -> Any:
    constraint.check(params)
    for sign in (1.0, -1.0):
        tree.map(_check_bounded, constraint.linear_minimizer(tree.map(bind(_filled, value=sign), params)))
    return EmptyState() if rule is None else init_scheduled(params, value=rule)


def _filled(x: Tensor, *, value: float) -> Tensor:
    return torch.full_like(x, value)


def _check_bounded(minimizer: Tensor) -> None:
    if is_true(minimizer.isinf()):
        raise ValueError("frank_wolfe needs a bounded set, a linear function has no least value here")


@elementwise
def _frank_wolfe_update(updates: P, state: Any, params: P, *, constraint: ConstraintSet, rule: Any) -> tuple[P, Any]:
    corner = constraint.linear_minimizer(updates)
    return _towards(corner, params, current(rule, state), constraint), advance(state)


def _short_step_update(
    updates: P, state: Any, params: P, *, constraint: ConstraintSet, lipschitz: Any
) -> tuple[P, Any]:
    corner = constraint.linear_minimizer(updates)
    away = tree.map(torch.sub, params, corner)
    gap, curvature = _inner(updates, away), lipschitz * _inner(away, away)
    full = gap >= curvature
    step = torch.where(full, 1.0, gap / torch.where(full, 1.0, curvature))
    return _towards(corner, params, torch.where(step > 0, step, 0.0), constraint), state


def _towards(corner: P, params: P, step: Any, constraint: ConstraintSet) -> P:
    """The update that takes params a share ``step`` of the way to the corner."""

    def combine(x: Tensor, s: Tensor) -> Tensor:
        start = exact.wide(x)
        return (start + exact.like(step, start) * (exact.like(s, start) - start)).to(x.dtype)

    combined = tree.map(combine, params, corner)
    # The projection only undoes rounding; what it would put in the place of a zero is rounding too.
    repaired = tree.map(lambda x, y: torch.where(x == 0, x, y), combined, constraint.project(combined))
    return constraint.land(params, repaired)


def _inner(one: Any, other: Any) -> Tensor:
    """The inner product of two trees, in float32 at least."""

    def on_leaf(x: Tensor, y: Tensor) -> Tensor:
        return (exact.wide(x) * exact.wide(y)).sum()

    return tree.reduce(torch.add, tree.map(on_leaf, one, other))
