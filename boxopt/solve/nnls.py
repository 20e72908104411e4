"""Linear least squares with bounds, solved directly: which bounds are active is a finite question."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import decompose, exact, tree
from boxopt.core.search import may_stop, search
from boxopt.core.values import is_true
from boxopt.sets.polyhedron import product
from boxopt.solve.quadratic import add_diagonal, diagonal

_PATIENCE = 3
"""Rounds without fewer coordinates in the wrong place, after which they change places one at a time."""

_WELL_CONDITIONED = 1e3
"""A condition of a matrix whose normal equations give as good a start as any."""


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
    while that makes progress and otherwise one at a time, which ends. Where columns nearly depend on each other, a
    descent from bound to bound goes on from there. What is free comes from a QR decomposition and a step of refinement,
    so that no digits are lost as in AᵀA. Where A has not full rank, x is one of the solutions.

    The result has derivatives of any order with respect to A, b and the bounds, those of the free coordinates' least
    squares, wherever no coordinate is about to change its place.

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

    # Under ``vmap`` what is in one of its batches is in all: a matrix has no place for a dimension that a vector has.
    joint = torch.zeros_like(matrix).sum((-2, -1)).unsqueeze(-1)
    for vector in (lower, upper, right):
        joint = joint + torch.zeros_like(vector).sum(-1, keepdim=True)
    lower, upper, right, matrix = lower + joint, upper + joint, right + joint, matrix + joint.unsqueeze(-1)

    # Each coordinate in units in which its column's largest entry is about 1.
    unit = _unit(matrix.detach())
    matrix = matrix * unit.unsqueeze(-2)
    low, high = lower / unit, upper / unit
    found = _found(low.detach(), high.detach(), right.detach(), matrix.detach())
    side, start, below = found[..., 0, :], found[..., 1, :], found[..., 2:, :]
    # Once more, for derivatives and digits: from here the step is that of the refinement.
    point = torch.where(side == 0, start, _place(side, low, high))
    step = _solution(_decomposed(matrix, side, below), right - product(matrix, point))
    solution = torch.where(side == 0, (point + step) * unit, _place(side, lower, upper))
    known = (right * 0).sum(-1, keepdim=True) + (matrix.detach() * 0).sum((-2, -1)).unsqueeze(-1) == 0
    return torch.where(known, exact.clip(solution, lower, upper), torch.nan)


def _unit(matrix: Tensor) -> Tensor:
    """A power of two for each column, by which its largest entry comes to between 1 and 2; 1 for a column of zeros."""
    if not matrix.shape[-2]:
        return matrix.new_ones(*matrix.shape[:-2], matrix.shape[-1])
    largest = matrix.abs().amax(-2)
    some = (largest > torch.finfo(matrix.dtype).smallest_normal) & (largest < torch.inf)
    return torch.exp2(-torch.floor(torch.log2(torch.where(some, largest, 1.0))))


def _place(side: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """Where coordinates are held, and 0 for those that are free."""
    return torch.where(side < 0, lower, torch.where(side > 0, upper, torch.zeros_like(side)))


@search("bvls", lambda shape: (*shape[:-1], 2 + shape[-1], shape[-1]))
def _found(lower: Tensor, upper: Tensor, right: Tensor, matrix: Tensor) -> Tensor:
    """Where coordinates are, the solution, and the rows that `_decomposed` takes, one below the other.

    A coordinate is at −1 if it is held at the lower bound, at 1 if at the upper, and at 0 if it is free.
    """
    side, x, settled = _pivoted(lower, upper, right, matrix)
    below = torch.diag_embed((side != 0).to(matrix.dtype))
    found = _stacked(side, x, below)
    if not may_stop(x, dear=True):
        return _descended(found, lower, upper, right, matrix)
    if bool(settled.all()):
        return found
    chosen = ~settled.squeeze(-1)
    batch = chosen.shape
    matrix, right = matrix.expand(*batch, *matrix.shape[-2:]), right.expand(*batch, right.shape[-1])
    lower, upper = lower.expand_as(side), upper.expand_as(side)
    found[chosen] = _descended(found[chosen], lower[chosen], upper[chosen], right[chosen], matrix[chosen])
    return found


def _stacked(side: Tensor, x: Tensor, below: Tensor) -> Tensor:
    return torch.cat([side.unsqueeze(-2), x.unsqueeze(-2), below], -2)


def _pivoted(lower: Tensor, upper: Tensor, right: Tensor, matrix: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Sides and a solution by block principal pivoting with the normal equations, and whether they are to be trusted.

    Where columns nearly depend on each other they are not: the pivoting may then not even end.
    """
    eps, size = torch.finfo(matrix.dtype).eps, matrix.shape[-1]
    normal = matrix.mT @ matrix
    normal = add_diagonal(normal, eps * size * _largest(diagonal(normal)).expand_as(lower))
    projected = product(matrix.mT, right)
    identity = torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    order = torch.arange(size, device=matrix.device)

    def solve(side: Tensor) -> tuple[Tensor, Tensor]:
        free, place = side == 0, _place(side, lower, upper)
        both = free[..., :, None] & free[..., None, :]
        factor = torch.linalg.cholesky_ex(torch.where(both, normal, identity))[0]
        needed = torch.where(free, projected - product(normal, place), place)
        return torch.where(free, torch.cholesky_solve(needed.unsqueeze(-1), factor).squeeze(-1), place), factor

    side = torch.where((lower > -torch.inf) & (lower <= upper), -1.0, torch.where(upper < torch.inf, 1.0, 0.0))
    side = side.to(right.dtype)
    fewest = torch.full_like(side[..., :1], size + 1.0)
    patience, count = torch.full_like(fewest, float(_PATIENCE)), fewest
    for _ in range(10 * size + 30):
        x, factor = solve(side)
        slope = product(normal, x) - projected
        reach = 10 * eps * _largest(x.abs())
        tolerance = 10 * eps * _largest(projected.abs())
        new = torch.where((side == 0) & (x < lower - reach), -1.0, side)
        new = torch.where((side == 0) & (x > upper + reach), 1.0, new)
        new = torch.where((side < 0) & (slope < -tolerance) | (side > 0) & (slope > tolerance), 0.0, new)
        new = torch.where(lower >= upper, side, new)
        wrong = new != side
        count = wrong.sum(-1, keepdim=True).to(side.dtype)
        if may_stop(side, dear=True) and not bool((count > 0).any()):
            break
        progress = count < fewest
        fewest = torch.where(progress, count, fewest)
        patience = torch.where(progress, float(_PATIENCE), patience - 1)
        last = torch.where(wrong, order, -1).amax(-1, keepdim=True)
        side = torch.where(wrong & ((patience > 0) | (order == last)), new, side)
    else:
        x, factor = solve(side)
    return side, x, (count == 0) & (_condition(factor.mT) < _WELL_CONDITIONED)


