"""Inner products and norms over all leaves, and the scalars that parameter-free methods keep in their states.

A scalar of a state has the widest dtype among the parameters, float32 where they have 16 bits.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.scale.moments import safe_sqrt


def scalar_like(params: Any, value: Any) -> Tensor:
    """A number as a scalar of a state."""
    dtypes = [torch.float32 if exact.is_narrow(leaf.dtype) else leaf.dtype for leaf in tree.leaves(params)]
    dtype = functools.reduce(torch.promote_types, dtypes) if dtypes else torch.float32
    if isinstance(value, Tensor):
        return value.to(dtype=dtype, device=tree.device_of(params)).clone()
    return torch.full((), value, dtype=dtype, device=tree.device_of(params))


def inner(one: Any, other: Any) -> Tensor:
    """The inner product of two trees."""

    def product(x: Tensor, y: Tensor) -> Tensor:
        x = exact.wide(x)
        return (x * exact.like(y, x)).sum()

    return tree.reduce(torch.add, tree.map(product, one, other))


def squared_norm(values: Any) -> Tensor:
    """The sum of all squares."""
    return tree.reduce(torch.add, tree.map(lambda x: exact.wide(x).square().sum(), values))


def norm(values: Any) -> Tensor:
    """The Euclidean norm of a tree; its derivative at 0 is 0."""
    return safe_sqrt(squared_norm(values))


def squared_distance(one: Any, other: Any) -> Tensor:
    """The square of the Euclidean distance of two trees."""
    return squared_norm(tree.map(lambda x, y: exact.wide(x) - exact.wide(y), one, other))


def maximum(one: Tensor, other: Any) -> Tensor:
    """The larger of two; at a tie it has the derivative of the first, where that of ``torch.maximum`` is halved."""
    return torch.where(one >= other, one, exact.like(other, one))


def minimum(one: Tensor, other: Any) -> Tensor:
    """The smaller of two; at a tie it has the derivative of the first."""
    return torch.where(one <= other, one, exact.like(other, one))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 with derivative 0 where the denominator is 0."""
    nonzero = denominator != 0
    return torch.where(nonzero, numerator / torch.where(nonzero, denominator, 1.0), 0.0)


def scaled(values: Any, factor: Any) -> Any:
    """A tree times one number."""
    one = exact.cast_once(factor)

    def multiply(x: Tensor) -> Tensor:
        w = exact.wide(x)
        return exact.like(w * one(w), x)

    return tree.map(multiply, values)


def step_size_times(step_size: Any, factor: Tensor) -> Any:
    """The step size, a number, tensor or prefix, times a scalar."""
    return tree.map(  # None stands where the parameters have none
        lambda size: exact.like(factor, size) * size if _has_dimensions(size) else factor * size, step_size
    )


def _has_dimensions(size: Any) -> bool:
    return isinstance(size, Tensor) and size.ndim > 0
