r"""The scalar mathematics of the log-barrier on an interval.

**The proximal step.** For bounds $l < h$, a candidate $y$ and $\tau = \mu\eta \ge 0$,

$$ x = \arg\min_x \tfrac12 (x - y)^2 - \tau\log(x - l) - \tau\log(h - x), $$

so that $x - y - \tau/(x - l) + \tau/(h - x) = 0$: a cubic with one root in $(l, h)$. Mirror the interval so that the
wall nearer to $y$ comes first, and write $w$ for the signed distance of $y$ from it, $a$ for that of $x$, $L = h - l$,
and $b = L - a \ge L/2$ for the distance to the far wall. Then

$$ F(a) = a - w - \tau/a + \tau/b = 0, \qquad 0 < a \le L/2. $$

With one bound, $L = \infty$ and the root is $a = (w + \sqrt{w^2 + 4\tau})/2$, which for $w < 0$ is computed as
$2\tau/(\sqrt{w^2 + 4\tau} - w)$. With two, only the smooth term $\tau/b$ is linearized, at $a_k$; what remains is a
quadratic, solved exactly. That is Newton's method with the singular term kept whole. The far wall's term is convex, so
the iterates come down to the root from above, without a safeguard, and their error, as a fraction $e$ of $L$, at least
squares: $e_{k+1} \le e_k^2$, from $e_1 \le 1/4$. Three steps and the three below reach float64 from any start.

**Its derivative.** The iteration runs on detached numbers. Newton's own steps $a \leftarrow a - F(a)/F'(a)$, applied to
its result with the graph attached, leave the value as it is and carry the derivatives: by the implicit function
theorem one step has the first derivative right, and each further one doubles the order and adds one, so that $j$ steps
are exact to order $2^j - 1$. Three are used: seven orders.

**The barrier's value, extended.** `relaxed_log` continues $-\log s$ below $s = \delta$ by the parabola that meets
it there in value, slope and curvature: C. Feller and C. Ebenbauer, "Relaxed logarithmic barrier function based model
predictive control of linear systems", IEEE Transactions on Automatic Control 62(3), 2017.
"""

from __future__ import annotations

import torch
from torch import Tensor

_SOLVE_STEPS = 3
_DERIVATIVE_STEPS = 3
_LARGE = {torch.float32: 1e18, torch.float64: 1e150}
_SMALL = 1.2e-38  # above the smallest normal number of float32


def prox_log_barrier(y: Tensor, tau: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The minimizer of ½(x − y)² − τ·log(x − lower) − τ·log(upper − x), elementwise.

    A bound at ±inf has no term. The error is a few ulp of x, or, near a wall, of that wall; the caller rounds the
    result into the open interval, which also settles empty intervals, τ = 0 and infinite y.
    """
    from_lower, from_upper = y - lower, upper - y
    mirrored = from_lower > from_upper
    w = torch.where(mirrored, from_upper, from_lower)
    length = upper - lower
    length = torch.where(length > 0, length, torch.ones_like(length))
    free = (from_lower >= torch.inf) & (from_upper >= torch.inf) | ~(w.abs() < torch.inf)  # no bound, or y infinite
    w = torch.where(free, torch.zeros_like(w), w)
    large = _LARGE[w.dtype]
    w = w.clamp(-large, large)  # so that squares are finite; further from the wall the barrier is below an ulp

    a = _nearer_slack(w.detach(), tau.detach(), length.detach())
    for _ in range(_DERIVATIVE_STEPS):
        a = a - _newton_step(a, w, tau, length)

    # y + τ/a − τ/b is the more precise form away from the wall, wall + a near it.
    push = tau / a - tau / (length - a)
    wall = torch.where(mirrored, upper, lower)
    wall = torch.where(free, torch.zeros_like(wall), wall)
    away = (tau <= a * a).detach()
    x = torch.where(away, y + torch.where(mirrored, -push, push), wall + torch.where(mirrored, -a, a))
    return torch.where(free, y, x)


def _nearer_slack(w: Tensor, tau: Tensor, length: Tensor) -> Tensor:
    """The root a of F in (0, length/2]."""
    root_tau = tau.sqrt()
    half = length / 2
    a = _quadratic_root(w, tau, torch.zeros_like(w), half)
    for _ in range(_SOLVE_STEPS):
        b = length - a
        pull = (root_tau / b).clamp_max(1e15) ** 2  # τ/b², the slope of the far wall's term
        gap = torch.where(length < torch.inf, b - a, 0.0)
        a = _quadratic_root(w - pull * gap, tau, pull, half)
    return a


def _quadratic_root(w: Tensor, tau: Tensor, pull: Tensor, limit: Tensor) -> Tensor:
    """The positive root of (1 + pull)·a² − w·a − τ = 0, without cancellation, held in (0, limit]."""
    leading = 1 + pull
    large = w.abs() + torch.sqrt(w * w + 4 * tau * leading)
    ahead = w > 0
    root = torch.where(ahead, large, 2 * tau) / torch.where(ahead, 2 * leading, large.clamp_min(_SMALL))
    return torch.minimum(root, limit).clamp_min(_SMALL)


def _newton_step(a: Tensor, w: Tensor, tau: Tensor, length: Tensor) -> Tensor:
    """F(a)/F'(a), numerator and denominator times a²."""
    ratio = a / (length - a)
    slope = a * a + tau * (1 + ratio * ratio)
    step = a * (a * (a - w) - tau * (1 - ratio)) / torch.where(slope > 0, slope, 1.0)
    # At the root the step is rounding error. Where it is not, τ or a² has underflowed: a is the wall, and stays there.
    return torch.where((step.abs() <= a / 2).detach(), step, torch.zeros_like(step))


def relaxed_log(slack: Tensor, delta: Tensor) -> Tensor:
    """−log(slack) for slack ≥ delta, below it the second-order Taylor polynomial at delta, or inf if delta is 0."""
    regular, delta_is_zero, ratio, delta = _relaxed(slack, delta)
    log = -torch.log(torch.where(regular, slack, 1.0))
    parabola = ((ratio - 2) ** 2 - 1) / 2 - torch.log(delta)
    return torch.where(regular, log, torch.where(delta_is_zero, torch.inf, parabola))


def relaxed_log_slope(slack: Tensor, delta: Tensor) -> Tensor:
    """The derivative of `relaxed_log` with respect to slack."""
    regular, delta_is_zero, ratio, delta = _relaxed(slack, delta)
    inverse = -1 / torch.where(regular, slack, 1.0)
    return torch.where(regular, inverse, torch.where(delta_is_zero, -torch.inf, (ratio - 2) / delta))


def _relaxed(slack: Tensor, delta: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Where the logarithm holds, where there is no extension, slack/delta, and delta, 1 where it is 0."""
    is_zero = delta <= 0
    delta = torch.where(is_zero, 1.0, delta)
    return torch.where(is_zero, slack >= 0, slack >= delta), is_zero, slack / delta, delta
