"""Hyperparameters in the state: to read, set, batch, differentiate and schedule."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P
from boxopt.core.values import zero_count


class InjectHyperparamsState(NamedTuple):
    """The state of a transformation made by `inject_hyperparams`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        hyperparams: The hyperparameters by name, tensors or trees of tensors: those of the last update, and, if they
            follow no schedule, of the next.
        inner_state: The state of the inner transformation.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    hyperparams: dict[str, Any]
    inner_state: Any


def inject_hyperparams(
    inner_factory: Callable[..., GradientTransformation],
    static_args: str | Iterable[str] = (),
    hyperparam_dtype: torch.dtype | None = None,
) -> Callable[..., GradientTransformation]:
    """Keep the numeric hyperparameters of a transformation in its state.

    There they can be read and set between updates, without recompilation; ``vmap`` batches them with the state, one for
    each member; derivatives with respect to the state reach them. Any of them may follow a schedule.

    Args:
        inner_factory: What makes the transformation: ``bx.adam``, ``bx.project``, or a function of yours.
        static_args: The names of arguments that are left as they are. Functions are taken for schedules unless they
            are named here; so name ``mask`` where it is a function.
        hyperparam_dtype: The dtype of the hyperparameters that were Python floats; float64 if left out.

    Returns:
        A function of the same arguments, which returns a transformation with an `InjectHyperparamsState`. Numbers,
        tensors and trees of them (a pytree prefix, a set) go into the state; booleans, strings, None and the rest do
        not.

    Raises:
        ValueError: ``static_args`` names an argument that there is not.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.inject_hyperparams(bx.sgd)(learning_rate=0.1), torch.zeros(1)
        >>> state = tx.init(params)
        >>> state = bx.tree_set(state, learning_rate=torch.tensor(0.5))
        >>> tx.update(torch.ones(1), state, params)[0]
        tensor([-0.5000])

    Source:
        `optax.inject_hyperparams`, which casts to the parameters' dtype; trees of numbers are boxopt's addition.
    """
    static = {static_args} if isinstance(static_args, str) else set(static_args)
    signature = inspect.signature(inner_factory)
    strange = sorted(static - set(signature.parameters))
    if strange:
        raise ValueError(
            f"static_args names {', '.join(map(repr, strange))}; "
            f"the arguments are {', '.join(map(repr, signature.parameters))}"
        )
    return bind(_inject, inner_factory, frozenset(static), hyperparam_dtype)


def _inject(
    factory: Callable[..., GradientTransformation],
    static: frozenset[str],
    dtype: torch.dtype | None,
    /,
    *args: Any,
    **kwargs: Any,
) -> GradientTransformation:
    bound = inspect.signature(factory).bind(*args, **kwargs)
    bound.apply_defaults()
    dynamic = {name: value for name, value in bound.arguments.items() if name not in static}
    schedules = {name: value for name, value in dynamic.items() if tree.is_function(value)}
    numbers = {
        name: tree.map(lambda x: as_tensor(x, dtype), value)
        for name, value in dynamic.items()
        if name not in schedules and is_numeric(value)
    }
    first = {**numbers, **_scheduled(schedules, torch.zeros((), dtype=torch.int64))}
    arguments = dict(bound.arguments)
    # The first transformation says what all of them are: which arguments they take, whether they finish a step.
    transformation = _make(factory, arguments, first)
    return GradientTransformation(
        bind(_inject_hyperparams_init, transformation=transformation, hyperparams=numbers, schedules=schedules),
        bind(
            _inject_hyperparams_update,
            transformation=transformation,
            factory=factory,
            arguments=arguments,
            schedules=schedules,
        ),
        bind(_inject_hyperparams_step_size, factory=factory, arguments=arguments),
    )


def _make(
    factory: Callable[..., GradientTransformation], arguments: dict[str, Any], hyperparams: dict[str, Any]
) -> GradientTransformation:
    signature = inspect.signature(factory)
    bound = inspect.BoundArguments(signature, {**arguments, **hyperparams})  # pyright: ignore[reportArgumentType]
    return on_leaves(factory(*bound.args, **bound.kwargs))


def _scheduled(schedules: dict[str, Any], count: Tensor) -> dict[str, Any]:
    return {name: schedule(count) for name, schedule in schedules.items()}


def is_numeric(value: Any) -> bool:
    """Whether a value is a number, a tensor, or a tree of them."""
    found = tree.leaves(value)
    return bool(found) and all(
        isinstance(x, (int, float, Tensor, np.ndarray, np.number)) and not isinstance(x, bool) for x in found
    )


def as_tensor(value: Any, dtype: torch.dtype | None) -> Tensor:
    """A number as a tensor: a float in float64 or the dtype given, an integer in int64; tensors stay as they are."""
    value = tree.as_value(value)
    if isinstance(value, Tensor):
        return value
    return torch.tensor(value, dtype=(dtype or torch.float64) if isinstance(value, float) else torch.int64)


def _inject_hyperparams_init(
    params: Any, *, transformation: GradientTransformation, hyperparams: dict[str, Any], schedules: dict[str, Any]
) -> InjectHyperparamsState:
    inner = transformation.init(params)
    count = zero_count(params)
    # Copies: what is in a state may be donated, and what the transformation was made of may not.
    placed = tree.map(lambda x: x.to(count.device, copy=True) if x.ndim == 0 else x.clone(), hyperparams)
    return InjectHyperparamsState(count, {**placed, **_scheduled(schedules, count)}, inner)


def _inject_hyperparams_update(
    updates: P,
    state: InjectHyperparamsState,
    params: P,
    *,
    transformation: GradientTransformation,
    factory: Callable[..., GradientTransformation],
    arguments: dict[str, Any],
    schedules: dict[str, Any],
    **extra: Any,
) -> tuple[P, InjectHyperparamsState]:
    hyperparams = {**state.hyperparams, **_scheduled(schedules, state.count)}
    updates, inner = _make(factory, arguments, hyperparams).update(updates, state.inner_state, params, **extra)
    return updates, InjectHyperparamsState(state.count + 1, hyperparams, inner)


def _inject_hyperparams_step_size(
    state: InjectHyperparamsState,
    step_size: Any,
    *,
    factory: Callable[..., GradientTransformation],
    arguments: dict[str, Any],
) -> Any:
    return _make(factory, arguments, state.hyperparams).step_size(state.inner_state, step_size)
