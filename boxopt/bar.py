"""A bar that shows how far a loop is, and what the optimization has reached. Needs tqdm."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar, overload

from boxopt.recording import scalars

T = TypeVar("T")


@overload
def progress(
    steps: int, show: Callable[[], Any] | None = ..., *, seconds: float = ..., **options: Any
) -> Iterator[int]: ...
@overload
def progress(
    steps: Iterable[T], show: Callable[[], Any] | None = ..., *, seconds: float = ..., **options: Any
) -> Iterator[T]: ...
def progress(
    steps: int | Iterable[Any], show: Callable[[], Any] | None = None, *, seconds: float = 0.5, **options: Any
) -> Iterator[Any]:
    """Go through steps or batches, and show a bar with the numbers of a `record` beside it.

    Numbers are read when they are shown, every so many seconds and at the end, since a GPU has to be waited for. It
    goes around the loop, outside of what is compiled. Around `unroll`, which is one operation, go in segments: so
    many calls of fewer steps, each from the carry of the one before, are the same steps with the same derivatives.

    Args:
        steps: The number of steps, or what to go through.
        show: A function without arguments that returns what to show: a state with a `record` in it, or a dict from
            names to numbers. A loop that gives its state a new value each time passes ``lambda: state``.
        seconds: How long the numbers stay, at least.
        **options: As of ``tqdm``: ``desc="training"``, ``unit="batch"``, ``disable=True``.

    Yields:
        0, 1, …, or the elements of ``steps``.

    Raises:
        ImportError: tqdm is not installed.

    Example:
        >>> import torch, boxopt as bx
        >>> box, x = bx.Box(0.0, 1.0), torch.tensor([0.5, 0.5])
        >>> tx = bx.chain(bx.record(box), bx.sgd(0.1), bx.project(box))
        >>> state = tx.init(x)
        >>> for _ in bx.progress(100, lambda: state, desc="fit", disable=True):
        ...     gradients, value = torch.func.grad_and_value(lambda x: ((x - 2) ** 2).sum())(x)
        ...     updates, state = tx.update(gradients, state, x, value=value)
        ...     x = bx.apply_updates(x, updates)
        >>> x
        tensor([1., 1.])
    """
    bar = progress_bar(range(steps) if isinstance(steps, int) else steps, **options)
    return _walk(bar, show, seconds)


def _walk(bar: Any, show: Callable[[], Any] | None, seconds: float) -> Iterator[Any]:
    shown = time.monotonic()
    with bar:
        try:
            for element in bar.iterable:
                yield element
                bar.update()
                if show is not None and time.monotonic() - shown >= seconds:
                    _show(bar, show)
                    shown = time.monotonic()
        finally:  # also where the caller leaves the loop
            if show is not None:
                _show(bar, show)


def _show(bar: Any, show: Callable[[], Any]) -> None:
    if not bar.disable:
        found = show()
        numbers = {name: float(number) for name, number in found.items()} if isinstance(found, dict) else scalars(found)
        bar.set_postfix(numbers, refresh=False)


def progress_bar(*arguments: Any, **options: Any) -> Any:
    """``tqdm``, as fits a terminal or a notebook."""
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("a progress bar needs the package tqdm: pip install tqdm") from error
    return tqdm(*arguments, **options)
