r"""A quadratic model with all of its matrix: BFGS, for few parameters.

$$ B_+ = B - \frac{(Bs)(Bs)^\top}{s^\top B s} + \frac{y y^\top}{s^\top y} $$

The first pair replaces the unit matrix by $\theta = y^\top y / s^\top y$ times it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class DenseModel(NamedTuple):
    """The Hessian of a quadratic model.

    Attributes:
        matrix: B, n × n, symmetric and positive definite.
        pairs: How many pairs it was made of, a scalar of the matrix' dtype.
    """

    matrix: Tensor
    pairs: Tensor


def start(point: Tensor) -> DenseModel:
    """The unit matrix."""
    unit = torch.eye(point.shape[0], dtype=point.dtype, device=point.device)
    return DenseModel(unit, torch.zeros((), dtype=point.dtype, device=point.device))


def append(model: DenseModel, step: Tensor, slope: Tensor) -> DenseModel:
    """The model after a step s along which the gradient changed by y, where s·y > 0."""
    product = step @ slope
    matrix = torch.where(model.pairs == 0, model.matrix * (slope @ slope / product), model.matrix)
    image = matrix @ step
    matrix = matrix - torch.outer(image, image / (step @ image)) + torch.outer(slope, slope / product)
    return DenseModel(matrix, model.pairs + 1)


def times(model: DenseModel, vector: Tensor) -> Tensor:
    """B v."""
    return model.matrix @ vector


def minimize_over(model: DenseModel, free: Tensor, slope: Tensor) -> Tensor:
    """The minimizer of slope·d + ½ dᵀBd over the free coordinates; zeros elsewhere, NaN if B is not definite there."""
    free = free.to(slope.dtype)
    matrix = model.matrix * torch.outer(free, free) + torch.diag_embed(1 - free)
    return -torch.linalg.solve_ex(matrix, slope * free)[0] * free