def _descended(found: Tensor, lower: Tensor, upper: Tensor, right: Tensor, matrix: Tensor) -> Tensor:
    """What `_found` returns, by a descent from there that loses no digits.

    A step leads towards the solution in the free coordinates, and holds those whose bounds it meets first. Where it
    meets none, the coordinate is let go that most wants to leave its bound. No step goes up, and one is enough where
    the start is a solution.
    """
    side, x = found[..., 0, :], found[..., 1, :]
    order = torch.arange(side.shape[-1], device=side.device)
    fixed = lower >= upper
    x = torch.where(x.isfinite(), x, torch.zeros_like(x))
    side = torch.where((side == 0) & (x < lower), -1.0, torch.where((side == 0) & (x > upper), 1.0, side))
    x = torch.where(side == 0, x, _place(side, lower, upper))
    tried = torch.zeros_like(fixed)  # since the last step that went anywhere
    for _ in range(10 * side.shape[-1] + 30 if may_stop(side, dear=True) else _PATIENCE):
        place = _place(side, lower, upper)
        below, decomposition = _completed(matrix, side)
        way = place + _solution(decomposition, right - product(matrix, place)) - x
        room = torch.where(way < 0, lower - x, upper - x) / torch.where(way == 0, 1.0, way)
        room = torch.where((side == 0) & (way != 0), room, torch.inf)
        share = -_largest(-room.clamp(max=1))
        stopped = (room <= share) & (share < 1)
        side = torch.where(stopped, torch.sign(way), side)
        x = torch.where(side == 0, x + share * way, _place(side, lower, upper))
        residual = right - product(matrix, x)
        tolerance = 10 * torch.finfo(x.dtype).eps * _largest(right.abs() + product(matrix.abs(), x.abs()))
        tried = torch.where(share > 0, False, tried | stopped)
        pull = torch.where(fixed | tried, 0.0, side * -product(matrix.mT, residual))
        most = torch.where(pull == _largest(pull), order, -1).amax(-1, keepdim=True)
        let_go = (order == most) & (pull > tolerance) & (share == 1)
        side = torch.where(let_go, 0.0, side)
        if may_stop(side, dear=True) and not bool((let_go.any(-1, keepdim=True) | (share < 1)).any()):
            break
    else:
        below, _ = _completed(matrix, side)
    return _stacked(side, x, below)


