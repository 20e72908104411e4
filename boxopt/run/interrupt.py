"""Ctrl-C, held back while a compiled step writes over its arguments."""

from __future__ import annotations

import _signal  # pyright: ignore[reportMissingImports]  (what `signal` wraps in enumerations, which cost more than a small step's kernel)
import functools
import threading
from _thread import get_ident
from collections.abc import Callable
from typing import Any, TypeVar

T = TypeVar("T")


def uninterrupted(function: Callable[..., T], *arguments: Any) -> tuple[T, Callable[[], Any] | None]:
    """``function(*arguments)``, and what raises the interrupt that came meanwhile, if one did.

    Python takes signals on the main thread alone. Where their handler is not a Python function, they are not held back.
    """
    usual = _signal.getsignal(_signal.SIGINT) if get_ident() == threading.main_thread().ident else None
    if not callable(usual):
        return function(*arguments), None
    came: list[Any] = []
    _signal.signal(_signal.SIGINT, lambda *signal: came.append(signal))
    try:
        result = function(*arguments)
    finally:
        _signal.signal(_signal.SIGINT, usual)
    return result, functools.partial(usual, *came[0]) if came else None
