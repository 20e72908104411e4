r"""The nuclear norm: the sum of the singular values of each matrix.

In a scalar step size the proximal step subtracts $\lambda\eta$ from the singular values, and where that is negative
makes them 0. In the metric of a step size η that varies over the entries it is, by Moreau's decomposition,

$$ x = y - \eta z, \qquad z = \arg\min_{\sigma_1(z) \le \lambda} \sum \eta \, (z - y/\eta)^2, $$

a projection onto a ball of the spectral norm: Newton's method, see `boxopt.sets.matrix_metric`. With any number $m > 0$
that is also $x = S(x + m z)$, where S is the proximal step in the scalar step size m: so that x is of low rank exactly.

**Derivatives** are exact to the second order, also at equal singular values: see `boxopt.sets.spectral`. In a metric
so are those of matrices with at most 1,024 entries, of larger ones they are approximate.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.decompose import svd, svdvals
from boxopt.core.values import check_nonnegative
from boxopt.regularizers.base import P, Regularizer
from boxopt.sets.matrices import SpectralBall
from boxopt.sets.spectral import basis_of, dilation, positive_part, shifted
from boxopt.sets.vectors import precise

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
        Journal on Optimization 20, 2010; N. Parikh and S. Boyd, "Proximal algorithms", 2014, section 2.5, for Moreau's
        decomposition.
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
                return (weight * svdvals(x).sum(-1)).sum().to(leaf.dtype)
            positive = positive_part(dilation(x), basis_of(dilation(x)))
            return (weight * positive.diagonal(dim1=-2, dim2=-1).sum(-1)).sum().to(leaf.dtype)

        return tree.reduce(torch.add, self._map(value, params, combine="sum"))

    def prox(self, y: P, step_size: Any = 1.0) -> P:
        def prox_leaf(leaf: Tensor, weight: Any, step: Any) -> Tensor:
            if leaf.numel() == 0:
                return leaf
            in_metric = isinstance(step, Tensor) and step.ndim > 0
            x = precise(leaf) if in_metric else exact.wide(leaf)
            weight, step = exact.as_tensor(weight, x), exact.as_tensor(step, x)
            if in_metric:
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
        left, values, right = svd(x)
        return (left * (values - threshold.unsqueeze(-1)).clamp_min(0.0).unsqueeze(-2)) @ right
    whole = dilation(x)
    values, vectors = basis_of(whole)
    basis = values - threshold.detach().unsqueeze(-1), vectors
    return 2 * positive_part(shifted(whole, threshold), basis)[..., : x.shape[-2], x.shape[-2] :]


def _in_metric(y: Tensor, step: Tensor, weight: Tensor) -> Tensor:
    """The proximal step in the metric 1/step."""
    largest = step.detach().amax((-2, -1), keepdim=True)
    usable = largest > 0
    largest = torch.where(usable, largest, 1.0)
    share = (step / largest).clamp_min(1 / _LARGEST_RATIO)  # so that no quotient leaves the numbers' range
    radius = weight * largest.squeeze((-2, -1))
    dual = SpectralBall(radius).project(y / share, 1 / share)
    near = y - share * dual
    middle = share.detach().amin((-2, -1), keepdim=True).sqrt()
    low = _soft_threshold((near + middle * dual).detach(), (radius * middle.squeeze((-2, -1))).detach())
    return torch.where(usable, exact.replaced(near, low), y)
