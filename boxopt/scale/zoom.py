"""A line search for the strong Wolfe conditions: find an interval, then zoom into it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.backtracking import along_line, learning_rate_step_size, value_and_gradient_after
from boxopt.scale.moments import zeros_like
from boxopt.scale.scalars import inner, scalar_like, scaled


class ZoomLinesearchInfo(NamedTuple):
    """How a zoom line search went.

    Attributes:
        num_linesearch_steps: How many steps were tried, an int64 scalar.
        decrease_error: By how much the last one missed the decrease criterion.
        curvature_error: By how much it missed the curvature criterion.
    """

    num_linesearch_steps: Tensor
    decrease_error: Tensor
    curvature_error: Tensor


class ScaleByZoomLinesearchState(NamedTuple):
    """The state of `scale_by_zoom_linesearch`.

    Attributes:
        learning_rate: The learning rate found, a scalar.
        value: The loss after the step, a scalar.
        grad: The gradient there.
        info: How the search went.
    """

    learning_rate: Tensor
    value: Tensor
    grad: Any
    info: ZoomLinesearchInfo


@expects_numbers
def scale_by_zoom_linesearch(
    max_linesearch_steps: int,
    max_learning_rate: Scalar | None = None,
    tol: Scalar = 0.0,
    increase_factor: Scalar = 2.0,
    slope_rtol: Scalar = 1e-4,
    curv_rtol: Scalar = 0.9,
    approx_dec_rtol: Scalar | None = 1e-6,
    stepsize_precision: Scalar = 1e-5,
    initial_guess_strategy: Literal["one", "keep"] = "keep",
) -> GradientTransformation:
    r"""Multiply a descent direction by a learning rate that satisfies the strong Wolfe conditions.

    $$ \phi(\eta) = f(x + \eta u), \qquad \phi(\eta) \le \phi(0) + c_1 \eta \phi'(0), \qquad
       |\phi'(\eta)| \le c_2 |\phi'(0)| $$

    where, near a minimum, a bound on $\phi'(\eta)$ may stand in for the first, as Hager and Zhang do. If no number
    tried satisfies both, the one that decreases the loss most is taken. The step size is multiplied by η.

    The loss and its slope are evaluated ``max_linesearch_steps`` + 1 times in each step, whatever it finds: nothing
    branches on a value, so that each member of an ensemble searches by itself. To derivatives η is a constant.

    Args:
        max_linesearch_steps: How many learning rates to try.
        max_learning_rate: The largest η; none if left out.
        tol: By how much both conditions may be missed.
        increase_factor: By what to multiply η while the interval is sought.
        slope_rtol: $c_1$.
        curv_rtol: $c_2$.
        approx_dec_rtol: How near to the first value, relative to it, the loss must be for the approximate condition;
            None never applies it.
        stepsize_precision: How small an interval is not divided further.
        initial_guess_strategy: The first η: ``"one"``, or ``"keep"`` that of the last step.

    Returns:
        A transformation with a `ScaleByZoomLinesearchState`. ``update`` takes ``value=`` and ``grad=``, the loss and
        its gradient, and ``value_fn=``, a function from the parameters to the loss.

    Raises:
        ValueError: ``initial_guess_strategy`` is neither of the two.

    Example:
        >>> import torch, boxopt as bx
        >>> f = lambda x: 2 * (x**2).sum()
        >>> tx, params = bx.chain(bx.sgd(1.0), bx.scale_by_zoom_linesearch(20)), torch.ones(1)
        >>> gradient = 4 * params
        >>> tx.update(gradient, tx.init(params), params, value=f(params), grad=gradient, value_fn=f)[0]
        tensor([-1.])

    Source:
        J. Nocedal and S. J. Wright, "Numerical optimization", 2nd ed., algorithms 3.5 and 3.6; W. W. Hager and
        H. Zhang, "Algorithm 851: CG_DESCENT", 2006; `optax.scale_by_zoom_linesearch`.
    """
    if initial_guess_strategy not in ("one", "keep"):
        raise ValueError(f"initial_guess_strategy is 'one' or 'keep', got {initial_guess_strategy!r}")
    criteria = Criteria(
        tol, increase_factor, slope_rtol, curv_rtol, approx_dec_rtol, stepsize_precision, max_learning_rate
    )
    return GradientTransformation(
        _zoom_init,
        bind(_zoom_update, steps=max_linesearch_steps, criteria=criteria, guess=initial_guess_strategy),
        learning_rate_step_size,
    )


def _zoom_init(params: Any) -> ScaleByZoomLinesearchState:
    tree.check_parameters(params)
    value, decrease, curvature = (scalar_like(params, float("inf")) for _ in range(3))
    info = ZoomLinesearchInfo(zero_count(params), decrease, curvature)
    return ScaleByZoomLinesearchState(scalar_like(params, 1.0), value, zeros_like(params), info)


def _zoom_update(
    updates: P,
    state: ScaleByZoomLinesearchState,
    params: P,
    *,
    steps: int,
    criteria: Criteria,
    guess: str,
    value: Scalar,
    grad: P,
    value_fn: Callable[[P], Tensor],
) -> tuple[P, ScaleByZoomLinesearchState]:
    one = torch.ones_like(state.learning_rate)
    line = torch.func.grad_and_value(along_line(value_fn, params, updates))
    origin = Point(
        torch.zeros_like(one),
        exact.as_tensor(value, one).detach(),
        exact.as_tensor(inner(updates, grad), one).detach(),
    )
    first = one if guess == "one" else state.learning_rate.detach()
    search = start_search(origin)
    for _ in range(steps):
        rate = next_rate(search, first, criteria)
        slope, at = line(rate)
        point = Point(rate, exact.like(at, one).detach(), exact.like(slope, one).detach())
        search = where(search.done | search.failed, search, advance(search, origin, point, criteria, steps))
    rate = final_rate(search)
    new_value, gradient = value_and_gradient_after(value_fn, params, updates, rate, True)
    counted = search.count.to(state.info.num_linesearch_steps.dtype)
    info = ZoomLinesearchInfo(counted, search.decrease_error, search.curvature_error)
    return scaled(updates, rate), ScaleByZoomLinesearchState(rate, exact.like(new_value, rate), gradient, info)


class Criteria(NamedTuple):
    """When a line search stops."""

    tol: Scalar
    increase_factor: Scalar
    slope_rtol: Scalar
    curv_rtol: Scalar
    approx_dec_rtol: Scalar | None
    precision: Scalar
    max_rate: Scalar | None


class Point(NamedTuple):
    """A point of the line: the learning rate, and there the loss and its slope."""

    rate: Tensor
    value: Tensor
    slope: Tensor


class Search(NamedTuple):
    """A line search on its way; all are scalars.

    Attributes:
        count: How many points were tried.
        last: The last of them.
        low: The end of the interval with the smaller loss.
        high: The other end.
        reference: A third point for cubic interpolation.
        safe: The best point that satisfies the decrease condition.
        decrease_error: By how much the last one misses it.
        curvature_error: By how much it misses the curvature condition.
        interval_found: Whether there is an interval to zoom into.
        done: Whether the last point satisfies both.
        failed: Whether there is none.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    last: Point
    low: Point
    high: Point
    reference: Point
    safe: Point
    decrease_error: Tensor
    curvature_error: Tensor
    interval_found: Tensor
    done: Tensor
    failed: Tensor


