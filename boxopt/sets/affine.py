r"""Sets of linear equations and inequalities.

In the metric $1/\eta$ the projection onto $\{Ax = b\}$ is $x - \eta A^\top (A \eta A^\top)^{-1} (Ax - b)$; for one row,
a quotient of two sums, accumulated in float64.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.search import may_stop
from boxopt.core.values import is_true
from boxopt.sets.barriers import prox_halfspace
from boxopt.sets.box import Box
from boxopt.sets.interior import InteriorSet, upward
from boxopt.sets.log_barrier import relaxed_log, relaxed_log_slope
from boxopt.sets.threshold import project_box_hyperplane
from boxopt.sets.vectors import Dim, VectorSet, precise

P = TypeVar("P")


@dataclass(frozen=True, eq=False)
class _OneRow(VectorSet):
    """What a hyperplane and a halfspace share: a normal and an offset."""

    normal: Any
    offset: Any = 0.0
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("offset",)
    vectors: ClassVar[tuple[str, ...]] = ("normal",)

    def __post_init__(self) -> None:
        _check_numbers(type(self).__name__, normal=self.normal, offset=self.offset)

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)


@tree.register("normal", "offset", static=("dim",))
@dataclass(frozen=True, eq=False)
class Hyperplane(_OneRow):
    r"""The set $\{a \cdot x = b\}$ for each vector along ``dim``.

    Args:
        normal: a: a tensor that broadcasts to the leaf, a number (all entries alike), or a pytree prefix.
        offset: b: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        TypeError, ValueError: ``normal`` or ``offset`` is no number or NaN; in `check`, a shape does not fit.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.Hyperplane(torch.tensor([1.0, 2.0]), 5.0).project(torch.zeros(2))
        tensor([1., 2.])
    """

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        return x - _along(normal, step, _excess(x, normal, offset), x)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        return (_excess(x, normal, offset).abs() / _length(normal, x)).squeeze(-1)

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients without their component along the normal."""
        return self._each(lambda x, g, b, a: g - _along(a, None, _excess(g, a, torch.zeros_like(b)), g), x, gradients)


