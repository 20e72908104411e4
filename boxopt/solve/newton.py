"""Newton's directions: from a whole Hessian, or from products with it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.core.decompose import eigh
from boxopt.core.search import search
from boxopt.solve.flat import Flat
from boxopt.solve.solver import nonzero

Product = Callable[[Tensor], Tensor]


def hessian(flat: Flat, value_fn: Callable[[Any], Tensor], point: Tensor) -> Tensor:
    """The Hessian of a loss at a vector, [n, n]; zeros if not all of it is finite."""
    matrix = torch.func.jacrev(torch.func.grad(_of_vector(flat, value_fn)))(point.detach()).detach()
    known = matrix.abs().sum() < torch.inf
    return torch.where(known, (matrix + matrix.mT) / 2, torch.zeros_like(matrix))


def hessian_product(flat: Flat, value_fn: Callable[[Any], Tensor], point: Tensor) -> Product:
    """The function v ↦ ∇²f(x) v, each at the cost of about two gradients."""
    _, pull, *_ = torch.func.vjp(torch.func.grad(_of_vector(flat, value_fn)), point.detach())

    def product(vector: Tensor) -> Tensor:
        found = pull(vector)[0].detach()
        return torch.where(found.abs().sum() < torch.inf, found, torch.zeros_like(found))

    return product


def _of_vector(flat: Flat, value_fn: Callable[[Any], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda vector: value_fn(flat.unravel(vector)).to(flat.dtype)


def newton_direction(gradient: Tensor, matrix: Tensor) -> Tensor:
    """−H⁻¹g, and −|H|⁻¹g where H is not positive definite: a direction of descent, also away from a saddle.

    |H| has the absolute values of H's eigenvalues, none smaller than a share of the largest.

    Args:
        gradient: g, of shape [..., n].
        matrix: H, symmetric and finite, [..., n, n].
    """
    return _newton_direction(gradient.detach(), matrix.detach())


@search("newton_direction")
def _newton_direction(gradient: Tensor, matrix: Tensor) -> Tensor:
    matrix = matrix.expand(*gradient.shape, gradient.shape[-1])
    factor, info = torch.linalg.cholesky_ex(matrix)
    direction = -torch.cholesky_solve(gradient[..., None], factor)[..., 0]
    # Factors can be found of what is definite by roundings only; then the solution is no direction of descent.
    size = torch.linalg.vector_norm(gradient, dim=-1)
    slope = -(direction * gradient).sum(-1)
    length = torch.linalg.vector_norm(direction, dim=-1)
    share = torch.finfo(gradient.dtype).eps ** 0.5
    bad = (info > 0) | ~(slope >= share * size * length)
    if bad.any():
        direction[bad] = _absolute_direction(gradient[bad], matrix[bad])
    return direction


def _absolute_direction(gradient: Tensor, matrix: Tensor) -> Tensor:
    values, vectors = eigh(matrix)
    values = values.abs()
    largest = values.amax(-1, keepdim=True)
    floor = torch.where(largest > 0, torch.finfo(values.dtype).eps ** 0.5 * largest, 1.0)
    within = (vectors.mT @ gradient[..., None])[..., 0] / torch.maximum(values, floor)
    return -(vectors @ within[..., None])[..., 0]


def truncated_cg(product: Product, gradient: Tensor, radius: Tensor, steps: int) -> Tensor:
    """An approximate −H⁻¹g within a radius, by conjugate gradients as in Steihaug's method.

    It ends early, by standing still, when the residual is below min(½, √‖g‖)·‖g‖; where the path leaves the ball or the
    curvature along it is negative, at the boundary. A direction of descent.
    """
    step, residual = torch.zeros_like(gradient), gradient
    along = -gradient
    square = (gradient * gradient).sum()
    enough = square * torch.minimum(square.sqrt(), torch.full_like(square, 0.25))
    running = square > 0
    for _ in range(steps):
        curved = product(along)
        curvature = (along * curved).sum()
        length = square / nonzero(curvature)
        beyond = (curvature <= 0) | (torch.linalg.vector_norm(step + length * along) >= radius)
        length = torch.where(beyond, _to_boundary(step, along, radius), length)
        moved, left = step + length * along, residual + length * curved
        new_square = (left * left).sum()
        step, residual = torch.where(running, moved, step), torch.where(running, left, residual)
        along = torch.where(running, -left + new_square / nonzero(square) * along, along)
        running = running & ~beyond & (new_square > enough)
        square = torch.where(running, new_square, square)
    return step


def _to_boundary(step: Tensor, along: Tensor, radius: Tensor) -> Tensor:
    """The length t ≥ 0 with ‖step + t·along‖ = radius."""
    a, b = nonzero((along * along).sum()), (step * along).sum()
    c = (step * step).sum() - radius * radius
    root = (b * b - a * c).clamp_min(0).sqrt()
    return torch.where(b > 0, -c / nonzero(b + root), (root - b) / a).clamp_min(0)


def shortened(direction: Tensor, radius: Tensor) -> Tensor:
    """A direction no longer than the radius."""
    return direction * (radius / nonzero(torch.linalg.vector_norm(direction))).clamp_max(1)
