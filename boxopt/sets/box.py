"""The box: lower ≤ x ≤ upper, coordinate by coordinate."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, foreach, sharded, tree
from boxopt.core.transform import add_update
from boxopt.core.values import check_broadcasts, is_true
from boxopt.sets.base import ConstraintSet
from boxopt.sets.log_barrier import prox_log_barrier, relaxed_log, relaxed_log_slope

P = TypeVar("P")


@tree.register("lower", "upper")
@dataclass(frozen=True, eq=False)
class Box(ConstraintSet):
    r"""The set $\{x : l \le x \le u\}$, elementwise.

    Bounds are cast to each parameter's dtype, rounded *into* the box: no bound ever widens. With ``lower == upper`` a
    coordinate is fixed.

    **Derivative.** At a tie (x exactly on a bound) the projection's derivative is that of the identity: 1 with respect
    to x, 0 with respect to the bound. Outside it is 0 and 1. This holds whatever ``torch.clamp`` does in your version.

    Args:
        lower: A number, a tensor that broadcasts to the parameter, or a pytree prefix of the parameters with such
            values; ``None`` or ``-inf`` means no bound.
        upper: Likewise; ``None`` or ``inf`` means no bound.

    Raises:
        ValueError: A bound is NaN, or lower > upper somewhere, or an infinite bound leaves nothing. Values that cannot
            be read, under ``vmap`` or ``torch.compile``, are not checked: there a NaN bound is no bound, and where
            lower > upper the upper bound wins.
        TypeError: A bound is neither a number nor a tensor of real numbers.

    Example:
        >>> import torch, boxopt as bx
        >>> box = bx.Box(lower={"scale": 0.0, "shift": None}, upper=1.0)
        >>> box.project({"scale": torch.tensor([-1.0, 2.0]), "shift": torch.tensor([-3.0])})
        {'scale': tensor([0., 1.]), 'shift': tensor([-3.])}
    """

    lower: Any = None
    upper: Any = None
    separable = True

    def __post_init__(self) -> None:
        for name in ("lower", "upper"):
            object.__setattr__(self, name, tree.map_prefix(tree.as_value, getattr(self, name)))
        if not torch.compiler.is_compiling():
            _check_bounds(self.lower, self.upper)

    def check(self, params: Any) -> None:
        """Raise an error naming the leaf that the box does not fit."""
        tree.check_parameters(params)

        def check_leaf(x: Tensor, lower: Any, upper: Any) -> None:
            for name, bound in (("lower", lower), ("upper", upper)):
                check_broadcasts(f"the {name} bound", bound, x.shape, "parameter")
            low, high = _limits(x, lower, upper)
            if is_true(low > high):
                raise ValueError(f"no number of dtype {x.dtype} lies between the bounds {lower!r} and {upper!r}")

        self._map(check_leaf, params)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        """The nearest point of the box, which is the same in every diagonal metric; its sums stay exact."""
        return self._map_together(lambda leaf, lower, upper: exact.clamp(leaf, *_limits(leaf, lower, upper)), x)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        """The update whose sum with ``params`` is in the box, or strictly inside it: see `boxopt.core.exact`."""
        limits = _open_limits if strictly else _limits

        def land_leaf(leaf: Tensor, lower: Any, upper: Any, goal: Tensor) -> Tensor:
            return exact.land(leaf, goal, *limits(leaf, lower, upper))

        return self._map(land_leaf, params, target)

    def step(self, params: P, updates: P, step_size: Any = 1.0) -> P:
        """`land` on `project`, in one pass over the leaves: neither the candidates nor where they land are kept."""

        def step_leaf(leaf: Tensor, lower: Any, upper: Any, update: Tensor) -> Tensor:
            limits = _limits(leaf, lower, upper)
            return exact.land(leaf, exact.clamp(add_update(leaf, update), *limits), *limits)

        return self._map_together(step_leaf, params, updates)

    def violation(self, x: Any) -> Tensor:
        """The largest distance of a coordinate from the box."""

        def outside(leaf: Tensor, lower: Any, upper: Any) -> Tensor:
            low, high = _limits(leaf, lower, upper)
            below = torch.where(leaf < low, low - leaf, 0.0)
            above = torch.where(leaf > high, leaf - high, 0.0)
            distance = torch.where(torch.isnan(leaf), leaf, torch.maximum(below, above))
            return sharded.amax(distance) if distance.numel() else distance.new_zeros(())

        return tree.reduce(torch.maximum, self._map(outside, x))

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients, 0 where they push a coordinate at a bound outwards."""

        def drop(leaf: Tensor, lower: Any, upper: Any, gradient: Tensor) -> Tensor:
            low, high = _limits(leaf, lower, upper)
            outward = ((leaf <= low) & (gradient > 0)) | ((leaf >= high) & (gradient < 0))
            return torch.where(outward, torch.zeros_like(gradient), gradient)

        return self._map(drop, x, gradients)

    def linear_minimizer(self, gradients: P) -> P:
        """The lower bound where the coefficient is positive, the upper where it is negative, between where it is 0.

        Infinite where the bound is.
        """

        def corner(gradient: Tensor, lower: Any, upper: Any) -> Tensor:
            low, high = (exact.as_tensor(limit, gradient) for limit in _limits(gradient, lower, upper))
            bounded = (low > -torch.inf) & (high < torch.inf)
            middle = torch.where(bounded, low + (high - low) / 2, torch.zeros_like(gradient).clamp(low, high))
            return torch.where(gradient > 0, low, torch.where(gradient < 0, high, middle))

        return self._map(corner, gradients)

    def active(self, x: P, tolerance: float | Tensor = 0.0) -> P:
        """−1 where x is at its lower bound or within ``tolerance`` of it, 1 at the upper, 0 between them; int8."""

        def side(leaf: Tensor, lower: Any, upper: Any) -> Tensor:
            low, high = _limits(leaf, lower, upper)
            near = exact.like(tolerance, leaf)
            at_lower, at_upper = leaf <= low + near, leaf >= high - near
            return torch.where(at_lower, -1, torch.where(at_upper, 1, 0)).to(torch.int8)

        return self._map(side, x)

    def barrier(self, x: Any, relax: float | Tensor = 1e-3) -> Tensor:
        """−Σ log(x − lower) − Σ log(upper − x), extended quadratically where a slack is below δ.

        δ is ``relax`` times the box's width or, with one bound, ``relax`` itself. With ``relax=0`` there is no
        extension, and outside the barrier is inf.
        """
        return tree.reduce(torch.add, self._map(lambda *leaf: _each_wall(_barrier_value, relax, *leaf).sum(), x))

    def barrier_gradient(self, x: P, relax: float | Tensor = 1e-3) -> P:
        """The gradient of `barrier`."""
        return self._map(lambda *leaf: _each_wall(_barrier_slope, relax, *leaf), x)

    def prox_barrier(self, y: P, tau: Any) -> P:
        """The minimizer of the barrier and ½‖x − y‖²/tau, strictly inside; see `boxopt.sets.log_barrier`."""

        def solve(leaf: Tensor, lower: Any, upper: Any, weight: Any) -> Tensor:
            candidate = exact.wide(leaf)
            low, high = (exact.as_tensor(limit, candidate) for limit in _limits(leaf, lower, upper))
            solution = prox_log_barrier(candidate, exact.as_tensor(weight, candidate), low, high)
            return exact.clamp(solution.to(leaf.dtype), *_open_limits(leaf, lower, upper))

        return self._map(solve, y, tree.expand(tau, y))

    @property
    def is_between_numbers(self) -> bool:
        """Whether each bound is one number, or there is none."""
        return all(bound is None or isinstance(bound, float | int) for bound in (self.lower, self.upper))

    def _map(self, function: Callable[..., Any], x: Any, *rest: Any) -> Any:
        """Map ``function(leaf, lower, upper, *rest)`` over the leaves of ``x``."""
        lower = tree.expand(self.lower, x, none=-math.inf)
        upper = tree.expand(self.upper, x, none=math.inf)
        return tree.map(function, x, lower, upper, *rest)

    def _map_together(self, function: Callable[..., Any], x: Any, *rest: Any) -> Any:
        """`_map`, where bounds that are two numbers let small leaves go together."""
        if not self.is_between_numbers:
            return self._map(function, x, *rest)
        lower, upper = self.lower, self.upper
        return foreach.map(lambda leaf, *others: function(leaf, lower, upper, *others), x, *rest)


