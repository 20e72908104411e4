r"""The L∞ norm of each vector.

**In a metric** $1/\eta$ the proximal step of $\lambda\|x\|_\infty$ is $x_i = \operatorname{clip}(y_i, -t, t)$, with
$t$ the root of $\sum_i \max(|y_i| - t, 0)/\eta_i = \lambda$, or 0 if there is none. By Moreau's identity
$q_i = (|y_i| - t)_+/\eta_i$ is the projection of $|y|/\eta$ onto the simplex of total λ in the metric η: see
`boxopt.sets.threshold`. Where q is positive, t is a ratio of sums, which carries the derivatives.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.values import check_nonnegative
from boxopt.regularizers.base import VectorRegularizer, usable
from boxopt.sets.threshold import project_simplex
from boxopt.sets.vectors import Dim


@tree.register("weight", static=("dim",))
@dataclass(frozen=True, eq=False)
class LInf(VectorRegularizer):
    r"""The regularizer $\lambda \max_i |x_i|$ of each vector along ``dim``: its largest entries become equal.

    **With other constraints.** Exact, in every metric, are: `boxopt.prox`, then the projection onto the box
    $[-c, c]$, c the same for the whole vector; the projection onto the non-negative cone, then `boxopt.prox`.
    **Derivative.** At a tie that of the identity.

    Args:
        weight: λ ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``weight`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.regularizers.LInf(2.0).prox(torch.tensor([[5.0, -4.0, 1.0], [0.5, -1.0, 0.0]]))
        tensor([[ 3.5000, -3.5000,  1.0000],
                [ 0.0000,  0.0000,  0.0000]])

    Source:
        N. Parikh and S. Boyd, Proximal Algorithms, 2014, section 6.5.2.
    """

    weight: Any
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("weight",)

    def __post_init__(self) -> None:
        check_nonnegative("weight", self.weight)

    def _prox(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        size = y.abs()
        step, total = usable(step, hyper[0], size.amax(-1, keepdim=True))
        inverse = (1 / step).expand(size.shape)
        start = (size - total * step).detach().amax(-1, keepdim=True)  # below the root and near it, for precision
        dual = (size - start) * inverse
        chosen = project_simplex(dual.detach(), inverse.detach() if step.ndim else None, total.detach()) > 0
        mass = torch.where(chosen, inverse, 0.0).sum(-1, keepdim=True)
        above = torch.where(chosen, dual, 0.0).sum(-1, keepdim=True) - total
        level = start + above / torch.where(mass > 0, mass, 1.0)
        level = torch.where(mass > 0, torch.where(level > 0, level, 0.0), torch.inf)
        vanished = ((size * inverse).sum(-1, keepdim=True) <= total) & (total > 0)
        clipped = torch.where(size > level, torch.where(y < 0, -level, level), y)
        return torch.where(vanished, 0.0, clipped)

    def _value(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return hyper[0] * x.abs().amax(-1, keepdim=True)
