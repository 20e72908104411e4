r"""Sets of matrices, which are the last two dimensions of each leaf; those before them are batches.

**Metrics.** In a scalar step size the projections are closed forms of the eigenvalues or singular values. In the metric
of a step size that varies over the entries there is none: it is found by Newton's method, see
`boxopt.sets.matrix_metric`. `Stiefel`, which is not convex, takes at most `_METRIC_STEPS` steps of accelerated
projected gradient instead; its derivatives there are those of `_METRIC_DERIVATIVE_STEPS` more from the solution.

**Derivatives** are exact to the second order, also where eigenvalues are equal: see `boxopt.sets.spectral`. In a metric
so are those of matrices with at most 1,024 entries, of larger ones they are approximate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.decompose import eigvalsh, svd, svdvals
from boxopt.core.search import may_stop, search
from boxopt.core.values import check_nonnegative
from boxopt.sets.base import ConstraintSet
from boxopt.sets.interior import shortened
from boxopt.sets.log_determinant import (
    prox_log_determinant,
    relaxed_log_determinant,
    relaxed_log_determinant_gradient,
)
from boxopt.sets.matrix_metric import nearest_in_metric, with_derivative
from boxopt.sets.spectral import basis_of, basis_of_dilation, dilation, leading_pair, positive_part, shifted, symmetric
from boxopt.sets.threshold import project_l1_ball, project_simplex
from boxopt.sets.vectors import check_broadcasts, normalized, precise

P = TypeVar("P")

_METRIC_STEPS = 500
_METRIC_DERIVATIVE_STEPS = 6


class MatrixSet(ConstraintSet):
    """A set of the matrices in the last two dimensions of each leaf, with at most one number a matrix."""

    numbers: ClassVar[tuple[str, ...]] = ()
    square: ClassVar[bool] = False

    def _project(self, x: Tensor, *hyper: Tensor) -> Tensor:
        """The nearest matrix, [..., m, n]; numbers are of shape [...]."""
        raise NotImplementedError

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        """The violation of each matrix, [...]."""
        raise NotImplementedError

    def _is_cut(self, leaf: Tensor) -> bool:
        return sharded.cuts(leaf, (leaf.ndim - 2, leaf.ndim - 1))

    def check(self, params: Any) -> None:
        tree.check_parameters(params)
        tree.map(self._check, params, *self._hyper(params))

    def _check(self, x: Tensor, *hyper: Any) -> None:
        if x.ndim < 2 or (self.square and x.shape[-1] != x.shape[-2]):
            kind = "square matrices" if self.square else "matrices"
            raise ValueError(f"{type(self).__name__} is of {kind}, got a parameter of shape {tuple(x.shape)}")
        if 0 in x.shape[-2:]:
            raise ValueError(f"{type(self).__name__} needs matrices with entries, got shape {tuple(x.shape)}")
        for name, value in zip(self.numbers, hyper, strict=True):
            check_broadcasts(name, value, x.shape[:-2], "batch of matrices")

    def project(self, x: P, step_size: Any = 1.0) -> P:
        def project_leaf(leaf: Tensor, *rest: Any) -> Tensor:
            *numbers, step = rest
            in_metric = isinstance(step, Tensor) and step.ndim > 0
            wide = precise(leaf) if in_metric else exact.wide(leaf)
            hyper = [exact.as_tensor(number, wide) for number in numbers]
            if in_metric:
                result = self._in_metric(wide, exact.like(step, wide), *hyper)
            else:
                result = self._project(wide, *hyper)
            return self._rounded(result, leaf)

        return self._map(project_leaf, x, tree.expand(step_size, x))

    def _in_metric(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        """The projection in the metric 1/step: the minimizer over the set of Σ (x − y)²/step."""
        if y.shape[-2] < y.shape[-1]:
            return self._in_metric(y.mT, step.mT, *hyper).mT
        weight = _weight(y, step)
        if self.square:  # for a symmetric x, Σ w(x − y)² is that of the symmetric parts of w and w·y and a constant
            moment, weight = symmetric(weight * y), symmetric(weight)
            y, weight = moment / weight, weight / weight.detach().amax((-2, -1), keepdim=True)
        radius = hyper[0].expand(y.shape[:-2])[..., None, None] if hyper else y.new_ones((*y.shape[:-2], 1, 1))
        kind = type(self).__name__
        point = nearest_in_metric(y.detach(), weight.detach(), radius.detach(), kind)
        if exact.is_constant(y, step, *hyper):
            return point
        return with_derivative(lambda x: self._project(x, *hyper), point, y, weight, radius, kind)

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        return tree.map(torch.sub, target, params)

    def violation(self, x: Any) -> Tensor:
        def largest(leaf: Tensor, *numbers: Any) -> Tensor:
            values = precise(leaf)
            each = self._violation(values, *(exact.as_tensor(number, values) for number in numbers))
            return (each.amax() if each.numel() else each.new_zeros(())).to(leaf.dtype)

        return tree.reduce(torch.maximum, self._map(largest, x, combine="max"))

    def _hyper(self, x: Any) -> list[Any]:
        return [tree.expand(getattr(self, name), x) for name in self.numbers]

    def _map(self, function: Callable[..., Any], x: Any, *rest: Any, combine: str | None = None) -> Any:
        """Map ``function(leaf, *numbers, *rest)`` over the leaves; for ``combine`` see `boxopt.core.sharded`."""

        def on_leaf(leaf: Tensor, *values: Any) -> Any:
            count = len(self.numbers)
            axes = (leaf.ndim - 2, leaf.ndim - 1)
            return sharded.on_vectors(function, axes, leaf, values[:count], values[count:], combine)

        return tree.map(on_leaf, x, *self._hyper(x), *rest)

    def _each(self, function: Callable[..., Tensor], x: Any, *rest: Any) -> Any:
        def on_leaf(leaf: Tensor, *values: Any) -> Tensor:
            wide = exact.wide(leaf)
            count = len(self.numbers)
            hyper = [exact.as_tensor(value, wide) for value in values[:count]]
            return function(wide, *(exact.like(value, wide) for value in values[count:]), *hyper).to(leaf.dtype)

        return self._map(on_leaf, x, *rest)


@tree.register()
@dataclass(frozen=True, eq=False)
class PSD(MatrixSet):
    r"""The symmetric positive semidefinite matrices. What is not symmetric is symmetrized.

    **Derivative.** Eigenvalues of exactly 0 count as negative.

    **Barrier.** −log det X: see `boxopt.sets.log_determinant`. ``relax`` is in the units of eigenvalues.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.PSD().project(torch.tensor([[1.0, 0.0], [0.0, -2.0]]))
        tensor([[1., 0.],
                [0., 0.]])

    Source:
        N. J. Higham, "Computing a nearest symmetric positive semidefinite matrix", Linear Algebra and its Applications
        103, 1988.
    """

    square: ClassVar[bool] = True

    def _project(self, x: Tensor, *hyper: Tensor) -> Tensor:
        x = symmetric(x)
        values, vectors = basis_of(x)
        nearest = symmetric((vectors * values.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT)
        return nearest if exact.is_constant(x) else exact.replaced(positive_part(x, (values, vectors)), nearest)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        least = eigvalsh(symmetric(x))[..., 0]
        return torch.maximum(-least, (x - x.mT).abs().amax((-2, -1))).relu()

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        if not strictly:
            return super().land(params, target)

        def land_leaf(leaf: Tensor, goal: Tensor) -> Tensor:
            error = (_rounding(leaf) + _rounding(goal)).to(leaf.dtype)
            update = goal - leaf
            sum_ = precise(exact.rounded(leaf.detach() + exact.rounded(update)))
            raised = update + torch.diag_embed(error.unsqueeze(-1).expand(*error.shape, leaf.shape[-1]))
            return shortened(leaf, torch.where(_is_definite(sum_), update, raised), _is_definite)

        return self._map(land_leaf, params, target)

    def barrier(self, x: Any, relax: float | Tensor = 1e-3) -> Tensor:
        def value(leaf: Tensor) -> Tensor:
            x = symmetric(precise(leaf))
            return relaxed_log_determinant(x, exact.as_tensor(relax, x)).sum().to(leaf.dtype)

        return tree.reduce(torch.add, self._map(value, x, combine="sum"))

    def barrier_gradient(self, x: P, relax: float | Tensor = 1e-3) -> P:
        def slope(leaf: Tensor) -> Tensor:
            x = symmetric(precise(leaf))
            return relaxed_log_determinant_gradient(x, exact.as_tensor(relax, x)).to(leaf.dtype)

        return self._map(slope, x)

    def prox_barrier(self, y: P, tau: Any) -> P:
        def solve(leaf: Tensor, weight: Any) -> Tensor:
            candidate = precise(leaf)
            weight = exact.as_tensor(weight, candidate)
            weight = weight.expand(leaf.shape) if weight.ndim else weight[..., None, None]
            result = prox_log_determinant(candidate, weight)
            nearest = result.to(leaf.dtype)
            definite = _is_definite(precise(exact.rounded(nearest)))
            error = _rounding(result, leaf.dtype)
            raised = result + torch.diag_embed(error.unsqueeze(-1).expand(*error.shape, leaf.shape[-1]))
            return torch.where(definite, nearest, raised.to(leaf.dtype))

        return self._map(solve, y, tree.expand(tau, y))


def _rounding(x: Tensor, dtype: torch.dtype | None = None) -> Tensor:
    """More than each matrix's eigenvalues may change by when its entries are rounded, [...], in float64."""
    info = torch.finfo(x.dtype if dtype is None else dtype)
    return info.eps * (torch.linalg.matrix_norm(precise(x.detach())) + 2 * x.shape[-1] * info.tiny)


