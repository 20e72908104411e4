"""Sets made of sets: intersections, and a set a leaf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.pack import Packed
from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box
from boxopt.sets.splitting import proximal_step_of_sum

P = TypeVar("P")


@tree.register("sets", static=("sweeps", "separable"))
class Intersection(ConstraintSet):
    r"""The points that are in every one of several sets.

    Their nearest, by the alternating direction method of multipliers: see `boxopt.sets.splitting`. The number of sweeps
    is fixed. The last set holds exactly, the others to what `violation` says: put last what must hold. If the
    intersection is empty, the result is a point of the last set that is near to the others.

    Fifty sweeps reach 1e-8 or better for sets that meet at an angle, from candidates about as far away as the sets are
    wide; from thirty times as far, or for sets that are nearly parallel, expect 1e-2. Dykstra's algorithm, which
    stalls at a distance, is no better in any case that was tried and far behind in most.

    **Derivative.** That of the sweeps.

    Args:
        sets: Two or more, convex.
        sweeps: How many.

    Raises:
        TypeError: Something is not a set.

    Example:
        >>> import torch, boxopt as bx
        >>> both = bx.sets.Intersection(bx.sets.L2Ball(1.0), bx.Box(0.0, 0.5))
        >>> both.project(torch.tensor([2.0, 1.0, -1.0]))
        tensor([0.5000, 0.5000, 0.0000])

    Source:
        S. Boyd, N. Parikh, E. Chu, B. Peleato and J. Eckstein, "Distributed optimization and statistical learning via
        the alternating direction method of multipliers", 2011, sections 3.4 and 7.1.
    """

    sets: tuple[ConstraintSet, ...]
    sweeps: int
    separable: bool

    def __init__(self, *sets: ConstraintSet, sweeps: int = 50) -> None:
        for member in sets:
            if not isinstance(member, ConstraintSet):
                raise TypeError(f"Intersection is of sets, got {type(member).__name__}")
        if not sets:
            raise TypeError("Intersection needs at least one set")
        self.sets = sets
        self.sweeps = sweeps
        self.separable = all(member.separable for member in sets)

    @property
    def coordinatewise(self) -> bool:
        return all(member.coordinatewise for member in self.sets)

    def __repr__(self) -> str:
        return f"Intersection({', '.join(map(repr, self.sets))})"

    def check(self, params: Any) -> None:
        for member in self.sets:
            member.check(params)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        *others, last = self.sets
        if not others:
            return last.project(x, step_size)
        if any(sharded.is_sharded(leaf) for leaf in tree.leaves(x)):  # one exchange, rather than some in every sweep
            gathered = self.project(tree.map(sharded.whole, x), tree.map(sharded.whole, step_size))
            return tree.map(sharded.like, gathered, x)
        terms = [lambda y, _, member=member: member.project(y, step_size) for member in self.sets]
        nearest: Any = proximal_step_of_sum(terms, tree.map(exact.wide, x), step_size, self.sweeps)
        for member in others:  # what the sweeps have left to do, so that the point leaves the sets as little as can be
            nearest = member.project(nearest, step_size)
        return last.project(tree.map(lambda leaf, original: leaf.to(original.dtype), nearest, x), step_size)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        return self.sets[-1].land(params, target, strictly=strictly)

    def violation(self, x: Any) -> Tensor:
        return tree.reduce(torch.maximum, [member.violation(x) for member in self.sets])


@tree.register("sets")
class ByPath(ConstraintSet):
    """A set for each pattern of leaf paths; leaves that match none are free.

    A path joins keys, indices and field names by dots; patterns are those of a shell. A leaf belongs to the first
    pattern that it matches. Sets see their leaves as a dict from path to leaf.

    Args:
        sets: From pattern to set.

    Raises:
        TypeError: A value is not a set.
        ValueError: In `check`, a pattern matches no leaf, or a set does not fit.

    Example:
        >>> import torch, boxopt as bx
        >>> sets = bx.sets.ByPath({"*.weight": bx.Box(-1.0, 1.0), "mixture": bx.sets.Simplex()})
        >>> params = {"layer": {"weight": torch.tensor([3.0]), "bias": torch.tensor([3.0])}, "mixture": torch.zeros(2)}
        >>> sets.project(params)
        {'layer': {'weight': tensor([1.]), 'bias': tensor([3.])}, 'mixture': tensor([0.5000, 0.5000])}
    """

    sets: dict[str, ConstraintSet]

    def __init__(self, sets: Mapping[str, ConstraintSet]) -> None:
        for pattern, member in sets.items():
            if not isinstance(member, ConstraintSet):
                raise TypeError(f"ByPath maps patterns to sets, got {type(member).__name__} for {pattern!r}")
        self.sets = dict(sets)

    def __repr__(self) -> str:
        return f"ByPath({self.sets!r})"

    @property
    def separable(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Whether all sets are boxes between two numbers, which may be given packed parameters."""
        return all(isinstance(member, Box) and member.is_between_numbers for member in self.sets.values())

    @property
    def coordinatewise(self) -> bool:
        return all(member.coordinatewise for member in self.sets.values())

    def offers(self, operation: str) -> bool:
        return super().offers(operation) and all(member.offers(operation) for member in self.sets.values())

    def check(self, params: Any) -> None:
        params = params.unpack() if isinstance(params, Packed) else params
        tree.check_parameters(params)
        groups = self._groups(params)
        unused = [pattern for pattern in self.sets if not groups[pattern]]
        if unused:
            names = ", ".join(repr(path) for path in tree.paths(params)[:8])
            raise ValueError(f"no leaf matches {', '.join(map(repr, unused))}; the leaves are {names}")
        for pattern, member in self.sets.items():
            member.check(groups[pattern])

    def _groups(self, params: Any) -> dict[str, dict[str, Any]]:
        groups: dict[str, dict[str, Any]] = {pattern: {} for pattern in self.sets}
        for path, leaf in zip(tree.paths(params), tree.leaves(params), strict=True):
            for pattern in self.sets:
                if tree.matches(path, pattern):
                    groups[pattern][path] = leaf
                    break
        return groups

    def _map(self, apply: Callable[..., Any], x: Any, *rest: Any) -> Any:
        """The tree ``x`` with ``apply(set, group of x, *groups of rest)`` in the places of each group."""
        if isinstance(x, Packed):
            return self._choose(apply, x, x, *rest)
        leaves, structure = tree.flatten(x)
        replaced = dict(zip(tree.paths(x), leaves, strict=True))
        groups = [self._groups(each) for each in (x, *rest)]
        for pattern, member in self.sets.items():
            if groups[0][pattern]:
                replaced |= apply(member, *(group[pattern] for group in groups))
        return tree.unflatten(structure, list(replaced.values()))

    def _choose(self, apply: Callable[..., Any], otherwise: Any, x: Packed, *rest: Any) -> Any:
        """As `_map` for packed trees: each set is applied to all numbers, of which its own are taken."""
        groups = self._groups(x.layout.structure)
        for pattern, member in self.sets.items():
            own = x.layout.mask([path in groups[pattern] for path in x.layout.paths], x)
            otherwise = tree.map(torch.where, own, apply(member, x, *rest), otherwise)
        return otherwise

    def _fold(self, function: Callable[[Any, Any], Any], apply: Callable[..., Tensor], x: Any) -> Tensor:
        x = x.unpack() if isinstance(x, Packed) else x
        groups = self._groups(x)
        return tree.reduce(
            function, [apply(member, groups[name]) for name, member in self.sets.items() if groups[name]]
        )

    def project(self, x: P, step_size: Any = 1.0) -> P:
        sizes = tree.expand(step_size, x)
        return self._map(lambda member, group, size: member.project(group, size), x, sizes)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        free = tree.map(torch.sub, target, params)
        return self._with_free(lambda member, p, u, t: member.land(p, t, strictly=strictly), params, free, target)

    def step(self, params: P, updates: P, step_size: Any = 1.0) -> P:
        if isinstance(params, Packed):
            return self._choose(lambda member, p, u: member.step(p, u), updates, params, updates)
        sizes = tree.expand(step_size, params)
        return self._with_free(lambda member, p, u, size: member.step(p, u, size), params, updates, sizes)

    def violation(self, x: Any) -> Tensor:
        return self._fold(torch.maximum, lambda member, group: member.violation(group), x)

    def tangent(self, x: Any, gradients: P) -> P:
        return self._with_free(lambda member, group, g: member.tangent(group, g), x, gradients)

    def active(self, x: P, tolerance: float | Tensor = 0.0) -> P:
        """−1 at a lower bound, 1 at an upper, 0 between them and in leaves that are in no box; int8."""

        def sides(member: Any, group: Any, zeros: Any) -> Any:
            return member.active(group, tolerance) if hasattr(member, "active") else zeros

        return self._with_free(sides, x, tree.map(lambda leaf: torch.zeros_like(leaf, dtype=torch.int8), x))

    def linear_minimizer(self, gradients: P) -> P:
        """That of each set; infinite in leaves that are free, where a linear function has no least value."""
        nowhere = tree.map(
            lambda g: torch.where(g == 0, 0.0, torch.copysign(torch.full_like(g, torch.inf), -g)), gradients
        )
        return self._with_free(lambda member, group, _: member.linear_minimizer(group), gradients, nowhere)

    def barrier(self, x: Any, relax: float | Tensor = 1e-3) -> Tensor:
        return self._fold(torch.add, lambda member, group: member.barrier(group, relax), x)

    def barrier_gradient(self, x: P, relax: float | Tensor = 1e-3) -> P:
        zeros = tree.map(torch.zeros_like, x)
        return self._with_free(lambda member, group, zero: member.barrier_gradient(group, relax), x, zeros)

    def prox_barrier(self, y: P, tau: Any) -> P:
        return self._map(lambda member, group, t: member.prox_barrier(group, t), y, tree.expand(tau, y))

    def _with_free(self, apply: Callable[..., Any], x: Any, free: Any, *rest: Any) -> Any:
        """As `_map`, with ``free``'s leaves where no set applies."""
        if isinstance(x, Packed):
            return self._choose(apply, free, x, free, *rest)
        result = self._map(apply, x, free, *rest)
        bound = {path for group in self._groups(x).values() for path in group}
        return tree.map_with_path(lambda path, new, other: new if path in bound else other, result, free)
