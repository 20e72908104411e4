r"""Sets of ordered and of sparse vectors.

**Isotonic regression** has the closed form $x_i = \max_{j \le i} \min_{k \ge i} \operatorname{mean}(y_j, \dots, y_k)$,
the mean weighted with $1/\eta$. Short vectors are solved by it: n² means from cumulative sums, two cumulative extrema,
no branch. Long ones by pooling adjacent violators in parallel: the means of neighbouring blocks that violate the order
are merged, all at once, until none does. Either way only the blocks come from there; the values are means over blocks
with the graph attached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.sets.vectors import Dim, VectorSet, precise

P = TypeVar("P")

_SHORT = 256


@tree.register(static=("decreasing", "dim"))
@dataclass(frozen=True, eq=False)
class Monotone(VectorSet):
    r"""The set $\{x_1 \le x_2 \le \dots \le x_n\}$ for each vector along ``dim``.

    Results are in order exactly. **Derivative.** That of the mean over each block of equal values.

    Args:
        decreasing: Order from the largest to the smallest instead.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.Monotone().project(torch.tensor([1.0, 3.0, 2.0, 4.0]))
        tensor([1.0000, 2.5000, 2.5000, 4.0000])

    Source:
        R. E. Barlow and H. D. Brunk, "The isotonic regression problem and its dual", JASA 67, 1972.
    """

    decreasing: bool = False
    dim: Dim = -1

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)  # rounding to nearest keeps an order

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        if self.decreasing:
            return self._increasing(x.flip(-1), None if step is None else step.flip(-1)).flip(-1)
        return self._increasing(x, step)

    def _increasing(self, x: Tensor, step: Tensor | None) -> Tensor:
        dtype, x = x.dtype, precise(x)
        weight = torch.ones_like(x) if step is None else 1 / precise(step)
        fixed, fixed_weight = x.detach(), weight.detach()
        short = x.shape[-1] <= _SHORT or not exact.is_constant(fixed) or fixed.device.type != "cpu"
        level = (_minimax if short else _pooled)(fixed, fixed_weight)
        # Blocks of equal values are averaged anew with the graph attached.
        jump = torch.cat([torch.zeros_like(level[..., :1]), (level[..., 1:] > level[..., :-1]).to(level.dtype)], -1)
        block = jump.cumsum(-1).long()
        mass = torch.zeros_like(x).scatter_add(-1, block, weight)
        sums = torch.zeros_like(x).scatter_add(-1, block, weight * x)
        mean = sums / torch.where(mass > 0, mass, 1.0)
        result = torch.gather(mean, -1, block)
        return exact.replaced(result, torch.cummax(result.detach(), -1).values).to(dtype)

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        """Where a rounded sum breaks the order, the update of the neighbour before is raised until it does not."""
        update = target - params
        sum_ = exact.rounded(params.detach() + exact.rounded(update))
        ordered = torch.cummax(sum_.flip(-1) if self.decreasing else sum_, -1).values
        ordered = ordered.flip(-1) if self.decreasing else ordered
        return exact.replaced(update, torch.where(ordered == sum_, update, ordered - params))

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        gaps = x[..., :-1] - x[..., 1:]
        gaps = -gaps if self.decreasing else gaps
        return torch.cat([gaps, torch.zeros_like(x[..., :1])], -1).amax(-1).clamp_min(0.0)


def _minimax(x: Tensor, weight: Tensor) -> Tensor:
    """Max over j ≤ i of min over k ≥ i of the mean of x[j..k], for each i."""
    size = x.shape[-1]
    zero = torch.zeros_like(x[..., :1])
    mass = torch.cat([zero, weight.cumsum(-1)], -1)
    shift = x.mean(-1, keepdim=True)
    sums = torch.cat([zero, (weight * (x - shift)).cumsum(-1)], -1)
    means = (sums[..., None, 1:] - sums[..., :-1, None]) / (mass[..., None, 1:] - mass[..., :-1, None])  # [j, k]
    index = torch.arange(size, device=x.device)
    before = index[:, None] <= index  # j ≤ k
    means = torch.where(before, means, torch.inf)
    least = torch.cummin(means.flip(-1), -1).values.flip(-1)  # over k ≥ i
    return torch.where(before, least, -torch.inf).amax(-2) + shift


def _pooled(x: Tensor, weight: Tensor) -> Tensor:
    """The same, by pooling adjacent violators: linear in time, a vector at a time, on a CPU, outside transforms."""
    rows = x.reshape(-1, x.shape[-1]).tolist()
    weights = weight.reshape(-1, x.shape[-1]).tolist()
    result = []
    for row, masses in zip(rows, weights, strict=True):
        means: list[float] = []
        sums: list[float] = []
        counts: list[int] = []
        for value, mass in zip(row, masses, strict=True):
            count = 1
            while means and means[-1] >= value:
                other = sums.pop()
                value = (value * mass + means.pop() * other) / (mass + other)
                mass += other
                count += counts.pop()
            means.append(value)
            sums.append(mass)
            counts.append(count)
        result.append(
            torch.repeat_interleave(torch.tensor(means, dtype=x.dtype), torch.tensor(counts, dtype=torch.int64))
        )
    return torch.stack(result).reshape(x.shape)


@tree.register(static=("k", "dim"))
@dataclass(frozen=True, eq=False)
class Sparse(VectorSet):
    r"""The set of vectors with at most k entries that are not 0, along ``dim``: hard thresholding. It is not convex.

    Among entries of equal size the earlier stay. In the metric 1/η those of the largest x²/η stay.

    **Derivative.** That of the identity on the entries that stay, 0 elsewhere.

    Args:
        k: How many, at least 0.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``k`` is negative.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.Sparse(2).project(torch.tensor([3.0, -0.5, -2.0, 1.0]))
        tensor([ 3.,  0., -2.,  0.])

    Source:
        T. Blumensath and M. E. Davies, "Iterative hard thresholding for compressed sensing", ACHA 27, 2009.
    """

    k: int
    dim: Dim = -1
    convex: ClassVar[bool] = False

    def __post_init__(self) -> None:
        if isinstance(self.k, bool) or not isinstance(self.k, int) or self.k < 0:
            raise ValueError(f"k is an integer of at least 0, got {self.k!r}")

    def _kept(self, size: Tensor) -> Tensor:
        order = torch.argsort(size, dim=-1, descending=True, stable=True)
        rank = torch.argsort(order, dim=-1)
        return rank < self.k

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        size = x.detach().abs()
        kept = self._kept(size if step is None else size * step.detach().rsqrt())
        return torch.where(kept, x, 0.0)

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        return target - params  # where the target is 0 the sum is exactly 0

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return torch.where(self._kept(x.abs()), 0.0, x.abs()).amax(-1)

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients on the support of a vector that has k entries; all of them where there are fewer."""

        def drop(x: Tensor, gradient: Tensor) -> Tensor:
            full = (x != 0).sum(-1, keepdim=True) >= self.k
            return torch.where(full & (x == 0), 0.0, gradient)

        return self._each(drop, x, gradients)