def NonNegative() -> Box:  # noqa: N802  (sets are named as classes are)
    """The set of trees with no negative entry: ``Box(lower=0.0)``.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.NonNegative().project(torch.tensor([-1.0, 2.0]))
        tensor([0., 2.])
    """
    return Box(lower=0.0)


def _limits(x: Tensor, lower: Any, upper: Any) -> tuple[Any, Any]:
    """The bounds in the dtype of ``x``: numbers or tensors, infinite where there is none."""
    low = -math.inf if lower is None else exact.inward(lower, x, up=True)
    high = math.inf if upper is None else exact.inward(upper, x, up=False)
    return low, high


def _open_limits(x: Tensor, lower: Any, upper: Any) -> tuple[Tensor, Tensor]:
    """The least and the greatest number strictly inside, or the bounds themselves where no number is."""
    low, high = (exact.as_tensor(limit, x) for limit in _limits(x, lower, upper))
    inner_low, inner_high = exact.next_up(low), exact.next_down(high)
    # Beside a bound of 0 the numbers are subnormal, which a processor may take for 0 itself: the least normal one then.
    tiny = torch.finfo(x.dtype).smallest_normal
    inner_low = torch.where((low == 0) & (high > tiny), tiny, inner_low)
    inner_high = torch.where((high == 0) & (low < -tiny), -tiny, inner_high)
    inner_low, inner_high = exact.replaced(low, inner_low), exact.replaced(high, inner_high)
    empty = inner_low > inner_high
    return torch.where(empty, low, inner_low), torch.where(empty, high, inner_high)


