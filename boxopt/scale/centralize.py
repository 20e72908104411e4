"""Gradients with mean zero."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, no_state
from boxopt.core.types import P


def centralize() -> GradientTransformation:
    """Subtract from the updates of each unit their mean; leaves with fewer than two dimensions pass unchanged.

    A unit is an index of the first dimension, as in torch's layers.

    Returns:
        A gradient-space transformation without state; the step size is unchanged.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.centralize(), torch.zeros(2, 2)
        >>> tx.update(torch.tensor([[1.0, 3.0], [2.0, 2.0]]), tx.init(params), params)[0]
        tensor([[-1.,  1.],
                [ 0.,  0.]])

    Source:
        H. Yong et al., "Gradient centralization: a new optimization technique for deep neural networks", ECCV 2020;
        `optax.centralize`.
    """
    return GradientTransformation(no_state, _centralize_update)


def _centralize_update(updates: P, state: Any, params: P) -> tuple[P, Any]:
    def centre(u: Tensor) -> Tensor:
        if u.ndim < 2 or not u.numel():
            return u
        wide = exact.wide(u)
        return exact.like(wide - wide.mean(tuple(range(1, u.ndim)), keepdim=True), u)

    return tree.map(centre, updates), state