def _is_definite(x: Tensor) -> Tensor:
    """Whether each matrix is positive definite, [..., 1, 1]."""
    return (eigvalsh(symmetric(x))[..., 0] > 0)[..., None, None]


@dataclass(frozen=True, eq=False)
class _MatrixBall(MatrixSet):
    radius: Any = 1.0
    numbers: ClassVar[tuple[str, ...]] = ("radius",)

    def __post_init__(self) -> None:
        check_nonnegative("radius", self.radius)

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        raise NotImplementedError

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return (self._norm(x) - hyper[0]).relu()

    def project(self, x: P, step_size: Any = 1.0) -> P:
        """The nearest matrix, drawn inwards by rounding errors where its norm in float64 says that it is outside."""
        nearest = super().project(x, step_size)
        return self.land(tree.map(torch.zeros_like, nearest), nearest)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        def land_leaf(leaf: Tensor, radius: Any, goal: Tensor) -> Tensor:
            update = goal - leaf
            limit = precise(exact.as_tensor(radius, precise(leaf))).detach()
            sum_ = precise(exact.rounded(leaf.detach() + exact.rounded(update)))
            outside = (self._norm(sum_) > limit)[..., None, None]
            rank = min(leaf.shape[-2:])
            slack = 4 * torch.finfo(leaf.dtype).eps * (1 + rank**0.5) + 1e-15 * rank
            return torch.where(outside, goal * (1 - slack) - leaf, update)

        return self._map(land_leaf, params, target)


