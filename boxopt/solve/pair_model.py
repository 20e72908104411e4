r"""A quadratic model from the last few pairs: limited-memory BFGS in its compact form.

With the steps as rows of S, the changes of the gradient as rows of Y (the latest last), $S Y^\top = L + D + R$ (strictly
lower, diagonal, strictly upper) and $\theta = y^\top y / s^\top y$ of the latest pair,

$$ B = \theta I - W^\top M^{-1} W, \qquad W = \begin{pmatrix} Y \\ \theta S \end{pmatrix}, \qquad
   M = \begin{pmatrix} -D & L^\top \\ L & \theta S S^\top \end{pmatrix}. $$
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class PairModel(NamedTuple):
    """The pairs of a quadratic model; rows that are not used yet are zeros.

    Attributes:
        steps: S, m × n.
        slopes: Y, m × n.
    """

    steps: Tensor
    slopes: Tensor


def start(point: Tensor, memory: int) -> PairModel:
    """No pairs: the unit matrix."""
    return PairModel(point.new_zeros(memory, point.shape[0]), point.new_zeros(memory, point.shape[0]))


def append(model: PairModel, step: Tensor, slope: Tensor) -> PairModel:
    """The model after a step s along which the gradient changed by y, where s·y > 0."""
    return PairModel(
        torch.cat([model.steps[1:], step.unsqueeze(0)]), torch.cat([model.slopes[1:], slope.unsqueeze(0)])
    )


def times(model: PairModel, vector: Tensor) -> Tensor:
    """B v."""
    scale, low_rank, middle = _compact(model)
    return scale * vector - torch.linalg.solve_ex(middle, low_rank @ vector)[0] @ low_rank


def minimize_over(model: PairModel, free: Tensor, slope: Tensor) -> Tensor:
    """The minimizer of slope·d + ½ dᵀBd over the free coordinates; zeros elsewhere, by the formula of Woodbury."""
    scale, low_rank, middle = _compact(model)
    low_rank = low_rank * free.to(slope.dtype)
    slope = torch.where(free, slope, 0.0)
    small = middle - low_rank @ low_rank.mT / scale
    return -(slope + torch.linalg.solve_ex(small, low_rank @ slope)[0] @ low_rank / scale) / scale


def _compact(model: PairModel) -> tuple[Tensor, Tensor, Tensor]:
    """θ, W and M."""
    steps, slopes = model
    inner = steps @ slopes.mT
    diagonal = inner.diagonal()
    used = diagonal > 0
    scale = torch.where(used[-1], slopes[-1] @ slopes[-1] / torch.where(used[-1], diagonal[-1], 1.0), 1.0)
    lower = inner.tril(-1)
    unit = torch.diag_embed(torch.where(used, 0.0, 1.0).to(scale.dtype))
    top = torch.cat([-torch.diag_embed(diagonal) - unit, lower.mT], 1)
    bottom = torch.cat([lower, scale * (steps @ steps.mT) + unit], 1)
    return scale, torch.cat([slopes, scale * steps]), torch.cat([top, bottom])
