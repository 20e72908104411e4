"""SM3's scaling: sums of squares, kept as one cover for each slice of a leaf."""

from __future__ import annotations

from functools import reduce
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.scale.moments import map_wide, update_moment, zeros_like


class ScaleBySM3State(NamedTuple):
    """The state of `scale_by_sm3`.

    Attributes:
        mu: For each leaf a tuple with the covers of the slices along each of its dimensions, all other dimensions of
            length 1.
        nu: The running average of the scaled gradients.
    """

    mu: Any
    nu: Any


def scale_by_sm3(b1: Scalar = 0.9, b2: Scalar = 1.0, eps: Scalar = 1e-8) -> GradientTransformation:
    r"""Rescale gradients by a bound on the root of the sum of their squares, then average them.

    $$ s_{ij} = \min(r_i, c_j) + g_{ij}^2, \qquad r_i = \max_j s_{ij}, \quad c_j = \max_i s_{ij}, \qquad
       u \leftarrow \beta_1 u + (1 - \beta_1) \frac{g}{\sqrt{s + \epsilon}} $$

    for a matrix, and likewise for any number of dimensions. The step size is $1/\sqrt{\min(r_i, c_j) + \epsilon}$ with
    the covers after the update, the factor that the state can tell of.

    Args:
        b1: β₁, the decay of the average of scaled gradients.
        b2: The decay of the sums: below 1 they are averages.
        eps: ε.

    Returns:
        A gradient-space transformation with a `ScaleBySM3State`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_sm3(b1=0.0), torch.zeros(2, 1)
        >>> tx.update(torch.tensor([[2.0], [-3.0]]), tx.init(params), params)[0]
        tensor([[ 1.],
                [-1.]])

    Source:
        R. Anil et al., "Memory-efficient adaptive optimization", NeurIPS 2019; `optax.scale_by_sm3`.
    """
    return GradientTransformation(_sm3_init, bind(_sm3_update, b1=b1, b2=b2, eps=eps), bind(_sm3_step_size, eps=eps))


def _sm3_init(params: Any) -> ScaleBySM3State:
    tree.check_parameters(params)
    return ScaleBySM3State(tree.map(lambda x: _covers(torch.zeros_like(x)), params), zeros_like(params))


def _covers(values: Tensor) -> tuple[Tensor, ...]:
    """The largest number in each slice along each dimension."""
    if values.ndim < 2:
        return (values,)
    if not values.numel():
        return tuple(values.sum(_others(values, dim), keepdim=True) for dim in range(values.ndim))
    return tuple(sharded.amax_along(values, _others(values, dim)) for dim in range(values.ndim))


def _others(values: Tensor, dim: int) -> list[int]:
    return [other for other in range(values.ndim) if other != dim]


def _least(covers: tuple[Tensor, ...]) -> Tensor:
    """The bound that the covers give, in the shape of the leaf."""
    wide = [exact.wide(cover) for cover in covers]
    return reduce(lambda x, y: torch.where(x < y, x, y), wide)


def _sm3_update(
    updates: P, state: ScaleBySM3State, params: P, *, b1: Scalar, b2: Scalar, eps: Scalar
) -> tuple[P, ScaleBySM3State]:
    def accumulate(g: Tensor, covers: tuple[Tensor, ...]) -> Tensor:
        wide, bound = exact.wide(g), _least(covers)
        return _weight(b2, wide) * (wide * wide) + exact.like(b2, wide) * bound

    sums = tree.map(accumulate, updates, state.mu)
    scaled = map_wide(lambda g, s: g * _inverse_root(s, eps), updates, sums)
    nu = update_moment(scaled, state.nu, b1, 1)
    mu = tree.map(lambda g, s: tuple(exact.like(cover, g) for cover in _covers(s)), updates, sums)
    return nu, ScaleBySM3State(mu, nu)


def _weight(b2: Scalar, x: Tensor) -> Any:
    """1 − β₂, the weight of a new square in an average; 1 in a sum, where β₂ = 1."""
    if not isinstance(b2, Tensor):
        return 1.0 if b2 == 1 else 1 - b2
    return exact.like(torch.where(b2 == 1, 1.0, 1 - b2), x)


def _inverse_root(s: Tensor, eps: Scalar) -> Tensor:
    positive = s > 0
    return torch.where(positive, 1 / torch.sqrt(torch.where(positive, s, 1.0) + exact.like(eps, s)), 0.0)


def _sm3_step_size(state: ScaleBySM3State, step_size: Any, *, eps: Scalar) -> Any:
    def scale(_: Tensor, size: Any, covers: tuple[Tensor, ...]) -> Tensor:
        factor = _inverse_root(_least(covers), eps)
        return exact.like(size, factor) * factor

    return tree.map(scale, state.nu, tree.expand(step_size, state.nu), state.mu)
