r"""Projections that come down to one number: the multiplier of a single linear constraint.

**Simplex.** In the metric $1/\eta$ the projection of $y$ onto $\{x \ge 0, \sum x = t\}$ is $x_i = \max(y_i -
\tau\eta_i, 0)$ with $\tau$ the root of the convex, piecewise linear, decreasing $f(\tau) = \sum_i \max(y_i -
\tau\eta_i, 0) - t$. Newton's method from the left of the root comes up to it monotonically, and ends there after
finitely many steps (C. Michelot, "A finite algorithm for finding the projection of a point onto the canonical simplex
of Rⁿ", JOTA 50, 1986; L. Condat, "Fast projection onto the simplex and the l1 ball", Mathematical Programming 158,
2016). It needs no sort. It starts at the larger of $\max_i (y_i - t)/\eta_i$, to the left of the root because no
$x_i$ exceeds $t$, and of $(\sum_i y_i - t)/\sum_i \eta_i$, the root if nothing were at zero. All is measured from the
largest, so that the arithmetic is as precise for $y$ near $10^6$ as near 0.

**Box and hyperplane.** $x_i = \operatorname{clip}(y_i - \tau\eta_i a_i, l_i, u_i)$ with $\tau$ the root of the monotone
$a^\top x(\tau) - b$: a Newton step where it stays within the bracket of what was tried, the midpoint where it does not
and every third time.

**Derivatives.** The search runs on detached numbers and finds which coordinates are free. For these τ is a ratio of
sums, computed with the graph attached: exact to every order, wherever the set of free coordinates does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.core.search import a_number_each, may_stop, search

_NEWTON_STEPS = 16
_BRACKETED_STEPS = 64  # by bisection alone, enough for candidates 10¹⁶ times the size of the box


def project_simplex(y: Tensor, step: Tensor | None, total: Tensor) -> Tensor:
    """The projection onto {x ≥ 0, Σx = total} of each vector [..., n], in the metric 1/step."""
    finite = torch.finfo(y.dtype).max / 16
    y = y.clamp(-finite, finite)
    if step is None:
        excess = y - y.detach().amax(-1, keepdim=True)
        threshold = _newton(excess.detach(), None, total.detach())
        if exact.is_constant(y, total):
            return excess.sub_(threshold).clamp_min_(0.0)
        support = ~(excess.detach() <= threshold)  # NaN is in it, so that all of the vector is NaN
        count = support.sum(-1, keepdim=True).clamp_min(1)
        level = (torch.where(support, excess, 0.0).sum(-1, keepdim=True) - total) / count
        value = torch.where(support, excess - level, 0.0)
    else:
        excess = _excess_in_metric(y, step, total.detach())
        threshold = _newton(excess.detach(), step.detach(), total.detach())
        support = ~(excess.detach() <= threshold * step.detach())
        weight = torch.where(support, step, 0.0).sum(-1, keepdim=True)
        weight = torch.where(weight > 0, weight, 1.0)
        level = (torch.where(support, excess, 0.0).sum(-1, keepdim=True) - total) / weight
        value = torch.where(support, excess - level * step, 0.0)
    return torch.where(value < 0, 0.0, value)


def _excess_in_metric(y: Tensor, step: Tensor, total: Tensor) -> Tensor:
    """The excess y − τ₀·step over the first guess, in float64 where there is one: the two may be large and near.

    Rounding apart it is at most the total, which it reaches where the guess max (y − total)/step comes from: that holds
    for any y. The guess by the mean is drawn to the left by more than its rounding error.
    """
    dtype = y.dtype
    if y.device.type != "mps":
        y, step, total = y.double(), step.double(), total.double()
    guesses = (y.detach() - total) / step.detach()
    mean = (y.detach().sum(-1, keepdim=True) - total) / step.detach().sum(-1, keepdim=True)
    largest = torch.linalg.vector_norm(guesses, torch.inf, dim=-1, keepdim=True)
    margin = 4 * y.shape[-1] * torch.finfo(y.dtype).eps * largest
    start = torch.maximum(guesses.amax(-1, keepdim=True), mean - margin)
    excess = y - start * step
    value = torch.where(guesses == start, total, torch.minimum(excess.detach(), total))
    return (value if exact.is_constant(y, step) else exact.replaced(excess, value)).to(dtype)


@search("simplex_threshold", a_number_each)
def _newton(excess: Tensor, step: Tensor | None, total: Tensor) -> Tensor:
    """The root τ of Σ max(excess − τ·step, 0) = total, from the left.

    Where there is no step the largest excess is 0, and the root at least −total; else it is at least 0.
    """
    if step is None:
        threshold = torch.maximum((excess.sum(-1, keepdim=True) - total) / excess.shape[-1], -total)
    else:
        threshold = torch.zeros_like(excess[..., :1])
    above = torch.empty_like(excess)
    for _ in range(2 * _NEWTON_STEPS if step is not None else _NEWTON_STEPS):
        if step is None:
            torch.sub(excess, threshold, out=above).clamp_min_(0.0)
        else:
            torch.addcmul(excess, threshold, step, value=-1, out=above).clamp_min_(0.0)
        gap = above.sum(-1, keepdim=True) - total
        torch.gt(above, 0.0, out=above)  # as numbers: a Boolean result takes four times as long
        slope = (above if step is None else above.mul_(step)).sum(-1, keepdim=True)
        moved = torch.maximum(threshold + gap / torch.where(slope > 0, slope, 1.0), threshold)
        if may_stop(excess) and torch.equal(moved, threshold):
            break
        threshold = moved
    return threshold


def project_l1_ball(y: Tensor, step: Tensor | None, radius: Tensor) -> Tensor:
    """The projection onto {‖x‖₁ ≤ radius} of each vector [..., n], in the metric 1/step."""
    size = y.abs()
    inside = size.detach().sum(-1, keepdim=True) <= radius.detach()
    shrunk = project_simplex(size, step, radius)
    if exact.is_constant(y, step, radius):
        return torch.where(inside, y, shrunk.copysign_(y))
    return torch.where(inside, y, torch.where(y < 0, -shrunk, shrunk))


def project_box_hyperplane(
    y: Tensor, step: Tensor | None, lower: Tensor, upper: Tensor, normal: Tensor, offset: Tensor
) -> Tensor:
    """The projection onto {lower ≤ x ≤ upper, normal·x = offset}, in the metric 1/step.

    Where the set is empty, the point of the box nearest to the hyperplane in that metric's dual.
    """
    finite = torch.finfo(y.dtype).max / 1024
    y = y.clamp(-finite, finite)
    direction = normal if step is None else normal * step
    multiplier = _bracketed(*(v.detach() for v in (y, direction, lower, upper, normal, offset)))
    if exact.is_constant(y, direction, lower, upper, offset):
        return exact.clip(y.sub_(multiplier * direction), lower, upper)
    direction, lower, upper = direction.expand(y.shape), lower.expand(y.shape), upper.expand(y.shape)
    moved = y.detach() - multiplier * direction.detach()
    low, high = moved <= lower.detach(), moved >= upper.detach()
    free = ~(low | high) & (normal.detach() != 0)
    resting = torch.where(low, lower, torch.where(high, upper, torch.where(free, 0.0, y)))
    needed = offset - (normal * resting).sum(-1, keepdim=True)
    slope = torch.where(free, normal * direction, 0.0).sum(-1, keepdim=True)
    gap = torch.where(free, normal * y, 0.0).sum(-1, keepdim=True) - needed
    exactly = torch.where(slope > 0, gap / torch.where(slope > 0, slope, 1.0), multiplier)
    return exact.clamp(torch.where(free, y - exactly * direction, resting), lower, upper)


@search("box_hyperplane_multiplier", a_number_each)
def _bracketed(y: Tensor, direction: Tensor, lower: Tensor, upper: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    """The root τ of the decreasing normal·clip(y − τ·direction, lower, upper) = offset.

    Divided by its direction, each coordinate is clip(centre − τ, bottom, top), with a weight that is not negative.
    """
    batch = y.shape[:-1]
    y, direction, lower, upper, normal, offset = (
        _as_rows(v, batch) for v in (y, direction, lower, upper, normal, offset)
    )
    usable = direction != 0
    safe = torch.where(usable, direction, 1.0)
    centre = (y / safe).mul_(usable)
    walls = torch.where(usable, lower / safe, 0.0), torch.where(usable, upper / safe, 0.0)
    bottom, top = torch.minimum(*walls), torch.maximum(*walls)
    weight = normal * direction
    is_uniform = weight.shape[-1] == 1
    moved, point = torch.empty_like(centre), torch.empty_like(centre)

    def total(values: Tensor) -> Tensor:
        """The weighted sum, by which the values are used up."""
        return values.sum(-1, keepdim=True) * weight if is_uniform else values.mul_(weight).sum(-1, keepdim=True)

    def excess(multiplier: Tensor) -> tuple[Tensor, Tensor]:
        torch.sub(centre, multiplier, out=moved)
        torch.minimum(torch.maximum(moved, bottom, out=point), top, out=point)
        torch.eq(moved, point, out=moved)
        return total(point) - offset, total(moved)

    precision = 4 * torch.finfo(y.dtype).eps
    # Between these every coordinate leaves the walls that it has.
    sizes = (torch.where(wall.abs() < torch.inf, wall.abs(), 0.0).amax(-1, keepdim=True) for wall in (bottom, top))
    reach = 2 * torch.maximum(*sizes)
    first, last = centre.amin(-1, keepdim=True) - reach, centre.amax(-1, keepdim=True) + reach
    scale = torch.maximum(first.abs(), last.abs())
    first, last = first - precision * scale, last + precision * scale
    everything = weight.expand(y.shape).sum(-1, keepdim=True)
    trial = (total(point.copy_(centre)) - offset) / torch.where(everything > 0, everything, 1.0)
    low, high = torch.full_like(trial, -torch.inf), torch.full_like(trial, torch.inf)
    done = torch.zeros_like(trial, dtype=torch.bool)
    found, rows = trial.clone(), torch.arange(len(trial), device=y.device)
    for count in range(_BRACKETED_STEPS):
        value, slope = excess(trial)
        low, high = torch.where(value >= 0, trial, low), torch.where(value <= 0, trial, high)
        middle = low + (high - low) / 2
        is_bracketed, is_sloped = middle.abs() < torch.inf, slope > 0
        newton = trial + value / torch.where(is_sloped, slope, 1.0)
        arrived = is_sloped & ((newton - trial).abs() <= precision * (scale + trial.abs()))
        within = is_sloped & (newton > low) & (newton < high)
        if count % 3 == 2:  # so that the bracket shrinks, whatever the shape of the function
            within = within & ~is_bracketed
        following = torch.where(arrived | within, newton, middle)
        astray = ~(arrived | within | is_bracketed)  # all rest at a wall, and one end is unknown
        following = torch.where(astray, torch.where(value > 0, last, first), following)
        done = done | (value == 0) | astray & torch.where(value > 0, trial >= last, trial <= first)  # or no solution
        trial = torch.where(done, trial, following)
        done = done | arrived
        if not may_stop(y):
            continue
        rest = (~done).squeeze(-1).nonzero().squeeze(-1)
        if 2 * len(rest) > len(done):
            continue
        # Half of the vectors are done: go on with the others.
        found[rows] = trial
        rows = rows[rest]
        if not len(rest):
            return found.reshape(*batch, 1)
        centre, bottom, top, weight, offset, first, last, scale, trial, low, high, done = (
            value[rest] if len(value) > 1 else value
            for value in (centre, bottom, top, weight, offset, first, last, scale, trial, low, high, done)
        )
        moved, point = moved[: len(rest)], point[: len(rest)]
    found[rows] = trial
    return found.reshape(*batch, 1)


def _as_rows(value: Tensor, batch: torch.Size) -> Tensor:
    """A tensor that broadcasts against vectors as a matrix: of one row, if all vectors have the same."""
    width = value.shape[-1] if value.ndim else 1
    if value.numel() == width:
        return value.reshape(1, width)
    return value.expand(*batch, width).reshape(-1, width)
