r"""A quadratic model with all of its matrix, for few parameters: BFGS.

$$ B_+ = B - \frac{(Bs)(Bs)^\top}{s^\top B s} + \frac{y y^\top}{s^\top y} $$

Before the first pair B is the unit matrix; the first pair replaces it by $y^\top y / s^\top y$ times it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DenseModel(NamedTuple):
    """The Hessian of a quadratic model.

    Attributes:
        matrix: B, n × n, symmetric and positive definite.
        fresh: Whether no pair has changed it yet, a boolean scalar.
    """

    matrix: Tensor
    fresh: Tensor

    @classmethod
    def of(cls, point: Tensor) -> DenseModel:
        """The unit matrix."""
        unit = torch.eye(point.shape[0], dtype=point.dtype, device=point.device)
        return cls(unit, torch.ones((), dtype=torch.bool, device=point.device))

    def append(self, step: Tensor, change: Tensor) -> DenseModel:
        """The model after a step s along which the gradient changed by y, where s·y > 0."""
        product = step @ change
        matrix = self.matrix * torch.where(self.fresh, change @ change / product, 1.0)
        image = matrix @ step
        outer = torch.outer(change, change / product) - torch.outer(image, image / (step @ image))
        return DenseModel(matrix + outer, torch.zeros_like(self.fresh))

    def hessian(self) -> DenseModel:
        """What can be multiplied by and minimized."""
        return self

    def times(self, vectors: Tensor) -> Tensor:
        """B times a vector, or the columns of a matrix."""
        return self.matrix @ vectors

    def minimize_over(self, free: Tensor, slope: Tensor) -> Tensor:
        """The minimizer of slope·d + ½ d·Bd over the coordinates that are free; the others are 0."""
        free = free.to(slope.dtype)
        matrix = self.matrix * torch.outer(free, free) + torch.diag_embed(1 - free)
        return -torch.linalg.solve_ex(matrix, slope * free)[0]
