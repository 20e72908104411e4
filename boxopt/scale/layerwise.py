"""Scaling of whole leaves by norms: of the parameters, of the updates, and their ratio."""

from __future__ import annotations

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.scale.norms import (
    FactorState,
    at_least,
    factor_step_size,
    init_factor,
    init_factors,
    multiply,
    norm,
    root,
    root_mean_square,
)
from boxopt.scale.scalars import squared_norm


def scale_by_param_block_norm(min_scale: Scalar = 1e-3) -> GradientTransformation:
    r"""Multiply each leaf of the updates by the norm of the leaf of the parameters.

    $$ u = g \cdot \max(\lVert x \rVert_2, \text{min_scale}) $$

    The step size is multiplied by the norm too.

    Args:
        min_scale: The least factor.

    Returns:
        A gradient-space transformation with a `FactorState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_param_block_norm(), torch.tensor([3.0, 4.0])
        >>> tx.update(torch.ones(2), tx.init(params), params)[0]
        tensor([5., 5.])

    Source:
        `optax.scale_by_param_block_norm`.
    """
    return GradientTransformation(init_factors, bind(_block_norm_update, min_scale=min_scale), factor_step_size)


def _block_norm_update(updates: P, state: FactorState, params: P, *, min_scale: Scalar) -> tuple[P, FactorState]:
    factors = tree.map(lambda p: at_least(norm(p), min_scale), params)
    return multiply(updates, factors), FactorState(factors)


def scale_by_param_block_rms(min_scale: Scalar = 1e-3) -> GradientTransformation:
    """Multiply each leaf of the updates by the root mean square of the leaf of the parameters.

    Args:
        min_scale: The least factor.

    Returns:
        A gradient-space transformation with a `FactorState`; the step size is multiplied by the root mean square too.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_param_block_rms(), torch.tensor([2.0, -2.0])
        >>> tx.update(torch.ones(2), tx.init(params), params)[0]
        tensor([2., 2.])

    Source:
        `optax.scale_by_param_block_rms`; the relative step size of N. Shazeer and M. Stern, "Adafactor", ICML 2018.
    """
    return GradientTransformation(init_factors, bind(_block_rms_update, min_scale=min_scale), factor_step_size)


def _block_rms_update(updates: P, state: FactorState, params: P, *, min_scale: Scalar) -> tuple[P, FactorState]:
    factors = tree.map(lambda p: at_least(root_mean_square(p), min_scale), params)
    return multiply(updates, factors), FactorState(factors)


def scale_by_trust_ratio(
    min_norm: Scalar = 0.0, trust_coefficient: Scalar = 1.0, eps: Scalar = 0.0
) -> GradientTransformation:
    r"""Give each leaf of the updates the norm of the leaf of the parameters.

    $$ u = g \cdot c\,\frac{\max(\lVert x \rVert_2, n)}{\max(\lVert g \rVert_2, n) + \epsilon}
       \ \text{ if both norms are positive, } \quad u = g \ \text{ otherwise} $$

    The step size is multiplied by the ratio too.

    Args:
        min_norm: n, the least norm.
        trust_coefficient: c.
        eps: ε.

    Returns:
        A gradient-space transformation with a `FactorState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_trust_ratio(), torch.tensor([3.0, 4.0])
        >>> tx.update(torch.tensor([0.0, 2.0]), tx.init(params), params)[0]
        tensor([0., 5.])

    Source:
        Y. You, I. Gitman and B. Ginsburg, "Large batch training of convolutional networks", 2017;
        `optax.scale_by_trust_ratio`.
    """
    return GradientTransformation(
        init_factors,
        bind(_trust_ratio_update, min_norm=min_norm, trust_coefficient=trust_coefficient, eps=eps),
        factor_step_size,
    )


def _trust_ratio_update(
    updates: P, state: FactorState, params: P, *, min_norm: Scalar, trust_coefficient: Scalar, eps: Scalar
) -> tuple[P, FactorState]:
    def ratio(update: Tensor, param: Tensor) -> Tensor:
        of_param, of_update = at_least(norm(param), min_norm), at_least(norm(update), min_norm)
        positive = (of_param > 0) & (of_update > 0)
        bottom = torch.where(positive, of_update, 1.0) + exact.like(eps, of_update)
        return torch.where(positive, exact.like(trust_coefficient, of_param) * of_param / bottom, 1.0)

    factors = tree.map(ratio, updates, params)
    return multiply(updates, factors), FactorState(factors)


def normalize_by_update_norm(scale_factor: Scalar = 1.0, eps: Scalar = 1e-6) -> GradientTransformation:
    r"""Divide the updates by their common Euclidean norm.

    $$ u = g \cdot \frac{\text{scale_factor}}{\lVert g \rVert_2 + \epsilon} $$

    The step size is multiplied by the factor too.

    Args:
        scale_factor: The norm of the result.
        eps: ε.

    Returns:
        A gradient-space transformation with a `FactorState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.normalize_by_update_norm(), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.6000, 0.8000])

    Source:
        `optax.normalize_by_update_norm`.
    """
    return GradientTransformation(
        init_factor, bind(_normalize_update, scale_factor=scale_factor, eps=eps), factor_step_size
    )


@elementwise  # of a packed tree the norm is the same
def _normalize_update(
    updates: P, state: FactorState, params: P, *, scale_factor: Scalar, eps: Scalar
) -> tuple[P, FactorState]:
    length = root(squared_norm(updates)) + eps
    factor = exact.like(scale_factor, length) / length
    return multiply(updates, factor), FactorState(factor)
