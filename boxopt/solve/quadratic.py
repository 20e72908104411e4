"""The minimizer of a small convex quadratic in a box, by principal pivoting: the subproblem of second-order methods."""

from __future__ import annotations

import torch
from torch import Tensor

_UNROLLED = 8
"""Systems up to this size are solved number by number in compiled code, where that is one kernel."""


def bounded_step(matrix: Tensor, gradient: Tensor, low: Tensor, high: Tensor, rounds: int) -> Tensor:
    r"""A step p that is at least as good as one along the projected gradient.

    $$ \min_p\; q(p) = g^\top p + \tfrac12 p^\top M p \quad\text{subject to}\quad \text{low} \le p \le \text{high} $$

    A round holds some coordinates at bounds and solves for the others. Then those that the solution carries outside are
    held, and those whose multiplier points inwards are let go. When nothing changes p is the minimizer; a few rounds
    are nearly always enough, since which bounds are active hardly changes from one iteration of a method to the next.

    The rounds are cut short, so what they find is clamped, and replaced by a projected gradient step where that is
    lower. With M ≼ n·diag(M) that step decreases q by a fixed share of what is possible at first order: this is what
    keeps a method from stopping anywhere but at a stationary point.

    Args:
        matrix: M, symmetric and positive definite, (n, n).
        gradient: g, (n,).
        low: Bounds on the step, (n,), not positive, −inf where there is none.
        high: Likewise, not negative.
        rounds: How many systems are solved.

    Returns:
        p.

    Source:
        L. F. Portugal, J. J. Júdice and L. N. Vicente, "A comparison of block pivoting and interior-point algorithms
        for linear least squares problems with nonnegative variables", Mathematics of Computation 63, 1994.
    """
    size = gradient.shape[-1]
    step = torch.clamp(-gradient / (size * diagonal(matrix)), low, high)
    value = _model(matrix, gradient, step)
    at_low, at_high = (low >= 0) & (gradient > 0), (high <= 0) & (gradient < 0)
    for _ in range(rounds):
        solution = held_solution(matrix, gradient, low, high, at_low, at_high)
        candidate = torch.clamp(solution, low, high)
        lower = _model(matrix, gradient, candidate)
        better = lower < value
        step, value = torch.where(better, candidate, step), torch.where(better, lower, value)
        multiplier = times(matrix, solution) + gradient
        at_low = torch.where(at_low, multiplier > 0, solution < low)
        at_high = torch.where(at_high, multiplier < 0, solution > high)
    return step


def held_solution(
    matrix: Tensor, gradient: Tensor, low: Tensor, high: Tensor, at_low: Tensor, at_high: Tensor
) -> Tensor:
    """The minimizer of the quadratic over the coordinates that are not held, which may lie outside of the bounds."""
    held = at_low | at_high
    place = torch.where(at_low, low, torch.where(at_high, high, torch.zeros_like(low)))
    right = torch.where(held, place, -(gradient + times(matrix, place)))
    masked = torch.where(held | held[:, None], torch.zeros_like(matrix), matrix)
    return solve(add_diagonal(masked, held.to(matrix.dtype)), right)


def diagonal(matrix: Tensor) -> Tensor:
    """The diagonal, in operations that are compiled together with others."""
    on = torch.eye(matrix.shape[-1], dtype=torch.bool, device=matrix.device)
    return torch.where(on, matrix, torch.zeros_like(matrix)).sum(-1)


def add_diagonal(matrix: Tensor, added: Tensor) -> Tensor:
    """The matrix with a vector added to its diagonal."""
    return matrix + torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device) * added[..., None, :]


def times(matrix: Tensor, vector: Tensor) -> Tensor:
    """The product, written so that compiled code has it in one kernel with what is around it."""
    return (matrix * vector).sum(-1)


def solve(matrix: Tensor, right: Tensor) -> Tensor:
    """The solution of a symmetric positive definite system; not a number where the matrix is not so."""
    if torch.compiler.is_compiling() and right.shape[-1] <= _UNROLLED:
        return _solve_unrolled(matrix, right)
    factor, _ = torch.linalg.cholesky_ex(matrix)
    return torch.cholesky_solve(right[:, None], factor)[:, 0]


def _solve_unrolled(matrix: Tensor, right: Tensor) -> Tensor:
    """LDLᵀ, each number a tensor: for a batch, arithmetic of its vectors without a loop or a memory access between."""
    size = right.shape[-1]
    a = [[matrix[i, j] for j in range(i + 1)] for i in range(size)]
    x = [right[i] for i in range(size)]
    for j in range(size):
        inverse = 1 / a[j][j]
        for i in range(j + 1, size):
            factor = a[i][j] * inverse
            for k in range(i, size):
                a[k][i] = a[k][i] - factor * a[k][j]
            x[i] = x[i] - factor * x[j]
        a[j][j] = inverse
    for j in reversed(range(size)):
        x[j] = (x[j] - sum(a[i][j] * x[i] for i in range(j + 1, size))) * a[j][j]
    return torch.stack(x)


def _model(matrix: Tensor, gradient: Tensor, step: Tensor) -> Tensor:
    return (step * (gradient + times(matrix, step) / 2)).sum(-1)
