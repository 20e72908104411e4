"""A function of a large batch, evaluated on one part after the other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import bind

_KINDS = ("sum", "mean", "concat")


def microbatch(
    fun: Callable[..., Any],
    argnums: int | Sequence[int],
    microbatch_size: int | None,
    accumulator: Any = "sum",
    *,
    argnames: str | Sequence[str] = (),
    in_axes: int | Sequence[int] = 0,
) -> Callable[..., Any]:
    """Evaluate a function on parts of a batch, one after the other, and put the results together: memory for one part.

    To accumulate gradients within one step, put ``torch.func.grad(loss)`` in here; over several calls of ``update``,
    see `multi_steps`. Parts are consecutive rows. 16-bit results are added up in float32.

    Args:
        fun: A function of tensors and trees of them.
        argnums: The positions of the arguments with a batch dimension.
        microbatch_size: The number of rows of a part, which divides that of the batch; None for all of them.
        accumulator: ``"sum"``, ``"mean"`` or ``"concat"``, or a pytree prefix of the results with these.
        argnames: The names of keyword arguments with a batch dimension.
        in_axes: Which dimension that is: one number, or one for each of ``argnums`` and ``argnames``.

    Returns:
        A function of the same arguments.

    Raises:
        ValueError: An accumulator is none of these; when called, the size of a part does not divide the batch, or
            the arguments differ in their number of rows.

    Example:
        >>> import torch, boxopt as bx
        >>> loss = lambda w, x: ((x @ w) ** 2).mean()
        >>> w, x = torch.ones(2), torch.arange(12.0).reshape(6, 2)
        >>> bx.microbatch(torch.func.grad(loss), argnums=1, microbatch_size=2, accumulator="mean")(w, x)
        tensor([156.6667, 178.6667])
        >>> torch.func.grad(loss)(w, x)
        tensor([156.6667, 178.6667])

    Source:
        `optax.microbatch`, whose parts are not consecutive.
    """
    for path, kind in tree.prefix_items(accumulator):
        if kind not in _KINDS:
            place = f" at {tree.name(path)}" if path else ""
            raise ValueError(f"an accumulator is one of {', '.join(_KINDS)}, got {kind!r}{place}")
    if microbatch_size is None:
        return fun
    places = [*((argnums,) if isinstance(argnums, int) else argnums)]
    places += [argnames] if isinstance(argnames, str) else [*argnames]
    axes = [in_axes] * len(places) if isinstance(in_axes, int) else [*in_axes]
    return bind(_microbatched, fun, tuple(zip(places, axes, strict=True)), microbatch_size, accumulator)


def _microbatched(
    fun: Callable[..., Any],
    batched: tuple[tuple[int | str, int], ...],
    size: int,
    accumulator: Any,
    /,
    *args: Any,
    **kwargs: Any,
) -> Any:
    given = dict(enumerate(args)) | kwargs
    rows = {leaf.shape[axis] for place, axis in batched for leaf in tree.leaves(given[place])}
    if len(rows) != 1:
        raise ValueError(f"the arguments differ in their number of rows: {', '.join(map(str, sorted(rows)))}")
    count, rest = divmod(rows.pop(), size)
    if rest or not count:
        raise ValueError(f"microbatch_size is {size}, which does not divide the {count * size + rest} rows")
    carried: list[Any] = []
    dtypes, kinds, structure = [], [], None
    for start in range(0, count * size, size):
        part = given | {
            place: tree.map(lambda x, axis=axis, start=start: x.narrow(axis, start, size), given[place])
            for place, axis in batched
        }
        result = fun(*[part[index] for index in range(len(args))], **{name: part[name] for name in kwargs})
        leaves, structure = tree.flatten(result)
        kinds = tree.leaves(tree.expand(accumulator, result))
        dtypes = [leaf.dtype for leaf in leaves]
        new = [[leaf] if kind == "concat" else exact.wide(leaf) for leaf, kind in zip(leaves, kinds, strict=True)]
        carried = [old + more for old, more in zip(carried, new, strict=True)] if carried else new
    whole = [_finished(total, kind, count).to(dtype) for total, kind, dtype in zip(carried, kinds, dtypes, strict=True)]
    return tree.unflatten(structure, whole)


def _finished(total: Any, kind: str, count: int) -> Tensor:
    if kind == "concat":
        return torch.cat(total)
    return total / count if kind == "mean" else total
