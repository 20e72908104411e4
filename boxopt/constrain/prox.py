"""Proximal steps of regularizers: L1, L2 and the elastic net."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Protocol

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import (
    EmptyState,
    GradientTransformation,
    apply_updates,
    bind,
    elementwise,
    finished,
    no_state,
)
from boxopt.core.types import P
from boxopt.core.values import check_nonnegative


class Regularizer(Protocol):
    """A convex function r of the parameters whose proximal step is known."""

    def __call__(self, params: Any) -> Tensor:
        """The value r(params), a scalar."""
        ...

    def prox(self, y: P, step_size: Any = 1.0) -> P:
        """Argmin over x of r(x) + Σ (x − y)²/(2·step_size)."""
        ...


def prox(regularizer: Regularizer) -> GradientTransformation:
    r"""The proximal step of a regularizer: exact zeros for L1, and no step-size limit.

    $$ u \mapsto \arg\min_z r(z) + \tfrac{1}{2\eta}\|z - (x + u)\|^2 \;-\; x $$

    **With a box.** For a separable regularizer and a box, first `prox`, then `project`, is the proximal step of both at
    once; the other order is not. For y = 3, r(x) = ``|x|`` and the box [0, 2], prox then project gives 2, which is the
    minimizer; project then prox gives 1.

    Args:
        regularizer: `L1`, `L2`, `ElasticNet`, or anything with their two methods.

    Returns:
        A step-space transformation without state.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.chain(bx.sgd(1.0), bx.prox(bx.L1(1.0)), bx.project(bx.Box(0.0, 2.0)))
        >>> params = torch.tensor([3.0, 0.5, 1.5])
        >>> updates, state = tx.update(torch.zeros(3), tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([2.0000, 0.0000, 0.5000])

    Source:
        N. Parikh and S. Boyd, Proximal Algorithms, 2014; Y.-L. Yu, "On decomposing the proximal map", NeurIPS 2013, for
        the order.
    """
    return GradientTransformation(no_state, bind(_prox_update, regularizer=regularizer), finished)


@elementwise
def _prox_update(
    updates: P, state: EmptyState, params: P, *, regularizer: Regularizer, step_size: Any = 1.0
) -> tuple[P, EmptyState]:
    target = regularizer.prox(apply_updates(params, updates), step_size)
    return tree.map(torch.sub, target, params), state


@tree.register("l1", "l2")
@dataclass(frozen=True, eq=False)
class ElasticNet:
    r"""The regularizer $\lambda_1 \|x\|_1 + \tfrac{\lambda_2}{2} \|x\|_2^2$.

    Its proximal step is $x = S(y, \eta\lambda_1)/(1 + \eta\lambda_2)$ with the soft threshold
    $S(y, t) = \operatorname{sign}(y)\max(|y| - t, 0)$.

    Args:
        l1: λ₁, not negative: a number, a tensor, or a pytree prefix of the parameters.
        l2: λ₂, likewise.

    Raises:
        ValueError: A weight is negative or NaN.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.ElasticNet(l1=1.0, l2=1.0).prox(torch.tensor([3.0, -0.5]))
        tensor([1., 0.])

    Source:
        H. Zou and T. Hastie, "Regularization and variable selection via the elastic net", JRSS B 67, 2005.
    """

    l1: Any
    l2: Any

    def __post_init__(self) -> None:
        check_nonnegative("l1", self.l1)
        check_nonnegative("l2", self.l2)

    def __call__(self, params: Any) -> Tensor:
        """The value at these parameters, a scalar."""

        def value(x: Tensor, l1: Any, l2: Any) -> Tensor:
            return (exact.like(l1, x) * x.abs() + exact.like(l2, x) / 2 * x * x).sum()

        values = tree.map(value, params, tree.expand(self.l1, params), tree.expand(self.l2, params))
        return tree.reduce(torch.add, values)

    def prox(self, y: P, step_size: Any = 1.0) -> P:
        """The minimizer over x of the value at x plus Σ (x − y)²/(2·step_size)."""

        def shrink(leaf: Tensor, l1: Any, l2: Any, size: Any) -> Tensor:
            x = exact.wide(leaf)
            size = exact.like(size, x)
            threshold = exact.like(l1, x) * size
            x = torch.where(x > threshold, x - threshold, torch.where(x < -threshold, x + threshold, 0.0))
            return (x / (1 + exact.like(l2, x) * size)).to(leaf.dtype)

        return tree.map(shrink, y, tree.expand(self.l1, y), tree.expand(self.l2, y), tree.expand(step_size, y))


def L1(weight: Any) -> ElasticNet:  # noqa: N802  (regularizers are named as classes are)
    """The regularizer weight · ‖x‖₁, whose proximal step is the soft threshold.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.L1(1.0).prox(torch.tensor([3.0, -0.5]))
        tensor([2., 0.])
    """
    return ElasticNet(l1=weight, l2=0.0)


def L2(weight: Any) -> ElasticNet:  # noqa: N802
    """The regularizer weight/2 · ‖x‖₂², whose proximal step is y/(1 + weight · step_size).

    Example:
        >>> import torch, boxopt as bx
        >>> bx.L2(1.0).prox(torch.tensor([3.0, -0.5]))
        tensor([ 1.5000, -0.2500])
    """
    return ElasticNet(l1=0.0, l2=weight)
