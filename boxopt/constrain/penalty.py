"""Penalties on the distance from a set: as a proximal step, as a gradient, and as a value."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, apply_updates, bind, elementwise, finished
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import advance, check_nonnegative, current, init_scheduled
from boxopt.sets.base import ConstraintSet, expect_set

Kind: TypeAlias = Literal["quadratic", "exact", "huber"]


def penalize(
    constraint: ConstraintSet, weight: ScalarOrSchedule, kind: Kind = "quadratic", delta: Scalar = 1.0
) -> GradientTransformation:
    r"""The proximal step of a penalty: draw the candidate towards the set, from every side.

    With the candidate $y = x + u$, the step size η that made it, its distance d from its projection, coordinate by
    coordinate for a box, and t = ρη, the candidate moves towards its projection:

    - for the ``"quadratic"`` penalty, ρ·d²/2, by d·t/(1 + t);
    - for the ``"exact"`` penalty, ρ·d, by min(d, t);
    - for the ``"huber"`` penalty, ρ·d²/2 up to d = δ and ρ·δ·(d − δ/2) beyond, by d·t/(1 + t), at most δ·t.

    The quadratic one never quite reaches the set; the exact one does, once ρ exceeds the multipliers. Both are stable
    for every ρ, which the penalty's gradient is not.

    Args:
        constraint: The set.
        weight: ρ, not negative: a number, a tensor, a pytree prefix of the parameters, or a schedule.
        kind: One of the above; ``"quadratic"`` unless the set constrains each coordinate by itself, as a `Box` does.
        delta: δ of the Huber penalty, in the parameters' units.

    Returns:
        A step-space transformation. Its state is a `CountState` if ``weight`` is a schedule, and empty otherwise.

    Raises:
        ValueError, TypeError: ``weight`` or ``delta`` is negative, or ``kind`` unknown; or, in ``init``, the set does
            not fit the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.chain(bx.sgd(1.0), bx.penalize(bx.Box(0.0, 1.0), weight=1.0))
        >>> params = torch.tensor([3.0, 0.5])
        >>> updates, state = tx.update(torch.zeros(2), tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([2.0000, 0.5000])

    Source:
        J. Nocedal and S. J. Wright, Numerical Optimization, 2006, chapter 17; N. Parikh and S. Boyd, Proximal
        Algorithms, 2014, section 6.
    """
    _check(weight, kind, delta, constraint)
    return on_leaves(
        GradientTransformation(
            bind(_penalty_init, constraint=constraint, weight=weight),
            bind(_penalize_update, constraint=constraint, weight=weight, kind=kind, delta=delta),
            finished,
        )
    )


def add_penalty(
    constraint: ConstraintSet, weight: ScalarOrSchedule, kind: Kind = "quadratic", delta: Scalar = 1.0
) -> GradientTransformation:
    """Add the gradient of a penalty on the distance from the set to the gradients.

    It comes before the optimizer; an adaptive scaler rescales it with the rest of the gradient. The penalties are those
    of `penalize`.

    Args:
        constraint: The set.
        weight: ρ, not negative: a number, a tensor, a pytree prefix of the parameters, or a schedule.
        kind: ``"quadratic"``, ``"exact"`` or ``"huber"``.
        delta: δ of the Huber penalty, in the parameters' units.

    Returns:
        A gradient-space transformation. Its state is a `CountState` if ``weight`` is a schedule, and empty otherwise.

    Raises:
        ValueError, TypeError: As `penalize`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.add_penalty(bx.Box(0.0, 1.0), weight=10.0)
        >>> params = torch.tensor([3.0, 0.5, -1.0])
        >>> tx.update(torch.zeros(3), tx.init(params), params)[0]
        tensor([ 20.,   0., -10.])
    """
    _check(weight, kind, delta, constraint)
    return on_leaves(
        GradientTransformation(
            bind(_penalty_init, constraint=constraint, weight=weight),
            bind(_add_penalty_update, constraint=constraint, weight=weight, kind=kind, delta=delta),
        )
    )


def penalty(constraint: ConstraintSet, params: Any, kind: Kind = "quadratic", delta: Scalar = 1.0) -> Tensor:
    """The penalty on the distance of the parameters from a set, for use in a loss.

    Args:
        constraint: The set.
        params: A tree of tensors.
        kind: ``"quadratic"`` (half the squared distance), ``"exact"`` (for a box, the sum of absolute distances) or
            ``"huber"``.
        delta: δ of the Huber penalty, in the parameters' units.

    Returns:
        A scalar tensor, differentiable; 0 inside.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.penalty(bx.Box(0.0, 1.0), torch.tensor([3.0, 0.5, -1.0]))
        tensor(2.5000)
    """
    _check(0.0, kind, delta, constraint)

    def value(x: Tensor, nearest: Tensor) -> Tensor:
        distance = _distance(x - nearest)
        if kind == "exact":
            return distance.sum()
        if kind == "quadratic":
            return (distance * distance).sum() / 2
        bend = exact.like(delta, x)
        return torch.where(distance <= bend, distance * distance / 2, bend * (distance - bend / 2)).sum()

    return tree.reduce(torch.add, tree.map(value, params, constraint.project(params)))


def _check(weight: Any, kind: str, delta: Any, constraint: ConstraintSet) -> None:
    expect_set(constraint)
    check_nonnegative("weight", weight)
    check_nonnegative("delta", delta)
    if kind not in _MOVES:
        raise ValueError(f"kind is one of {', '.join(map(repr, _MOVES))}, got {kind!r}")
    if kind != "quadratic" and not constraint.coordinatewise:
        raise ValueError(
            f"the {kind!r} penalty is made coordinate by coordinate, which {type(constraint).__name__} is not: use "
            "'quadratic'"
        )


def _penalty_init(params: Any, *, constraint: ConstraintSet, weight: Any) -> Any:
    constraint.check(params)
    return init_scheduled(params, value=weight)


@elementwise
def _penalize_update(
    updates: P,
    state: Any,
    params: P,
    *,
    constraint: ConstraintSet,
    weight: Any,
    kind: Kind,
    delta: Any,
    step_size: Any = 1.0,
) -> tuple[P, Any]:
    candidate = apply_updates(params, updates)
    strength = tree.combine(lambda rho, size: rho * size, current(weight, state), step_size)

    def move(param: Tensor, y: Tensor, nearest: Tensor, t: Any) -> Tensor:
        gap = exact.wide(nearest) - exact.wide(y)
        t = exact.as_tensor(t, gap)
        target = exact.wide(y) + _MOVES[kind](gap, t, exact.as_tensor(delta, gap))
        return target.to(param.dtype) - param

    if constraint.coordinatewise:
        nearest = constraint.project(candidate)
    else:  # the minimizer over z of Σ ρ/(1 + ρη)·(z − y)²: the penalty softens the metric
        metric = tree.combine(lambda rho, size: size + _inverse(rho), current(weight, state), step_size)
        nearest = constraint.project(candidate, metric)
    return tree.map(move, params, candidate, nearest, tree.expand(strength, params)), advance(state)


@elementwise
def _add_penalty_update(
    updates: P, state: Any, params: P, *, constraint: ConstraintSet, weight: Any, kind: Kind, delta: Any
) -> tuple[P, Any]:
    def slope(x: Tensor, nearest: Tensor) -> Tensor:
        gap = x - nearest
        if kind == "quadratic":
            return gap
        if kind == "exact":
            return torch.sign(gap)
        bend = exact.as_tensor(delta, x)
        return _between(gap, bend)

    slopes = tree.map(slope, params, constraint.project(params))
    return tree.add_scaled(updates, current(weight, state), slopes), advance(state)


def _inverse(weight: Any) -> Any:
    return 1 / weight if isinstance(weight, Tensor) or weight else math.inf


def _quadratic_move(gap: Tensor, t: Tensor, delta: Tensor) -> Tensor:
    return gap - gap / (1 + t)  # which is gap·t/(1 + t), and gap for t = inf


def _exact_move(gap: Tensor, t: Tensor, delta: Tensor) -> Tensor:
    return _between(gap, t)


def _huber_move(gap: Tensor, t: Tensor, delta: Tensor) -> Tensor:
    return _between(_quadratic_move(gap, t, delta), delta * t)


_MOVES: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "quadratic": _quadratic_move,
    "exact": _exact_move,
    "huber": _huber_move,
}


def _between(x: Tensor, limit: Tensor) -> Tensor:
    """``x`` held in [−limit, limit]."""
    x = torch.where(x > limit, limit, x)
    return torch.where(x < -limit, -limit, x)


def _distance(gap: Tensor) -> Tensor:
    return torch.where(gap < 0, -gap, gap)