def where(condition: Tensor, one: Any, other: Any) -> Any:
    """``torch.where`` of two trees."""
    return tree.map(lambda x, y: torch.where(condition, x, y), one, other)


def start_search(origin: Point) -> Search:
    """A search that has tried nothing yet."""
    infinite = torch.full_like(origin.rate, float("inf"))
    false = torch.zeros_like(origin.rate, dtype=torch.bool)
    count = torch.zeros_like(origin.rate, dtype=torch.int64)
    return Search(count, origin, origin, origin, origin, origin, infinite, infinite, false, false, false)


def next_rate(search: Search, first: Tensor, criteria: Criteria) -> Tensor:
    """The learning rate to try: further out, or within the interval if there is one."""
    larger = exact.like(criteria.increase_factor, first) * search.last.rate
    outside = torch.where(search.count == 0, first, larger)
    if criteria.max_rate is not None:
        outside = torch.minimum(outside, exact.as_tensor(criteria.max_rate, outside).detach())
    return torch.where(search.interval_found, _between(search.low, search.high, search.reference), outside).detach()


def _between(low: Point, high: Point, reference: Point) -> Tensor:
    """The minimum of a cubic, or of a parabola, if that is well inside the interval, and the middle otherwise."""
    width = (high.rate - low.rate).abs()
    left, right = torch.minimum(low.rate, high.rate), torch.maximum(low.rate, high.rate)
    cubic, parabolic = _cubic_minimum(low, high, reference), _parabolic_minimum(low, high)
    use_cubic = (cubic > left + 0.2 * width) & (cubic < right - 0.2 * width)
    use_parabolic = (parabolic > left + 0.1 * width) & (parabolic < right - 0.1 * width)
    middle = (low.rate + high.rate) / 2
    return torch.where(use_cubic, cubic, torch.where(use_parabolic, parabolic, middle))


