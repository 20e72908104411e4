r"""A line search for the strong Wolfe conditions, one trial at a time.

Along a feasible segment, $\phi(\alpha) = f(x + \alpha d)$ for $0 \le \alpha \le \alpha_{\max}$, a step is accepted
where

$$ \phi(\alpha) \le \phi(0) + c_1 \alpha \phi'(0), \qquad |\phi'(\alpha)| \le c_2 |\phi'(0)|. $$

The search keeps an interval of steps: at its end ``low`` the loss is the lowest so far, and the slope there points
into the interval, so that acceptable steps lie inside. As long as ``high`` is infinite the next step is an
extrapolation; afterwards it is the minimum of the cubic through both ends, kept away from them, and the middle where
that did not shrink the interval enough. At $\alpha_{\max}$ decrease is enough, since the segment ends.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

DECREASE, CURVATURE = 1e-3, 0.9
NOISE = 100  # roundings of the loss: of a sum of many terms, or of large ones
FEWEST, MOST = 1.1, 4.0  # an extrapolated step goes this many times as far beyond the last
PATIENCE, TRIALS = 15, 20  # after so many trials decrease is enough; after so many the search has failed


class Point(NamedTuple):
    """A step along the line, the loss there and its slope, all scalars."""

    step: Tensor
    value: Tensor
    slope: Tensor


class Search(NamedTuple):
    """A line search on its way.

    Attributes:
        step: The step to try next, a scalar.
        limit: The largest feasible step, a scalar.
        start: The start of the line.
        low: The end of the interval with the lowest loss.
        high: The other end; infinitely far until one is found.
        width: The length of the interval two trials ago.
        trials: How many steps were tried, a scalar of the vector's dtype.
    """

    step: Tensor
    limit: Tensor
    start: Point
    low: Point
    high: Point
    width: Tensor
    trials: Tensor


def start_search(value: Tensor, slope: Tensor, step: Tensor, limit: Tensor) -> Search:
    """A search that has tried nothing yet, from a point with this loss and this negative slope."""

    def number(value: float) -> Tensor:
        return torch.full_like(slope, value)

    start = Point(number(0.0), value, slope)
    low = Point(number(0.0), value.clone(), slope.clone())
    high = Point(number(torch.inf), number(torch.inf), number(0.0))
    return Search(torch.minimum(step, limit), limit.clone(), start, low, high, number(torch.inf), number(0.0))


def advance_search(search: Search, value: Tensor, slope: Tensor) -> tuple[Search, Tensor, Tensor]:
    """The search after the loss and its slope at ``search.step``, whether the step is accepted, whether all failed."""
    start, low, high = search.start, search.low, search.high
    here = Point(search.step, value, slope)
    eps = torch.finfo(value.dtype).eps
    noise = NOISE * eps * start.value.abs()

    decreases = value <= start.value + DECREASE * here.step * start.slope
    flat = slope.abs() <= -CURVATURE * start.slope
    # Where the decrease is lost in rounding, the slopes tell it (Hager and Zhang's approximate condition).
    equal = ((value - start.value).abs() <= noise) & (slope <= (2 * DECREASE - 1) * start.slope)
    ends = (here.step >= search.limit) & (slope <= 0)
    enough = decreases | equal
    accepted = enough & (flat | ends | (search.trials >= PATIENCE))

    too_far = ~enough | (value > low.value + noise)
    turns = slope * torch.where(high.step < low.step, -1.0, 1.0) >= 0
    new_high = _where(too_far, here, _where(turns, low, high))
    new_low = _where(too_far, low, here)
    step = next_step(low, new_low, new_high, search)

    trials = search.trials + 1
    tiny = (step - new_low.step).abs() <= eps * step
    failed = ~accepted & ((trials >= TRIALS) | tiny | ~torch.isfinite(step))
    width = torch.where(new_high.step.isinf(), new_high.step, (high.step - low.step).abs())
    return Search(step, search.limit, start, new_low, new_high, width, trials), accepted, failed


def next_step(last: Point, low: Point, high: Point, search: Search) -> Tensor:
    """Where to look next: beyond the last step, or inside the interval."""
    ahead = low.step - last.step
    beyond = _cubic_minimum(last, low)
    beyond = torch.where(beyond.isfinite() & (beyond > low.step), beyond, torch.inf)
    beyond = beyond.clamp(low.step + FEWEST * ahead, low.step + MOST * ahead).minimum(search.limit)

    width = high.step - low.step
    share = (_cubic_minimum(low, high) - low.step) / width
    share = torch.where(share.isfinite(), share.clamp(0.05, 0.95), 0.5)
    share = torch.where(high.value.isinf(), 0.1, share)  # the loss is not finite there: come much nearer
    share = torch.where(width.abs() > 0.66 * search.width, 0.5, share)
    return torch.where(high.step.isinf(), beyond, low.step + share * width)


def _cubic_minimum(a: Point, b: Point) -> Tensor:
    """The minimizer of the cubic with the values and slopes of two points; not finite where there is none."""
    width = b.step - a.step
    middle = a.slope + b.slope - 3 * (b.value - a.value) / width
    root = torch.sqrt(middle * middle - a.slope * b.slope) * torch.sign(width)
    return b.step - width * (b.slope + root - middle) / (b.slope - a.slope + 2 * root)


def _where(condition: Tensor, one: Point, other: Point) -> Point:
    return Point(*(torch.where(condition, x, y) for x, y in zip(one, other, strict=True)))