def _largest(x: Tensor) -> Tensor:
    return x.amax(-1, keepdim=True) if x.shape[-1] else x.new_zeros(*x.shape[:-1], 1)


def _completed(matrix: Tensor, side: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
    """Orthonormal rows that leave one solution below the free columns, the shortest, and the decomposition with them.

    They are for the coordinates that are held, and for what the free columns do not determine.
    """
    below = torch.diag_embed((side != 0).to(matrix.dtype))
    decomposition = _decomposed(matrix, side, below)
    tolerance = 4 * max(matrix.shape[-2:]) * torch.finfo(matrix.dtype).eps
    determined = _condition(decomposition[1]).unsqueeze(-1) * tolerance < 1
    if may_stop(side, dear=True) and bool(determined.all()):
        return below, decomposition
    _, values, rows = decompose.svd(_over(matrix, side, torch.zeros_like(below)))
    negligible = values <= tolerance * values.amax(-1, keepdim=True)
    below = torch.where(determined, below, negligible.unsqueeze(-1) * rows)
    return below, _decomposed(matrix, side, below)


def _condition(factor: Tensor) -> Tensor:
    """At least the condition of a triangular matrix, (..., 1)."""
    identity = torch.eye(factor.shape[-1], dtype=factor.dtype, device=factor.device)
    inverse = torch.linalg.solve_triangular(factor, identity.expand_as(factor), upper=True)
    return (torch.linalg.matrix_norm(inverse) * torch.linalg.matrix_norm(factor)).unsqueeze(-1)


def _decomposed(matrix: Tensor, side: Tensor, below: Tensor) -> tuple[Tensor, Tensor]:
    """The QR decomposition of the free columns over further rows, of its first factor the part beside the columns."""
    basis, factor = torch.linalg.qr(_over(matrix, side, below))
    return basis[..., : matrix.shape[-2], :], factor


def _over(matrix: Tensor, side: Tensor, below: Tensor) -> Tensor:
    """The free columns, with zeros for the others, over further rows."""
    return torch.cat([torch.where((side == 0).unsqueeze(-2), matrix, torch.zeros_like(matrix)), below], -2)


def _solution(decomposition: tuple[Tensor, Tensor], right: Tensor) -> Tensor:
    """The least-squares solution of the free coordinates, 0 for the others."""
    basis, factor = decomposition
    return torch.linalg.solve_triangular(factor, product(basis.mT, right).unsqueeze(-1), upper=True).squeeze(-1)
