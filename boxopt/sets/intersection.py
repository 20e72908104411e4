"""Sets made of sets: intersections, and a set a leaf."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.sets.base import ConstraintSet

P = TypeVar("P")


@tree.register("sets", static=("sweeps", "separable"))
class Intersection(ConstraintSet):
    r"""The points that are in every one of several sets, by Dykstra's algorithm.

    A fixed number of sweeps of projections, each set's last correction taken back before its next: unlike plain
    alternation, that converges to the nearest point of the intersection. The last set holds exactly, the others to what
    `violation` says; put last what must hold. If the intersection is empty, the result is the last set's point nearest
    to the others.

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
        J. P. Boyle and R. L. Dykstra, "A method for finding projections onto the intersection of convex sets in Hilbert
        spaces", Lecture Notes in Statistics 37, 1986.
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

    def check(self, params: Any) -> None:
        for member in self.sets:
            member.check(params)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        point: Any = tree.map(exact.wide, x)
        corrections: list[Any] = [tree.map(torch.zeros_like, point) for _ in self.sets]
        for _ in range(self.sweeps):
            for index, member in enumerate(self.sets):
                candidate = tree.map(torch.add, point, corrections[index])
                point = member.project(candidate, step_size)
                corrections[index] = tree.map(torch.sub, candidate, point)
        narrow = tree.map(lambda leaf, original: leaf.to(original.dtype), point, x)
        return self.sets[-1].project(narrow, step_size)

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

    def check(self, params: Any) -> None:
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
        leaves, structure = tree.flatten(x)
        replaced = dict(zip(tree.paths(x), leaves, strict=True))
        groups = [self._groups(each) for each in (x, *rest)]
        for pattern, member in self.sets.items():
            if groups[0][pattern]:
                replaced |= apply(member, *(group[pattern] for group in groups))
        return tree.unflatten(structure, list(replaced.values()))

    def _fold(self, function: Callable[[Any, Any], Any], apply: Callable[..., Tensor], x: Any) -> Tensor:
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

    def violation(self, x: Any) -> Tensor:
        return self._fold(torch.maximum, lambda member, group: member.violation(group), x)

    def tangent(self, x: Any, gradients: P) -> P:
        return self._with_free(lambda member, group, g: member.tangent(group, g), x, gradients)

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
        result = self._map(apply, x, free, *rest)
        bound = {path for group in self._groups(x).values() for path in group}
        return tree.map_with_path(lambda path, new, other: new if path in bound else other, result, free)
