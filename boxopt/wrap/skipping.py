"""When a gradient is to be left out: conditions for `multi_steps`."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.core.types import Scalar
from boxopt.scale.scalars import squared_norm


def skip_not_finite(updates: Any, gradient_step: Tensor, params: Any) -> tuple[Tensor, dict[str, Tensor]]:
    """Whether any number is infinite or NaN: a ``should_skip_update_fn`` for `multi_steps`.

    Args:
        updates: A tree of gradients.
        gradient_step: Not used.
        params: Not used.

    Returns:
        A boolean scalar, and a dict of it, ``should_skip``, and of how many numbers are not finite,
        ``num_not_finite``.

    Example:
        >>> import torch, boxopt as bx
        >>> skip, info = bx.skip_not_finite(torch.tensor([1.0, torch.nan]), torch.tensor(0), torch.zeros(2))
        >>> skip, info["num_not_finite"]
        (tensor(True), tensor(1))

    Source:
        `optax.skip_not_finite`.
    """
    count = tree.reduce(torch.add, tree.map(lambda x: (~_finite(x)).sum(), updates)).to(torch.int64)
    return count > 0, {"should_skip": count > 0, "num_not_finite": count}


def skip_large_updates(
    updates: Any, gradient_step: Tensor, params: Any, max_squared_norm: Scalar
) -> tuple[Tensor, dict[str, Tensor]]:
    r"""Whether $\|g\|^2$, over all leaves, is too large, or NaN: a ``should_skip_update_fn`` for `multi_steps`.

    Args:
        updates: A tree of gradients, g.
        gradient_step: Not used.
        params: Not used.
        max_squared_norm: The least squared norm that is too large; bind it with ``functools.partial``.

    Returns:
        A boolean scalar, and a dict of it, ``should_skip``, and of the squared norm, ``norm_squared``.

    Example:
        >>> import functools, torch, boxopt as bx
        >>> skip = functools.partial(bx.skip_large_updates, max_squared_norm=1.0)
        >>> tx, params = bx.multi_steps(bx.sgd(0.1), 1, should_skip_update_fn=skip), torch.zeros(1)
        >>> updates, state = tx.update(torch.tensor([9.0]), tx.init(params), params)
        >>> updates, state.skip_state["norm_squared"]
        (tensor([0.]), tensor(81.))

    Source:
        `optax.skip_large_updates`.
    """
    norm_squared = squared_norm(updates)
    should_skip = ~(norm_squared < max_squared_norm)  # also where it is NaN
    return should_skip, {"should_skip": should_skip, "norm_squared": norm_squared}


def all_finite(values: Any) -> Tensor:
    """Whether every number of a tree is finite, as a boolean scalar."""
    if any(
        sharded.is_sharded(leaf) for leaf in tree.leaves(values)
    ):  # one sum for all leaves, NaN if one is not finite
        return tree.reduce(torch.add, tree.map(lambda x: (x.detach() * 0).sum(), values)) == 0
    found = tree.map(lambda x: _finite(x).all(), values)
    return tree.reduce(torch.logical_and, found).to(torch.bool) if tree.leaves(found) else torch.tensor(True)


def _finite(x: Tensor) -> Tensor:
    return x.abs() <= torch.finfo(x.dtype).max  # not isfinite, which the inductor does not vectorize