@tree.register("normal", "offset", static=("dim",))
@dataclass(frozen=True, eq=False)
class Halfspace(_OneRow, InteriorSet):
    r"""The set $\{a \cdot x \le b\}$ for each vector along ``dim``.

    What it returns satisfies the inequality evaluated in float64. **Derivative.** On the boundary that of the identity.

    **Barrier.** −log(b − a·x); ``relax`` is in the units of a·x.

    Args:
        normal: a: a tensor that broadcasts to the leaf, a number (all entries alike), or a pytree prefix.
        offset: b: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        TypeError, ValueError: ``normal`` or ``offset`` is no number or NaN; in `check`, a shape does not fit.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.Halfspace(torch.tensor([1.0, 2.0]), 5.0).project(torch.tensor([[3.0, 6.0], [1.0, 1.0]]))
        tensor([[1., 2.],
                [1., 1.]])
    """

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        excess = _excess(x, normal, offset)
        outside = excess.detach() > 0
        return torch.where(outside, x - _along(normal, step, excess, x), x)

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        """The nearest point; drawn inwards by a rounding error where the sum over a vector says that it is outside."""
        nearest = super().project(x, step_size)
        zeros = tree.map(torch.zeros_like, nearest)
        return self.land(zeros, nearest)

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        update = target - params
        sum_ = exact.rounded(params.detach() + exact.rounded(update))
        excess = _excess(sum_, normal, offset).detach()
        outside = excess > 0
        if exact.is_constant(update) and may_stop(update) and not bool(outside.any()):
            return update
        error = 4 * torch.finfo(params.dtype).eps * (normal.abs() * (params.abs() + target.abs())).sum(-1, keepdim=True)
        # A target whose candidate was far away is off by roundings of that.
        inwards = _along(normal, None, precise(error).detach() + excess, target)
        return torch.where(outside, (target - inwards) - params, update)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        return (_excess(x, normal, offset).relu() / _length(normal, x)).squeeze(-1)

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients; on the boundary, without what −g has along the normal."""

        def drop(x: Tensor, gradient: Tensor, offset: Tensor, normal: Tensor) -> Tensor:
            inner = _excess(gradient, normal, torch.zeros_like(offset))
            scale = (normal * x).abs().sum(-1, keepdim=True) + offset.abs()
            at_wall = _excess(x, normal, offset) >= -16 * torch.finfo(x.dtype).eps * scale
            return torch.where(at_wall & (inner < 0), gradient - _along(normal, None, inner, gradient), gradient)

        return self._each(drop, x, gradients)

    def _is_inside(self, x: Tensor, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        return _excess(x, normal, offset) < 0

    def _inwards(self, x: Tensor, dtype: torch.dtype, *hyper: Tensor) -> Tensor:
        return torch.where(hyper[1] > 0, -upward(-x, dtype), upward(x, dtype))

    def _barrier(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        return relaxed_log(-_excess(x, normal, offset), relax).squeeze(-1)

    def _barrier_gradient(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        return (-normal * relaxed_log_slope(-_excess(x, normal, offset), relax)).expand(x.shape)

    def _prox_barrier(self, y: Tensor, tau: Tensor, *hyper: Tensor) -> Tensor:
        offset, normal = hyper
        return prox_halfspace(y, tau, normal, offset)


@tree.register("matrix", "offset", "factor", static=("dim",))
@dataclass(frozen=True, eq=False)
class Affine(VectorSet):
    r"""The set $\{A x = b\}$ for each vector along ``dim``.

    $A A^\top$ is factored once, when the set is made; in a metric that varies, on each projection.

    Args:
        matrix: A, of shape ``[m, n]``, its rows linearly independent.
        offset: b, of shape ``[m]`` or ``[..., m]``, one a vector.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: The shapes do not fit together, or rows of A depend on each other.

    Example:
        >>> import torch, boxopt as bx
        >>> affine = bx.sets.Affine(torch.tensor([[1.0, 1.0, 1.0], [1.0, -1.0, 0.0]]), torch.tensor([3.0, 0.0]))
        >>> affine.project(torch.tensor([3.0, 0.0, 0.0]))
        tensor([1.5000, 1.5000, 0.0000])
    """

    matrix: Any
    offset: Any
    dim: Dim = -1
    factor: Any = None

    def __post_init__(self) -> None:
        if not (isinstance(self.matrix, Tensor) and self.matrix.ndim >= 2 and self.matrix.is_floating_point()):
            raise TypeError(f"matrix is a tensor of shape [m, n], got {self.matrix!r:.60}")
        object.__setattr__(self, "offset", torch.as_tensor(self.offset, dtype=self.matrix.dtype))
        rows, columns = self.matrix.shape[-2:]
        if rows > columns or not self.offset.shape or self.offset.shape[-1] != rows:
            raise ValueError(
                f"an affine set has a matrix [m, n] with m ≤ n and an offset [m]; got {tuple(self.matrix.shape)} and "
                f"{tuple(self.offset.shape)}"
            )
        if self.factor is None:
            wide = precise(self.matrix)
            factor, info = torch.linalg.cholesky_ex(wide @ wide.mT)
            weakest = factor.diagonal(dim1=-2, dim2=-1)
            scale = torch.linalg.vector_norm(wide, dim=-1)
            if is_true(info > 0) or is_true(weakest < 1e-7 * scale):
                raise ValueError("the rows of the matrix depend on each other: leave out those that follow from others")
            object.__setattr__(self, "factor", factor)

    def _check(self, x: Tensor, *hyper: Any) -> None:
        super()._check(x)
        from boxopt.sets.vectors import _to_vectors

        if _to_vectors(x, self.dim).shape[-1] != self.matrix.shape[-1]:
            raise ValueError(
                f"the matrix has {self.matrix.shape[-1]} columns, the vectors along dim={self.dim} of a parameter of "
                f"shape {tuple(x.shape)} have another length"
            )

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        dtype, x = x.dtype, precise(x)
        matrix, offset = precise(self.matrix), precise(self.offset)
        if step is None:
            factor, lifted = self.factor, matrix
        else:
            lifted = matrix * precise(step).unsqueeze(-2)
            factor = torch.linalg.cholesky_ex(lifted @ matrix.mT)[0]
        for _ in range(2):  # the second time for the digits that are lost in A·Aᵀ
            residual = (x.unsqueeze(-2) @ matrix.mT).squeeze(-2) - offset
            weights = torch.cholesky_solve(residual.unsqueeze(-1), factor).mT
            x = x - (weights @ lifted).squeeze(-2)
        return x.to(dtype)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        matrix = precise(self.matrix)
        residual = (x.unsqueeze(-2) @ matrix.mT).squeeze(-2) - precise(self.offset)
        return (residual.abs() / torch.linalg.vector_norm(matrix, dim=-1)).amax(-1)

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients, projected onto the null space of A."""
        linear = Affine(self.matrix, torch.zeros_like(self.offset), self.dim, self.factor)
        return linear.project(gradients)


