"""Moments that stand still while a bound is active."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.core.transform import GradientTransformation, bind, is_elementwise, members
from boxopt.core.types import P
from boxopt.sets.base import ConstraintSet, expect_set


class FreezeActiveState(NamedTuple):
    """The state of `freeze_active`.

    Attributes:
        inner: For each leaf of the parameters, the inner state of its coordinates, each with counters of its own.
        frozen: Which coordinates the last update froze: a tree of booleans.
    """

    inner: Any
    frozen: Any


def freeze_active(transformation: GradientTransformation, constraint: ConstraintSet) -> GradientTransformation:
    r"""Freeze the moments of coordinates that a bound holds back, and take them up again on release as they were.

    Where the parameter is at a bound and the gradient pushes it outwards, the update is 0 and the transformation's
    state, counters included, does not advance: to that coordinate it is as if the update had not been. So on release
    its momentum is not that of a force which the bound had cancelled, its second moment has not wound up against the
    bound, and the bias correction $1 - \beta^t$ counts the updates that entered the average.

    By default, without this, averages are plain: they take in every gradient, and at an active bound the second moment
    grows with it, so that the first steps after a release are short. That is right for noisy gradients, of which
    freezing would hide the outward half, a bias; freeze for deterministic ones.

    Args:
        transformation: What scales the gradient, coordinate by coordinate: ``scale_by_adam()``, or a chain. A counter
            is kept for each number. Hyperparameters are numbers or schedules, not pytree prefixes; norms over several
            numbers, as in `clip_by_global_norm`, belong before it.
        constraint: A set that constrains each number by itself: a box.

    Returns:
        A transformation with a `FreezeActiveState`; end the chain with `project`.

    Raises:
        ValueError: The set or the transformation does not treat each number by itself.

    Example:
        >>> import torch, boxopt as bx
        >>> box = bx.Box(0.0, 1.0)
        >>> tx = bx.chain(bx.freeze_active(bx.scale_by_adam(), box), bx.scale(-0.1), bx.project(box))
        >>> params = torch.tensor([0.0, 0.5])
        >>> updates, state = tx.update(torch.tensor([3.0, 3.0]), tx.init(params), params)
        >>> bx.tree_get(state, "count"), bx.tree_get(state, "mu")
        (tensor([0, 1]), tensor([0.0000, 0.3000]))
    """
    expect_set(constraint, "tangent")
    if not constraint.coordinatewise:
        raise ValueError(f"{type(constraint).__name__} does not constrain each number by itself; a box does")
    if not _by_itself(transformation):
        raise ValueError("the transformation does not treat each number by itself: is it declared elementwise?")
    return GradientTransformation(
        bind(_freeze_active_init, transformation=transformation, constraint=constraint),
        bind(_freeze_active_update, transformation=transformation, constraint=constraint),
        bind(_freeze_active_step_size, transformation=transformation),
    )


def _by_itself(transformation: GradientTransformation) -> bool:
    inner = tuple(members(transformation))
    return all(_by_itself(member) for member in inner) if inner else is_elementwise(transformation)


def _each(function: Callable[..., Any], shape: torch.Size, *arguments: Any) -> Any:
    """Apply a function to each coordinate of tensors, and of trees of tensors, that have this shape in front."""
    cut = next((x for x in tree.leaves(arguments) if sharded.is_sharded(x)), None)
    if cut is not None:  # each process has its coordinates
        local = tree.map(lambda x: sharded.local_like(x, cut), arguments)
        made = _each(function, tree.leaves(local)[0].shape, *local)
        return tree.map(lambda x: sharded.join(x, cut), made)
    if shape.numel() == 0:  # vmap does not run over nothing: what it would have made of one, cut to none
        one = tree.map(lambda x: x.new_ones((1, *x.shape[len(shape) :])), arguments)
        made = torch.func.vmap(function)(*one)
        return tree.map(lambda x: x[:0].reshape((*shape, *x.shape[1:])), made)
    flat = tree.map(lambda x: x.reshape((-1, *x.shape[len(shape) :])), arguments)
    made = torch.func.vmap(function)(*flat)
    # vmap expands what is the same for all; a copy of its own has the layout of the states to come.
    return tree.map(lambda x: x.reshape((*shape, *x.shape[1:])).contiguous(), made)


def _freeze_active_init(
    params: Any, *, transformation: GradientTransformation, constraint: ConstraintSet
) -> FreezeActiveState:
    constraint.check(params)
    inner = tree.map(lambda x: _each(transformation.init, x.shape, x), params)
    return FreezeActiveState(inner, tree.map(lambda x: torch.zeros_like(x, dtype=torch.bool), params))


def _freeze_active_update(
    updates: P,
    state: FreezeActiveState,
    params: P,
    *,
    transformation: GradientTransformation,
    constraint: ConstraintSet,
    **extra: Any,
) -> tuple[P, FreezeActiveState]:
    frozen = tree.map(torch.ne, constraint.tangent(params, updates), updates)
    sized = "step_size" in extra
    sizes = tree.map(_whole, params, tree.expand(extra.pop("step_size", 1.0), params))

    def step(x: Tensor, update: Tensor, held: Tensor, size: Tensor, inner: Any) -> tuple[Tensor, Any]:
        def advance(x: Tensor, update: Tensor, held: Tensor, size: Tensor, inner: Any) -> tuple[Tensor, Any]:
            given = {**extra, "step_size": size} if sized else extra
            free = torch.where(held, torch.zeros_like(update), update)
            changed, new = transformation.update(free, inner, x, **given)
            kept = tree.map(lambda old, now: torch.where(held, old, now.to(old.dtype)), inner, new)
            return torch.where(held, torch.zeros_like(changed), changed), kept

        return _each(advance, x.shape, x, update, held, size, inner)

    results = tree.map(step, params, updates, frozen, sizes, state.inner)
    changed = tree.map(lambda _, result: result[0], params, results)
    inner = tree.map(lambda _, result: result[1], params, results)
    return changed, FreezeActiveState(inner, frozen)


def _freeze_active_step_size(
    state: FreezeActiveState, step_size: Any, *, transformation: GradientTransformation
) -> Any:
    def size(held: Tensor, outer: Any, inner: Any) -> Tensor:
        def one(held: Tensor, outer: Tensor, inner: Any) -> Tensor:
            begun = tree.map(lambda x: x if x.is_floating_point() else torch.where(held, torch.ones_like(x), x), inner)
            made = transformation.step_size(begun, outer)
            return torch.where(held, torch.zeros_like(outer), made)

        return _each(one, held.shape, held, outer, inner)

    sizes = tree.map(_whole, state.frozen, tree.expand(step_size, state.frozen))
    return tree.map(size, state.frozen, sizes, state.inner)


def _whole(x: Tensor, step_size: Any) -> Tensor:
    """A step size for each number of a leaf."""
    dtype = torch.float32 if x.device.type == "mps" else torch.float64
    value = step_size if isinstance(step_size, Tensor) else torch.full((), step_size, dtype=dtype, device=x.device)
    return value.to(x.device).expand(x.shape)