@tree.register("radius")
@dataclass(frozen=True, eq=False)
class SpectralBall(_MatrixBall):
    r"""The matrices whose largest singular value is at most r: layers with a Lipschitz constant.

    The norm of what is returned, evaluated in float64, is at most r.

    Args:
        radius: r ≥ 0: a number, a tensor that broadcasts to the leaf's batch dimensions, or a pytree prefix.

    Raises:
        ValueError: ``radius`` is negative or NaN; in `check`, a leaf has fewer than two dimensions.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.SpectralBall(1.0).project(torch.diag(torch.tensor([3.0, 0.5]))).round(decimals=4)
        tensor([[1.0000, 0.0000],
                [0.0000, 0.5000]])
    """

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return svdvals(x)[..., 0]

    def _project(self, x: Tensor, *hyper: Tensor) -> Tensor:
        radius = hyper[0]
        if exact.is_constant(x, radius):
            left, values, right = svd(x)
            limit = radius.unsqueeze(-1) if radius.ndim else radius
            outside = (values[..., :1] > limit).unsqueeze(-1)
            return torch.where(outside, (left * torch.minimum(values, limit).unsqueeze(-2)) @ right, x)
        (left, singular, right), (values, vectors) = basis_of_dilation(x)
        limit = radius.expand(x.shape[:-2])
        level = limit.detach().unsqueeze(-1)
        excess = positive_part(shifted(dilation(x), limit), (values - level, vectors))
        inside = x - 2 * excess[..., : x.shape[-2], x.shape[-2] :]
        # The difference of two large matrices says nothing of a small one: only its derivative is used.
        value = (left * torch.minimum(singular, level).unsqueeze(-2)) @ right
        return torch.where((singular[..., :1] > level).unsqueeze(-1), exact.replaced(inside, value), x)

    def linear_minimizer(self, gradients: P) -> P:
        """−r·U·Vᵀ, of the gradient's singular vectors."""

        def opposite(gradient: Tensor, radius: Tensor) -> Tensor:
            return -(radius[..., None, None] if radius.ndim else radius) * Stiefel()._project(gradient)

        return self._each(opposite, gradients)


