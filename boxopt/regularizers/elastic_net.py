"""The elastic net, and its two halves: L1 and squared L2."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.values import check_nonnegative
from boxopt.regularizers.base import Regularizer

P = TypeVar("P")


@tree.register("l1", "l2")
@dataclass(frozen=True, eq=False)
class ElasticNet(Regularizer):
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
    separable = True

    def __post_init__(self) -> None:
        check_nonnegative("l1", self.l1)
        check_nonnegative("l2", self.l2)

    def __call__(self, params: Any) -> Tensor:
        def value(x: Tensor, l1: Any, l2: Any) -> Tensor:
            return (exact.like(l1, x) * x.abs() + exact.like(l2, x) / 2 * x * x).sum()

        values = tree.map(value, params, tree.expand(self.l1, params), tree.expand(self.l2, params))
        return tree.reduce(torch.add, values)

    def prox(self, y: P, step_size: Any = 1.0) -> P:
        def shrink(leaf: Tensor, l1: Any, l2: Any, size: Any) -> Tensor:
            x = exact.wide(leaf)
            size = exact.like(size, x)
            x = soft_threshold(x, exact.like(l1, x) * size)
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


def soft_threshold(x: Tensor, threshold: Any) -> Tensor:
    """Sign(x)·max(|x| − threshold, 0); at a tie its derivative is 0."""
    return torch.where(x > threshold, x - threshold, torch.where(x < -threshold, x + threshold, 0.0))
