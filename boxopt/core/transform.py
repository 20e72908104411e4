"""The protocol: three pure functions, and what a transformation may ask its chain for."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import FunctionType
from typing import Any, NamedTuple, Protocol, TypeVar

from torch import Tensor

from boxopt.core import foreach, sharded, tree
from boxopt.core.donation import refuse_consumed
from boxopt.core.expect import expect_annotated
from boxopt.core.types import P, ParameterSet


class InitFunction(Protocol):
    """``params -> state``."""

    def __call__(self, params: Any, /) -> Any: ...


class UpdateFunction(Protocol):
    """``(updates, state, params, **extra) -> (updates, state)``."""

    def __call__(self, updates: P, state: Any, params: P, /, *args: Any, **extra: Any) -> tuple[P, Any]: ...


class StepSizeFunction(Protocol):
    """``(new_state, step_size) -> step_size``."""

    def __call__(self, state: Any, step_size: Any, /) -> Any: ...


def unchanged(state: Any, step_size: Any) -> Any:
    """The step size of a transformation that does not scale its updates."""
    return step_size


def finished(state: Any, step_size: Any) -> Any:
    """The step size of a *step-space* transformation: unchanged, and a mark that the update is now a finished step.

    After a finished step only step-space transformations may follow in a chain: anything else could carry the
    parameters out of the set again.
    """
    return step_size


class GradientTransformation(NamedTuple):
    """A pair of pure functions, as in optax, and a third that says how large a step they make.

    Attributes:
        init: ``params -> state``.
        update: ``(updates, state, params, **extra) -> (updates, state)``. The updates are gradients at first; what the
            last member of a chain returns is added to the parameters. ``params`` is always given.

            An update function names what else it needs as keyword arguments, and a chain gives each member what it
            names: ``step_size``, which the chain works out, or any argument of the caller's (``value=``, say). What no
            member names is an error.
        step_size: ``(new_state, step_size) -> step_size``, by what factor the update just made scaled the gradient:
            the candidate is params − step_size · (search direction). A number, a tensor or a pytree prefix of the
            parameters; unchanged unless given.

    A transformation pickles if its functions do: make them module-level functions, bound with ``functools.partial``.
    Its ``repr`` reads off their names and what is bound.

    Example:
        >>> import boxopt as bx
        >>> bx.chain(bx.trace(0.9), bx.scale(-0.1), bx.project(bx.Box(0.0, 1.0)))
        chain(trace(decay=0.9), scale(factor=-0.1, sign=1), project(constraint=Box(lower=0.0, upper=1.0)))
    """

    init: InitFunction
    update: UpdateFunction
    step_size: StepSizeFunction = unchanged

    def __repr__(self) -> str:
        return describe(self)


F = TypeVar("F", bound=Callable[..., Any])


def elementwise(update: F) -> F:
    """Declare that an update function treats each number by itself, so that it may run on packed parameters.

    What is not declared is given whole leaves: see `boxopt.on_leaves`. The declaration is a promise: the updates, and
    the state, of a concatenation are the concatenation of the updates.

    Example:
        >>> import boxopt as bx
        >>> @bx.elementwise
        ... def halve(updates, state, params):
        ...     return torch.utils._pytree.tree_map(lambda u: u / 2, updates), state
    """
    update.elementwise = True  # pyright: ignore[reportFunctionMemberAccess]
    return update


def last(update: F) -> F:
    """Declare that an update function counts on its updates being applied as they are: it keeps what comes of them.

    In a chain nothing that changes updates may follow.
    """
    update.last = True  # pyright: ignore[reportFunctionMemberAccess]
    return update


def is_last(transformation: GradientTransformation) -> bool:
    """Whether a transformation's update is declared `last`."""
    update = transformation.update
    return getattr(getattr(update, "func", update), "last", False)


def whole_leaves(update: F) -> F:
    """Declare that an update function needs whole leaves, though it passes them on to a transformation bound in it."""
    update.elementwise = False  # pyright: ignore[reportFunctionMemberAccess]
    return update


def is_elementwise(transformation: GradientTransformation) -> bool:
    """Whether a transformation may be given packed parameters: it is declared so, or passes them on.

    A transformation bound to a set is elementwise if the set is ``separable``.
    """
    update = transformation.update
    declared = getattr(getattr(update, "func", update), "elementwise", None)
    if declared is None:
        return any(True for _ in members(transformation))
    bound = bound_in(update).values()
    return declared and all(getattr(value, "separable", True) for value in bound)


