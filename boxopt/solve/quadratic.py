"""The minimizer of a small convex quadratic in a box: the subproblem of second-order methods."""

from __future__ import annotations

import torch
from torch import Tensor

_UNROLLED = 8
"""Systems up to this size are solved number by number in compiled code, where that is one kernel."""


def bounded_step(matrix: Tensor, gradient: Tensor, low: Tensor, high: Tensor, rounds: int) -> Tensor:
    r"""A step p that is at least as good as one along the projected gradient.

    $$ \min_p\; q(p) = g^\top p + \tfrac12 p^\top M p \quad\text{subject to}\quad \text{low} \le p \le \text{high} $$

    It starts with a projected gradient step, which as M ≼ n·diag(M) decreases q by a fixed share of what is possible at
    first order: this is what keeps a method from stopping anywhere but at a stationary point. Then each round holds the
    coordinates at bounds that the gradient of q, or the last round's solution, points out of, solves for the others,
    and goes to the better of two points: the solution clamped, which may change many bounds at once, and the way to it
    as far as it is inside, which never goes up. When nothing changes p is the minimizer; a few rounds are nearly always
    enough, since which bounds are active hardly changes from one iteration of a method to the next.

    Args:
        matrix: M, symmetric and positive definite, (n, n).
        gradient: g, (n,).
        low: Bounds on the step, (n,), not positive, −inf where there is none.
        high: Likewise, not negative.
        rounds: How many systems are solved.

    Returns:
        p.

    Source:
        The truncated step is that of J. J. Moré and G. Toraldo, "On the solution of large quadratic programming
        problems with bound constraints", SIAM Journal on Optimization 1, 1991; the clamped one is a projected Newton
        step of D. P. Bertsekas, 1982.
    """
    size = gradient.shape[-1]
    if not size:
        return gradient
    step = torch.clamp(-gradient / (size * diagonal(matrix)), low, high)
    slope = times(matrix, step) + gradient
    value = _model(gradient, step, slope)
    solution = step
    for _ in range(rounds):
        at_low = (step <= low) & ((slope > 0) | (solution < low))
        at_high = (step >= high) & ((slope < 0) | (solution > high))
        solution = held_solution(matrix, gradient, low, high, at_low, at_high)
        way = solution - step
        room = torch.where(way > 0, high - step, torch.where(way < 0, low - step, torch.inf))
        share = (room / torch.where(way == 0, torch.ones_like(way), way)).amin().clamp(max=1)
        for candidate in (torch.clamp(step + share * way, low, high), torch.clamp(solution, low, high)):
            candidate_slope = times(matrix, candidate) + gradient
            lower = _model(gradient, candidate, candidate_slope)
            better = lower < value
            step, slope = torch.where(better, candidate, step), torch.where(better, candidate_slope, slope)
            value = torch.where(better, lower, value)
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
    """The solution of a symmetric positive definite system; some numbers where the matrix is not so."""
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


def _model(gradient: Tensor, step: Tensor, slope: Tensor) -> Tensor:
    return (step * (gradient + slope)).sum(-1) / 2
