"""The indicator function in gradient space."""

from __future__ import annotations

from typing import Any

from boxopt.constrain.project import _constraint_init
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P
from boxopt.sets.base import ConstraintSet, expect_set


def tangent(constraint: ConstraintSet) -> GradientTransformation:
    """Drop the part of the gradient that would push the parameters out of the set.

    For a box, the gradient is set to 0 where the parameter is at its lower bound and the gradient positive, or at its
    upper bound and the gradient negative. It comes before the optimizer, whose moments then do not wind up against an
    active bound. It keeps nothing feasible by itself: end the chain with `project`. With noisy gradients it is biased,
    since it hides the outward half of the noise: use it for deterministic ones.

    Args:
        constraint: The set.

    Returns:
        A gradient-space transformation without state.

    Raises:
        TypeError: The constraint is not a set, or has no tangent.
        ValueError, TypeError: In ``init``, the set does not fit the parameters; the message names the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.tangent(bx.Box(0.0, 1.0))
        >>> params = torch.tensor([0.0, 0.0, 0.5, 1.0])
        >>> tx.update(torch.tensor([1.0, -1.0, 1.0, -1.0]), tx.init(params), params)[0]
        tensor([ 0., -1.,  1.,  0.])

    Source:
        P. H. Calamai and J. J. Moré, "Projected gradient methods for linearly constrained problems", Mathematical
        Programming 39, 1987.
    """
    expect_set(constraint, "tangent")
    return on_leaves(
        GradientTransformation(
            bind(_constraint_init, constraint=constraint), bind(_tangent_update, constraint=constraint)
        )
    )


@elementwise
def _tangent_update(updates: P, state: Any, params: P, *, constraint: ConstraintSet) -> tuple[P, Any]:
    return constraint.tangent(params, updates), state