def lets_through(update: F) -> F:
    """Declare that an update function returns its updates unchanged, so that it may stand anywhere in a chain."""
    update.lets_through = True  # pyright: ignore[reportFunctionMemberAccess]
    return update


class EmptyState(NamedTuple):
    """The state of a transformation that keeps nothing."""


def no_state(params: Any) -> EmptyState:
    """The ``init`` of a transformation that keeps nothing: it checks the parameters."""
    tree.check_parameters(params)
    return EmptyState()


def bind(function: Callable[..., Any], /, *arguments: Any, **named: Any) -> Any:
    """``functools.partial``, typed loosely: a partial function does not keep the type variables of a protocol.

    Raises:
        TypeError: What the function declares a `Scalar` or a `ScalarOrSchedule` is something else.
    """
    expect_annotated(function, named)
    return partial(function, *arguments, **named)


def bound_in(function: Callable[..., Any]) -> dict[str, Any]:
    """The keyword arguments that `bind` has bound in a function."""
    return function.keywords if isinstance(function, partial) else {}


def identity() -> GradientTransformation:
    """The transformation that returns its updates unchanged.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.identity()
        >>> tx.update(torch.tensor([1.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([1.])
    """
    return GradientTransformation(no_state, _identity_update)


@lets_through
@elementwise
def _identity_update(updates: P, state: Any, params: P) -> tuple[P, Any]:
    return updates, state


def is_identity(transformation: GradientTransformation) -> bool:
    """Whether this lets its updates through unchanged, as `identity` does, and so may stand anywhere in a chain."""
    return getattr(getattr(transformation.update, "func", transformation.update), "lets_through", False)


def stateless(function: Callable[[P, P], P]) -> GradientTransformation:
    """The transformation that applies ``function(updates, params) -> updates`` and keeps no state.

    Args:
        function: A pure function of two trees. Make it a module-level function if the transformation is to be pickled.

    Example:
        >>> import torch, boxopt as bx
        >>> halve = bx.stateless(lambda updates, params: {name: u / 2 for name, u in updates.items()})
        >>> params = {"w": torch.zeros(1)}
        >>> halve.update({"w": torch.tensor([1.0])}, halve.init(params), params)[0]
        {'w': tensor([0.5000])}
    """
    return GradientTransformation(no_state, bind(_stateless_update, function=function))


def _stateless_update(updates: P, state: Any, params: P, *, function: Callable[[P, P], P]) -> tuple[P, Any]:
    return function(updates, params), state


def apply_updates(params: P, updates: P, within: ParameterSet | None = None) -> P:
    """Add the updates to the parameters, keeping each parameter's dtype, and where its numbers are if it is sharded.

    Args:
        params: A tree of tensors.
        updates: A tree of the same structure and shapes.
        within: A set to project onto after adding. What a sum cannot do, this does: land on a bound exactly, and reach
            a small set from far outside in one step. Without it, an update made by `project` keeps feasible parameters
            feasible all the same.

    Returns:
        The new parameters; the arguments are left as they are.

    Raises:
        ValueError: A structure or a shape does not match; the message names the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.apply_updates(torch.tensor([0.5]), torch.tensor([9.0]), within=bx.Box(0.0, 1.0))
        tensor([1.])
    """
    params = foreach.map(add_update, params, updates)
    return params if within is None else within.project(params)


def add_update(param: Tensor, update: Tensor) -> Tensor:
    """`apply_updates` for one leaf."""
    for leaf in foreach.members(param):
        refuse_consumed(leaf, "the parameter")
    if param.shape != update.shape:
        raise ValueError(f"the update has shape {tuple(update.shape)}, the parameter {tuple(param.shape)}")
    total = param + update
    if sharded.is_sharded(param):
        total = sharded.placed(total, param)
    return total if total.dtype == param.dtype else total.to(param.dtype)


def members(transformation: GradientTransformation) -> Iterator[GradientTransformation]:
    """The transformations that a combinator or wrapper was made of: those bound in its partial ``update``."""
    update = transformation.update
    if isinstance(update, partial):
        for bound in (*update.args, *update.keywords.values()):
            if isinstance(bound, GradientTransformation):
                yield bound
            elif isinstance(bound, tuple):
                yield from (item for item in bound if isinstance(item, GradientTransformation))


