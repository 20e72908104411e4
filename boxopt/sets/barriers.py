r"""Proximal steps of logarithmic barriers of vector sets, in the metric of the step size.

Each minimizes $\tfrac12\sum_i (x_i - y_i)^2/\tau_i + B(x)$ with $\tau_i = \mu\eta_i$, on tensors of shape
``[..., n]`` in float64, and comes down to one equation in one unknown for each vector:

- the simplex, $B = -\sum_i \log x_i$ where $\sum_i x_i = t$: with a multiplier ν of the sum, $x_i$ is the positive root
  of $x^2 - (y_i - \nu\tau_i)x - \tau_i = 0$, and $\sum_i x_i(\nu) = t$;
- the ball, $B = -\log(r^2 - \|x\|^2)$: with the slack $s = r^2 - \|x\|^2$, $x_i = y_i s/(s + 2\tau_i)$ and
  $\|x(s)\|^2 + s = r^2$;
- the second-order cone, $B = -\log(t^2 - \|x\|^2)$: with $q_i = \tau_i/\tau_t$, s the candidate for t, and
  $g_i = (1 + q_i)t - q_i s$, $x_i = y_i t/g_i$ and $(t - s)\,t\,(1 - \sum_i (y_i/g_i)^2) = 2\tau_t$.

**The equation** is monotone, with its root in a known bracket. Newton's steps are taken on detached numbers, by
bisection where they leave the bracket or shrink it little; then `_DERIVATIVE_STEPS` of them with the graph attached,
which leave the value as it is and carry derivatives to the third order: see `boxopt.sets.log_barrier`.

**Scale.** Each problem is first divided by the set's size, so that it neither overflows nor underflows. Where τ is less
than `_LEAST_TAU` of the size squared, and ratios of step sizes less than 1e-12, they are raised to that: with τ = 0 the
results are those of projections, to rounding, in the Euclidean metric.

Source: G. Chierchia, E. Chouzenoux, P. L. Combettes and J.-C. Pesquet, The proximity operator repository; S. Boyd and
L. Vandenberghe, Convex Optimization, 2004, chapter 11.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.core.search import a_number_each, may_stop, search

_SOLVE_STEPS = 40
_DERIVATIVE_STEPS = 2
_LEAST_TAU = 1e-32
_MOST_TAU = 1e60
_LARGEST = {torch.float64: 1e100, torch.float32: 1e15}

Equation = Callable[..., tuple[Tensor, Tensor]]


def find_root(equation: Equation, start: Tensor, low: Tensor, high: Tensor, *arguments: Tensor) -> Tensor:
    """The root of an increasing function in [low, high]; the steps begin at ``start``.

    ``equation(unknown, *arguments)`` gives the value and the slope.
    """
    trial, done = start, torch.zeros_like(start, dtype=torch.bool)
    for count in range(_SOLVE_STEPS):
        value, slope = equation(trial, *arguments)
        low, high = torch.where(value <= 0, trial, low), torch.where(value >= 0, trial, high)
        newton = trial - value / torch.where(slope > 0, slope, 1.0)
        usable = (slope > 0) & (newton >= low) & (newton <= high)
        close = (newton - trial).abs() <= 2e-16 * trial.abs()
        # Each stays where it is when it is done, whatever the others need; NaN is done at once.
        done = done | (value == 0) | usable & close | (value != value)
        if may_stop(trial) and bool(done.all()):
            break
        bisect = torch.where(low > 0, low.clamp_min(0.0).sqrt() * high.clamp_min(0.0).sqrt(), low + (high - low) / 2)
        if count % 3 == 2:
            usable = usable & ((newton - trial).abs() <= (high - low) / 4)
        trial = torch.where(done, trial, torch.where(usable, newton, bisect))
    return trial.clone()


def attached(equation: Equation, root: Tensor, *arguments: Tensor) -> Tensor:
    """The root with its derivatives with respect to the arguments."""
    for _ in range(_DERIVATIVE_STEPS):
        value, slope = equation(root, *arguments)
        usable = (slope > 0).detach()
        root = root - torch.where(usable, value / torch.where(usable, slope, 1.0), 0.0)
    return root


def scaled(y: Tensor, tau: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """Candidates and τ of a problem whose set has this size, as those of one of size 1, held in range."""
    largest = tau.detach().amax(-1, keepdim=True).clamp_min(torch.finfo(tau.dtype).tiny)
    least = torch.maximum(largest * 1e-12 / size.detach() ** 2, torch.full_like(largest, _LEAST_TAU))
    tau = tau / size**2
    tau = torch.where(tau < least, least, tau)
    limit = _LARGEST[y.dtype]
    return exact.clamp(y / size, -limit, limit), torch.where(tau > _MOST_TAU, _MOST_TAU, tau)


def positive_root(z: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """The positive root of x² − z·x − τ, without cancellation, and its derivative with respect to z."""
    length = torch.sqrt(z * z + 4 * tau)
    ahead = (z > 0).detach()
    root = torch.where(ahead, (z + length) / 2, 2 * tau / torch.where(ahead, 1.0, length - z))
    return root, root / length


def prox_simplex(y: Tensor, tau: Tensor, total: Tensor) -> Tensor:
    """The proximal step of −Σ log x on the hyperplane Σx = total, strictly positive; 0 where the total is 0."""
    is_point = (total <= 0).detach()
    total = torch.where(is_point, 1.0, total)
    y, tau = scaled(y, tau, total)
    ratio = tau / tau.detach().amax(-1, keepdim=True)

    # No entry of the result exceeds 1. The multiplier at which the largest would be 1 is where to count from, and that
    # entry is set to what it is there, so that no candidate is too large for the difference.
    limit = (1 - tau).detach()
    multipliers = ((y - limit) / ratio).detach()
    least = multipliers.amax(-1, keepdim=True)
    z = y - least * ratio
    z = torch.where((multipliers == least) | (z > limit), exact.replaced(z, limit), z)

    root = _simplex_multiplier(z.detach(), tau.detach(), ratio.detach())
    multiplier = attached(_simplex_equation, root, z, tau, ratio)
    x = positive_root(z - multiplier * ratio, tau)[0]
    x = x / x.detach().sum(-1, keepdim=True)
    return torch.where(is_point, 0.0, x * total)


def _simplex_equation(multiplier: Tensor, z: Tensor, tau: Tensor, ratio: Tensor) -> tuple[Tensor, Tensor]:
    x, slope = positive_root(z - multiplier * ratio, tau)
    return 1 - x.sum(-1, keepdim=True), (ratio * slope).sum(-1, keepdim=True)


@search("barrier_simplex", a_number_each)
def _simplex_multiplier(z: Tensor, tau: Tensor, ratio: Tensor) -> Tensor:
    count = z.shape[-1]
    alike = (z - 1 / count + count * tau) / ratio  # where an entry would be the mean
    low, high = (edge.clamp_min(0.0) for edge in torch.aminmax(alike, dim=-1, keepdim=True))
    return find_root(_simplex_equation, low, low, high, z, tau, ratio)


def prox_ball(y: Tensor, tau: Tensor, radius: Tensor) -> Tensor:
    """The proximal step of −log(radius² − ‖x‖²), inside by a few roundings; 0 where the radius is 0."""
    is_point = (radius <= 0).detach()
    radius = torch.where(is_point, 1.0, radius)
    y, tau = scaled(y, tau, radius)
    limit = (1 - rounding(y)) ** 2  # of the square of the norm
    slack = attached(partial(_ball_equation, limit=limit), _ball_slack(y.detach(), tau.detach(), limit), y, tau)
    x = y * (slack / (slack + 2 * tau))
    norm = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True)
    x = x * torch.where(norm > limit**0.5, limit**0.5 / norm, 1.0)
    return torch.where(is_point, 0.0, x * radius)


def _ball_equation(slack: Tensor, y: Tensor, tau: Tensor, limit: float) -> tuple[Tensor, Tensor]:
    square = (y * (slack / (slack + 2 * tau))) ** 2
    slope = 1 + (4 * tau / (slack + 2 * tau) * square / slack).sum(-1, keepdim=True)
    return square.sum(-1, keepdim=True) + slack - limit, slope


@search("barrier_ball", a_number_each)
def _ball_slack(y: Tensor, tau: Tensor, limit: float) -> Tensor:
    # With one coordinate alone the slack is larger; with all as near as the one of the least step size, smaller.
    norm = torch.linalg.vector_norm(y, dim=-1, keepdim=True)
    high = slack_bounds(y.abs(), tau)[1].amin(-1, keepdim=True).clamp_max(limit)
    low = slack_bounds(norm, tau.amin(-1, keepdim=True))[0] / 2
    return find_root(partial(_ball_equation, limit=limit), high, torch.minimum(low, high), high, y, tau)


def slack_bounds(distance: Tensor, tau: Tensor) -> tuple[Tensor, Tensor]:
    """A lower and an upper bound of 1 − x² for the proximal step of −log(1 − x²) from this distance to the centre.

    The distance of x from the nearer wall is the root of a − (1 − distance) − τ/a + τ/b, where 1 ≤ b < inf.
    """
    least, most = (positive_root(1 - distance - pull, tau)[0].clamp_max(1.0) for pull in (tau, 0.0))
    return least * (2 - least), most * (2 - most)


def prox_cone(y: Tensor, tau: Tensor) -> Tensor:
    """The proximal step of −log(t² − ‖x‖²), t the last entry, inside by a few roundings."""
    if y.shape[-1] == 1:
        return prox_cone(torch.cat([torch.zeros_like(y), y], -1), tau.expand(*y.shape[:-1], 2))[..., 1:]
    limit = _LARGEST[y.dtype]
    y = exact.clamp(y, -limit, limit)
    size = torch.maximum(y.detach().abs(), tau.detach().sqrt()).amax(-1, keepdim=True).clamp_min(1 / limit)
    y, tau = scaled(y, tau, size)
    x, t, step = y[..., :-1], y[..., -1:], tau[..., -1:]
    ratio = tau[..., :-1] / step

    root = _cone_last(x.detach(), t.detach(), ratio.detach(), step.detach())
    last = attached(_cone_equation, root, x, t, ratio, step)
    x = x * last / ((1 + ratio) * last - ratio * t)
    norm = torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True) * (1 + rounding(x))
    last = torch.where(last > norm, last, exact.replaced(last, torch.maximum(norm, last)))
    return torch.cat([x, last], -1) * size


def _cone_equation(last: Tensor, x: Tensor, t: Tensor, ratio: Tensor, step: Tensor) -> tuple[Tensor, Tensor]:
    gap = (1 + ratio) * last - ratio * t
    square = (x / gap) ** 2
    inner, area = 1 - square.sum(-1, keepdim=True), (last - t) * last
    slope = (2 * last - t) * inner + 2 * area * ((1 + ratio) * square / gap).sum(-1, keepdim=True)
    return area * inner - 2 * step, slope


@search("barrier_cone", a_number_each)
def _cone_last(x: Tensor, t: Tensor, ratio: Tensor, step: Tensor) -> Tensor:
    # Below ``low`` a factor is negative; at ``high`` the last is more than a half.
    low = ((x.abs() + ratio * t) / (1 + ratio)).amax(-1, keepdim=True)
    low = torch.maximum(torch.maximum(low, t), 1e-3 * positive_root(t, step)[0])
    wide = ((2 * x.shape[-1]) ** 0.5 * x.abs() + ratio * t) / (1 + ratio)
    high = torch.maximum(wide.amax(-1, keepdim=True), positive_root(t, 4 * step)[0])
    return find_root(_cone_equation, high, torch.minimum(low, high), high, x, t, ratio, step)


def prox_halfspace(y: Tensor, tau: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    """The proximal step of −log(offset − normal·x): y − τ·normal/s, s the slack; inside by a few roundings."""
    limit = _LARGEST[y.dtype]
    y = exact.clamp(y, -limit, limit)
    slack = offset - (normal * y).sum(-1, keepdim=True)
    size = ((normal * y).abs().sum(-1, keepdim=True) + offset.abs()).detach()
    normal = normal.expand(y.shape)
    squares = (normal * normal).detach().sum(-1, keepdim=True)
    least = (size * torch.finfo(y.dtype).eps) ** 2 / torch.where(squares > 0, squares, 1.0)
    least = torch.maximum(least, 1e-12 * tau.detach().amax(-1, keepdim=True)).clamp_min(1e-200)
    tau = torch.where(tau < least, least, tau)
    pull = (tau * normal * normal).sum(-1, keepdim=True)
    pull = torch.where(squares > 0, pull, 1.0)
    x = y - tau * normal / positive_root(slack, pull)[0]
    moved = (normal * x).detach().abs().sum(-1, keepdim=True) + offset.detach().abs()
    margin = rounding(y) * moved
    return y - tau * normal / positive_root(slack - margin, pull)[0] - tau * normal * (margin / pull).detach()


def rounding(x: Tensor) -> float:
    """What sums of squares over a vector may err by, relative, with a margin."""
    return (8 + x.shape[-1] ** 0.5) * torch.finfo(x.dtype).eps
