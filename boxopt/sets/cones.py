r"""The second-order cone.

**In a metric** $1/\eta$, write $t$ for the last coordinate of the result, $s$ for that of the candidate, and $q_i =
\eta_i/\eta_t$. The equation for t eliminates the multiplier of $\|x\| \le t$ and leaves one unknown:

$$ x_i = \frac{y_i t}{(1 + q_i)t - q_i s}, \qquad \sum_i \Bigl(\frac{y_i}{(1 + q_i)t - q_i s}\Bigr)^2 = 1. $$

One over the root of the left side is concave and increasing, so that Newton's method comes up to the solution from the
largest t that a single term allows. The result is the apex, 0, if $\sum_i (y_i/q_i)^2 \le s^2$ and $s \le 0$. The last
steps are taken with the graph attached and carry the derivatives, as in `boxopt.sets.log_barrier`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.search import a_number_each, may_stop, search
from boxopt.sets.barriers import prox_cone
from boxopt.sets.interior import InteriorSet, toward_zero, upward
from boxopt.sets.log_barrier import relaxed_log, relaxed_log_slope
from boxopt.sets.vectors import Dim, precise

P = TypeVar("P")

_SECULAR_STEPS = 16
_DERIVATIVE_STEPS = 2


@tree.register(static=("dim",))
@dataclass(frozen=True, eq=False)
class SecondOrderCone(InteriorSet):
    r"""The set $\{(x, t): \|x\|_2 \le t\}$ for each vector along ``dim``, whose last entry is t.

    Results satisfy the inequality when it is evaluated in float64.

    **Derivative.** On the boundary that of the identity; at and below the apex 0.

    **Barrier.** −log(t² − ‖x‖²) = −log(t − ‖x‖) − log(t + ‖x‖), each of them continued where it is below ``relax``.

    Args:
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.SecondOrderCone().project(torch.tensor([3.0, 4.0, 0.0]))
        tensor([1.5000, 2.0000, 2.5000])

    Source:
        N. Parikh and S. Boyd, Proximal Algorithms, 2014, section 6.3.2, for the Euclidean one.
    """

    dim: Dim = -1

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)

    def project(self, x: P, step_size: float | Tensor | P = 1.0) -> P:
        """The nearest point; its last entry is raised by a rounding error where that is needed to be inside."""
        nearest = super().project(x, step_size)
        return self.land(tree.map(torch.zeros_like, nearest), nearest)

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        if x.shape[-1] == 1:
            return torch.where(x < 0, 0.0, x)
        dtype, x = x.dtype, precise(x)
        step = torch.ones_like(x) if step is None else precise(step)
        y, s = x[..., :-1], x[..., -1:]
        ratio = step[..., :-1] / step[..., -1:]
        inside = (s >= 0) & ((y * y).sum(-1, keepdim=True) <= s * s)
        apex = (s <= 0) & (((y / ratio) ** 2).sum(-1, keepdim=True) <= s * s)
        settled = (inside | apex).detach()
        # A point of its own stands in where there is nothing to solve, so that no derivative passes there.
        first = torch.arange(y.shape[-1], device=y.device) == 0
        y_safe = torch.where(settled, torch.where(first, 1.0, 0.0), y)
        s_safe, ratio_safe = torch.where(settled, 0.0, s), torch.where(settled, 1.0, ratio)
        t = _height(y_safe.detach(), s_safe.detach(), ratio_safe.detach())
        for _ in range(_DERIVATIVE_STEPS):
            t = _newton(t, y_safe, s_safe, ratio_safe)
        gap = (1 + ratio_safe) * t - ratio_safe * s_safe
        boundary = torch.cat([y_safe * t / gap, t], -1)
        return torch.where(inside, x, torch.where(apex, 0.0, boundary)).to(dtype)

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        update = target - params
        sum_ = precise(exact.rounded(params.detach() + exact.rounded(update)))
        norm = torch.linalg.vector_norm(sum_[..., :-1], dim=-1, keepdim=True)
        outside = norm * (1 + 2 * torch.finfo(sum_.dtype).eps) > sum_[..., -1:]  # however it is added up
        error = (
            3 * torch.finfo(params.dtype).eps * (params.detach().abs() + target.detach().abs()).sum(-1, keepdim=True)
        )
        last = torch.arange(params.shape[-1], device=params.device) == params.shape[-1] - 1
        return torch.where(outside & last, update + error, update)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return (torch.linalg.vector_norm(x[..., :-1], dim=-1) - x[..., -1]).relu()

    def _is_inside(self, x: Tensor, *hyper: Tensor) -> Tensor:
        norm = torch.linalg.vector_norm(x[..., :-1], dim=-1, keepdim=True)
        return norm * (1 + 4 * torch.finfo(x.dtype).eps) < x[..., -1:]

    def _inwards(self, x: Tensor, dtype: torch.dtype, *hyper: Tensor) -> Tensor:
        return torch.cat([toward_zero(x[..., :-1], dtype), upward(x[..., -1:], dtype)], -1)

    def _barrier(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        norm, t = _norm(x[..., :-1]), x[..., -1:]
        near, far = t - norm, t + norm
        square = (x[..., :-1] ** 2).sum(-1, keepdim=True)
        # On one side of the wall for both, the sum depends on the norm through its square alone: smooth at 0.
        delta = torch.where(relax > 0, relax, 1.0)
        both = (t * t + square) / delta**2 - 4 * t / delta + 3 - 2 * torch.log(delta)
        smooth = torch.where(near >= relax, t * t - square, 1.0)
        mixed = (near < relax) & (far >= relax) | (relax <= 0)
        value = torch.where(near >= relax, -torch.log(torch.where(smooth > 0, smooth, 1.0)), both)
        return torch.where(mixed & (near < relax), relaxed_log(near, relax) + relaxed_log(far, relax), value).squeeze(
            -1
        )

    def _barrier_gradient(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        norm, t = _norm(x[..., :-1]), x[..., -1:]
        near, far = t - norm, t + norm
        slope_near, slope_far = relaxed_log_slope(near, relax), relaxed_log_slope(far, relax)
        delta = torch.where(relax > 0, relax, 1.0)
        determinant = torch.where(near >= relax, t * t - norm * norm, 1.0)
        smooth = 2 / torch.where(determinant > 0, determinant, 1.0)
        mixed = (slope_far - slope_near) / torch.where(norm > 0, norm, 1.0)
        rate = torch.where(near >= relax, smooth, torch.where(far < relax, 2 / delta**2, mixed))
        return torch.cat([rate * x[..., :-1], slope_near + slope_far], -1)

    def _prox_barrier(self, y: Tensor, tau: Tensor, *hyper: Tensor) -> Tensor:
        return prox_cone(y, tau)


def _norm(x: Tensor) -> Tensor:
    """The norm, with derivative 0 at 0."""
    square = (x * x).sum(-1, keepdim=True)
    return torch.where(square > 0, torch.where(square > 0, square, 1.0).sqrt(), 0.0)


@search("cone_height", a_number_each)
def _height(y: Tensor, s: Tensor, ratio: Tensor) -> Tensor:
    """The last coordinate of the projection of (y, s) onto the boundary."""
    t = ((y.abs() + ratio * s) / (1 + ratio)).amax(-1, keepdim=True)
    for _ in range(_SECULAR_STEPS):
        before, t = t, _newton(t, y, s, ratio)
        if may_stop(y) and torch.equal(before, t):
            break
    return t


def _newton(t: Tensor, y: Tensor, s: Tensor, ratio: Tensor) -> Tensor:
    gap = (1 + ratio) * t - ratio * s
    gap = torch.where(gap > 0, gap, 1.0)  # it is at the solution, and before that wherever y is not 0
    term = y / gap
    square = (term * term).sum(-1, keepdim=True)
    slope = ((1 + ratio) * term * term / gap).sum(-1, keepdim=True)
    return t + (square.sqrt() - 1) * square / slope
