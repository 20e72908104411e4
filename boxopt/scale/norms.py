"""Norms of leaves and of trees, 0 at 0 with derivative 0, and factors of whole leaves that a state remembers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.types import Scalar
from boxopt.scale.moments import multiply_step_size, safe_sqrt
from boxopt.scale.scalars import squared_norm


def root(square: Tensor) -> Tensor:
    """The root of a number that is not negative: exactly 0 at 0, with derivative 0."""
    square = sharded.reduced(square)
    return torch.where(square > 0, safe_sqrt(square), 0.0)


def norm(x: Tensor) -> Tensor:
    """The Euclidean norm of a leaf, in the dtype for arithmetic."""
    return root(exact.wide(x).square().sum())


def root_mean_square(x: Tensor) -> Tensor:
    """The root of the mean square of a leaf, in the dtype for arithmetic; 0 for a leaf without elements."""
    return root(exact.wide(x).square().sum() / max(x.numel(), 1))


def at_least(value: Tensor, least: Scalar) -> Tensor:
    """The larger of the two; a value at or below ``least`` has no derivative."""
    return torch.where(value <= exact.like(least, value), exact.as_tensor(least, value), value)


def shrinking(length: Tensor, limit: Tensor) -> Tensor:
    """By what makes a length one that is within a limit: min(1, limit/length), 1 at length 0."""
    exceeds = length > limit
    return torch.where(exceeds, limit / torch.where(exceeds, length, 1.0), 1.0)


class FactorState(NamedTuple):
    """The state of a transformation that multiplies leaves by numbers: ``factor``, those of the last update.

    It is there for the step size, which is multiplied by them too.
    """

    factor: Any


def init_factors(params: Any) -> FactorState:
    """A factor for each leaf."""
    tree.check_parameters(params)
    return FactorState(tree.map(lambda x: torch.ones((), dtype=exact.wide(x).dtype, device=x.device), params))


def init_factor(params: Any) -> FactorState:
    """One factor for all leaves, in the dtype of their norm."""
    tree.check_parameters(params)
    return FactorState(torch.ones_like(squared_norm(params)))


def multiply(updates: Any, factors: Any) -> Any:
    """The updates times a factor, or a factor for each leaf, in the dtype for arithmetic."""

    def times(u: Tensor, factor: Tensor) -> Tensor:
        wide = exact.wide(u)
        return exact.like(wide * exact.like(factor, wide), u)

    return tree.map(times, updates, tree.expand(factors, updates))


def factor_step_size(state: FactorState, step_size: Any) -> Any:
    """The step size times the factors."""
    return multiply_step_size(state.factor, step_size)
