"""Where parameters are with respect to a set: pure functions that return tensors, also under vmap and compile."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.core.types import P, Scalar
from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box
from boxopt.sets.intersection import ByPath


def violation(constraint: ConstraintSet, params: Any) -> Tensor:
    """How far the parameters are outside a set.

    Args:
        constraint: The set.
        params: A tree of tensors.

    Returns:
        A scalar in the parameters' units: for a box, the largest distance from it; 0 inside and on its walls.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.violation(bx.Box(0.0, 1.0), {"a": torch.tensor([0.5, 1.25]), "b": torch.tensor(0.0)})
        tensor(0.2500)
    """
    return constraint.violation(params)


def is_feasible(constraint: ConstraintSet, params: Any) -> Tensor:
    """Whether the parameters are in a set, exactly.

    Returns:
        A boolean scalar tensor.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.is_feasible(bx.Box(0.0, 1.0), torch.tensor([0.0, 1.0]))
        tensor(True)
    """
    return constraint.violation(params) == 0


def optimality(constraint: ConstraintSet, params: P, gradients: P) -> Tensor:
    r"""The size of a projected gradient step: 0 exactly at a point that satisfies the first-order conditions.

    $$ \|P_C(x - g) - x\|_\infty $$

    Args:
        constraint: The set.
        params: A tree of tensors, x.
        gradients: The gradients of the loss at ``params``, g: not preconditioned.

    Returns:
        A scalar tensor.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.optimality(bx.Box(0.0, 1.0), torch.tensor([0.0, 0.5]), torch.tensor([3.0, 0.25]))
        tensor(0.2500)

    Source:
        A. R. Conn, N. I. M. Gould and P. L. Toint, Trust-Region Methods, 2000, section 12.1.
    """
    stepped = constraint.project(tree.map(torch.sub, params, gradients))

    def size(x: Tensor, y: Tensor) -> Tensor:
        return sharded.amax((y - x).abs()) if x.numel() else x.new_zeros(())

    return tree.reduce(torch.maximum, tree.map(size, params, stepped))


def active(constraint: Box | ByPath, params: P, tolerance: Scalar = 0.0) -> P:
    """Which bound of a box each coordinate is at.

    Args:
        constraint: The box, or boxes by path: leaves that are in none are at no bound.
        params: A tree of tensors.
        tolerance: How near a bound counts as at it, in the parameters' units.

    Returns:
        A tree of int8 tensors: −1 at the lower bound (also where both bounds are equal), 1 at the upper, 0 between.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.active(bx.Box(0.0, 1.0), torch.tensor([0.0, 0.5, 1.0]))
        tensor([-1,  0,  1], dtype=torch.int8)
    """
    return constraint.active(params, tolerance)
