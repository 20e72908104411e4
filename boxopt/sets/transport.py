r"""The transport polytope: non-negative matrices with given row and column sums.

Both projections alternate between the rows and the columns a fixed number of times, and end by the rounding of
Altschuler, Weed and Rigollet: rows and columns that hold too much are scaled down, and what is missing is given back as
a matrix of rank one. After it the sums are right to rounding, whatever the number of sweeps.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.values import check_nonnegative, is_true
from boxopt.sets.matrices import MatrixSet
from boxopt.sets.threshold import project_simplex
from boxopt.sets.vectors import normalized

P = TypeVar("P")


@tree.register("row", "column", static=("sweeps",))
@dataclass(frozen=True, eq=False)
class TransportPolytope(MatrixSet):
    r"""The matrices $\{X \ge 0,\ X\mathbf 1 = r,\ X^\top\mathbf 1 = c\}$ in the last two dimensions of each leaf.

    With all sums 1 these are the doubly stochastic matrices (Birkhoff). `project` is the Euclidean one, by Dykstra's
    algorithm over rows and columns; `project_kl` is that in relative entropy, by Sinkhorn's.

    Args:
        row: r: a number, or a tensor ``[m]`` or ``[..., m]``, positive.
        column: c: a number, or a tensor ``[n]`` or ``[..., n]``, positive; its sum is that of r.
        sweeps: How many times to go over rows and columns.

    Raises:
        ValueError: A sum is negative or NaN; or both are given as tensors and their totals differ.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.TransportPolytope().project(torch.tensor([[2.0, 0.0], [1.0, 0.0]]))
        tensor([[0.7500, 0.2500],
                [0.2500, 0.7500]])

    Source:
        R. Sinkhorn, "Diagonal equivalence to matrices with prescribed row and column sums", 1967; J. Altschuler, J.
        Weed and P. Rigollet, "Near-linear time approximation algorithms for optimal transport via Sinkhorn iteration",
        NeurIPS 2017.
    """

    row: Any = 1.0
    column: Any = 1.0
    sweeps: int = 50

    def __post_init__(self) -> None:
        check_nonnegative("row", self.row)
        check_nonnegative("column", self.column)
        if isinstance(self.row, Tensor) and isinstance(self.column, Tensor) and self.row.ndim and self.column.ndim:
            gap = (self.row.sum(-1) - self.column.sum(-1)).abs()
            if is_true(gap > 1e-5 * self.row.sum(-1).abs()):
                raise ValueError(f"row sums add to {self.row.sum(-1)!r}, column sums to {self.column.sum(-1)!r}")

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """R as [..., m, 1] and c as [..., 1, n]."""
        row = exact.as_tensor(self.row, x)
        column = exact.as_tensor(self.column, x)
        return (
            (row.unsqueeze(-1) if row.ndim else row).expand((*x.shape[:-1], 1)),
            (column.unsqueeze(-2) if column.ndim else column).expand((*x.shape[:-2], 1, x.shape[-1])),
        )

    def project(self, x: P, step_size: Any = 1.0) -> P:
        def project_leaf(leaf: Tensor, step: Any) -> Tensor:
            wide = exact.wide(leaf)
            metric = step if isinstance(step, Tensor) and step.ndim else None
            if metric is not None:
                metric = normalized(exact.like(metric, wide).expand(wide.shape).flatten(-2)).reshape(wide.shape)
            return self._dykstra(wide, metric).to(leaf.dtype)

        return tree.map(project_leaf, x, tree.expand(step_size, x))

    def _dykstra(self, x: Tensor, step: Tensor | None) -> Tensor:
        row, column = self._sums(x)
        across = None if step is None else step.mT
        correction_row, correction_column = torch.zeros_like(x), torch.zeros_like(x)
        point = x
        for _ in range(self.sweeps):
            candidate = point + correction_row
            point = project_simplex(candidate, step, row)
            correction_row = candidate - point
            candidate = point + correction_column
            point = project_simplex(candidate.mT, across, column.mT).mT
            correction_column = candidate - point
        return _round_to_sums(point, row, column)

    def project_kl(self, scores: P, temperature: Any = 1.0) -> P:
        """The matrix of the set nearest to exp(scores/temperature) in relative entropy: Sinkhorn's, in logarithms.

        Args:
            scores: A tree of matrices; minus a cost, say.
            temperature: The strength of the entropy, positive: a number, a tensor or a pytree prefix.
        """

        def solve(leaf: Tensor, scale: Any) -> Tensor:
            x = exact.wide(leaf)
            row, column = self._sums(x)
            log_row, log_column = row.log(), column.log()
            x = x / exact.as_tensor(scale, x)
            from_column = torch.zeros_like(log_column)
            from_row = torch.zeros_like(log_row)
            for _ in range(self.sweeps):
                from_row = log_row - torch.logsumexp(x + from_column, -1, keepdim=True)
                from_column = log_column - torch.logsumexp(x + from_row, -2, keepdim=True)
            return _round_to_sums((x + from_row + from_column).exp(), row, column).to(leaf.dtype)

        return tree.map(solve, scores, tree.expand(temperature, scores))

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        row, column = self._sums(x)
        below = (-x).amax((-2, -1)).clamp_min(0.0)
        rows = (x.sum(-1, keepdim=True) - row).abs().amax((-2, -1))
        return torch.maximum(below, torch.maximum(rows, (x.sum(-2, keepdim=True) - column).abs().amax((-2, -1))))


def _round_to_sums(x: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """A non-negative matrix near x with these sums."""
    rows = x.sum(-1, keepdim=True)
    x = x * torch.where(rows > row, row / torch.where(rows > 0, rows, 1.0), 1.0)
    columns = x.sum(-2, keepdim=True)
    x = x * torch.where(columns > column, column / torch.where(columns > 0, columns, 1.0), 1.0)
    rest_row = (row - x.sum(-1, keepdim=True)).clamp_min(0.0)
    rest_column = (column - x.sum(-2, keepdim=True)).clamp_min(0.0)
    missing = rest_row.sum(-2, keepdim=True)
    return x + torch.where(missing > 0, rest_row / torch.where(missing > 0, missing, 1.0), 0.0) * rest_column
