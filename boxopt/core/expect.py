"""Whether hyperparameters are what their annotations say, asked once: where they are bound."""

from __future__ import annotations

from collections.abc import Callable
from functools import lru_cache, wraps
from inspect import signature
from numbers import Real
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import tree

F = TypeVar("F", bound=Callable[..., Any])


def is_number(value: Any) -> bool:
    """Whether this is a number or a tensor: a `Scalar`."""
    return type(value) is float or (isinstance(value, (Tensor, Real)) and not isinstance(value, bool))


def expect_annotated(function: Callable[..., Any], named: dict[str, Any]) -> None:
    """Raise a ``TypeError`` where a function declares a `Scalar` or a `ScalarOrSchedule`, and is to get something else.

    Without it, what is no number would show in the first update, in the words of whatever meets it there.
    """
    if torch.compiler.is_compiling():
        return
    for name, declared in _declared(function):
        value = named.get(name)
        if type(value) is float or name not in named or (value is None and declared.endswith(" | None")):
            continue
        (expect_numbers if declared.startswith("ScalarOrSchedule") else expect_number)(name, value)


def expects_numbers(make: F) -> F:
    """Have a function's arguments checked by its own names, before what it is composed of does so by others."""
    names = list(signature(make).parameters)

    @wraps(make)
    def checked(*arguments: Any, **named: Any) -> Any:
        expect_annotated(make, dict(zip(names, arguments, strict=False)) | named)
        return make(*arguments, **named)

    return checked  # pyright: ignore[reportReturnType]


@lru_cache(maxsize=1024)
def _declared(function: Callable[..., Any]) -> tuple[tuple[str, str], ...]:
    """The names of a function's arguments that are declared so, and how."""
    annotations = getattr(function, "__annotations__", {})
    kinds = ("Scalar", "Scalar | None", "ScalarOrSchedule", "ScalarOrSchedule | None")
    return tuple((name, declared) for name, declared in annotations.items() if declared in kinds)


def expect_number(name: str, value: Any) -> None:
    """Raise a ``TypeError`` unless this is a number or a tensor."""
    if not torch.compiler.is_compiling() and not is_number(value):
        raise TypeError(f"{name} is a number or a tensor, got {_shown(value)}")


def expect_numbers(name: str, value: Any) -> None:
    """Raise a ``TypeError`` unless this is a number, a tensor, a pytree prefix of these, or a schedule.

    A prefix has ``None`` where the parameters have.
    """
    if is_number(value) or tree.is_function(value) or torch.compiler.is_compiling():
        return
    for place, number in places(name, value):
        if not is_number(number) and not (number is None and place != name):
            raise TypeError(f"{place} is a number, a tensor or a schedule, got {_shown(number)}")


def places(name: str, prefix: Any) -> list[tuple[str, Any]]:
    """Each value of a pytree prefix, after what a message calls it."""
    return [(f"{name} of {tree.name(path)}" if path else name, value) for path, value in tree.prefix_items(prefix)]


def _shown(value: Any) -> str:
    return f"{type(value).__name__} {value!r:.60}"
