"""Polyak's step size, from the value of the loss."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.scale.norms import FactorState, factor_step_size, init_factor, multiply
from boxopt.scale.scalars import squared_norm

_EPSILON = torch.finfo(torch.float64).eps


def scale_by_polyak(
    f_min: Scalar = 0.0, max_learning_rate: Scalar = 1.0, eps: Scalar = 0.0, variant: str = "sps"
) -> GradientTransformation:
    r"""Multiply the updates by the step that would reach the minimum of a linear loss.

    $$ u = g \cdot \min\left(\frac{f - f_{\min}}{\lVert g \rVert_2^2 + \epsilon}, \text{max_learning_rate}\right) $$

    and 0 where the gradient vanishes. The step size is multiplied by that factor. ``update`` takes the loss f as a
    keyword argument, ``value``.

    Args:
        f_min: The least value of the loss, or a lower bound of it.
        max_learning_rate: The largest factor.
        eps: ε.
        variant: "sps", or "sps+", which takes 0 where the loss is below ``f_min``.

    Returns:
        A gradient-space transformation with a `FactorState`.

    Raises:
        ValueError: The variant is unknown.
        TypeError: In ``update``, ``value`` is missing.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_polyak(), torch.tensor([2.0])
        >>> tx.update(torch.tensor([4.0]), tx.init(params), params, value=torch.tensor(4.0))[0]
        tensor([1.])

    Source:
        N. Loizou et al., "Stochastic Polyak step-size for SGD", AISTATS 2021; L. Berrada et al., ICML 2020;
        `optax.scale_by_polyak`.
    """
    if variant not in ("sps", "sps+"):
        raise ValueError(f'the variant is "sps" or "sps+", got {variant!r}')
    return GradientTransformation(
        init_factor,
        bind(_polyak_update, f_min=f_min, max_learning_rate=max_learning_rate, eps=eps, positive=variant == "sps+"),
        factor_step_size,
    )


@elementwise  # of a packed tree the norm is the same
def _polyak_update(
    updates: P,
    state: FactorState,
    params: P,
    *,
    value: Any,
    f_min: Scalar,
    max_learning_rate: Scalar,
    eps: Scalar,
    positive: bool,
) -> tuple[P, FactorState]:
    square = squared_norm(updates)
    bottom = square + exact.like(eps, square)
    gap = exact.as_tensor(value - f_min, square)
    if positive:
        gap = torch.where(gap > 0, gap, 0.0)
    flat = bottom <= _EPSILON
    factor = _at_most(gap / torch.where(flat, 1.0, bottom), max_learning_rate)
    factor = torch.where(flat, 0.0, factor)
    return multiply(updates, factor), FactorState(factor)


def _at_most(x: Tensor, limit: Scalar) -> Tensor:
    bound = exact.as_tensor(limit, x)
    return torch.where(x > bound, bound, x)
