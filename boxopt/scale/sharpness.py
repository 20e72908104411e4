"""Sharpness-aware minimization: descend with the gradient at an adversarial point near by."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import (
    EmptyState,
    GradientTransformation,
    apply_updates,
    bind,
    elementwise,
    no_state,
    whole_leaves,
)
from boxopt.core.types import P
from boxopt.core.values import zero_count
from boxopt.scale.moments import map_wide
from boxopt.scale.scalars import scaled, squared_norm


def normalize() -> GradientTransformation:
    r"""Divide the updates by their common Euclidean norm.

    $$ u \leftarrow u / \lVert u \rVert_2 $$

    Zero updates stay zero, where optax's become NaN. The step size is unchanged: what is normalized is a direction.

    Returns:
        A gradient-space transformation without state.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.normalize(), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.6000, 0.8000])

    Source:
        `optax.contrib.normalize`.
    """
    return GradientTransformation(no_state, _normalize_update)


@elementwise  # of a packed tree the norm is the same
def _normalize_update(updates: P, state: EmptyState, params: P) -> tuple[P, EmptyState]:
    square = squared_norm(updates)
    nonzero = square > 0
    return scaled(updates, torch.where(nonzero, torch.where(nonzero, square, 1.0).rsqrt(), 0.0)), state


class SAMState(NamedTuple):
    """The state of `sam`.

    Attributes:
        steps_since_sync: The number of adversarial steps made since the last outer one, an int64 scalar.
        opt_state: The outer optimizer's.
        adv_state: The adversarial optimizer's.
        cache: The parameters of the last outer step; () in opaque mode.
    """

    steps_since_sync: Tensor
    opt_state: Any
    adv_state: Any
    cache: Any


def sam(
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int = 2,
    reset_state: bool = True,
    opaque_mode: bool = False,
) -> GradientTransformation:
    r"""Take adversarial steps up the loss, and a step down with the gradient found there, from where they began.

    $$ x_{i+1} = x_i - u_\text{adv}(\nabla f(x_i)), \quad x_0 = x, \qquad x^+ = x + u(\nabla f(x_{k-1})) $$

    With ``chain(normalize(), sgd(rho))`` as the adversary and k = 2 this is the method of the paper. In transparent
    mode every call of ``update`` makes one of these steps; in opaque mode all of them, and asks for gradients.

    The step size is that of the optimizer that made the step. In opaque mode the outer optimizer's update is the
    result, so that one which ends in `project` stays in its set, while the adversary may leave it; in transparent mode
    put the set after, which then keeps the adversary in as well.

    Args:
        optimizer: The outer optimizer.
        adv_optimizer: The adversary: an optimizer, whose updates are subtracted.
        sync_period: k, how many gradients an outer step takes.
        reset_state: Whether the adversary starts anew after each outer step.
        opaque_mode: Whether ``update`` makes all the steps itself. It then takes ``grad_fn=``, a function of the
            parameters and the number of the adversarial step.

    Returns:
        A transformation with a `SAMState`.

    Raises:
        ValueError: ``sync_period`` is less than 1.

    Example:
        >>> import torch, boxopt as bx
        >>> adversary = bx.chain(bx.contrib.normalize(), bx.sgd(0.5))
        >>> tx, params = bx.contrib.sam(bx.sgd(0.1), adversary, opaque_mode=True), torch.tensor([1.0])
        >>> slope = lambda params, step: 2 * params
        >>> tx.update(slope(params, 0), tx.init(params), params, grad_fn=slope)[0]
        tensor([-0.3000])

    Source:
        P. Foret et al., "Sharpness-aware minimization for efficiently improving generalization", ICLR 2021;
        `optax.contrib.sam`.
    """
    if sync_period < 1:
        raise ValueError(f"sync_period is at least 1, got {sync_period!r}")
    inner = {"optimizer": on_leaves(optimizer), "adv_optimizer": on_leaves(adv_optimizer)}
    update = _opaque_update if opaque_mode else _transparent_update
    return GradientTransformation(
        bind(_sam_init, **inner, opaque_mode=opaque_mode),
        bind(update, **inner, sync_period=sync_period, reset_state=reset_state),
        bind(_sam_step_size, **inner, opaque_mode=opaque_mode),
    )


def _sam_init(
    params: Any, *, optimizer: GradientTransformation, adv_optimizer: GradientTransformation, opaque_mode: bool
) -> SAMState:
    tree.check_parameters(params)
    cache = () if opaque_mode else tree.map(Tensor.clone, params)
    return SAMState(zero_count(params), optimizer.init(params), adv_optimizer.init(params), cache)


def _transparent_update(
    updates: P,
    state: SAMState,
    params: P,
    *,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int,
    reset_state: bool,
) -> tuple[P, SAMState]:
    first, last = state.steps_since_sync == 0, state.steps_since_sync == sync_period - 1

    def choose(condition: Tensor, one: Any, other: Any) -> Any:
        return tree.map(lambda x, y: torch.where(condition, x, y), one, other)

    adv_updates, adv_state = adv_optimizer.update(updates, state.adv_state, params)
    descent, opt_state = optimizer.update(updates, state.opt_state, state.cache)
    back = map_wide(lambda p, c, u: c - p + u, params, state.cache, descent)
    new = choose(last, back, tree.map(torch.neg, adv_updates))
    restarted = adv_optimizer.init(params) if reset_state else state.adv_state
    return new, SAMState(
        (state.steps_since_sync + 1) % sync_period,
        choose(last, opt_state, state.opt_state),
        choose(last, restarted, adv_state),
        choose(first, params, state.cache),
    )


@whole_leaves  # for the caller's function
def _opaque_update(
    updates: P,
    state: SAMState,
    params: P,
    *,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    sync_period: int,
    reset_state: bool,
    grad_fn: Callable[[P, int], P],
) -> tuple[P, SAMState]:
    point, gradients, adv_state = params, updates, state.adv_state
    for step in range(sync_period - 1):
        adv_updates, adv_state = adv_optimizer.update(gradients, adv_state, point)
        point = apply_updates(point, tree.map(torch.neg, adv_updates))
        gradients = grad_fn(point, step)
    adv_state = adv_optimizer.init(params) if reset_state else adv_state
    new, opt_state = optimizer.update(gradients, state.opt_state, params)
    return new, SAMState(state.steps_since_sync, opt_state, adv_state, ())


def _sam_step_size(
    state: SAMState,
    step_size: Any,
    *,
    optimizer: GradientTransformation,
    adv_optimizer: GradientTransformation,
    opaque_mode: bool,
) -> Any:
    if opaque_mode:
        return optimizer.step_size(state.opt_state, step_size)
    outer = state.steps_since_sync == 0
    # Before its first step an optimizer has no step size: what is not chosen is computed for a counter of 1.
    counted = tree.map(lambda x: x if x.is_floating_point() else torch.where(outer, x, x + 1), state.opt_state)

    def choose(one: Any, other: Any) -> Tensor:
        like = next((x for x in (one, other) if isinstance(x, Tensor)), outer.to(torch.get_default_dtype()))
        return torch.where(outer, exact.as_tensor(one, like), exact.as_tensor(other, like))

    return tree.combine(
        choose, optimizer.step_size(counted, step_size), adv_optimizer.step_size(state.adv_state, step_size)
    )