@tree.register("radius")
@dataclass(frozen=True, eq=False)
class NuclearBall(_MatrixBall):
    r"""The matrices whose singular values sum to at most r: projections are of low rank.

    The norm of what is returned, evaluated in float64, is at most r.

    Args:
        radius: r ≥ 0: a number, a tensor that broadcasts to the leaf's batch dimensions, or a pytree prefix.

    Raises:
        ValueError: ``radius`` is negative or NaN; in `check`, a leaf has fewer than two dimensions.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.NuclearBall(2.0).project(torch.diag(torch.tensor([3.0, 0.5]))).round(decimals=4)
        tensor([[2., 0.],
                [0., 0.]])
    """

    @staticmethod
    def _norm(x: Tensor) -> Tensor:
        return svdvals(x).sum(-1)

    def _project(self, x: Tensor, *hyper: Tensor) -> Tensor:
        radius = hyper[0]
        if exact.is_constant(x, radius):
            left, values, right = svd(x)
            limit = radius.unsqueeze(-1) if radius.ndim else radius
            outside = (values.sum(-1, keepdim=True) > limit).unsqueeze(-1)
            shrunk = project_l1_ball(values, None, limit)
            return torch.where(outside, (left * shrunk.unsqueeze(-2)) @ right, x)
        whole = dilation(x)
        (left, singular, right), (values, vectors) = basis_of_dilation(x)
        limit = radius.expand(x.shape[:-2])
        outside = singular.sum(-1) > limit.detach()
        shrunk = project_simplex(singular, None, limit.detach().unsqueeze(-1))
        level = (singular - shrunk).amax(-1)
        count = (shrunk > 0).sum(-1).clamp_min(1)

        def part(level: Tensor) -> Tensor:
            return positive_part(shifted(whole, level), (values - level.detach().unsqueeze(-1), vectors))

        for _ in range(2):  # Newton steps for the threshold, each of which doubles the order of its derivative
            trace = part(level).diagonal(dim1=-2, dim2=-1).sum(-1)
            level = level + (trace - limit) / count
        projected = 2 * part(level)[..., : x.shape[-2], x.shape[-2] :]
        # The difference of two large matrices says nothing of a small one: only its derivative is used.
        projected = exact.replaced(projected, (left * shrunk.unsqueeze(-2)) @ right)
        return torch.where(outside[..., None, None], projected, x)

    def linear_minimizer(self, gradients: P) -> P:
        """−r·u₁v₁ᵀ, of the gradient's leading singular vectors."""

        def opposite(gradient: Tensor, radius: Tensor) -> Tensor:
            return -(radius[..., None, None] if radius.ndim else radius) * leading_pair(gradient)

        return self._each(opposite, gradients)


