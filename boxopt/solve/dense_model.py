r"""A quadratic model with all of its matrix, for few parameters: BFGS.

$$ B_+ = B - \frac{(Bs)(Bs)^\top}{s^\top B s} + \frac{y y^\top}{s^\top y} $$

Before the first pair B is the unit matrix; the first pair replaces it by $y^\top y / s^\top y$ times it.

In a batch the matrices are most of the memory. So what changes or factors them is an operator, which on a CPU goes
through the batch in blocks that fit into a cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import torch
from torch import Tensor

from boxopt.core.search import search

_BLOCK = 2**17  # numbers


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
        product = torch.where(curved, (step * change).sum(), 1.0)
        scale = torch.where(curved & self.fresh, (change * change).sum() / product, torch.where(forget, 0.0, 1.0))
        weight = torch.where(curved, 1 / product, 0.0)
        numbers = torch.stack([scale, weight, forget.to(scale.dtype)])
        matrix = _updated(self.matrix, step.unsqueeze(0), change.unsqueeze(0), numbers.unsqueeze(0))
        return DenseModel(matrix, torch.where(curved, torch.zeros_like(forget), self.fresh | forget))

    def hessian(self) -> DenseModel:
        """What can be multiplied by and minimized."""
        return self

    def times(self, vectors: Tensor) -> Tensor:
        """B times a vector, or the columns of a matrix."""
        return self.matrix @ vectors

    def minimize_over(self, free: Tensor, slope: Tensor) -> Tensor:
        """The minimizer of slope·d + ½ d·Bd over the coordinates that are free; the others are 0."""
        free = free.to(slope.dtype)
        return -_solved((slope * free).unsqueeze(0), free.unsqueeze(0), self.matrix).squeeze(0)


@search("bfgs_update")
def _updated(matrix: Tensor, step: Tensor, change: Tensor, numbers: Tensor) -> Tensor:
    """The matrix scale · B − (Bs)(Bs)ᵀ/(s·Bs) + weight · yyᵀ + forget · I, its middle terms only where weight > 0.

    Vectors are rows, and so are the three numbers.
    """
    scale, weight, forget = numbers.unsqueeze(-1).unbind(-2)
    result = torch.empty_like(matrix, memory_format=torch.contiguous_format)
    for new, b, s, y, c, w, r in _blocks(result, matrix, step, change, scale, weight, forget):
        torch.mul(b, c, out=new)
        image = torch.bmm(s, new)
        share = torch.where(w > 0, -1 / (image * s).sum(-1, keepdim=True), 0.0)
        new.addcmul_(image.mT * share, image).addcmul_(y.mT * w, y)
        new.diagonal(dim1=-2, dim2=-1).add_(r.squeeze(-1))
    return result


@search("solve_free")
def _solved(slope: Tensor, free: Tensor, matrix: Tensor) -> Tensor:
    """B⁻¹ times a row, with the rows and columns of B that are not free replaced by those of the unit matrix."""
    result = torch.empty_like(slope, memory_format=torch.contiguous_format)
    for new, g, f, b in _blocks(result, slope, free, matrix):
        masked = b * f
        masked.mul_(f.mT).diagonal(dim1=-2, dim2=-1).add_(1 - f.squeeze(-2))
        new.copy_(torch.linalg.solve_ex(masked, g.mT)[0].mT)
    return result


def _blocks(first: Tensor, *others: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Batches of matrices, part by part, where the first has all of them and of the others some may be shared."""
    flat = [tensor.reshape(-1, *tensor.shape[-2:]) for tensor in (first, *others)]
    count, size = flat[0].shape[0], max(1, _BLOCK // first.shape[-1] ** 2)
    if first.device.type != "cpu":
        size = max(1, count)
    return zip(*(tensor.expand(count, -1, -1).split(size) for tensor in flat), strict=True)
