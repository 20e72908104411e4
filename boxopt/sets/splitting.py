r"""The proximal step of a sum of convex functions from those of its terms, by an alternating direction method.

A point z of each term but the last, and one point x of the last, are drawn to each other and to the candidate y. With
scaled prices u and a force ρ each sweep does

$$ x = \operatorname{prox}_{\tau/(1 + k\rho)}\Big(\frac{y + \rho\sum (z - u)}{1 + k\rho}\Big), \qquad
   z_+ = \operatorname{prox}_{\tau/\rho}(\hat x + u), \qquad u_+ = \hat x + u - z_+ $$

with the k first terms and $\hat x = 1.6\,x - 0.6\,z$. The force is doubled or halved where the distances between the
points, or their moves, lag behind.

Source: S. Boyd, N. Parikh, E. Chu, B. Peleato and J. Eckstein, "Distributed optimization and statistical learning via
the alternating direction method of multipliers", 2011, sections 3.4 and 7.1.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.sets.vectors import precise

ProximalStep = Callable[[Any, Any], Any]
"""From a tree and a step size to a tree."""

_FIRST_FORCE = 3.0
_RELAXATION = 1.6


def proximal_step_of_sum(terms: Sequence[ProximalStep], y: Any, step_size: Any, sweeps: int) -> Any:
    """A point that the last term's step has made, near to the proximal step of the sum in the metric 1/step_size.

    Args:
        terms: Of each term the proximal step.
        y: A tree of float32 or float64 tensors.
        step_size: τ, a number, a tensor or a tree.
        sweeps: How many.
    """
    *others, last = terms
    if not others:
        return last(y, step_size)
    force: Any = _FIRST_FORCE
    points = [last(y, step_size)] * len(others)
    prices = [tree.map(torch.zeros_like, y)] * len(others)
    for _ in range(sweeps):
        point = _drawn(last, y, step_size, points, prices, force)
        apart, moved = [], []
        for index, term in enumerate(others):
            ahead = tree.map(_relaxed, point, points[index])
            candidate = tree.map(torch.add, ahead, prices[index])
            following = term(candidate, _divided(step_size, y, force))
            prices[index] = tree.map(torch.sub, candidate, following)
            apart.append(_square(point, following, step_size))
            moved.append(_square(following, points[index], step_size))
            points[index] = following
        changed = _balanced(force, sum(apart[1:], apart[0]), sum(moved[1:], moved[0]))
        prices = [tree.map(lambda price: price * exact.like(force / changed, price), each) for each in prices]  # noqa: B023
        force = changed
    return _drawn(last, y, step_size, points, prices, force)


def _drawn(last: ProximalStep, y: Any, step_size: Any, points: list[Any], prices: list[Any], force: Any) -> Any:
    """The last term's part of a sweep."""
    whole = 1 + len(points) * force

    def average(leaf: Tensor, *rest: Tensor) -> Tensor:
        weight, total = exact.like(force, leaf), leaf
        for z, price in zip(rest[: len(points)], rest[len(points) :], strict=True):
            total = total + weight * (z - price)
        return total / exact.like(whole, leaf)

    return last(tree.map(average, y, *points, *prices), _divided(step_size, y, whole))


def _divided(step_size: Any, y: Any, number: Any) -> Any:
    def divided(leaf: Tensor, step: Any) -> Tensor:
        return exact.as_tensor(step, leaf) / exact.like(number, leaf)

    return tree.map(divided, y, tree.expand(step_size, y))


def _relaxed(x: Tensor, z: Tensor) -> Tensor:
    return _RELAXATION * x + (1 - _RELAXATION) * z


def _square(one: Any, other: Any, step_size: Any) -> Tensor:
    """The square of the distance in the metric 1/step_size, as a constant."""

    def square(x: Tensor, y: Tensor, step: Any) -> Tensor:
        gap = precise((x - y).detach())
        weight = precise(exact.as_tensor(step, x).detach())
        return (gap * gap / torch.where(weight > 0, weight, 1.0)).sum()

    return tree.reduce(torch.add, tree.map(square, one, other, tree.expand(step_size, one)))


def _balanced(force: Any, apart: Tensor, moved: Tensor) -> Tensor:
    """The force, doubled where the points are still apart though they no longer move, halved where they do."""
    force = exact.as_tensor(force, apart)
    moved = moved * force * force
    halved = torch.where(moved > 4 * apart, force / 2, force)
    return torch.where(apart > 4 * moved, 2 * force, halved).clamp(1e-2, 1e6)