def accepted(transformation: GradientTransformation) -> frozenset[str] | None:
    """The names of the keyword arguments that an update takes; None if it takes any.

    A combinator's update has ``**extra`` and passes on what its members take, and what is bound as ``also_takes``. A
    function of the user's with ``**extra`` takes anything.
    """
    update = transformation.update
    bound = bound_in(update)
    own = _keyword_arguments(update)
    if own is not None:
        return own
    inner = tuple(members(transformation))
    taken = [accepted(member) for member in inner] + [bound.get("also_takes", frozenset())]
    if not inner or None in taken:
        return None
    return frozenset().union(*(names for names in taken if names is not None))


def _keyword_arguments(function: Callable[..., Any]) -> frozenset[str] | None:
    """The names of the keyword-only arguments of a function that are not bound; None if it takes any."""
    bound: set[str] = set()
    while isinstance(function, partial):
        bound.update(function.keywords)
        function = function.func
    if isinstance(function, FunctionType) and not hasattr(function, "__wrapped__"):
        # What the signature says, without making one: under compile that takes longer than tracing the step.
        code = function.__code__
        if code.co_flags & inspect.CO_VARKEYWORDS:
            return None
        return frozenset(code.co_varnames[code.co_argcount : code.co_argcount + code.co_kwonlyargcount]) - bound
    named = [p for p in inspect.signature(function).parameters.values() if p.name not in bound]
    if any(parameter.kind is parameter.VAR_KEYWORD for parameter in named):
        return None
    return frozenset(parameter.name for parameter in named if parameter.kind is parameter.KEYWORD_ONLY)


def describe(value: Any) -> str:
    """How a transformation, a schedule or a hyperparameter reads: the name of what made it, and what is bound."""
    function = value.update if isinstance(value, GradientTransformation) else value
    if isinstance(function, dict):
        return f"{{{', '.join(f'{key!r}: {describe(item)}' for key, item in function.items())}}}"
    if isinstance(function, Tensor):
        return repr(function) if function.ndim == 0 else f"Tensor{list(function.shape)}"
    if not callable(function) or isinstance(function, type):
        return repr(function)
    bound = bound_in(function)
    plain = function.func if isinstance(function, partial) else function
    if not isinstance(plain, FunctionType):
        return repr(plain)
    name = _public_name(plain)
    if name == "on_leaves":
        return describe(bound["transformation"])
    if plain is function and plain.__name__ == name:
        return name  # a function of the user's
    if isinstance(value, GradientTransformation) and isinstance(value.init, partial):
        known = [id(argument) for argument in bound.values()]
        bound = bound | {key: given for key, given in value.init.keywords.items() if id(given) not in known}
    return f"{'named_' if bound.get('names') else ''}{name}({', '.join(_arguments(bound))})"


def _arguments(bound: dict[str, Any]) -> Iterator[str]:
    names = bound.get("names")
    for key, value in bound.items():
        if isinstance(value, GradientTransformation):
            yield describe(value)
        elif isinstance(value, tuple) and value and all(isinstance(item, GradientTransformation) for item in value):
            texts = [describe(item) for item in value]
            yield from (f"({name!r}, {text})" for name, text in zip(names, texts, strict=True)) if names else texts
        elif not _is_inner(key, value):
            yield f"{key}={describe(value)}"


_WORKED_OUT = ("names", "taken", "takes", "also_takes", "arguments", "hyperparams", "schedules")


def _is_inner(key: str, value: Any) -> bool:
    """Whether a bound argument is not worth a mention: left out, or worked out from the others."""
    return value is None or value is False or key in _WORKED_OUT


def _public_name(function: FunctionType) -> str:
    """The name of the public function, of the same module, that binds this one: that of ``_adam_update`` is
    ``scale_by_adam``.
    """
    base = function.__name__.strip("_").removesuffix("_update")
    module = sys.modules.get(function.__module__)
    public = [
        name
        for name, value in vars(module).items()
        if isinstance(value, FunctionType) and value.__module__ == function.__module__ and not name.startswith("_")
    ]
    fitting = (
        [name for name in public if name in (base, f"scale_by_{base}")],
        [name for name in public if name.endswith(f"_{base}")],
        [name for name in public if name.startswith(f"{base}_")],
        [name for name in public if base.startswith(f"{name}_")],
        [name for name in public if base in name],
    )
    return next((names[0] for names in fitting if names), base)
