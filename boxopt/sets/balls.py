r"""Balls of the L1, L2 and L∞ norms, and the L2 sphere.

**Inside, exactly.** What a projection returns has a norm, evaluated in float64, of at most the radius: the result is
scaled to 1 − 2ε of it (ε of the dtype that is computed in), and rounded towards zero to a narrower one. The sum of
parameters and update is looked at in float64; where its rounding carried it out, the target is drawn inwards by more
than the sum can err, 3ε of the radius, and lands inside.

**The L2 ball in a metric.** $x_i = y_i/(1 + \lambda\eta_i)$, with λ the root of $1/r = 1/\|x(\lambda)\|$, a nearly
linear function on which Newton's method from 0 is monotone: J. J. Moré and D. C. Sorensen, "Computing a trust region
step", SISSC 4, 1983. Its last steps are taken with the graph attached and carry the derivatives: see
`boxopt.sets.log_barrier`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.search import a_number_each, may_stop, search
from boxopt.core.values import check_nonnegative
from boxopt.sets.barriers import prox_ball
from boxopt.sets.box import Box
from boxopt.sets.interior import InteriorSet
from boxopt.sets.log_barrier import relaxed_log, relaxed_log_slope
from boxopt.sets.threshold import project_l1_ball
from boxopt.sets.vectors import Dim, VectorSet, beside, precise, summation_error

P = TypeVar("P")

_SECULAR_STEPS = 16
_DERIVATIVE_STEPS = 2
_LEAST = 1e-30  # of 1 + λ: for vectors smaller than this, as a fraction of the radius, the direction alone counts
_LARGEST = {torch.float32: torch.finfo(torch.float32).max, torch.float64: 1e150}  # whose square is finite in float64


@dataclass(frozen=True, eq=False)
class _Ball(VectorSet):
    """A ball around 0. A subclass gives its norm."""

    radius: Any = 1.0
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("radius",)

    def __post_init__(self) -> None:
        check_nonnegative("radius", self.radius)

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        """The norm of each vector, [..., 1]."""
        raise NotImplementedError

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        update = target - params
        sum_ = exact.rounded(params.detach() + exact.rounded(update))
        outside = self._norm(precise(sum_)) > precise(hyper[0]).detach()
        drawn_in = target * (1 - self._slack(params)) - params
        return torch.where(outside, drawn_in, update)

    def _slack(self, x: Tensor) -> float:
        return 3 * torch.finfo(x.dtype).eps + summation_error(x)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return (self._norm(x) - hyper[0]).relu().squeeze(-1)

    def _fit(self, x: Tensor, radius: Tensor) -> Tensor:
        """``x`` scaled into the ball where rounding left it outside."""
        norm = self._norm(precise(x.detach()))
        limit = precise(radius.detach()) * (1 - 2 * torch.finfo(x.dtype).eps - summation_error(x))
        factor = torch.where(norm > limit, limit / torch.where(norm > 0, norm, 1.0), 1.0)
        return x * factor.to(x.dtype)


@tree.register("radius", static=("dim",))
@dataclass(frozen=True, eq=False)
class L2Ball(_Ball, InteriorSet):
    r"""The set $\{\|x\|_2 \le r\}$ for each vector along ``dim``.

    **Derivative.** On the sphere, that of the identity, as inside. With radius 0 the result is 0.

    **Barrier.** −log(r² − ‖x‖²); ``relax`` is a fraction of r².

    Args:
        radius: r ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``radius`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.L2Ball(1.0).project(torch.tensor([[3.0, 4.0], [0.1, 0.2]]))
        tensor([[0.6000, 0.8000],
                [0.1000, 0.2000]])
    """

    reduces: ClassVar[bool] = True

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return sharded.reduced(torch.linalg.vector_norm(x, dim=-1, keepdim=True))

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        radius = hyper[0]
        x = x.clamp(-_LARGEST[x.dtype], _LARGEST[x.dtype])
        limit = precise(radius) * (1 - 2 * torch.finfo(x.dtype).eps - summation_error(x))
        outside, norm = _norm_if_above(x, precise(radius))
        if step is not None:
            return torch.where(outside, self._fit(_on_sphere(x, step, radius), radius), x)
        factor = torch.where(outside, limit / norm, 1.0).to(x.dtype)
        return x.mul_(factor) if exact.is_constant(x, radius) else x * factor

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients; on the sphere, without their component along −x."""

        def drop(x: Tensor, gradient: Tensor, radius: Tensor) -> Tensor:
            square = sharded.reduced((x * x).sum(-1, keepdim=True))
            inner = sharded.reduced((x * gradient).sum(-1, keepdim=True))
            margin = 1 - 16 * torch.finfo(x.dtype).eps
            outward = (square >= radius * radius * margin) & (inner < 0)
            return gradient - torch.where(outward, inner / torch.where(square > 0, square, 1.0), 0.0) * x

        return self._each(drop, x, gradients)

    def linear_minimizer(self, gradients: P) -> P:
        """−r·g/‖g‖, and 0 where g is 0."""

        def opposite(gradient: Tensor, radius: Tensor) -> Tensor:
            return self._fit(-radius * _unit(gradient, torch.zeros_like(gradient)), radius)

        return self._each(opposite, gradients)

    def _is_inside(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return self._norm(x) * (1 + 4 * torch.finfo(x.dtype).eps) < hyper[0]

    def _barrier(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        return relaxed_log(hyper[0] ** 2 - (x * x).sum(-1, keepdim=True), relax * hyper[0] ** 2).squeeze(-1)

    def _barrier_gradient(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        slack = hyper[0] ** 2 - (x * x).sum(-1, keepdim=True)
        return -2 * x * relaxed_log_slope(slack, relax * hyper[0] ** 2)

    def _prox_barrier(self, y: Tensor, tau: Tensor, *hyper: Tensor) -> Tensor:
        return prox_ball(y, tau, hyper[0])


@tree.register("radius", static=("dim",))
@dataclass(frozen=True, eq=False)
class L1Ball(_Ball):
    r"""The set $\{\|x\|_1 \le r\}$ for each vector along ``dim``: projections are sparse.

    **Derivative.** That on the support, as for `Simplex`; on the boundary, that of the identity.

    Args:
        radius: r ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``radius`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.L1Ball(1.0).project(torch.tensor([1.5, -1.0, 0.25]))
        tensor([ 0.7500, -0.2500,  0.0000])

    Source:
        J. Duchi, S. Shalev-Shwartz, Y. Singer and T. Chandra, "Efficient projections onto the l1-ball for learning in
        high dimensions", ICML 2008; `boxopt.sets.threshold` for the method.
    """

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return x.abs().sum(-1, keepdim=True)

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        return self._fit(project_l1_ball(x, step, hyper[0]), hyper[0])

    def linear_minimizer(self, gradients: P) -> P:
        """The vertex −r·sign(gᵢ) at the coefficient largest in magnitude."""

        def vertex(gradient: Tensor, radius: Tensor) -> Tensor:
            largest = gradient.abs().argmax(-1, keepdim=True)
            chosen = torch.arange(gradient.shape[-1], device=gradient.device) == largest
            return torch.where(chosen, -radius * torch.sign(gradient), 0.0)

        return self._each(vertex, gradients)


@tree.register("radius", static=("dim",))
@dataclass(frozen=True, eq=False)
class LInfBall(_Ball):
    r"""The set $\{\max_i |x_i| \le r\}$ for each vector along ``dim``; a `Box` whose bounds are given a vector.

    **Derivative.** At a tie that of the identity, as for `Box`.

    Args:
        radius: r ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``radius`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.LInfBall(torch.tensor([1.0, 2.0])).project(torch.tensor([[3.0, -4.0], [3.0, -4.0]]))
        tensor([[ 1., -1.],
                [ 2., -2.]])
    """

    reduces: ClassVar[bool] = True

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return x.abs().amax(-1, keepdim=True)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        """The nearest point, which is the same in every diagonal metric; its sums stay exact."""
        return self._as_box(exact.clamp, x)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        return self._as_box(lambda x, low, high, goal: Box(low, high).land(x, goal, strictly=strictly), params, target)

    def barrier(self, x: Any, relax: float | Tensor = 1e-3) -> Tensor:
        each = self._as_box(lambda x, low, high: Box(low, high).barrier(x, relax), x, combine="sum")
        return tree.reduce(torch.add, each)

    def barrier_gradient(self, x: P, relax: float | Tensor = 1e-3) -> P:
        return self._as_box(lambda x, low, high: Box(low, high).barrier_gradient(x, relax), x)

    def prox_barrier(self, y: P, tau: Any) -> P:
        step = tree.expand(tau, y)
        return self._as_box(lambda y, low, high, tau: Box(low, high).prox_barrier(y, tau), y, step)

    def _as_box(self, function: Callable[..., Tensor], x: Any, *rest: Any, combine: str | None = None) -> Any:
        """Map ``function(leaf, lower, upper, *rest)`` over the leaves; the bounds are rounded inwards."""

        def on_leaf(leaf: Tensor, radius: Any, *others: Tensor) -> Tensor:
            bound = beside(exact.inward(radius, leaf, up=False), leaf, self.dim)
            return function(leaf, -bound, bound, *others)

        return self._map(on_leaf, x, *rest, combine=combine)

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients, 0 where they push a coordinate at a bound outwards."""

        def drop(x: Tensor, gradient: Tensor, radius: Tensor) -> Tensor:
            outward = (x <= -radius) & (gradient > 0) | (x >= radius) & (gradient < 0)
            return torch.where(outward, 0.0, gradient)

        return self._each(drop, x, gradients)

    def linear_minimizer(self, gradients: P) -> P:
        """−r·sign(g)."""
        return self._each(lambda gradient, radius: -radius * torch.sign(gradient), gradients)


@tree.register("radius", static=("dim",))
@dataclass(frozen=True, eq=False)
class L2Sphere(VectorSet):
    r"""The set $\{\|x\|_2 = r\}$ for each vector along ``dim``: unit directions. It is not convex.

    The projection of 0, to which all points of the sphere are equally near, is r in the first coordinate, with
    derivative 0. In a metric, the point returned is the nearest unless coordinates of the largest step size are 0.

    Args:
        radius: r ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``radius`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.L2Sphere(1.0).project(torch.tensor([[0.3, 0.4], [0.0, 0.0]]))
        tensor([[0.6000, 0.8000],
                [1.0000, 0.0000]])
    """

    radius: Any = 1.0
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("radius",)

    def __post_init__(self) -> None:
        check_nonnegative("radius", self.radius)

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        first = torch.zeros_like(x)
        first = torch.where(torch.arange(x.shape[-1], device=x.device) == 0, 1.0, first)
        x = x.clamp(-_LARGEST[x.dtype], _LARGEST[x.dtype])
        if step is not None:
            x = _on_sphere(x, step, hyper[0])
        return hyper[0] * _unit(x, first)

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return (torch.linalg.vector_norm(x, dim=-1, keepdim=True) - hyper[0]).abs().squeeze(-1)

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients without their component along x: the Riemannian gradient."""

        def drop(x: Tensor, gradient: Tensor, radius: Tensor) -> Tensor:
            square = (x * x).sum(-1, keepdim=True)
            return gradient - (x * gradient).sum(-1, keepdim=True) / torch.where(square > 0, square, 1.0) * x

        return self._each(drop, x, gradients)

    def linear_minimizer(self, gradients: P) -> P:
        """−r·g/‖g‖, and 0 where g is 0."""
        return self._each(lambda g, radius: -radius * _unit(g, torch.zeros_like(g)), gradients)