@tree.register()
@dataclass(frozen=True, eq=False)
class Stiefel(MatrixSet):
    r"""The matrices with orthonormal columns, or rows if they are wider than high: $X^\top X = I$. It is not convex.

    The nearest is the polar factor $U V^\top$. Of a matrix of lower rank several are nearest, and one of them is
    returned.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.Stiefel().project(torch.tensor([[0.0, 2.0], [-3.0, 0.0]])).round(decimals=4) + 0.0
        tensor([[ 0.,  1.],
                [-1.,  0.]])

    Source:
        N. J. Higham, Functions of Matrices, 2008, chapter 8.
    """

    def _project(self, x: Tensor, *hyper: Tensor) -> Tensor:
        left, values, right = svd(x.detach())
        polar = left @ right
        if exact.is_constant(x):
            return polar
        if x.shape[-2] < x.shape[-1]:
            return exact.replaced(_polar_with_graph(x.mT, polar.mT, values, left).mT, polar)
        return exact.replaced(_polar_with_graph(x, polar, values, right.mT), polar)

    def _in_metric(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        weight = _weight(y, step)
        point = _orthonormal_in_metric(y.detach(), weight.detach())
        if exact.is_constant(y, step):
            return point
        ahead, rate = point, _momentum(weight.detach())
        for _ in range(_METRIC_DERIVATIVE_STEPS):
            following = self._project(ahead - weight * (ahead - y))
            ahead, point = following + rate * (following - point), following
        return point

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        gram = x.mT @ x if x.shape[-2] >= x.shape[-1] else x @ x.mT
        identity = torch.eye(gram.shape[-1], dtype=x.dtype, device=x.device)
        return (gram - identity).abs().amax((-2, -1))

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients, projected onto the tangent space: G − X·sym(XᵀG)."""

        def drop(x: Tensor, gradient: Tensor) -> Tensor:
            if x.shape[-2] >= x.shape[-1]:
                return gradient - x @ symmetric(x.mT @ gradient)
            return gradient - symmetric(gradient @ x.mT) @ x

        return self._each(drop, x, gradients)


def _polar_with_graph(x: Tensor, polar: Tensor, values: Tensor, right: Tensor) -> Tensor:
    """The polar factor of a tall matrix, differentiable twice.

    Two steps of a Newton method for "QᵀX is symmetric, and X − QQᵀX is 0", whose matrix is that at the solution and
    detached: each step adds an order. Both leave the value as it is.
    """
    sums = values.unsqueeze(-1) + values.unsqueeze(-2)
    sums = torch.where(sums > 0, sums, 1.0)
    inverse = (right / torch.where(values > 0, values, 1.0).unsqueeze(-2)) @ right.mT
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    for _ in range(2):
        inner = polar.mT @ x
        skew = right @ ((right.mT @ (inner - inner.mT) @ right) / sums) @ right.mT
        moved = polar + polar @ skew + (x - polar @ inner) @ inverse
        polar = moved @ (3 * identity - moved.mT @ moved) / 2
    return polar


def _weight(y: Tensor, step: Tensor) -> Tensor:
    """The metric 1/step, divided by the largest of each matrix."""
    weight = 1 / normalized(step.expand(y.shape).flatten(-2)).reshape(y.shape)
    return weight / weight.detach().amax((-2, -1), keepdim=True)


def _momentum(weight: Tensor) -> Tensor:
    """Nesterov's for a strongly convex quadratic of condition 1/min(weight), the largest weight being 1."""
    root = weight.amin((-2, -1), keepdim=True).sqrt()
    return (1 - root) / (1 + root)


@search("orthonormal_in_metric")
def _orthonormal_in_metric(y: Tensor, weight: Tensor) -> Tensor:
    members, rate = Stiefel(), _momentum(weight)
    ahead = point = members._project(y)
    done = torch.zeros_like(rate, dtype=torch.bool)
    for _ in range(_METRIC_STEPS):
        following = members._project(ahead - weight * (ahead - y))
        move = following - point
        # Each matrix stays where it is when it is done, whatever the others need; NaN is done at once.
        ahead, point = torch.where(done, ahead, following + rate * move), torch.where(done, point, following)
        done = done | ~(_largest(move) > 4 * torch.finfo(y.dtype).eps * _largest(point))
        if may_stop(y) and bool(done.all()):
            break
    return point


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax((-2, -1), keepdim=True)
