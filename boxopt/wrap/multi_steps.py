"""Gradient accumulation: one step for several gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.expect import expect_number
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.wrap.select import false, select_or_zero, step_size_where, update_where


class MultiStepsState(NamedTuple):
    """The state of `multi_steps`.

    Attributes:
        mini_step: The number of gradients accumulated for the next step, an int64 scalar.
        gradient_step: The number of steps made, an int64 scalar.
        inner_opt_state: The state of the inner transformation.
        acc_grads: The mean, or the sum, of the gradients accumulated, in float32 for 16-bit parameters.
        emitted: Whether the last update was a step, a boolean scalar.
        skip_state: What ``should_skip_update_fn`` said last.
    """

    mini_step: Tensor
    gradient_step: Tensor
    inner_opt_state: Any
    acc_grads: Any
    emitted: Tensor
    skip_state: Any = ()


def multi_steps(
    transformation: GradientTransformation,
    every_k_schedule: Scalar | Callable[[Tensor], Any],
    use_grad_mean: bool = True,
    should_skip_update_fn: Callable[[Any, Tensor, Any], tuple[Tensor, Any]] | None = None,
    accumulator_dtype: torch.dtype | None = None,
) -> GradientTransformation:
    """Accumulate gradients over k updates and make one step of them; the other updates are zero.

    The inner transformation sees the mean gradient every k-th time and nothing between, its state included. Each member
    of an ensemble may have a k of its own, and skips gradients of its own. In between, the step size is 0, so that a
    proximal step that follows in the chain leaves the parameters where they are too.

    Args:
        transformation: What to make the step with. Sets belong inside: ``multi_steps(chain(adam, project), 4)``.
        every_k_schedule: k, a number or an integer tensor; or a function from the number of steps made to it.
        use_grad_mean: Whether the gradients are averaged, or summed.
        should_skip_update_fn: ``(gradients, gradient_step, params) -> (skip, info)``: whether to leave these gradients
            out as if they had not come, a boolean scalar, and a tree of tensors to keep in the state. See
            `skip_not_finite` and `skip_large_updates`.
        accumulator_dtype: The dtype of the accumulated gradients; that of the parameters if left out, float32 at least.

    Returns:
        A transformation with a `MultiStepsState`.

    Raises:
        ValueError: k is a number below 1.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.multi_steps(bx.sgd(0.1), 2), torch.zeros(1)
        >>> updates, state = tx.update(torch.tensor([1.0]), tx.init(params), params)
        >>> updates
        tensor([0.])
        >>> tx.update(torch.tensor([3.0]), state, params)[0]
        tensor([-0.2000])

    Source:
        `optax.MultiSteps`, as a transformation; optax averages in float32 unless told otherwise.
    """
    if not tree.is_function(every_k_schedule):
        expect_number("every_k_schedule", every_k_schedule)
    if isinstance(every_k_schedule, (int, float)) and not every_k_schedule >= 1:
        raise ValueError(f"every_k_schedule is at least 1, got {every_k_schedule!r}")
    inner = on_leaves(transformation)
    return GradientTransformation(
        bind(_multi_steps_init, transformation=inner, skip=should_skip_update_fn, dtype=accumulator_dtype),
        bind(
            _multi_steps_update,
            transformation=inner,
            every=every_k_schedule,
            mean=use_grad_mean,
            skip=should_skip_update_fn,
        ),
        bind(_multi_steps_step_size, transformation=inner),
    )


def _multi_steps_init(
    params: Any, *, transformation: GradientTransformation, skip: Any, dtype: torch.dtype | None
) -> MultiStepsState:
    def zeros(x: Tensor) -> Tensor:
        return torch.zeros_like(x, dtype=dtype or (torch.float32 if exact.is_narrow(x.dtype) else x.dtype))

    inner, step = transformation.init(params), zero_count(params)
    skip_state = () if skip is None else skip(tree.map(torch.zeros_like, params), step, params)[1]
    return MultiStepsState(step.clone(), step, inner, tree.map(zeros, params), false(params), skip_state)


def _multi_steps_update(
    updates: P,
    state: MultiStepsState,
    params: P,
    *,
    transformation: GradientTransformation,
    every: Any,
    mean: bool,
    skip: Any,
    **extra: Any,
) -> tuple[P, MultiStepsState]:
    skipped, skip_state = (state.emitted & False, ()) if skip is None else skip(updates, state.gradient_step, params)
    every = every(state.gradient_step) if tree.is_function(every) else every
    last = state.mini_step + 1 >= every
    emitted = last & ~skipped

    def accumulate(total: Tensor, update: Tensor) -> Tensor:
        new = update.to(total.dtype)
        added = (new - total) / (state.mini_step + 1).to(total.device, total.dtype) if mean else new
        return total + torch.where(skipped.to(total.device), torch.zeros_like(total), added)

    total = tree.map(accumulate, state.acc_grads, updates)
    gathered = tree.map(lambda x, update: x.to(update.dtype), total, updates)
    changed, inner = update_where(emitted, transformation, gathered, state.inner_opt_state, params, extra)
    mini_step = torch.where(skipped, state.mini_step, torch.where(last, 0, state.mini_step + 1))
    return changed, MultiStepsState(
        mini_step,
        state.gradient_step + emitted,
        inner,
        select_or_zero(~emitted, total),
        emitted,
        skip_state,
    )


def _multi_steps_step_size(state: MultiStepsState, step_size: Any, *, transformation: GradientTransformation) -> Any:
    return step_size_where(state.emitted, transformation, state.inner_opt_state, step_size)
