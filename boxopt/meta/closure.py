"""The tensors that a function closes over, made its arguments.

A derivative rule knows the tensors that it is given. An inner loop's step closes over others: the data of its task, a
learning rate bound in a transformation, the bounds of a box. `convert` finds those whose derivatives are followed, or
which are batched, wherever they are reached from the function: in its closure and defaults, in partials, methods,
containers and objects, in functions that it closes over, and among the global variables of its module that it names.
"""

from __future__ import annotations

import copy
import types
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any

from torch import Tensor
from torch._C import _functorch  # pyright: ignore[reportAttributeAccessIssue]

from boxopt.core import tree

_LIBRARIES = {"torch", "boxopt", "optree", "numpy", "functools"}
_ATOMS = (str, bytes, int, float, complex, bool, type, types.ModuleType, types.BuiltinFunctionType, types.CodeType)


def convert(
    function: Callable[..., Any], followed: Callable[[Tensor], bool] | None = None
) -> tuple[list[Tensor], Callable[[list[Tensor]], Callable[..., Any]]]:
    """The tensors that a function closes over and transforms of torch follow, and the function with others in place.

    Args:
        function: The function.
        followed: Which tensors to find, `is_followed` unless given.

    Returns:
        The tensors, and a function that takes as many others to a function which uses these instead.
    """
    found: dict[int, Tensor] = {}
    wanted = followed or is_followed

    def note(x: Tensor) -> Tensor:
        if wanted(x):
            found[id(x)] = x
        return x

    _substituted(function, note, {})

    def with_others(others: list[Tensor]) -> Callable[..., Any]:
        replacements = dict(zip(found, others, strict=True))
        return _substituted(function, lambda x: replacements.get(id(x), x), {}) if found else function

    return list(found.values()), with_others


def is_followed(x: Tensor) -> bool:
    """Whether autograd or a transform of ``torch.func`` follows a tensor."""
    return x.requires_grad or is_transformed(x)


def is_transformed(x: Tensor) -> bool:
    """Whether a transform of ``torch.func`` follows a tensor."""
    return _functorch.is_functorch_wrapped_tensor(x)


def is_recorded(x: Tensor) -> bool:
    """Whether autograd, around all transforms of ``torch.func``, follows a tensor."""
    while is_transformed(x):
        x = _functorch.get_unwrapped(x)
    return x.requires_grad


def _substituted(value: Any, change: Callable[[Tensor], Tensor], memo: dict[int, Any]) -> Any:
    """The value with each tensor that it holds changed; the value itself where nothing is."""
    if isinstance(value, Tensor):
        return change(value)
    if value is None or isinstance(value, _ATOMS):
        return value
    if id(value) not in memo:
        memo[id(value)] = value  # what holds itself is met again before it is done
        memo[id(value)] = _rebuilt(value, change, memo)
    return memo[id(value)]


def _rebuilt(value: Any, change: Callable[[Tensor], Tensor], memo: dict[int, Any]) -> Any:
    if isinstance(value, types.FunctionType):
        return _rebuilt_function(value, change, memo)
    if isinstance(value, types.MethodType):
        owner = _substituted(value.__self__, change, memo)
        return value if owner is value.__self__ else types.MethodType(value.__func__, owner)
    if isinstance(value, partial):
        parts = [value.func, *value.args, *value.keywords.values()]
        new = [_substituted(part, change, memo) for part in parts]
        if _same(parts, new):
            return value
        after = 1 + len(value.args)
        return partial(new[0], *new[1:after], **dict(zip(value.keywords, new[after:], strict=True)))
    if not tree.is_leaf(value):
        parts, structure = tree.flatten(value)
        new = [_substituted(part, change, memo) for part in parts]
        return value if _same(parts, new) else tree.unflatten(structure, new)
    if hasattr(value, "__dict__"):
        parts = vars(value)
        new = {name: _substituted(part, change, memo) for name, part in parts.items()}
        if _same(parts.values(), new.values()):
            return value
        changed = copy.copy(value)
        changed.__dict__.update(new)
        return changed
    return value


def _rebuilt_function(function: types.FunctionType, change: Any, memo: dict[int, Any]) -> types.FunctionType:
    names = function.__code__.co_freevars
    closure = {n: c.cell_contents for n, c in zip(names, function.__closure__ or (), strict=True) if _is_filled(c)}
    kinds = [closure, dict(enumerate(function.__defaults__ or ())), function.__kwdefaults__ or {}, _globals(function)]
    new = [{name: _substituted(part, change, memo) for name, part in parts.items()} for parts in kinds]
    if all(_same(parts.values(), others.values()) for parts, others in zip(kinds, new, strict=True)):
        return function
    cells = tuple(types.CellType() for _ in names)
    namespace = {**function.__globals__, **new[3]} if new[3] else function.__globals__
    rebuilt = types.FunctionType(function.__code__, namespace, function.__name__, tuple(new[1].values()), cells)
    for name, cell in zip(names, cells, strict=True):
        if name in new[0]:
            content = new[0][name]
            cell.cell_contents = rebuilt if content is function else content  # a recursive function
    rebuilt.__kwdefaults__ = new[2]
    rebuilt.__dict__.update(function.__dict__)
    return rebuilt


def _globals(function: types.FunctionType) -> dict[str, Any]:
    """The global variables that the code of a user's function names, if they are tensors, containers or functions."""
    if (function.__module__ or "").partition(".")[0] in _LIBRARIES:
        return {}
    found = {name: function.__globals__[name] for name in _names(function.__code__) if name in function.__globals__}
    return {name: value for name, value in found.items() if not isinstance(value, _ATOMS)}


def _names(code: types.CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            yield from _names(constant)


def _is_filled(cell: types.CellType) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True


def _same(parts: Iterable[Any], others: Iterable[Any]) -> bool:
    return all(part is other for part, other in zip(parts, others, strict=True))
