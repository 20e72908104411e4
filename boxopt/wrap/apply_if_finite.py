"""Leaving out updates that are not finite."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.wrap.select import false, step_size_where, update_where
from boxopt.wrap.skipping import all_finite


class ApplyIfFiniteState(NamedTuple):
    """The state of `apply_if_finite`.

    Attributes:
        notfinite_count: How many of the last gradients in a row were not finite, an int64 scalar.
        last_finite: Whether the last gradient was finite, a boolean scalar.
        total_notfinite: How many gradients were not finite, an int64 scalar.
        inner_state: The state of the inner transformation.
    """

    notfinite_count: Tensor
    last_finite: Tensor
    total_notfinite: Tensor
    inner_state: Any


def apply_if_finite(transformation: GradientTransformation, max_consecutive_errors: Scalar) -> GradientTransformation:
    """Leave out gradients that contain an infinity or a NaN, up to so many in a row.

    Then the update is zero and the inner state stays as it was. Each member of an ensemble is judged by itself: one
    that diverges does not touch the others, nor their derivatives.

    Args:
        transformation: What to apply.
        max_consecutive_errors: How many in a row to leave out; after these the update is made, whatever it is.

    Returns:
        A transformation with an `ApplyIfFiniteState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.apply_if_finite(bx.adam(0.1), 5), torch.zeros(2)
        >>> updates, state = tx.update(torch.tensor([1.0, torch.nan]), tx.init(params), params)
        >>> updates, state.notfinite_count
        (tensor([0., 0.]), tensor(1))

    Source:
        `optax.apply_if_finite`.
    """
    inner = on_leaves(transformation)
    return GradientTransformation(
        bind(_apply_if_finite_init, transformation=inner),
        bind(_apply_if_finite_update, transformation=inner, max_consecutive_errors=max_consecutive_errors),
        bind(_apply_if_finite_step_size, transformation=inner, max_consecutive_errors=max_consecutive_errors),
    )


def skip_nonfinite(transformation: GradientTransformation) -> GradientTransformation:
    """`apply_if_finite` without a limit: gradients that are not finite are always left out.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.skip_nonfinite(bx.sgd(0.1)), torch.zeros(2)
        >>> tx.update(torch.tensor([1.0, -torch.inf]), tx.init(params), params)[0]
        tensor([0., 0.])
    """
    return apply_if_finite(transformation, math.inf)


def _apply_if_finite_init(params: Any, *, transformation: GradientTransformation) -> ApplyIfFiniteState:
    inner = transformation.init(params)
    return ApplyIfFiniteState(zero_count(params), ~false(params), zero_count(params), inner)


def _apply_if_finite_update(
    updates: P,
    state: ApplyIfFiniteState,
    params: P,
    *,
    transformation: GradientTransformation,
    max_consecutive_errors: Scalar,
    **extra: Any,
) -> tuple[P, ApplyIfFiniteState]:
    finite = all_finite(updates).to(state.last_finite.device)
    count = torch.where(finite, 0, state.notfinite_count + 1)
    changed, inner = update_where(
        finite | (count > max_consecutive_errors), transformation, updates, state.inner_state, params, extra
    )
    return changed, ApplyIfFiniteState(count, finite, state.total_notfinite + ~finite, inner)


def _apply_if_finite_step_size(
    state: ApplyIfFiniteState, step_size: Any, *, transformation: GradientTransformation, max_consecutive_errors: Scalar
) -> Any:
    applied = state.last_finite | (state.notfinite_count > max_consecutive_errors)
    return step_size_where(applied, transformation, state.inner_state, step_size)
