r"""Sets of ordered and of sparse vectors.

**Isotonic regression** in the metric 1/η is the mean, weighted with 1/η, over each of some blocks of neighbours. They
are found by pooling adjacent violators in parallel: neighbouring blocks whose means are not in order belong together,
so that all such pairs are merged at once, until none is left. That takes few rounds, unless the data are made against
it. Only the blocks come from there; the values are means over blocks with the graph attached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.search import search
from boxopt.sets.vectors import Dim, VectorSet, precise

P = TypeVar("P")


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
        level = _levels(fixed, fixed_weight)
        # Blocks of equal values are averaged anew with the graph attached.
        jump = torch.cat([torch.zeros_like(level[..., :1]), (level[..., 1:] > level[..., :-1]).to(level.dtype)], -1)
        block = jump.cumsum(-1).long()
        mass = torch.zeros_like(x).scatter_add(-1, block, weight)
        sums = torch.zeros_like(x).scatter_add(-1, block, weight * x)
        mean = sums / torch.where(mass > 0, mass, 1.0)
        result = torch.gather(mean, -1, block)
        return exact.replaced(result, torch.cummax(result.detach(), -1).values).to(dtype)

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        """Where a rounded sum breaks the order, its update is raised until it does not."""
        update = target - params
        fixed, rounded = params.detach(), exact.rounded(update)
        if self.decreasing:
            return exact.replaced(update, _in_order(rounded.flip(-1), fixed.flip(-1)).flip(-1))
        return exact.replaced(update, _in_order(rounded, fixed))

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        gaps = x[..., :-1] - x[..., 1:]
        gaps = -gaps if self.decreasing else gaps
        return torch.cat([gaps, torch.zeros_like(x[..., :1])], -1).amax(-1).relu()


@search("updates_in_order")
def _in_order(update: Tensor, params: Tensor) -> Tensor:
    """Updates whose rounded sums with the parameters are in order: those that are not are raised.

    A raised sum may pass the next one, which is then raised in turn, n times at most.
    """
    for _ in range(update.shape[-1]):
        total = params + update
        least = torch.cummax(total, -1).values
        if not (total < least).any():
            break
        raised = least - params
        raised = torch.where(params + raised < least, exact.next_up(raised), raised)
        update = torch.where(total < least, raised, update)
    return update.clone()


@search("isotonic_levels")
def _levels(x: Tensor, weight: Tensor) -> Tensor:
    """The isotonic regression of each vector, by pooling adjacent violators, all of them at once."""
    shift = x.mean(-1, keepdim=True)
    weight = weight.expand(x.shape)
    first = torch.zeros_like(x, dtype=torch.bool)
    first[..., :1] = True  # vectors are laid end to end; none is pooled with the one before
    first, mass, sums = first.flatten(), weight.flatten(), (weight * (x - shift)).flatten()
    count = torch.ones_like(mass, dtype=torch.int64)
    while True:
        level = sums / mass
        starts = first.clone()
        starts[1:] |= level[1:] > level[:-1]  # a block no larger than the one before has its level in the solution
        block = starts.cumsum(0) - 1
        blocks = int(block[-1]) + 1 if len(block) else 0
        if blocks == len(block):
            return torch.repeat_interleave(level, count).reshape(x.shape) + shift
        mass = mass.new_zeros(blocks).index_add_(0, block, mass)
        sums = sums.new_zeros(blocks).index_add_(0, block, sums)
        count = count.new_zeros(blocks).index_add_(0, block, count)
        first = first[starts]


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
