"""Transformations that run at some of the updates only."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, accepted, bind
from boxopt.core.types import P
from boxopt.core.values import zero_count
from boxopt.wrap.select import false, select, step_size_where, update_where


class ConditionallyTransformState(NamedTuple):
    """The state of `conditionally_transform` and `conditionally_mask`.

    Attributes:
        inner_state: The state of the inner transformation.
        step: The number of updates, an int64 scalar.
        applied: Whether the inner transformation ran at the last one, a boolean scalar.
    """

    inner_state: Any
    step: Tensor
    applied: Tensor


ConditionallyMaskState = ConditionallyTransformState


def conditionally_transform(
    transformation: GradientTransformation, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> GradientTransformation:
    """Run a transformation at some of the updates, and let the updates through unchanged at the others.

    Args:
        transformation: What to apply. Without it nothing is projected either: put sets outside.
        should_transform_fn: From the number of updates made so far, an int64 scalar, to a boolean scalar.
        forward_extra_args: Whether that function also gets the extra arguments of ``update`` that it names.

    Returns:
        A transformation with a `ConditionallyTransformState`. Where the inner one did not run, its state stays.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.conditionally_transform(bx.scale(10.0), lambda step: step >= 1), torch.zeros(1)
        >>> updates, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> updates, tx.update(torch.ones(1), state, params)[0]
        (tensor([1.]), tensor([10.]))

    Source:
        `optax.conditionally_transform`.
    """
    return _conditional(transformation, should_transform_fn, forward_extra_args, through=True)


def conditionally_mask(
    transformation: GradientTransformation, should_transform_fn: Callable[..., Any], forward_extra_args: bool = False
) -> GradientTransformation:
    """Run a transformation at some of the updates; at the others the update is zero.

    Args:
        transformation: What to apply.
        should_transform_fn: From the number of updates made so far, an int64 scalar, to a boolean scalar.
        forward_extra_args: Whether that function also gets the extra arguments of ``update`` that it names.

    Returns:
        A transformation with a `ConditionallyMaskState`. Where the inner one did not run, its state stays.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.conditionally_mask(bx.sgd(0.1), lambda step: step % 2 == 1), torch.zeros(1)
        >>> updates, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> updates, tx.update(torch.ones(1), state, params)[0]
        (tensor([0.]), tensor([-0.1000]))

    Source:
        `optax.conditionally_mask`.
    """
    return _conditional(transformation, should_transform_fn, forward_extra_args, through=False)


def _conditional(
    transformation: GradientTransformation, condition: Callable[..., Any], forward: bool, *, through: bool
) -> GradientTransformation:
    inner = on_leaves(transformation)
    return GradientTransformation(
        bind(_conditional_init, transformation=inner),
        bind(
            _conditionally_transform_update if through else _conditionally_mask_update,
            transformation=inner,
            condition=condition,
            takes=accepted(inner),
            also_takes=_arguments(condition) if forward else frozenset(),
        ),
        bind(_conditional_step_size, transformation=inner, through=through),
    )


def _conditional_init(params: Any, *, transformation: GradientTransformation) -> ConditionallyTransformState:
    return ConditionallyTransformState(transformation.init(params), zero_count(params), false(params))


def _conditionally_mask_update(
    updates: P,
    state: ConditionallyTransformState,
    params: P,
    *,
    transformation: GradientTransformation,
    condition: Callable[..., Any],
    takes: frozenset[str] | None,
    also_takes: frozenset[str] | None,
    **extra: Any,
) -> tuple[P, ConditionallyTransformState]:
    wanted = condition(state.step, **_among(also_takes, extra))
    applied = torch.as_tensor(wanted, dtype=torch.bool, device=state.step.device)
    given = _among(takes, extra)
    changed, inner = update_where(applied, transformation, updates, state.inner_state, params, given)
    return changed, ConditionallyTransformState(inner, state.step + 1, applied)


def _conditionally_transform_update(
    updates: P, state: ConditionallyTransformState, params: P, **bound: Any
) -> tuple[P, ConditionallyTransformState]:
    changed, new = _conditionally_mask_update(updates, state, params, **bound)
    return select(new.applied, changed, updates), new


def _arguments(condition: Callable[..., Any]) -> frozenset[str] | None:
    """The names of the arguments of a condition after the first; None if it takes any."""
    parameters = list(inspect.signature(condition).parameters.values())[1:]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in parameters):
        return None
    return frozenset(parameter.name for parameter in parameters)


def _among(names: frozenset[str] | None, extra: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in extra.items() if names is None or name in names}


def _conditional_step_size(
    state: ConditionallyTransformState, step_size: Any, *, transformation: GradientTransformation, through: bool
) -> Any:
    otherwise = step_size if through else 0.0
    return step_size_where(state.applied, transformation, state.inner_state, step_size, otherwise)
