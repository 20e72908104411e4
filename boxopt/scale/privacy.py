"""Differential privacy: clip the gradient of each example, and add noise to their mean."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, random, sharded, tree
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import check_nonnegative
from boxopt.scale.moments import safe_sqrt
from boxopt.scale.norms import shrinking


class DifferentiallyPrivateAggregateState(NamedTuple):
    """The state of `differentially_private_aggregate`: ``rng_key``, the key of the next random numbers."""

    rng_key: Tensor


def differentially_private_aggregate(
    l2_norm_clip: Scalar, noise_multiplier: Scalar, key: int | Tensor
) -> GradientTransformation:
    r"""From the gradients of single examples to their mean, such that no example can be recognized.

    $$ u = \frac1n \left(\sum_i g_i \min\left(1, \frac{C}{\lVert g_i \rVert}\right) + \sigma C \xi\right), \qquad
       \xi \sim N(0, 1) $$

    with norms over all leaves. It is the first of a chain, since the updates it takes have one more dimension, the
    examples, than those it makes: `torch.func.vmap` of a gradient makes them. The noise is JAX's for the same key. The
    step size is unchanged.

    Args:
        l2_norm_clip: C, not negative.
        noise_multiplier: σ, not negative.
        key: A seed, or a key: see `boxopt.core.random`. Give members of an ensemble a seed each.

    Returns:
        A gradient-space transformation with a `DifferentiallyPrivateAggregateState`.

    Raises:
        ValueError: ``l2_norm_clip`` or ``noise_multiplier`` is negative; or, in ``update``, a leaf's shape is not that
            of the parameter with one more dimension.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.differentially_private_aggregate(1.0, 0.0, key=0), torch.zeros(2)
        >>> tx.update(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), tx.init(params), params)[0]
        tensor([0.3000, 0.6500])

    Source:
        M. Abadi et al., "Deep learning with differential privacy", CCS 2016;
        `optax.contrib.differentially_private_aggregate`.
    """
    check_nonnegative("l2_norm_clip", l2_norm_clip)
    check_nonnegative("noise_multiplier", noise_multiplier)
    return GradientTransformation(
        bind(_private_init, key=key), bind(_private_update, limit=l2_norm_clip, multiplier=noise_multiplier)
    )


def _private_init(params: Any, *, key: int | Tensor) -> DifferentiallyPrivateAggregateState:
    tree.check_parameters(params)
    return DifferentiallyPrivateAggregateState(random.make_key(key, tree.device_of(params)))


def _private_update(
    updates: P, state: DifferentiallyPrivateAggregateState, params: P, *, limit: Scalar, multiplier: Scalar
) -> tuple[P, DifferentiallyPrivateAggregateState]:
    tree.map(_check_examples, params, updates)
    leaves, structure = tree.flatten(updates)
    keys = random.split(state.rng_key, len(leaves) + 1)
    new = DifferentiallyPrivateAggregateState(keys[0])
    if not leaves:
        return updates, new
    squares = tree.reduce(torch.add, [_squares(exact.wide(g)) for g in leaves])
    norms = safe_sqrt(squares)
    bound = exact.as_tensor(limit, norms)
    weights = shrinking(norms, bound)

    def aggregate(g: Tensor, key: Tensor) -> Tensor:
        wide = exact.wide(g)
        total = _weighted_sum(weights, wide)
        noise = random.normal(key.to(g.device), total.shape, total.dtype, total)
        deviation = exact.like(bound, wide) * exact.like(multiplier, wide)
        return exact.like((total + deviation * noise) / g.shape[0], g)

    means = [aggregate(g, key) for g, key in zip(leaves, keys[1:], strict=True)]
    return tree.unflatten(structure, means), new


def _weighted_sum(weights: Tensor, gradients: Tensor) -> Tensor:
    """The sum of the examples' gradients, each times its weight."""
    weights = weights.to(gradients.dtype)
    if not sharded.is_sharded(gradients):
        return torch.tensordot(exact.like(weights, gradients), gradients, dims=1)
    return (weights.reshape(-1, *[1] * (gradients.ndim - 1)) * gradients).sum(0)


def _squares(gradients: Tensor) -> Tensor:
    """The squared norm of each example's gradient."""
    squares = gradients.square()
    return squares.sum(dim=tuple(range(1, squares.ndim))) if squares.ndim > 1 else squares


def _check_examples(param: Tensor, gradients: Tensor) -> Tensor:
    if gradients.shape[1:] != param.shape or gradients.ndim != param.ndim + 1:
        raise ValueError(
            f"expected a gradient of each example, of shape (examples, {', '.join(map(str, param.shape))}), got the "
            f"shape {tuple(gradients.shape)}"
        )
    return param