def _norm_if_above(x: Tensor, radius: Tensor) -> tuple[Tensor, Tensor]:
    """Where the norm of each vector exceeds the radius, and the norm there (1 elsewhere), in float64."""
    dtype = radius.dtype
    norm = sharded.reduced(torch.linalg.vector_norm(x.detach(), dim=-1, keepdim=True, dtype=dtype))
    outside = norm > radius.detach()
    if exact.is_constant(x):
        return outside, norm
    square = sharded.reduced((precise(x) * precise(x)).sum(-1, keepdim=True))
    return outside, torch.where(outside, square, 1.0).sqrt()


def _unit(x: Tensor, fallback: Tensor) -> Tensor:
    """x/‖x‖, or the fallback at 0."""
    largest = sharded.reduced(x.detach().abs().amax(-1, keepdim=True))
    is_zero = largest == 0
    scaled = torch.where(is_zero, 1.0, x) / torch.where(is_zero, 1.0, largest)
    return torch.where(is_zero, fallback, scaled / (scaled * scaled).sum(-1, keepdim=True).sqrt())


def _on_sphere(x: Tensor, step: Tensor, radius: Tensor) -> Tensor:
    """The point x/(1 + λ·step) with norm ``radius`` and 1 + λ·step > 0; 0 for radius 0. Step sizes are at most 1.

    The unknown is 1 + λ, which for a small x is near 0 and so known to a relative error.
    """
    dtype = x.dtype
    x, step, radius = precise(x), precise(step), precise(radius)
    is_point = radius.detach() == 0
    radius = torch.where(is_point, 1.0, radius)
    multiplier = _multiplier(x.detach(), step.detach(), radius.detach())
    for _ in range(_DERIVATIVE_STEPS):
        multiplier = _newton(multiplier, x, step, radius)
    return torch.where(is_point, 0.0, x / _shrinkage(multiplier, step)).to(dtype)


