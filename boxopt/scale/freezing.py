"""Updates of nothing: frozen leaves, and gradients that are not numbers."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch

from boxopt.core import sharded, tree
from boxopt.core.combine import masked
from boxopt.core.transform import GradientTransformation, elementwise, no_state
from boxopt.core.types import P
from boxopt.scale.moments import multiply_step_size, zeros_like


def set_to_zero() -> GradientTransformation:
    """Replace the updates by zeros.

    The step size becomes 0: a `barrier` or a `prox` after it leaves feasible parameters where they are.

    Returns:
        A gradient-space transformation without state.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.set_to_zero()
        >>> tx.update(torch.tensor([3.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([0.])

    Source:
        `optax.set_to_zero`.
    """
    return GradientTransformation(no_state, _zero_update, _zero_step_size)


@elementwise
def _zero_update(updates: P, state: Any, params: P) -> tuple[P, Any]:
    return zeros_like(updates), state


def _zero_step_size(state: Any, step_size: Any) -> Any:
    return multiply_step_size(0.0, step_size)


def freeze(mask: Any) -> GradientTransformation:
    """Replace the updates of some leaves by zeros.

    Put it last of what scales: momentum and weight decay before it do not move the frozen leaves then.

    Args:
        mask: Which leaves to freeze: see `masked`.

    Returns:
        A gradient-space transformation with a `MaskedState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.freeze("*.bias"), {"bias": torch.zeros(1), "weight": torch.zeros(1)}
        >>> tx.update({"bias": torch.ones(1), "weight": torch.ones(1)}, tx.init(params), params)[0]
        {'bias': tensor([0.]), 'weight': tensor([1.])}

    Source:
        `optax.transforms.freeze`.
    """
    return masked(set_to_zero(), mask)


class ZeroNansState(NamedTuple):
    """The state of `zero_nans`: for each leaf whether the last update was NaN anywhere, ``found_nan``."""

    found_nan: Any


def zero_nans() -> GradientTransformation:
    """Replace NaN in the updates by 0.

    Returns:
        A gradient-space transformation with a `ZeroNansState`; the step size is unchanged.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.zero_nans()
        >>> tx.update(torch.tensor([float("nan"), 2.0]), tx.init(torch.zeros(2)), torch.zeros(2))
        (tensor([0., 2.]), ZeroNansState(found_nan=tensor(True)))

    Source:
        `optax.zero_nans`.
    """
    return GradientTransformation(_nans_init, _nans_update)


def _nans_init(params: Any) -> ZeroNansState:
    tree.check_parameters(params)
    return ZeroNansState(tree.map(lambda x: torch.zeros((), dtype=torch.bool, device=x.device), params))


def _nans_update(updates: P, state: ZeroNansState, params: P) -> tuple[P, ZeroNansState]:
    # x ≠ x rather than isnan, which the inductor does not vectorize.
    numbers = tree.map(lambda u: torch.where(u != u, 0.0, u), updates)
    return numbers, ZeroNansState(tree.map(lambda u: sharded.reduced((u != u).any()), updates))
