r"""A quadratic model of the last few pairs: limited-memory BFGS, in its compact form.

With the last m steps as the rows of S, the changes of the gradient as those of Y, $S Y^\top = L + D + R$ (strictly
lower, diagonal, strictly upper) and $\theta = y^\top y / s^\top y$ of the latest pair,

$$ B = \theta I - W^\top M^{-1} W, \qquad W = \begin{pmatrix} Y \\ \theta S \end{pmatrix}, \qquad
   M = \begin{pmatrix} -D & L^\top \\ L & \theta S S^\top \end{pmatrix}. $$

Where vectors are long, reading the pairs is what takes the time. So a new pair takes the place of the oldest, nothing
else moves, and the products of pairs are kept: row by row, as each pair came with those before it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

_WIDTH = 1 << 15  # of the parts of a matrix that is only looked at: new memory for all of it costs more than the work


class PairModel(NamedTuple):
    """The pairs of a quadratic model.

    Attributes:
        pairs: Y and S, 2 × m × n. Pair number k, counted from 0, is in row k mod m.
        products: S Yᵀ and S Sᵀ, 2 × m × m, of each step with the changes and steps until then; the rest is stale.
        scale: θ, a scalar.
        learned: How many pairs there have been, an int64 scalar.
    """

    pairs: Tensor
    products: Tensor
    scale: Tensor
    learned: Tensor

    @classmethod
    def of(cls, point: Tensor, memory: int) -> PairModel:
        """No pairs: the unit matrix."""
        count = torch.zeros((), dtype=torch.int64, device=point.device)
        products = point.new_zeros(2, memory, memory)
        return cls(point.new_zeros(2, memory, point.shape[0]), products, point.new_ones(()), count)

    @property
    def fresh(self) -> Tensor:
        """Whether there are no pairs, a boolean scalar."""
        return self.learned == 0

    def learn(self, step: Tensor, change: Tensor, curved: Tensor, forget: Tensor) -> PairModel:
        """The model after a step s along which the gradient changed by y.

        Args:
            step: s.
            change: y.
            curved: Whether s·y > 0. Otherwise nothing is learned.
            forget: Whether to start anew, where nothing is learned.
        """
        memory = self.pairs.shape[1]
        row = torch.arange(memory, device=step.device) == self.learned % memory
        new = (row & curved).unsqueeze(1)
        pairs = torch.where(new, torch.stack([change, step]).unsqueeze(1), self.pairs)
        found = pairs @ step
        products = torch.where(new, found.unsqueeze(1), self.products)
        curvature = torch.where(curved, (step * change).sum(), 1.0)
        scale = torch.where(curved, (change * change).sum() / curvature, torch.where(forget, 1.0, self.scale))
        return PairModel(pairs, products, scale, torch.where(forget, 0, self.learned + curved))

    def hessian(self) -> CompactHessian:
        """What can be multiplied by and minimized."""
        memory = self.pairs.shape[1]
        row = torch.arange(memory, device=self.learned.device)
        number = row + memory * torch.div(self.learned - 1 - row, memory, rounding_mode="floor")
        used = number >= 0
        both = used & used.unsqueeze(1)
        later = number.unsqueeze(1) > number
        changes, steps = self.products
        diagonal = torch.diag_embed(torch.where(used, changes.diagonal(), 1.0))
        lower = torch.where(both & later, changes, 0.0)
        gram = torch.where(both, torch.where(later, steps, steps.mT), 0.0)
        unused = torch.diag_embed((~used).to(gram.dtype))
        top, bottom = torch.cat([-diagonal, lower.mT], 1), torch.cat([lower, self.scale * gram + unused], 1)
        middle, weights = torch.cat([top, bottom]), torch.cat([used.to(gram.dtype), self.scale * used])
        return CompactHessian(self.scale, self.pairs.flatten(0, 1), weights, middle, torch.linalg.inv_ex(middle)[0])


class CompactHessian(NamedTuple):
    """B = θI − WᵀM⁻¹W.

    Attributes:
        scale: θ, a scalar.
        pairs: The rows of Y and S, 2m × n.
        weights: By which they are multiplied to be those of W, 2m numbers; 0 where there is no pair yet.
        middle: M, 2m × 2m; its rows and columns without a pair are those of a unit matrix, up to the sign.
        inverse: M⁻¹.
    """

    scale: Tensor
    pairs: Tensor
    weights: Tensor
    middle: Tensor
    inverse: Tensor

    def times(self, vector: Tensor) -> Tensor:
        """B times a vector."""
        inner = self.inverse @ (self.weights * (self.pairs @ vector))
        return self.scale * vector - (self.weights * inner) @ self.pairs

    def curvature(self, vector: Tensor) -> Tensor:
        """d·Bd of a vector d."""
        image = self.weights * (self.pairs @ vector)
        return self.scale * (vector * vector).sum() - (image * (self.inverse @ image)).sum()

    def minimize_over(self, free: Tensor, slope: Tensor) -> Tensor:
        """The minimizer of slope·d + ½ d·Bd over the coordinates that are free; the others are 0. By Woodbury."""
        mask = free.to(slope.dtype)
        slope = torch.where(free, slope, 0.0)
        parts = zip(self.pairs.split(_WIDTH, 1), mask.split(_WIDTH), strict=True)
        gram = sum(((part * kept) @ part.mT for part, kept in parts), torch.zeros_like(self.middle))
        small = self.middle - self.weights.unsqueeze(1) * gram * (self.weights / self.scale)
        inner = torch.linalg.solve_ex(small, self.weights * (self.pairs @ slope))[0]
        return -(slope + mask * ((self.weights * inner) @ self.pairs) / self.scale) / self.scale