@search("sphere_multiplier", a_number_each)
def _multiplier(x: Tensor, step: Tensor, radius: Tensor) -> Tensor:
    """1 + λ, λ being that for which x/(1 + λ·step) has norm ``radius``."""
    multiplier = ((x.abs() / radius - (1 - step)) / step).amax(-1, keepdim=True).clamp_min(_LEAST)
    for _ in range(_SECULAR_STEPS):
        before, multiplier = multiplier, _newton(multiplier, x, step, radius)
        if may_stop(x) and torch.equal(before, multiplier):
            break
    return multiplier


def _newton(multiplier: Tensor, x: Tensor, step: Tensor, radius: Tensor) -> Tensor:
    scale = _shrinkage(multiplier, step)
    point = x / scale
    square = (point * point).sum(-1, keepdim=True)
    slope = (step * point * point / scale).sum(-1, keepdim=True)
    usable = slope.detach() > 0
    norm = torch.where(usable, square, 1.0).sqrt()
    change = (norm / radius - 1) * square / torch.where(usable, slope, 1.0)
    return (multiplier + torch.where(usable, change, 0.0)).clamp_min(_LEAST)


def _shrinkage(multiplier: Tensor, step: Tensor) -> Tensor:
    """1 + λ·step, from 1 + λ."""
    return (1 - step) + multiplier * step
