"""Linear least squares with bounds, solved directly: which bounds are active is a finite question."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.search import may_stop, search
from boxopt.core.values import is_true
from boxopt.solve.quadratic import add_diagonal, diagonal

_PATIENCE = 3
"""Rounds without fewer coordinates in the wrong place, after which they change places one at a time."""


def nnls(matrix: Tensor, right: Tensor) -> Tensor:
    r"""The nonnegative solution of a linear least-squares problem, or of a batch of them.

    $$ \min_{x \ge 0}\; \|A x - b\|^2 $$

    Args:
        matrix: A, (..., m, n).
        right: b, (..., m), of the same dtype.

    Returns:
        x, (..., n); see `bvls` for how, and for its derivative.

    Raises:
        ValueError, TypeError: As `bvls`.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.nnls(torch.tensor([[1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]), torch.tensor([2.0, 1.0, -1.0]))
        tensor([1.5000, 0.0000])

    Source:
        C. L. Lawson and R. J. Hanson, "Solving Least Squares Problems", 1974; `scipy.optimize.nnls`.
    """
    return bvls(matrix, right, 0.0, torch.inf)


def bvls(matrix: Tensor, right: Tensor, lower: Any, upper: Any) -> Tensor:
    r"""The solution of a linear least-squares problem within bounds, or of a batch of them.

    $$ \min_{l \le x \le u}\; \|A x - b\|^2 $$

    by block principal pivoting: coordinates are held at bounds or free, those in the wrong place change it, all at once
    while that makes progress and otherwise one at a time, which ends. Then one step of refinement with the residual of
    A itself makes good what AᵀA lost. Where A has not full rank, x is one of the solutions.

    The result has derivatives of any order with respect to A, b and the bounds, those of the free coordinates' normal
    equations, wherever no coordinate is about to change its place.

    Args:
        matrix: A, (..., m, n).
        right: b, (..., m), of the same dtype.
        lower: l, a number or a tensor that broadcasts to x; −inf for none.
        upper: u, likewise; inf for none.

    Returns:
        x, (..., n), exactly within the bounds; NaN where A or b is not finite.

    Raises:
        ValueError: The shapes do not fit, or lower > upper somewhere.
        TypeError: The dtypes differ, or are not float32 or float64.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.bvls(torch.eye(3), torch.tensor([-1.0, 0.5, 2.0]), 0.0, 1.0)
        tensor([0.0000, 0.5000, 1.0000])

    Source:
        L. F. Portugal, J. J. Júdice and L. N. Vicente, Mathematics of Computation 63, 1994; J. Kim and H. Park, SIAM
        Journal on Scientific Computing 33, 2011. `scipy.optimize.lsq_linear` with "bvls" is the method of P. B. Stark
        and R. L. Parker, 1995.
    """
    if matrix.ndim < 2 or right.ndim < 1 or matrix.shape[-2] != right.shape[-1]:
        raise ValueError(
            f"the matrix is (..., m, n) and the right-hand side (..., m), got {tuple(matrix.shape)} and "
            f"{tuple(right.shape)}"
        )
    if matrix.dtype != right.dtype or matrix.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"both are float32 or float64, got {matrix.dtype} and {right.dtype}")
    batch = torch.broadcast_shapes(matrix.shape[:-2], right.shape[:-1])
    matrix, right = matrix.expand(*batch, *matrix.shape[-2:]), right.expand(*batch, right.shape[-1])
    shape = (*batch, matrix.shape[-1])
    lower, upper = (exact.as_tensor(tree.as_value(bound), right).expand(shape) for bound in (lower, upper))
    if is_true(lower > upper):
        raise ValueError("a lower bound is above the upper one")

    normal = matrix.mT @ matrix
    largest = diagonal(normal).amax(-1, keepdim=True) if shape[-1] else right.new_zeros(())
    ridge = torch.finfo(matrix.dtype).eps * shape[-1] * torch.where(largest > 0, largest, 1.0).detach()
    normal = add_diagonal(normal, ridge.expand(shape))
    projected = _apply(matrix.mT, right)
    side = _sides(projected.detach(), normal.detach(), lower.detach(), upper.detach())
    free = side == 0
    place = torch.where(side < 0, lower, torch.where(side > 0, upper, torch.zeros_like(projected)))
    factor = _factor(normal, free)
    solution = place
    for _ in range(2):
        residual = _apply(matrix.mT, right - _apply(matrix, solution))
        solution = solution + _solve(factor, torch.where(free, residual, torch.zeros_like(residual)))
    known = (projected * 0).sum(-1, keepdim=True) + (normal.detach() * 0).sum((-2, -1)).unsqueeze(-1) == 0
    return torch.where(known, exact.clip(torch.where(free, solution, place), lower, upper), torch.nan)


@search("bvls_sides")
def _sides(projected: Tensor, normal: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """−1 for the coordinates held at the lower bound, 1 at the upper, 0 for those free."""
    size = projected.shape[-1]
    tolerance = torch.finfo(projected.dtype).eps * 10 * projected.abs().amax(-1, keepdim=True) if size else projected
    side = torch.where((lower > -torch.inf) & (lower <= upper), -1.0, torch.where(upper < torch.inf, 1.0, 0.0))
    side = side.to(projected.dtype).expand(projected.shape).clone()
    order = torch.arange(size, device=projected.device)
    fewest = torch.full_like(projected[..., :1], size + 1.0)
    patience = torch.full_like(fewest, float(_PATIENCE))
    for _ in range(10 * size + 30):
        free = side == 0
        place = torch.where(side < 0, lower, torch.where(side > 0, upper, torch.zeros_like(side)))
        right = torch.where(free, projected - _apply(normal, place), place)
        x = torch.where(free, _solve(_factor(normal, free), right), place)
        slope = _apply(normal, x) - projected
        reach = 10 * torch.finfo(x.dtype).eps * x.abs().amax(-1, keepdim=True)
        new = torch.where(free & (x < lower - reach), -1.0, torch.where(free & (x > upper + reach), 1.0, side))
        new = torch.where((side < 0) & (slope < -tolerance) | (side > 0) & (slope > tolerance), 0.0, new)
        new = torch.where(lower >= upper, side, new)
        wrong = new != side
        count = wrong.sum(-1, keepdim=True).to(x.dtype)
        if may_stop(x) and not bool((count > 0).any()):
            break
        progress = count < fewest
        fewest = torch.where(progress, count, fewest)
        patience = torch.where(progress, float(_PATIENCE), patience - 1)
        last = torch.where(wrong, order, -1).amax(-1, keepdim=True)
        side = torch.where(wrong & ((patience > 0) | (order == last)), new, side)
    return side


def _factor(normal: Tensor, free: Tensor) -> Tensor:
    """The Cholesky factor of the free coordinates' normal equations, with ones for the others."""
    both = free[..., :, None] & free[..., None, :]
    identity = torch.eye(normal.shape[-1], dtype=normal.dtype, device=normal.device)
    return torch.linalg.cholesky_ex(torch.where(both, normal, identity))[0]


def _solve(factor: Tensor, right: Tensor) -> Tensor:
    return torch.cholesky_solve(right[..., None], factor)[..., 0]


def _apply(matrix: Tensor, vector: Tensor) -> Tensor:
    return (matrix @ vector[..., None])[..., 0]