def _cubic_minimum(a: Point, b: Point, c: Point) -> Tensor:
    """Of the cubic with the value and slope of a, and the values of b and c."""
    db, dc = b.rate - a.rate, c.rate - a.rate
    denominator = (db * dc) ** 2 * (db - dc)
    rest_b, rest_c = b.value - a.value - a.slope * db, c.value - a.value - a.slope * dc
    third = (dc**2 * rest_b - db**2 * rest_c) / denominator
    second = (db**3 * rest_c - dc**3 * rest_b) / denominator
    return a.rate + (-second + torch.sqrt(second * second - 3 * third * a.slope)) / (3 * third)


def _parabolic_minimum(a: Point, b: Point) -> Tensor:
    """Of the parabola with the value and slope of a, and the value of b."""
    db = b.rate - a.rate
    second = (b.value - a.value - a.slope * db) / db**2
    return a.rate - a.slope / (2 * second)


def advance(search: Search, origin: Point, point: Point, criteria: Criteria, steps: int) -> Search:
    """The search after one more point."""
    decrease, curvature = _errors(origin, point, criteria)
    error = torch.maximum(decrease, curvature)
    tol = exact.as_tensor(criteria.tol, error).detach()
    decreases, good = decrease <= tol, error <= tol
    last_try = search.count + 1 >= steps

    # While the interval is sought.
    too_high = (decrease > 0) | ((point.value >= search.last.value) & (search.count > 0))
    rises = (point.slope >= 0) & ~too_high
    found = too_high | rises | good
    at_limit = torch.zeros_like(found)
    if criteria.max_rate is not None:
        at_limit = point.rate >= exact.as_tensor(criteria.max_rate, point.rate).detach()
    low, high = where(rises, point, search.last), where(rises, search.last, point)
    done = good | (at_limit & ~found)
    seeking = Search(
        search.count + 1, point, low, high, low, where(decreases, point, search.safe), decrease, curvature,
        found, done, last_try & ~done,
    )  # fmt: skip

    # While the interval is divided.
    old_low, old_high = search.low, search.high
    safe = where(decreases & (point.value < search.safe.value), point, search.safe)
    too_high = (decrease > 0) | (point.value >= old_low.value)
    swaps = (point.slope * (old_high.rate - old_low.rate) >= 0) & ~too_high
    high = where(swaps, old_low, where(too_high, point, old_high))
    low = where(too_high, old_low, point)
    reference = where(too_high | swaps, old_high, old_low)
    small = (old_high.rate - old_low.rate).abs() <= exact.as_tensor(criteria.precision, error).detach()
    zooming = Search(
        search.count + 1, point, low, high, reference, safe, decrease, curvature,
        search.interval_found, good, (last_try | (small & (safe.rate > 0))) & ~good,
    )  # fmt: skip
    return where(search.interval_found, zooming, seeking)


def _errors(origin: Point, point: Point, criteria: Criteria) -> tuple[Tensor, Tensor]:
    """By how much a point misses the decrease and the curvature condition."""

    def missed(error: Tensor) -> Tensor:
        return torch.where(error.isnan(), float("inf"), error.clamp_min(0))

    def constant(number: Any) -> Tensor:
        return exact.as_tensor(number, point.rate).detach()

    slope_rtol = constant(criteria.slope_rtol)
    decrease = point.value - origin.value - slope_rtol * point.rate * origin.slope
    if criteria.approx_dec_rtol is not None:
        near = point.value - origin.value - constant(criteria.approx_dec_rtol) * origin.value.abs()
        flat = point.slope - (2 * slope_rtol - 1) * origin.slope
        decrease = torch.minimum(torch.maximum(flat, near), decrease)
    curvature = point.slope.abs() - constant(criteria.curv_rtol) * origin.slope.abs()
    return missed(decrease), missed(curvature)


def final_rate(search: Search) -> Tensor:
    """The last learning rate or, if the search failed and there is a safe one, that."""
    use_safe = search.failed & ((search.safe.rate > 0) | search.decrease_error.isinf())
    return torch.where(use_safe, search.safe.rate, search.last.rate)
