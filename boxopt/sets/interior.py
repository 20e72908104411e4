"""Vector sets with a logarithmic barrier: proximal steps and sums that are strictly inside.

A subclass gives the mathematics on vectors in float64, `boxopt.sets.barriers` most of it; here vectors are brought
there and back, and sums held inside.

**Strictly inside** is meant as evaluated in float64. What a proximal step returns is inside by itself. A sum of
parameters and update rounds: where that takes it to the boundary, the update is shortened by a few roundings, and
where even that does not help it is 0, for the parameters are inside. A set of equations holds to rounding.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.sets.vectors import VectorSet, _from_vectors, _to_vectors, precise

P = TypeVar("P")


def toward_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a narrower dtype, no magnitude greater, among subnormal numbers too."""
    return torch.where(x < 0, upward(x, dtype), -upward(-x, dtype))


def upward(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a narrower dtype, rounded up."""
    return exact.inward(x, x.detach().to(dtype), up=True)


class InteriorSet(VectorSet):
    """A `VectorSet` with a barrier."""

    # What a subclass gives, on float64 tensors of shape [..., n]; its hyperparameters follow.

    def _barrier(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        """The relaxed barrier of each vector, [...]."""
        raise NotImplementedError(f"{type(self).__name__} has no barrier")

    def _barrier_gradient(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        raise NotImplementedError(f"{type(self).__name__} has no barrier")

    def _prox_barrier(self, y: Tensor, tau: Tensor, *hyper: Tensor) -> Tensor:
        """The minimizer over x of ½Σ(x − y)²/τ plus the barrier, τ > 0 a number a coordinate."""
        raise NotImplementedError(f"{type(self).__name__} has no proximal barrier step")

    def _is_inside(self, x: Tensor, *hyper: Tensor) -> Tensor:
        """Whether each vector is strictly inside, [..., 1]."""
        raise NotImplementedError(f"{type(self).__name__} has no interior")

    def _inwards(self, x: Tensor, dtype: torch.dtype, *hyper: Tensor) -> Tensor:
        """A vector strictly inside, rounded to a narrower dtype in directions that keep it inside."""
        return toward_zero(x, dtype)

    def _narrowed(self, x: Tensor, dtype: torch.dtype, *hyper: Tensor) -> Tensor:
        """A vector strictly inside, in a dtype that may be narrower, and still inside."""
        if dtype == x.dtype:
            return x
        nearest = x.to(dtype)
        inside = self._is_inside(precise(exact.rounded(nearest)), *(number.detach() for number in hyper))
        return torch.where(inside, nearest, self._inwards(x, dtype, *hyper))

    def _settle_inside(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        """`_settle` for a target strictly inside."""
        return self._settle(params, target, *hyper)

    # What every set with a barrier has from it.

    def barrier(self, x: Any, relax: float | Tensor = 1e-3) -> Tensor:
        def value(leaf: Tensor, *hyper: Any) -> Tensor:
            vectors = _to_vectors(precise(leaf), self.dim)
            numbers = self._arranged(leaf, vectors, list(hyper))
            return self._barrier(vectors, exact.as_tensor(relax, vectors), *numbers).sum().to(leaf.dtype)

        return tree.reduce(torch.add, self._map(value, x, combine="sum"))

    def barrier_gradient(self, x: P, relax: float | Tensor = 1e-3) -> P:
        def slope(leaf: Tensor, *hyper: Any) -> Tensor:
            vectors = _to_vectors(precise(leaf), self.dim)
            numbers = self._arranged(leaf, vectors, list(hyper))
            gradient = self._barrier_gradient(vectors, exact.as_tensor(relax, vectors), *numbers)
            return _from_vectors(gradient, leaf, self.dim).to(leaf.dtype)

        return self._map(slope, x)

    def prox_barrier(self, y: P, tau: Any) -> P:
        def solve(leaf: Tensor, *rest: Any) -> Tensor:
            *hyper, weight = rest
            vectors = _to_vectors(precise(leaf), self.dim)
            weights = _to_vectors(exact.as_tensor(weight, vectors).expand(leaf.shape), self.dim)
            numbers = self._arranged(leaf, vectors, hyper)
            result = self._prox_barrier(vectors, weights, *numbers)
            return _from_vectors(self._narrowed(result, leaf.dtype, *numbers), leaf, self.dim)

        return self._map(solve, y, tree.expand(tau, y), metric=True)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        if not strictly:
            return super().land(params, target)

        def land_leaf(leaf: Tensor, *rest: Any) -> Tensor:
            *hyper, goal = rest
            vectors, goal = _to_vectors(leaf, self.dim), _to_vectors(goal, self.dim)
            numbers = self._arranged(leaf, precise(vectors), hyper)
            fixed = [number.detach() for number in numbers]
            update = self._settle_inside(vectors, goal, *numbers)
            update = shortened(vectors, update, lambda x: self._is_inside(x, *fixed))
            return _from_vectors(update, leaf, self.dim)

        return self._map(land_leaf, params, target)


def shortened(params: Tensor, update: Tensor, is_inside: Callable[[Tensor], Tensor]) -> Tensor:
    """The update where its sum with the parameters is inside, a few roundings less of it where that is, or 0."""
    shorter = update * (1 - 8 * torch.finfo(params.dtype).eps)

    def lands(step: Tensor) -> Tensor:
        return is_inside(precise(exact.rounded(params.detach() + exact.rounded(step))))

    stay = exact.replaced(update, torch.where(lands(torch.zeros_like(params)), 0.0, shorter))
    return torch.where(lands(update), update, torch.where(lands(shorter), shorter, stay))