@tree.register("lower", "upper", "normal", "offset", static=("dim",))
@dataclass(frozen=True, eq=False)
class BoxHyperplane(VectorSet):
    r"""The set $\{l \le x \le u,\ a \cdot x = b\}$ for each vector along ``dim``: budgets, the dual of an SVM.

    The bounds hold exactly, the equation to rounding. If the set is empty the result is the corner of the box nearest
    to the hyperplane, and `violation` says by how much it misses.

    **Derivative.** That on the coordinates strictly between their bounds.

    Args:
        lower: l: a number, a tensor that broadcasts to the leaf, or a pytree prefix; -inf for none.
        upper: u, likewise.
        normal: a, likewise.
        offset: b: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        TypeError, ValueError: A value is no number or NaN, or lower > upper; in `check`, a shape does not fit.

    Example:
        >>> import torch, boxopt as bx
        >>> capped_simplex = bx.sets.BoxHyperplane(0.0, 0.5, 1.0, 1.0)
        >>> capped_simplex.project(torch.tensor([3.0, 0.25, 0.0]))
        tensor([0.5000, 0.3750, 0.1250])

    Source:
        `boxopt.sets.threshold`; P. Brucker, "An O(n) algorithm for quadratic knapsack problems", Operations Research
        Letters 3, 1984.
    """

    lower: Any = 0.0
    upper: Any = 1.0
    normal: Any = 1.0
    offset: Any = 1.0
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("offset",)
    vectors: ClassVar[tuple[str, ...]] = ("lower", "upper", "normal")

    def __post_init__(self) -> None:
        Box(self.lower, self.upper)
        _check_numbers("BoxHyperplane", normal=self.normal, offset=self.offset)

    @property
    def _box(self) -> Box:
        return Box(self.lower, self.upper)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        return self._box.project(super().project(x, step_size))  # whose bounds are those of the leaf's dtype

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        return self._box.land(params, target, strictly=strictly)

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        offset, lower, upper, normal = hyper
        wide = (None if value is None else precise(value) for value in (x, step, lower, upper, normal, offset))
        return project_box_hyperplane(*wide).to(x.dtype)  # pyright: ignore[reportArgumentType]

    def violation(self, x: Any) -> Tensor:
        return torch.maximum(self._box.violation(x), super().violation(x))

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        offset, _, _, normal = hyper
        return (_excess(x, normal, offset).abs() / _length(normal, x)).squeeze(-1)

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients, projected onto the directions that keep the equation and leave no bound."""

        def drop(x: Tensor, g: Tensor, offset: Tensor, lower: Tensor, upper: Tensor, normal: Tensor) -> Tensor:
            low = torch.where(x <= lower, 0.0, -torch.inf)
            high = torch.where(x >= upper, 0.0, torch.inf)
            return -project_box_hyperplane(-g, None, low, high, normal, torch.zeros_like(offset))

        return self._each(drop, x, gradients)


def _excess(x: Tensor, normal: Tensor, offset: Tensor) -> Tensor:
    """normal·x − offset, [..., 1], in float64."""
    wide, normal = precise(x), precise(normal)
    can_overwrite = wide.dtype != x.dtype and exact.is_constant(x, normal)  # on a CPU new memory costs more than a pass
    product = wide.mul_(normal) if can_overwrite else wide * normal
    return product.sum(-1, keepdim=True) - precise(offset)


def _length(normal: Tensor, x: Tensor) -> Tensor:
    length = torch.linalg.vector_norm(precise(normal).expand(x.shape), dim=-1, keepdim=True)
    return torch.where(length > 0, length, 1.0)


def _along(normal: Tensor, step: Tensor | None, amount: Tensor, x: Tensor) -> Tensor:
    """The move in the metric 1/step that changes normal·x by ``amount``."""
    normal = precise(normal).expand(torch.broadcast_shapes(normal.shape, x.shape[-1:]))
    direction = normal if step is None else normal * step
    slope = (normal * direction).sum(-1, keepdim=True)
    return ((amount / torch.where(slope > 0, slope, 1.0)) * direction).to(x.dtype)


def _check_numbers(owner: str, **values: Any) -> None:
    for name, prefix in values.items():
        for _, value in tree.prefix_items(prefix):
            if isinstance(value, bool) or not isinstance(value, int | float | Tensor):
                raise TypeError(f"{owner}: {name} is a number or a tensor, got {type(value).__name__} {value!r:.60}")
            if is_true(value != value):
                raise ValueError(f"{owner}: {name} is NaN: {value!r}")
