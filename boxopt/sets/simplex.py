"""The simplex: weights that are not negative and sum to a total."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.values import check_nonnegative
from boxopt.sets.barriers import prox_simplex
from boxopt.sets.interior import InteriorSet
from boxopt.sets.log_barrier import relaxed_log, relaxed_log_slope
from boxopt.sets.threshold import project_box_hyperplane, project_simplex
from boxopt.sets.vectors import Dim

P = TypeVar("P")


@tree.register("total", static=("dim",))
@dataclass(frozen=True, eq=False)
class Simplex(InteriorSet):
    r"""The set $\{x \ge 0,\ \sum_i x_i = t\}$ for each vector along ``dim``.

    Results have no negative entry, and sum to t within 2·n·ε of it, n entries in a dtype of machine epsilon ε. Inputs
    may be infinite: entries of ``+inf`` share the total, those of ``-inf`` get nothing.

    **Derivative.** That on the support {i: xᵢ > 0}: an entry exactly at its threshold counts as outside.

    **Barrier.** −Σ log x, whose proximal step stays on the hyperplane; ``relax`` is a fraction of t. Sums of parameters
    and update are positive in every entry, and add up to t as projections do.

    Args:
        total: t > 0: a number, a tensor that broadcasts to the leaf's shape without ``dim``, or a pytree prefix.
        dim: The dimension of the vectors; several; or ``None`` for whole leaves.

    Raises:
        ValueError: ``total`` is negative or NaN; in `check`, ``dim`` does not exist.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.sets.Simplex().project(torch.tensor([[0.5, 1.5, -3.0], [0.0, 0.0, 0.0]]))
        tensor([[0.0000, 1.0000, 0.0000],
                [0.3333, 0.3333, 0.3333]])

    Source:
        `boxopt.sets.threshold`.
    """

    total: Any = 1.0
    dim: Dim = -1
    numbers: ClassVar[tuple[str, ...]] = ("total",)

    def __post_init__(self) -> None:
        check_nonnegative("total", self.total)

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        return project_simplex(x, step, hyper[0])

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        return result.to(leaf.dtype)

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        return exact.land(params, target, 0.0, torch.inf)

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        below = torch.where(x < 0, -x, 0.0).amax(-1)
        return torch.maximum(below, (x.sum(-1) - hyper[0].squeeze(-1) if hyper[0].ndim else x.sum(-1) - hyper[0]).abs())

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients, projected onto the directions that keep the sum and do not push a zero below zero."""

        def drop(x: Tensor, gradient: Tensor, total: Tensor) -> Tensor:
            at_zero = torch.where(x <= 0, 0.0, -torch.inf)
            free = torch.full_like(x, torch.inf)
            return -project_box_hyperplane(-gradient, None, at_zero, free, torch.ones_like(x), torch.zeros_like(total))

        return self._each(drop, x, gradients)

    def linear_minimizer(self, gradients: P) -> P:
        """The vertex at which the linear function is least: the whole total on its least coefficient."""

        def vertex(gradient: Tensor, total: Tensor) -> Tensor:
            least = gradient.argmin(-1, keepdim=True)
            return torch.where(torch.arange(gradient.shape[-1], device=gradient.device) == least, total, 0.0)

        return self._each(vertex, gradients)

    def _is_inside(self, x: Tensor, *hyper: Tensor) -> Tensor:
        return (x > 0).all(-1, keepdim=True)

    def _inwards(self, x: Tensor, dtype: torch.dtype, *hyper: Tensor) -> Tensor:
        nearest = x.to(dtype)
        return torch.where(nearest > 0, nearest, exact.replaced(nearest, exact.next_up(torch.zeros_like(nearest))))

    def _settle_inside(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        return exact.land(params, target, exact.next_up(torch.zeros_like(params)), torch.inf)

    def _barrier(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        return relaxed_log(x, relax * hyper[0]).sum(-1)

    def _barrier_gradient(self, x: Tensor, relax: Tensor, *hyper: Tensor) -> Tensor:
        return relaxed_log_slope(x, relax * hyper[0])

    def _prox_barrier(self, y: Tensor, tau: Tensor, *hyper: Tensor) -> Tensor:
        return prox_simplex(y, tau, hyper[0])
