r"""Polyhedra {x: A x ≤ b}, by an interior-point method.

Both the projection and the barrier's proximal step minimize $\tfrac12\sum_i (x_i - y_i)^2/\tau_i - \mu\sum_j\log s_j$
with slacks $s = b - Ax$; the projection has a μ that is negligible. With multipliers λ > 0, at the solution

$$ x = y - \tau A^\top\lambda, \qquad Ax + s = b, \qquad s_j\lambda_j = \mu. $$

Newton's steps are shortened so that s and λ stay positive, and μ comes down to its value. Each step solves a positive
definite system with as many unknowns as A has rows or columns, whichever are fewer. What
comes of a full step satisfies $Ax + s = b$ to rounding, so that s > 0 means strictly inside.

**Rounding.** Solved twice: the second time, from where the first ended, the offsets are less by what $Ax$ can err by
when x is rounded to its dtype. So results are strictly inside when evaluated in float64, if the polyhedron is wider
than that.

Source: S. J. Wright, Primal-Dual Interior-Point Methods, 1997, chapter 6.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.search import may_stop, search
from boxopt.core.values import is_true
from boxopt.sets.interior import InteriorSet, shortened
from boxopt.sets.log_barrier import relaxed_log, relaxed_log_slope
from boxopt.sets.vectors import Dim, _from_vectors, _to_vectors, precise

P = TypeVar("P")

_MOST_STEPS = 100
_SOLVE_STEPS = 40  # where values may not be looked at
_AT_A_TIME = 4  # between looks at them
_SECOND_STEPS = 12
_DERIVATIVE_STEPS = 2
_SLOWER = 100.0  # μ over the square of the largest residual of Ax + s = b, at least
_NEGLIGIBLE = 1e-20  # of the squared distance from the candidate to the rows it violates


@tree.register("matrix", "offset", static=("dim",))
@dataclass(frozen=True, eq=False)
class Polyhedron(InteriorSet):
    r"""The set $\{A x \le b\}$ for each vector along ``dim``; it must have an interior.

    Projections are found to about 1e-9 of the distance to the candidate, and satisfy the inequalities in float64, as
    sums of parameters and update do. A step costs min(m, n)³ operations a vector, and there are some 40 of them, up to
    114 where rows are nearly parallel (54 where values may not be looked at, as in a graph that is recorded). Where
    m > n the last two, which have the derivative, cost a QR decomposition of (m + n) × n.

    **Derivative.** That on the active rows, to about 1e-9.

    **Barrier.** $-\sum_j \log(b - Ax)_j$; ``relax`` is in the units of $Ax$.

    Args:
        matrix: A, of shape ``[m, n]``.
        offset: b, of shape ``[m]`` or ``[..., m]``, one a vector.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        TypeError, ValueError: ``matrix`` is no matrix of real numbers, a value is NaN, or the shapes do not fit.

    Example:
        >>> import torch, boxopt as bx
        >>> rows = torch.tensor([[-1.0, 0.0], [0.0, -1.0], [1.0, 1.0]])
        >>> triangle = bx.sets.Polyhedron(rows, torch.tensor([0.0, 0.0, 1.0]))
        >>> triangle.project(torch.tensor([[1.0, 1.0], [0.25, 0.5], [2.0, -1.0]])).round(decimals=4)
        tensor([[0.5000, 0.5000],
                [0.2500, 0.5000],
                [1.0000, 0.0000]])
    """

    matrix: Any
    offset: Any
    dim: Dim = -1

    def __post_init__(self) -> None:
        if not (isinstance(self.matrix, Tensor) and self.matrix.ndim >= 2 and self.matrix.is_floating_point()):
            raise TypeError(f"matrix is a tensor of shape [m, n], got {self.matrix!r:.60}")
        offset = self.offset if isinstance(self.offset, Tensor) else torch.as_tensor(self.offset, dtype=torch.float64)
        object.__setattr__(self, "offset", offset)
        if not offset.shape or offset.shape[-1] != self.matrix.shape[-2]:
            raise ValueError(
                f"a polyhedron has a matrix [m, n] and an offset [m]; got {tuple(self.matrix.shape)} and "
                f"{tuple(offset.shape)}"
            )
        if is_true(self.matrix != self.matrix) or is_true(offset != offset):
            raise ValueError("the matrix or the offset of a polyhedron is NaN")

    def _check(self, x: Tensor, *hyper: Any) -> None:
        super()._check(x)
        if _to_vectors(x, self.dim).shape[-1] != self.matrix.shape[-1]:
            raise ValueError(
                f"the matrix has {self.matrix.shape[-1]} columns, the vectors along dim={self.dim} of a parameter of "
                f"shape {tuple(x.shape)} have another length"
            )

    def _rows(self) -> tuple[Tensor, Tensor]:
        """A and b in float64, each row of length 1."""
        matrix, offset = precise(self.matrix), precise(self.offset)
        length = (matrix * matrix).sum(-1).sqrt()
        length = torch.where(length > 0, length, 1.0)
        return matrix / length.unsqueeze(-1), offset / length

    def _slack(self, x: Tensor) -> Tensor:
        """The slacks b − Ax in float64."""
        return precise(self.offset) - (precise(x).unsqueeze(-2) * precise(self.matrix)).sum(-1)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        """The nearest point, and x itself where it is inside."""
        return self._solve(x, step_size, None)

    def prox_barrier(self, y: P, tau: Any) -> P:
        return self._solve(y, None, tau)

    def _solve(self, x: P, step_size: Any, tau: Any) -> P:
        def solve(leaf: Tensor, weight: Any) -> Tensor:
            vectors = _to_vectors(precise(leaf), self.dim)
            weights = _to_vectors(exact.as_tensor(weight, vectors).expand(leaf.shape), self.dim)
            result = interior_point(vectors, weights, *self._rows(), tau is not None, leaf.dtype)
            if tau is None:
                inside = (self._slack(vectors.detach()) >= 0).all(-1, keepdim=True)
                result = torch.where(inside, vectors, result)
            return _from_vectors(result.to(leaf.dtype), leaf, self.dim)

        return self._map(solve, x, tree.expand(step_size if tau is None else tau, x))

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        length = torch.linalg.vector_norm(precise(self.matrix), dim=-1)
        return ((-self._slack(x)).relu() / torch.where(length > 0, length, 1.0)).amax(-1)

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        return shortened(params, target - params, lambda x: (self._slack(x) >= 0).all(-1, keepdim=True))

    def _is_inside(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return (self._slack(x) > 0).all(-1, keepdim=True)

    def _settle_inside(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        return target - params

    def _barrier(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        return relaxed_log(self._slack(x), relax).sum(-1)

    def _barrier_gradient(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        return -(relaxed_log_slope(self._slack(x), relax).unsqueeze(-1) * precise(self.matrix)).sum(-2)


def interior_point(
    y: Tensor, tau: Tensor, matrix: Tensor, offset: Tensor, has_barrier: bool, dtype: torch.dtype
) -> Tensor:
    """The minimizer of ½Σ(x − y)²/τ − μ Σ log(b − Ax), [..., n], rows of length 1; μ is 1 or negligible."""
    largest = tau.detach().amax(-1, keepdim=True)
    usable = (largest > 0) & (largest < torch.inf)
    tau = torch.where(usable, tau, 1.0)
    excess = product(matrix, y) - offset
    scale = torch.maximum(excess.detach().abs().amax(-1, keepdim=True), 1e-16 * y.detach().abs().amax(-1, keepdim=True))
    scale = scale.clamp_min(1e-100)
    ratio = tau / torch.where(usable, largest, 1.0)
    ratio = torch.where(ratio < 1e-12, 1e-12, ratio)
    target = torch.where(usable, largest, 0.0) if has_barrier else torch.zeros_like(largest)
    target = torch.maximum(target, _NEGLIGIBLE * scale**2)

    fixed = [value.detach() for value in (y, ratio, matrix, offset, target, scale)]
    rows, columns = matrix.shape[-2:]
    found = _search(
        fixed[0].unsqueeze(-2).expand(*y.shape[:-1], rows, columns),
        fixed[1].unsqueeze(-2),
        fixed[2],
        fixed[3].unsqueeze(-1),
        fixed[4].unsqueeze(-1),
        fixed[5].unsqueeze(-1),
        torch.finfo(dtype).eps,
    )
    *at, margin = found.split([columns, rows, rows, rows], -1)
    state = (at[0], at[1], at[2])
    for _ in range(_DERIVATIVE_STEPS):
        state = interior_step(state, target, y, ratio, matrix, offset - margin, whole=True)
    return state[0]


@search("interior_point", lambda shape: (*shape[:-2], shape[-1] + 3 * shape[-2]))
def _search(
    y: Tensor, step: Tensor, matrix: Tensor, offset: Tensor, target: Tensor, scale: Tensor, epsilon: float
) -> Tensor:
    """x, λ, s and the margin, beside each other; from [..., m, n], [..., 1, n], [m, n], [..., m, 1], [..., 1, 1]."""
    y, step, offset, target, scale = y[..., 0, :], step[..., 0, :], offset[..., 0], target[..., 0], scale[..., 0]
    excess = product(matrix, y) - offset
    own = product(matrix**2, step).clamp_min(1e-12)
    at_first = target + 1e-2 * scale**2
    multiplier = (excess.clamp_min(0.0) + torch.sqrt(at_first)) / own.clamp_max(1.0)
    at = (y - step * transposed_product(matrix, multiplier), multiplier, at_first / multiplier)
    may_look = may_stop(y, dear=True)
    for _ in range((_MOST_STEPS if may_look else _SOLVE_STEPS) // _AT_A_TIME):
        ready = _is_solved(at, target, matrix, offset)
        if may_look and bool(ready.all()):
            break
        ahead = at
        for _ in range(_AT_A_TIME):
            ahead = interior_step(ahead, target, y, step, matrix, offset)
        x, multiplier, slack = (torch.where(ready, old, new) for old, new in zip(at, ahead, strict=True))
        at = (x, multiplier, slack)
    margin = product(matrix.abs(), at[0].abs()) + offset.abs()
    margin = margin * (0.75 * epsilon + 8 * torch.finfo(y.dtype).eps)
    for _ in range(_SECOND_STEPS):
        at = interior_step(at, target, y, step, matrix, offset - margin)
    return torch.cat([*at, margin], -1)


def _is_solved(at: tuple[Tensor, Tensor, Tensor], target: Tensor, matrix: Tensor, offset: Tensor) -> Tensor:
    """Whether Ax + s = b to rounding and s·λ = μ nearly, or all is lost in a NaN, [..., 1]."""
    x, multiplier, slack = at
    image = product(matrix, x)
    size = product(matrix.abs(), x.abs()) + offset.abs()
    epsilon = torch.finfo(x.dtype).eps
    centre = torch.maximum(target, multiplier * size * 256 * epsilon)
    near = ((multiplier * slack - centre).abs() <= 0.1 * centre) & (
        (offset - image - slack).abs() <= 16 * epsilon * size
    )
    return near.all(-1, keepdim=True) | (x != x).any(-1, keepdim=True)


def interior_step(
    at: tuple[Tensor, Tensor, Tensor],
    target: Tensor,
    y: Tensor,
    step: Tensor,
    matrix: Tensor,
    offset: Tensor,
    whole: bool = False,
) -> tuple[Tensor, Tensor, Tensor]:
    """One of Newton's steps for x + step·Aᵀλ = y, Ax + s = b, s·λ = μ, from (x, λ, s); shortened unless ``whole``.

    Where a slack would be less than Ax errs by, its product with λ is held at what makes it that. The products do not
    run ahead of Ax + s = b: between rows that are nearly parallel all slacks would be 0 while x is still outside.
    """
    x, multiplier, slack = at
    rest = x - y + step * transposed_product(matrix, multiplier)
    residual = offset - product(matrix, x) - slack
    size = product(matrix.detach().abs(), x.detach().abs()) + offset.detach().abs()
    least = multiplier.detach() * size * 256 * torch.finfo(x.dtype).eps
    centre = torch.maximum(target, least)
    if not whole:
        mean = (multiplier * slack - least).clamp_min(0.0).mean(-1, keepdim=True)
        outside = residual.abs().amax(-1, keepdim=True)
        centre = torch.maximum(centre, torch.maximum(0.1 * mean, _SLOWER * outside**2))
    lack = centre - multiplier * slack
    weight = torch.sqrt(multiplier / slack)
    root = torch.sqrt(step)
    lifted = weight.unsqueeze(-1) * matrix * root.unsqueeze(-2)
    if matrix.shape[-2] <= matrix.shape[-1]:
        right = weight * (lack / multiplier - residual - product(matrix, rest))
        multiplier_change = weight * _solve(lifted @ lifted.mT, right)
        change = -step * transposed_product(matrix, multiplier_change) - rest
        slack_change = residual - product(matrix, change)
    else:
        if whole:
            change = root * _solve_by_root(lifted, weight * (residual - lack / multiplier), -rest / root)
        else:
            right = -rest / root - root * transposed_product(matrix, lack / slack - weight**2 * residual)
            change = root * _solve(lifted.mT @ lifted, right)
        slack_change = residual - product(matrix, change)
        multiplier_change = (lack - multiplier * slack_change) / slack
    shrink = torch.maximum(-multiplier_change / multiplier, -slack_change / slack).amax(-1, keepdim=True).detach()
    if whole:
        shorter = torch.where(shrink < 0.5, 1.0, 0.0)
    else:
        shorter = torch.where(shrink > 0.99, 0.99 / torch.where(shrink > 0, shrink, 1.0), 1.0)
    return x + shorter * change, multiplier + shorter * multiplier_change, slack + shorter * slack_change


def _solve(gram: Tensor, right: Tensor) -> Tensor:
    """(I + gram)⁻¹ right."""
    size = gram.detach().diagonal(dim1=-2, dim2=-1).amax(-1)[..., None, None]
    identity = torch.eye(gram.shape[-1], dtype=gram.dtype, device=gram.device)
    factor = torch.linalg.cholesky_ex(gram + identity * (1 + 1e-15 * size))[0]
    return torch.cholesky_solve(right.unsqueeze(-1), factor).squeeze(-1)


def _solve_by_root(lifted: Tensor, above: Tensor, below: Tensor) -> Tensor:
    """(I + LᵀL)⁻¹ (Lᵀa + b) from a QR decomposition of L over I: active rows outweigh the identity by 1e13."""
    columns = lifted.shape[-1]
    identity = torch.eye(columns, dtype=lifted.dtype, device=lifted.device).expand(*lifted.shape[:-2], columns, columns)
    basis, factor = torch.linalg.qr(torch.cat([lifted, identity], -2))
    right = transposed_product(basis, torch.cat([above, below], -1))
    return torch.linalg.solve_triangular(factor, right.unsqueeze(-1), upper=True).squeeze(-1)


def product(matrix: Tensor, x: Tensor) -> Tensor:
    """The vectors Ax."""
    return (matrix @ x.unsqueeze(-1)).squeeze(-1)


def transposed_product(matrix: Tensor, weights: Tensor) -> Tensor:
    """The vectors Aᵀλ."""
    return (weights.unsqueeze(-2) @ matrix).squeeze(-2)
