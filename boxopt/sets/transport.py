r"""The transport polytope: non-negative matrices with given row and column sums.

**Euclidean, in a metric.** The projection is $x_{ij} = \max(y_{ij} + \eta_{ij}(\alpha_i + \beta_j), 0)$, and the
potentials α and β minimize the convex, piecewise quadratic

$$ \sum_{ij} \max(y_{ij} + \eta_{ij}(\alpha_i + \beta_j), 0)^2 / (2\eta_{ij}) - r \cdot \alpha - c \cdot \beta, $$

whose slopes are the row and column sums less r and c. Newton's method on it, damped and with a line search, ends after
few steps, once it has found which entries are positive: M. Blondel, V. Seguy and A. Rolet, "Smooth and sparse optimal
transport", AISTATS 2018; D. A. Lorenz, P. Manns and C. Meyer, "Quadratically regularized optimal transport", Applied
Mathematics & Optimization 83, 2021. Its last steps are taken with the graph attached: see `boxopt.sets.log_barrier`.

**In relative entropy** it is Sinkhorn's algorithm, in logarithms.

Both end by the rounding of Altschuler, Weed and Rigollet: rows and columns that hold too much are scaled down, and what
is missing is given back as a matrix of rank one. After it the sums are right to rounding.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.search import may_stop, search
from boxopt.core.values import check_broadcasts, check_nonnegative, is_true
from boxopt.sets.matrices import MatrixSet
from boxopt.sets.vectors import normalized, precise

P = TypeVar("P")

_NEWTON_STEPS = 100
_HALVINGS = 6
_DERIVATIVE_STEPS = 2


@tree.register("row", "column", static=("sweeps",))
@dataclass(frozen=True, eq=False)
class TransportPolytope(MatrixSet):
    r"""The matrices $\{X \ge 0,\ X\mathbf 1 = r,\ X^\top\mathbf 1 = c\}$ in the last two dimensions of each leaf.

    With all sums 1 these are the doubly stochastic matrices (Birkhoff). `project` is the projection in the metric of
    the step size, `project_kl` that in relative entropy.

    **Derivative.** That on the support, exact to the second order.

    Args:
        row: r: a number, or a tensor ``[m]`` or ``[..., m]``, positive.
        column: c: a number, or a tensor ``[n]`` or ``[..., n]``, positive; its sum is that of r.
        sweeps: How many times `project_kl` goes over rows and columns.

    Raises:
        ValueError: A sum is negative or NaN; or, in `check` unless both are tensors, their totals differ or they do not
            fit the parameters.

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
            _check_totals(_total(self.row), _total(self.column))

    def _check(self, x: Tensor, *hyper: Any) -> None:
        super()._check(x, *hyper)
        check_broadcasts("row", self.row, x.shape[:-1], "rows")
        check_broadcasts("column", self.column, torch.Size((*x.shape[:-2], x.shape[-1])), "columns")
        _check_totals(_total(self.row, x.shape[-2]), _total(self.column, x.shape[-1]))

    def _sums(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The row sums as [..., m, 1] and the column sums as [..., 1, n]."""
        row = exact.as_tensor(self.row, x)
        column = exact.as_tensor(self.column, x)
        return (
            (row.unsqueeze(-1) if row.ndim else row).expand((*x.shape[:-1], 1)),
            (column.unsqueeze(-2) if column.ndim else column).expand((*x.shape[:-2], 1, x.shape[-1])),
        )

    def project(self, x: P, step_size: Any = 1.0) -> P:
        def project_leaf(leaf: Tensor, step: Any) -> Tensor:
            y = precise(leaf)
            largest = torch.finfo(exact.wide(leaf).dtype).max ** 0.5
            y = y.clamp(-largest, largest)
            metric = step if isinstance(step, Tensor) and step.ndim else torch.ones_like(y)
            metric = normalized(exact.like(metric, y).expand(y.shape).flatten(-2)).reshape(y.shape)
            row, column = self._sums(y)
            return _round_to_sums(_nearest(y, metric, row, column), row, column).to(leaf.dtype)

        return self._map(project_leaf, x, tree.expand(step_size, x))

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

        return self._map(solve, scores, tree.expand(temperature, scores))

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        row, column = self._sums(x)
        below = (-x).amax((-2, -1)).relu()
        rows = (x.sum(-1, keepdim=True) - row).abs().amax((-2, -1))
        return torch.maximum(below, torch.maximum(rows, (x.sum(-2, keepdim=True) - column).abs().amax((-2, -1))))


def _total(sums: Any, count: int = 1) -> Any:
    return sums.sum(-1) if isinstance(sums, Tensor) and sums.ndim else sums * count


def _check_totals(rows: Any, columns: Any) -> None:
    if is_true(abs(rows - columns) > 1e-5 * abs(rows)):
        raise ValueError(f"row sums add to {rows!r}, column sums to {columns!r}")


def _nearest(y: Tensor, step: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The non-negative matrix with these sums that is nearest to y in the metric 1/step, but for rounding."""
    height = y.shape[-2]
    potentials = _potentials(y.detach(), step.detach(), row.detach(), column.detach())
    support = y.detach() + step.detach() * _outer_sum(potentials, height) > 0
    if exact.is_constant(y, step, row, column):
        return torch.where(support, y + step * _outer_sum(potentials, height), 0.0)
    inverse = torch.linalg.pinv(_slopes(torch.where(support, step.detach(), 0.0)), hermitian=True)
    point = y
    for count in range(_DERIVATIVE_STEPS + 1):
        point = torch.where(support, y + step * _outer_sum(potentials, height), 0.0)
        if count < _DERIVATIVE_STEPS:
            potentials = potentials - (inverse @ _excess(point, row, column).unsqueeze(-1)).squeeze(-1)
    return point


@search("transport_potentials", lambda shape: (*shape[:-2], shape[-2] + shape[-1]))
def _potentials(y: Tensor, step: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """The potentials of rows and columns, side by side: [..., m + n]."""
    height, width = y.shape[-2:]
    identity = torch.eye(height + width, dtype=y.dtype, device=y.device)

    def value(potentials: Tensor) -> tuple[Tensor, Tensor]:
        point = (y + step * _outer_sum(potentials, height)).clamp_min(0.0)
        energy = (point * point / step).sum((-2, -1)) / 2
        linear = (row.squeeze(-1) * potentials[..., :height]).sum(-1)
        return energy - linear - (column.squeeze(-2) * potentials[..., height:]).sum(-1), point

    # A start with every row's sum right, were all entries positive.
    start = (row - y.sum(-1, keepdim=True)) / step.sum(-1, keepdim=True)
    potentials = torch.cat([start.squeeze(-1), torch.zeros_like(y[..., 0, :])], -1)
    least, point = value(potentials)
    damping = step.sum((-2, -1)) * 1e-3
    # Sums cannot be nearer than the entries' own rounding lets them.
    error = torch.finfo(y.dtype).eps * (y.abs().amax((-2, -1)) + row.amax((-2, -1)) + column.amax((-2, -1)))
    for _ in range(_NEWTON_STEPS):
        excess = _excess(point, row, column)
        done = ~(excess.abs().amax(-1) > error)  # and stays where it is, whatever the others need
        if may_stop(y) and bool(done.all()):
            break
        slopes = _slopes(torch.where(point > 0, step, 0.0))
        # They are singular along (1, −1), and where a row or column is empty: the damping leads out of there.
        least_damping = 1e-14 * slopes.diagonal(dim1=-2, dim2=-1).sum(-1)
        damped = slopes + torch.maximum(damping, least_damping)[..., None, None] * identity
        direction = -torch.linalg.solve_ex(damped, excess.unsqueeze(-1))[0].squeeze(-1)
        slope = (excess * direction).sum(-1)
        rate, chosen = torch.ones_like(slope), torch.zeros_like(slope)
        for _ in range(_HALVINGS):
            trial, _ = value(potentials + rate.unsqueeze(-1) * direction)
            chosen = torch.where((chosen == 0) & (trial <= least + 1e-4 * rate * slope), rate, chosen)
            rate = rate / 4
            if may_stop(y) and bool((done | (chosen > 0)).all()):
                break
        damping = torch.where(chosen == 1, damping / 10, torch.where(chosen == 0, damping * 10, damping))
        potentials = torch.where(done.unsqueeze(-1), potentials, potentials + chosen.unsqueeze(-1) * direction)
        least, point = value(potentials)
    return potentials


def _outer_sum(potentials: Tensor, height: int) -> Tensor:
    """The sum of the potential of its row and that of its column, for each entry."""
    return potentials[..., :height].unsqueeze(-1) + potentials[..., height:].unsqueeze(-2)


def _excess(point: Tensor, row: Tensor, column: Tensor) -> Tensor:
    """By how much the sums exceed those asked for, rows and columns side by side."""
    return torch.cat(
        [(point.sum(-1, keepdim=True) - row).squeeze(-1), (point.sum(-2, keepdim=True) - column).squeeze(-2)], -1
    )


def _slopes(step: Tensor) -> Tensor:
    """The derivative of the sums with respect to the potentials; ``step`` is 0 off the support."""
    upper = torch.cat([torch.diag_embed(step.sum(-1)), step], -1)
    return torch.cat([upper, torch.cat([step.mT, torch.diag_embed(step.sum(-2))], -1)], -2)


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
