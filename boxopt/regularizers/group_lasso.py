r"""The group lasso: the L2 norm, not squared, of each vector; and the sparse group lasso.

**In a metric** $1/\eta$ the proximal step of $\lambda\|x\|_2$ is 0 if $\|y/\eta\|_2 \le \lambda$. Otherwise, with ρ the
norm of the result,

$$ x_i = \frac{\rho}{\rho + \lambda\eta_i} y_i, \qquad \sum_i \Bigl(\frac{y_i}{\rho + \lambda\eta_i}\Bigr)^2 = 1. $$

One over the root of the left side is concave and increasing in ρ, and linear if all step sizes are equal, so that
Newton's method comes up to the solution from the largest ρ that a single term allows. There the left side is at most n,
which makes the steps few. The last ones are taken with the graph attached and carry the derivatives, as in
`boxopt.sets.log_barrier`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.search import may_stop
from boxopt.core.values import check_nonnegative
from boxopt.regularizers.base import VectorRegularizer
from boxopt.regularizers.elastic_net import soft_threshold
from boxopt.sets.vectors import Dim

_SECULAR_STEPS = 16
_DERIVATIVE_STEPS = 2


@tree.register("weight", static=("dim",))
@dataclass(frozen=True, eq=False)
class GroupLasso(VectorRegularizer):
    r"""The regularizer $\lambda \|x\|_2$, not squared, of each vector along ``dim``: whole vectors become 0.

    In a scalar step size its proximal step is $\max(1 - \eta\lambda/\|y\|, 0)\, y$; in one a coordinate, that of the
    module.

    **With the non-negative cone**, first project, then `boxopt.prox`, is the proximal step of both at once, in every
    metric: the step changes no sign. **Derivative.** 0 where the result is 0.

    Args:
        weight: λ ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``weight`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.regularizers.GroupLasso(1.0).prox(torch.tensor([[3.0, 4.0], [0.3, 0.4]]))
        tensor([[2.4000, 3.2000],
                [0.0000, 0.0000]])

    Source:
        M. Yuan and Y. Lin, "Model selection and estimation in regression with grouped variables", JRSS B 68, 2006.
    """

    weight: Any
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("weight",)
    reduces: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_nonnegative("weight", self.weight)

    def _prox(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        return _shrink(y, step, hyper[0])

    def _value(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return hyper[0] * _length(x)


@tree.register("l1", "group", static=("dim",))
@dataclass(frozen=True, eq=False)
class SparseGroupLasso(VectorRegularizer):
    r"""The regularizer $\lambda_1 \|x\|_1 + \lambda_2 \|x\|_2$, neither squared, of each vector along ``dim``.

    Its proximal step is that of the first term, then that of the second, in every diagonal metric: the second changes
    no sign and no zero, so that a subgradient of $\|\cdot\|_1$ before it is one after it.

    **With the non-negative cone**, first project, then `boxopt.prox`, is the proximal step of both. **Derivative.** 0
    where the result is 0.

    Args:
        l1: λ₁ ≥ 0: a number, a tensor that broadcasts to the leaf, or a pytree prefix.
        group: λ₂ ≥ 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: A weight is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.regularizers.SparseGroupLasso(l1=1.0, group=1.0).prox(torch.tensor([[4.0, 5.0, 0.5], [1.5, 0.0, 1.0]]))
        tensor([[2.4000, 3.2000, 0.0000],
                [0.0000, 0.0000, 0.0000]])

    Source:
        N. Simon, J. Friedman, T. Hastie and R. Tibshirani, "A sparse-group lasso", JCGS 22, 2013; Y.-L. Yu, "On
        decomposing the proximal map", NeurIPS 2013.
    """

    l1: Any
    group: Any
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("group",)
    vectors: ClassVar[tuple[str, ...]] = ("l1",)
    reduces: ClassVar[bool] = True

    def __post_init__(self) -> None:
        check_nonnegative("l1", self.l1)
        check_nonnegative("group", self.group)

    def _prox(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        group, l1 = hyper
        return _shrink(soft_threshold(y, l1 * step), step, group)

    def _value(self, x: Tensor, *hyper: Tensor) -> Tensor:
        group, l1 = hyper
        return (l1 * x.abs()).sum(-1, keepdim=True) + group * _length(x)


def _length(x: Tensor) -> Tensor:
    """The norm of each vector, [..., 1], with derivative 0 at 0."""
    largest = sharded.reduced(x.detach().abs().amax(-1, keepdim=True))
    scale = torch.where(largest > 0, largest, 1.0)
    square = sharded.reduced(((x / scale) ** 2).sum(-1, keepdim=True))
    return torch.where(largest > 0, torch.where(largest > 0, square, 1.0).sqrt() * scale, 0.0)


def _shrink(y: Tensor, step: Tensor, weight: Tensor) -> Tensor:
    """The proximal step of weight·‖x‖₂."""
    largest = sharded.reduced(y.detach().abs().amax(-1, keepdim=True))
    scale = torch.where(largest > 0, largest, 1.0)
    y, force = y / scale, weight * step / scale
    if step.ndim == 0:
        square = sharded.reduced((y * y).sum(-1, keepdim=True))
        settled = square.detach().sqrt() <= force.detach()
        factor = 1 - force / torch.where(settled, 1.0, square).sqrt()
    else:
        pull = torch.where(y == 0, 0.0, y / force).detach()
        settled = (pull * pull).sum(-1, keepdim=True) <= 1
        first = torch.arange(y.shape[-1], device=y.device) == 0  # a point of its own where there is nothing to solve
        factor = _factor(torch.where(settled, first.to(y.dtype), y), torch.where(settled, 0.0, force))
    return scale * torch.where(settled, torch.where(force == 0, y, 0.0), factor * y)


def _factor(y: Tensor, force: Tensor) -> Tensor:
    """ρ/(ρ + force), with ρ > 0 the root of Σ (y/(ρ + force))² = 1."""

    def newton(norm: Tensor, y: Tensor, force: Tensor) -> Tensor:
        gap = norm + force
        safe = torch.where(gap > 0, gap, 1.0)  # where it is 0, so is y
        term = y / safe
        square = (term * term).sum(-1, keepdim=True)
        return norm + (square.sqrt() - 1) * square / (term * term / safe).sum(-1, keepdim=True)

    fixed = y.detach(), force.detach()
    norm = (fixed[0].abs() - fixed[1]).amax(-1, keepdim=True).clamp_min(0.0)
    stop_early = exact.is_constant(y, force) and may_stop(y)
    for _ in range(_SECULAR_STEPS):
        before, norm = norm, newton(norm, *fixed)
        if stop_early and not bool((norm > before).any()):
            break
    for _ in range(0 if stop_early else _DERIVATIVE_STEPS):
        norm = newton(norm, y, force)
    gap = norm + force
    return torch.where(gap > 0, norm / torch.where(gap > 0, gap, 1.0), 1.0)
