"""An optimizer whose steps stay in a set."""

from __future__ import annotations

from boxopt.constrain.project import project
from boxopt.constrain.tangent import tangent
from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation
from boxopt.sets.base import ConstraintSet, expect_set


def projected(
    optimizer: GradientTransformation, constraint: ConstraintSet, *, deterministic: bool = True
) -> GradientTransformation:
    """Keep an optimizer in a set: `tangent` before it, and after it `project`, in the metric of its step sizes.

    The projection makes each step feasible, and takes the optimizer's own metric, without which Adam need not converge
    to the minimizer. The tangent keeps the part of the gradient that the set cancels out of the optimizer's moments:
    second moments would wind up against an active bound, and make the steps small for long after it is left.

    That is right for deterministic gradients. **With mini-batches, say** ``deterministic=False``: on the boundary the
    tangent hides the outward half of the noise, so that a moment's average points inwards and the iterates hover inside
    of a bound that should be active. The projection alone is then the better choice.

    Args:
        optimizer: Gradients in, updates out: `adam`, a chain, ….
        constraint: The set. If it has no tangent, there is none in the chain.
        deterministic: Whether gradients are without noise.

    Returns:
        A step-space transformation; its state is that of the chain.

    Raises:
        ValueError, TypeError: In ``init``, the set does not fit the parameters; the message names the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.projected(bx.adam(0.1), bx.sets.Simplex())
        >>> params, costs = torch.full((3,), 1 / 3), torch.tensor([1.0, 2.0, 3.0])
        >>> state = tx.init(params)
        >>> for _ in range(30):
        ...     updates, state = tx.update(costs, state, params)
        ...     params = bx.apply_updates(params, updates)
        >>> params
        tensor([1., 0., 0.])

    Source:
        `tangent` and `project`.
    """
    expect_set(constraint)
    if deterministic and constraint.offers("tangent"):
        return chain(tangent(constraint), optimizer, project(constraint))
    return chain(optimizer, project(constraint))
