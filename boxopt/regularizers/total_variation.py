r"""Total variation along one dimension, and the fused lasso.

**Method.** For vectors y with masses $m = 1/\eta$, the proximal step is constant on blocks, and a dual $u$ with
$m_i(x_i - y_i) = u_i - u_{i-1}$, $|u_i| \le \lambda$, is $\lambda\operatorname{sign}(x_{i+1} - x_i)$ at their ends:
Davies and Kovac's taut string, with u the place of the string within its tube. Start from one block, a straight string.
Its value gives u. Where u leaves the tube by the most, the taut string touches that wall: otherwise it would leave the
straight one by more than the wall does, at a place where it is bent away from the wall that it touches there. If u
leaves the tube on one side and then on the other, the taut string crosses the straight one in between, so that this
holds for each of the two excursions. Blocks split at all these places, for good, until no u leaves the tube.

As in Quickhull the rounds are few: 18 at most in trials with vectors of 10,000 numbers. A first one splits where u
would leave the tube whatever it is on either side. A fixed number, `_ROUNDS`, is exact whenever it suffices, as it
always does for vectors that are no longer; on a CPU, outside of transforms, the loop ends when nothing splits.

The signs at the ends of blocks alone come from there. The values are means over blocks with the graph attached.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.search import may_stop
from boxopt.core.values import check_nonnegative
from boxopt.regularizers.base import VectorRegularizer, usable
from boxopt.sets.vectors import Dim

_ROUNDS = 32


@tree.register("weight", static=("dim",))
@dataclass(frozen=True, eq=False)
class TotalVariation(VectorRegularizer):
    r"""The regularizer $\lambda \sum_i |x_{i+1} - x_i|$ of each vector along ``dim``: piecewise constant vectors.

    **With a box** whose bounds are the same for the whole vector, first `boxopt.prox`, then the projection, is the
    proximal step of both at once, in every metric. **Derivative.** That of the mean over each block of equal values.

    Args:
        weight: λ ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several, which are flattened; or ``None`` for whole leaves.

    Raises:
        ValueError: ``weight`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.regularizers.TotalVariation(1.0).prox(torch.tensor([1.0, 1.5, 0.5, 7.0, 8.0]))
        tensor([1.3333, 1.3333, 1.3333, 7.0000, 7.0000])

    Source:
        P. L. Davies and A. Kovac, "Local extremes, runs, strings and multiresolution", Annals of Statistics 29, 2001;
        L. Condat, "A direct algorithm for 1-D total variation denoising", IEEE Signal Processing Letters 20, 2013.
    """

    weight: Any
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("weight",)

    def __post_init__(self) -> None:
        check_nonnegative("weight", self.weight)

    def _prox(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        return _taut_string(y, step, hyper[0])

    def _value(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return hyper[0] * x.diff(dim=-1).abs().sum(-1, keepdim=True)


@tree.register("l1", "total_variation", static=("dim",))
@dataclass(frozen=True, eq=False)
class FusedLasso(VectorRegularizer):
    r"""The regularizer $\lambda_1 \|x\|_1 + \lambda_2 \sum_i |x_{i+1} - x_i|$ of each vector along ``dim``.

    In a scalar step size its proximal step is that of the total variation, then the soft threshold. In every metric,
    with $T$ the proximal step of the total variation, it is

    $$ \max(T(y - \eta\lambda_1), 0) + \min(T(y + \eta\lambda_1), 0): $$

    for a level t > 0, whether $x_i > t$ depends on $\lambda_1$ only through its slope, as if it were that of a linear
    function, and likewise for t < 0.

    **With a box** whose bounds are the same for the whole vector, first `boxopt.prox`, then the projection, is the
    proximal step of both. **Derivative.** That of the mean over each block, and 0 where the result is 0.

    Args:
        l1: λ₁ ≥ 0: a number, a tensor that broadcasts to the leaf, or a pytree prefix.
        total_variation: λ₂ ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a prefix.
        dim: The dimension of the vectors; several, which are flattened; or ``None`` for whole leaves.

    Raises:
        ValueError: A weight is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.regularizers.FusedLasso(l1=2.0, total_variation=1.0).prox(torch.tensor([1.0, 1.5, 0.5, 7.0, 8.0]))
        tensor([0., 0., 0., 5., 5.])

    Source:
        J. Friedman, T. Hastie, H. Höfling and R. Tibshirani, "Pathwise coordinate optimization", Annals of Applied
        Statistics 1, 2007.
    """

    l1: Any
    total_variation: Any
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("total_variation",)
    vectors: ClassVar[tuple[str, ...]] = ("l1",)

    def __post_init__(self) -> None:
        check_nonnegative("l1", self.l1)
        check_nonnegative("total_variation", self.total_variation)

    def _prox(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        weight, l1 = hyper
        shift = l1 * step
        above, below = _taut_string(torch.stack([y - shift, y + shift]), step, weight)
        return torch.where(above > 0, above, torch.where(below < 0, below, 0.0))

    def _value(self, x: Tensor, *hyper: Tensor) -> Tensor:
        weight, l1 = hyper
        return (l1 * x.abs()).sum(-1, keepdim=True) + weight * x.diff(dim=-1).abs().sum(-1, keepdim=True)


def _taut_string(y: Tensor, step: Tensor, weight: Tensor) -> Tensor:
    """The proximal step of the total variation of vectors [..., n]."""
    fixed = y.detach()
    step, weight = usable(step, weight, fixed.amax(-1, keepdim=True) - fixed.amin(-1, keepdim=True))
    mass = (1 / step).expand(y.shape)
    centre, offset = _levels(y, mass, weight, _pulls(fixed, mass.detach(), weight.detach()))
    return centre + offset


def _levels(y: Tensor, mass: Tensor, weight: Tensor, pull: Tensor) -> tuple[Tensor, Tensor]:
    """The value of each coordinate's block, where ``pull`` is the sign of u after the last coordinate of one, else 0.

    It is the sum of the block's heaviest y and an offset, so that u, which the heaviest multiplies, is precise.
    """
    zeros = torch.zeros_like(y)
    start = zeros[..., :1]
    block = torch.cat([start, (pull[..., :-1] != 0).to(y.dtype)], -1).cumsum(-1).long()
    fixed, most = y.detach(), torch.gather(zeros.scatter_reduce(-1, block, mass.detach(), "amax"), -1, block)
    heaviest = torch.where(mass.detach() == most, fixed, -torch.inf)
    centre = torch.gather((zeros - torch.inf).scatter_reduce(-1, block, heaviest, "amax"), -1, block)
    dual = torch.cat([start, weight * pull[..., :-1], start], -1)  # u before and after each coordinate, at blocks' ends
    sums = zeros.scatter_add(-1, block, mass * (y - centre) + dual[..., 1:] - dual[..., :-1])
    masses = zeros.scatter_add(-1, block, mass)
    return centre, torch.gather(sums / torch.where(masses > 0, masses, 1.0), -1, block)


def _pulls(y: Tensor, mass: Tensor, weight: Tensor) -> Tensor:
    """The signs of u at the ends of the blocks, 0 within them."""
    size = y.shape[-1]
    reach = 2 * weight * (1 / mass[..., 1:] + 1 / mass[..., :-1])
    rise = y.diff(dim=-1)
    none = torch.zeros_like(y[..., :1])
    pull = torch.cat([torch.where(rise >= reach, 1.0, torch.where(-rise >= reach, -1.0, 0.0)), none], -1)
    index = torch.arange(size, device=y.device).expand(y.shape)
    stop_early = exact.is_constant(y) and may_stop(y)
    for _ in range(size if stop_early else min(_ROUNDS, size - 1)):
        centre, offset = _levels(y, mass, weight, pull)
        dual = (mass * (offset + (centre - y))).cumsum(-1)
        free = (pull == 0) & (index < size - 1)
        excess = torch.where(free, dual.abs() - weight, 0.0).clamp_min(0.0)
        if stop_early and not bool(excess.any()):
            break
        side = torch.where(excess > 0, dual.sign(), 0.0)
        group = _groups(side, index, torch.cat([none + 1, pull[..., :-1]], -1) != 0)
        most = torch.zeros_like(y).scatter_reduce(-1, group, excess, "amax")
        pull = torch.where((excess > 0) & (excess == torch.gather(most, -1, group)), side, pull)
    return pull


def _groups(side: Tensor, index: Tensor, starts: Tensor) -> Tensor:
    """The number of each coordinate's group: it is a new one where a block starts, and where u changes its side."""
    latest = torch.where((side != 0) | starts, index, 0).cummax(-1).values
    before = torch.cat([torch.zeros_like(side[..., :1]), torch.gather(side, -1, latest)[..., :-1]], -1)
    return (starts | (side * before < 0)).to(side.dtype).cumsum(-1).long() - 1
