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
$a^\top x(\tau) - b$: a Newton step where it stays within the bracket, the midpoint where it does not.

**Derivatives.** The search runs on detached numbers and finds which coordinates are free. For these τ is a ratio of
sums, computed with the graph attached: exact to every order, wherever the set of free coordinates does not change.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.core.search import a_number_each, may_stop, search

_NEWTON_STEPS = 16
_BRACKETED_STEPS = 40


def project_simplex(y: Tensor, step: Tensor | None, total: Tensor) -> Tensor:
    """The projection onto {x ≥ 0, Σx = total} of each vector [..., n], in the metric 1/step."""
    finite = torch.finfo(y.dtype).max / 16
    y = y.clamp(-finite, finite)
    if step is None:
        excess = y - y.detach().amax(-1, keepdim=True)
        threshold = _newton(excess.detach(), None, total.detach())
        if exact.is_constant(y, total):
            return excess.sub_(threshold).clamp_min_(0.0)
        support = excess.detach() > threshold
        count = support.sum(-1, keepdim=True).clamp_min(1)
        level = (torch.where(support, excess, 0.0).sum(-1, keepdim=True) - total) / count
        value = torch.where(support, excess - level, 0.0)
    else:
        excess = _excess_in_metric(y, step, total.detach())
        threshold = _newton(excess.detach(), step.detach(), total.detach())
        support = excess.detach() > threshold * step.detach()
        weight = torch.where(support, step, 0.0).sum(-1, keepdim=True)
        weight = torch.where(weight > 0, weight, 1.0)
        level = (torch.where(support, excess, 0.0).sum(-1, keepdim=True) - total) / weight
        value = torch.where(support, excess - level * step, 0.0)
    return torch.where(value > 0, value, 0.0)


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
    direction = normal.expand(y.shape) if step is None else normal * step
    lower, upper = lower.expand(y.shape), upper.expand(y.shape)
    multiplier = _bracketed(*(v.detach() for v in (y, direction, lower, upper, normal.expand(y.shape), offset)))
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
    """The root τ of the decreasing normal·clip(y − τ·direction, lower, upper) = offset."""
    safe = torch.where(direction != 0, direction, 1.0)
    breaks = torch.stack([(y - lower) / safe, (y - upper) / safe])
    usable = (direction != 0) & (breaks.abs() < torch.inf)
    low = torch.where(usable, breaks, torch.inf).amin(0).amin(-1, keepdim=True)
    high = torch.where(usable, breaks, -torch.inf).amax(0).amax(-1, keepdim=True)
    any_break = low <= high
    low, high = torch.where(any_break, low, 0.0), torch.where(any_break, high, 0.0)

    def excess(multiplier: Tensor) -> tuple[Tensor, Tensor]:
        moved = y - multiplier * direction
        inner = (moved > lower) & (moved < upper)
        point = torch.minimum(torch.maximum(moved, lower), upper)
        slope = torch.where(inner, normal * direction, 0.0).sum(-1, keepdim=True)
        return (normal * point).sum(-1, keepdim=True) - offset, slope

    # Beyond the outermost breakpoints the function is linear, its slope that of the coordinates without a bound there.
    rate = normal * direction
    rises, falls = direction > 0, direction < 0
    slope_left = torch.where(rises & (upper == torch.inf) | falls & (lower == -torch.inf), rate, 0.0)
    slope_right = torch.where(rises & (lower == -torch.inf) | falls & (upper == torch.inf), rate, 0.0)
    before, after = excess(low)[0], excess(high)[0]
    left, right = (
        edge + torch.where(total > 0, value / torch.where(total > 0, total, 1.0), 0.0)
        for edge, value, total in (
            (low, before, slope_left.sum(-1, keepdim=True)),
            (high, after, slope_right.sum(-1, keepdim=True)),
        )
    )
    is_left, is_right = before <= 0, after >= 0
    trial = low + (high - low) / 2
    stop_early = may_stop(y)
    for count in range(_BRACKETED_STEPS):
        value, slope = excess(trial)
        low, high = torch.where(value >= 0, trial, low), torch.where(value <= 0, trial, high)
        newton = trial + value / torch.where(slope > 0, slope, 1.0)
        within = (slope > 0) & (newton >= low) & (newton <= high)
        if stop_early and bool((within & (newton == trial) | (value == 0)).all()):
            break
        if count % 3 == 2:  # so that the bracket shrinks, whatever the shape of the function
            within = within & False
        trial = torch.where(value == 0, trial, torch.where(within, newton, low + (high - low) / 2))
    return torch.where(is_left, left, torch.where(is_right, right, trial))
