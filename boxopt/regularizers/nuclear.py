r"""The nuclear norm: the sum of the singular values of each matrix.

In a scalar step size the proximal step subtracts $\lambda\eta$ from the singular values, and where that is negative
makes them 0. In the metric of a step size that varies over the entries there is no closed form: `_METRIC_STEPS` steps
of Douglas and Rachford's method. In each the error falls by the factor $(\sqrt\kappa - 1)/(\sqrt\kappa + 1)$ or
better, κ being the ratio of the largest step size to the least: measured, to 4e-13 for κ = 16 and 1e-5 for κ = 400, of
entries of size 2. The last half-step is a soft threshold of singular values, so that results are of low rank.

**Derivatives** are exact to the second order, also at equal singular values: see `boxopt.sets.spectral`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boxopt.core import decompositions, exact, sharded, tree
from boxopt.core.values import check_nonnegative
from boxopt.regularizers.base import P, Regularizer
from boxopt.sets.spectral import basis_of, dilation, positive_part, shifted

_METRIC_STEPS = 100
_LARGEST_RATIO = 1e8


@tree.register("weight")
@dataclass(frozen=True, eq=False)
class Nuclear(Regularizer):
    r"""The regularizer $\lambda \sum_i \sigma_i(X)$ of the matrices in the last two dimensions of each leaf: low rank.

    **With the cone** `boxopt.sets.PSD`, first project, then `boxopt.prox`, is the proximal step of both in a scalar
    step size. **Derivative.** Singular values equal to the threshold count as below it.

    Args:
        weight: λ ≥ 0: a number, a tensor that broadcasts to the leaf's batch dimensions, or a pytree prefix.

    Raises:
        ValueError: ``weight`` is negative or NaN; in `check`, a leaf has fewer than two dimensions.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.regularizers.Nuclear(1.0).prox(torch.diag(torch.tensor([3.0, 0.5]))).round(decimals=4)
        tensor([[2., 0.],
                [0., 0.]])

    Source:
        J.-F. Cai, E. J. Candès and Z. Shen, "A singular value thresholding algorithm for matrix completion", SIAM
        Journal on Optimization 20, 2010; P. Giselsson and S. Boyd, "Linear convergence and metric selection for
        Douglas-Rachford splitting and ADMM", IEEE TAC 62, 2017, for the rate.
    """

    weight: Any

    def __post_init__(self) -> None:
        check_nonnegative("weight", self.weight)

    def check(self, params: Any) -> None:
        tree.check_parameters(params)

        def check_leaf(x: Tensor) -> None:
            if x.ndim < 2:
                raise ValueError(f"Nuclear is of matrices, got a parameter of shape {tuple(x.shape)}")

        tree.map(check_leaf, params)

    def __call__(self, params: Any) -> Tensor:
        def value(leaf: Tensor, weight: Any) -> Tensor:
            x = exact.wide(leaf)
            weight = exact.as_tensor(weight, x)
            if exact.is_constant(x, weight):
                return (weight * decompositions.svdvals(x).sum(-1)).sum().to(leaf.dtype)
            positive = positive_part(dilation(x), basis_of(dilation(x)))
            return (weight * positive.diagonal(dim1=-2, dim2=-1).sum(-1)).sum().to(leaf.dtype)

        return tree.reduce(torch.add, self._map(value, params, combine="sum"))

    def prox(self, y: P, step_size: Any = 1.0) -> P:
        def prox_leaf(leaf: Tensor, weight: Any, step: Any) -> Tensor:
            if leaf.numel() == 0:
                return leaf
            x = exact.wide(leaf)
            weight, step = exact.as_tensor(weight, x), exact.as_tensor(step, x)
            if step.ndim:
                return _in_metric(x, step.expand(x.shape), weight).to(leaf.dtype)
            return _soft_threshold(x, weight * step).to(leaf.dtype)

        return self._map(prox_leaf, y, tree.expand(step_size, y))

    def _map(self, function: Callable[..., Tensor], x: Any, *rest: Any, combine: str | None = None) -> Any:
        """Map ``function(leaf, weight, *rest)`` over the leaves; for ``combine`` see `boxopt.core.sharded`."""

        def on_leaf(leaf: Tensor, weight: Any, *others: Any) -> Tensor:
            return sharded.on_vectors(function, (leaf.ndim - 2, leaf.ndim - 1), leaf, [weight], others, combine)

        return tree.map(on_leaf, x, tree.expand(self.weight, x), *rest)


def _soft_threshold(x: Tensor, threshold: Tensor) -> Tensor:
    """``x`` with its singular values less a threshold, [...], and those below it 0."""
    threshold = threshold.expand(x.shape[:-2])
    if exact.is_constant(x, threshold):
        left, values, right = decompositions.svd(x)
        return (left * (values - threshold.unsqueeze(-1)).clamp_min(0.0).unsqueeze(-2)) @ right
    whole = dilation(x)
    values, vectors = basis_of(whole)
    basis = values - threshold.detach().unsqueeze(-1), vectors
    return 2 * positive_part(shifted(whole, threshold), basis)[..., : x.shape[-2], x.shape[-2] :]


def _in_metric(y: Tensor, step: Tensor, weight: Tensor) -> Tensor:
    """The proximal step in the metric 1/step, by the method of Douglas and Rachford."""
    largest = step.detach().amax((-2, -1), keepdim=True)
    usable = largest > 0
    largest = torch.where(usable, largest, 1.0)
    least = torch.maximum(step.detach().amin((-2, -1), keepdim=True), largest / _LARGEST_RATIO)
    middle = (largest * least).sqrt()
    state, result = y, y
    for _ in range(_METRIC_STEPS):
        near = (middle * y + step * state) / (middle + step)
        result = _soft_threshold(2 * near - state, weight * middle.squeeze((-2, -1)))
        state = state + result - near
    return torch.where(usable, result, y)