def _each_wall(function: Callable[..., Tensor], relax: Any, x: Tensor, lower: Any, upper: Any) -> Tensor:
    """The sum of ``function(slack, δ, direction)`` over the finite walls."""
    low, high = (exact.as_tensor(limit, x) for limit in _limits(x, lower, upper))
    width = high - low
    delta = exact.like(relax, x) * torch.where(torch.isfinite(width), width, torch.ones_like(width))
    total = torch.zeros_like(x)
    for wall, direction in ((low, 1.0), (high, -1.0)):
        finite = torch.isfinite(wall)
        slack = torch.where(finite, (x - torch.where(finite, wall, 0.0)) * direction, torch.ones_like(x))
        total = total + torch.where(finite, function(slack, delta, direction), 0.0)
    return total


def _barrier_value(slack: Tensor, delta: Tensor, direction: float) -> Tensor:
    return relaxed_log(slack, delta)


def _barrier_slope(slack: Tensor, delta: Tensor, direction: float) -> Tensor:
    return direction * relaxed_log_slope(slack, delta)


def _check_bounds(lower: Any, upper: Any) -> None:
    for word, bounds, impossible in (("lower", lower, math.inf), ("upper", upper, -math.inf)):
        for path, bound in tree.prefix_items(bounds):
            place = f"the {word} bound" + (f" of {tree.name(path)}" if path else "")
            if bound is None:
                continue
            if isinstance(bound, bool) or not isinstance(bound, (int, float, Tensor)):
                raise TypeError(f"{place} is a number, a tensor or None, got {type(bound).__name__} {bound!r:.60}")
            if isinstance(bound, Tensor) and (bound.is_complex() or bound.dtype == torch.bool):
                raise TypeError(f"{place} is a tensor of real numbers, got dtype {bound.dtype}")
            if is_true(bound != bound):
                raise ValueError(f"{place} is NaN: {bound!r}; None or an infinite value means no bound")
            if is_true(bound == impossible):
                raise ValueError(f"{place} is {impossible}, which leaves nothing: {bound!r}")

    for path, low, high in tree.prefix_pairs(lower, upper):
        if low is None or high is None:
            continue
        place = f" at {tree.name(path)}" if path else ""
        try:
            above = low > high
        except RuntimeError as error:
            raise ValueError(
                f"the bounds do not broadcast together{place}: lower has shape {tuple(low.shape)}, upper has shape "
                f"{tuple(high.shape)}"
            ) from error
        if is_true(above):
            raise ValueError(f"lower > upper{place}: lower is {low!r}, upper is {high!r}")
