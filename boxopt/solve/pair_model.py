r"""A quadratic model of the last few pairs: limited-memory BFGS, in its compact form.

With the last m steps as the rows of S, the changes of the gradient as those of Y, $S Y^\top = L + D + R$ (strictly
lower, diagonal, strictly upper) and $\theta = y^\top y / s^\top y$ of the latest pair,

$$ B = \theta I - W^\top M^{-1} W, \qquad W = \begin{pmatrix} Y \\ \theta S \end{pmatrix}, \qquad
   M = \begin{pmatrix} -D & L^\top \\ L & \theta S S^\top \end{pmatrix}. $$
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PairModel(NamedTuple):
    """The pairs of a quadratic model, the latest last; rows that are not used yet are zeros.

    Attributes:
        steps: S, m × n.
        changes: Y, m × n.
    """

    steps: Tensor
    changes: Tensor

    @classmethod
    def of(cls, point: Tensor, memory: int) -> PairModel:
        """No pairs: the unit matrix."""
        return cls(point.new_zeros(memory, point.shape[0]), point.new_zeros(memory, point.shape[0]))

    @property
    def fresh(self) -> Tensor:
        """Whether there are no pairs, a boolean scalar."""
        return (self.steps[-1] == 0).all()

    def learn(self, step: Tensor, change: Tensor, curved: Tensor, forget: Tensor) -> PairModel:
        """The model after a step s along which the gradient changed by y.

        Args:
            step: s.
            change: y.
            curved: Whether s·y > 0. Otherwise nothing is learned.
            forget: Whether to start anew, where nothing is learned.
        """
        kept = torch.where(forget, 0.0, 1.0)

        def append(memory: Tensor, latest: Tensor) -> Tensor:
            return torch.where(curved, torch.cat([memory[1:], latest.unsqueeze(0)]), memory * kept)

        return PairModel(append(self.steps, step), append(self.changes, change))

    def hessian(self) -> CompactHessian:
        """What can be multiplied by and minimized."""
        steps, changes = self
        inner = steps @ changes.mT
        diagonal = inner.diagonal()
        used = diagonal > 0
        scale = torch.where(used[-1], (changes[-1] * changes[-1]).sum() / diagonal[-1], 1.0)
        unused = torch.diag_embed((~used).to(scale.dtype))
        lower = inner.tril(-1)
        top = torch.cat([-torch.diag_embed(diagonal) - unused, lower.mT], 1)
        bottom = torch.cat([lower, scale * (steps @ steps.mT) + unused], 1)
        middle, factor = torch.cat([top, bottom]), torch.cat([changes, scale * steps])
        return CompactHessian(scale, factor, middle, torch.linalg.solve_ex(middle, factor)[0])


class CompactHessian(NamedTuple):
    """B = θI − WᵀM⁻¹W.

    Attributes:
        scale: θ, a scalar.
        factor: W, 2m × n.
        middle: M, 2m × 2m.
        solved: M⁻¹W, 2m × n.
    """

    scale: Tensor
    factor: Tensor
    middle: Tensor
    solved: Tensor

    def times(self, vectors: Tensor) -> Tensor:
        """B times a vector, or the columns of a matrix."""
        return self.scale * vectors - self.factor.mT @ (self.solved @ vectors)

    def minimize_over(self, free: Tensor, slope: Tensor) -> Tensor:
        """The minimizer of slope·d + ½ d·Bd over the coordinates that are free; the others are 0. By Woodbury."""
        factor = self.factor * free.to(slope.dtype)
        slope = torch.where(free, slope, 0.0)
        small = self.middle - factor @ factor.mT / self.scale
        inner = torch.linalg.solve_ex(small, factor @ slope)[0]
        return -(slope + factor.mT @ inner / self.scale) / self.scale
