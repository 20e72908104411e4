r"""A quadratic model with all of its matrix, for few parameters: BFGS.

$$ B_+ = B - \frac{(Bs)(Bs)^\top}{s^\top B s} + \frac{y y^\top}{s^\top y} $$

Before the first pair B is the unit matrix; the first pair replaces it by $y^\top y / s^\top y$ times it.

Vectors are along the first dimension, matrices along the first two. There may be a further one, which counts problems.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DenseModel(NamedTuple):
    """The Hessian of a quadratic model.

    Attributes:
        matrix: B, n × n, symmetric and positive definite.
        fresh: Whether it is the unit matrix, because nothing is known, a boolean scalar.
    """

    matrix: Tensor
    fresh: Tensor

    @classmethod
    def of(cls, point: Tensor) -> DenseModel:
        """The unit matrix."""
        unit = torch.eye(point.shape[0], dtype=point.dtype, device=point.device)
        return cls(unit, torch.ones((), dtype=torch.bool, device=point.device))

    def learn(self, step: Tensor, change: Tensor, curved: Tensor, forget: Tensor) -> DenseModel:
        """The model after a step s along which the gradient changed by y.

        Args:
            step: s.
            change: y.
            curved: Whether s·y > 0. Otherwise nothing is learned.
            forget: Whether to start anew, where nothing is learned.
        """
        product = torch.where(curved, (step * change).sum(0), 1.0)
        scale = torch.where(curved & self.fresh, (change * change).sum(0) / product, torch.where(forget, 0.0, 1.0))
        weight = torch.where(curved, 1 / product, 0.0)
        image = self.times(step) * scale
        share = torch.where(curved, -1 / (image * step).sum(0), 0.0)
        matrix = torch.addcmul(self.matrix * scale, image.unsqueeze(1), image * share)
        matrix = torch.addcmul(matrix, change.unsqueeze(1), change * weight) + _unit(self.matrix) * forget
        return DenseModel(matrix, torch.where(curved, torch.zeros_like(forget), self.fresh | forget))

    def hessian(self) -> DenseModel:
        """What can be multiplied by and minimized."""
        return self

    def times(self, vector: Tensor) -> Tensor:
        """B times a vector."""
        return (self.matrix * vector).sum(1)

    def curvature(self, vector: Tensor) -> Tensor:
        """d·Bd of a vector d."""
        return (vector * self.times(vector)).sum(0)

    def minimize_over(self, free: Tensor, slope: Tensor) -> Tensor:
        """The minimizer of slope·d + ½ d·Bd over the coordinates that are free; the others are 0."""
        if self.matrix.ndim > 2 or torch.compiler.is_compiling():
            return -solve_free(self.matrix, free, slope)
        masked = torch.where(free & free.unsqueeze(1), self.matrix, _unit(self.matrix))
        return -torch.linalg.solve_ex(masked, torch.where(free, slope, 0.0))[0]


def _unit(matrix: Tensor) -> Tensor:
    """The unit matrix of a matrix's shape, for all problems."""
    unit = torch.eye(matrix.shape[0], dtype=matrix.dtype, device=matrix.device)
    return unit.reshape(unit.shape + (1,) * (matrix.ndim - 2))


def solve_free(matrix: Tensor, free: Tensor, vector: Tensor) -> Tensor:
    r"""The solution of the rows and columns of a system that are free, 0 elsewhere; by $LDL^\top$.

    Args:
        matrix: Symmetric and positive definite.
        free: Which coordinates there are.
        vector: The right side.
    """
    rows: list[tuple[Tensor, Tensor]] = []  # of the unit upper triangle, each with its right side
    for here in free.unbind():
        column = matrix[1:, 0]
        share = torch.where(here, 1 / matrix[0, 0], 0.0)
        row, right = column * share, vector[0] * share
        rows.append((row, right))
        vector = torch.addcmul(vector[1:], column, right, value=-1)
        matrix = torch.addcmul(matrix[1:, 1:], column.unsqueeze(1), row, value=-1)
    solution = vector  # of the rows below, nothing yet
    for row, right in reversed(rows):
        solution = torch.cat([(right - (row * solution).sum(0)).unsqueeze(0), solution])
    return solution
