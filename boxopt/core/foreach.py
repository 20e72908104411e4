"""Many small leaves at once: each operation is one call of torch for all of them, rather than one for each.

In eager mode a small leaf costs what Python and torch's dispatch take, whatever is computed. `map` gathers the small
leaves of a tree in a `Leaves`, which stands in the place of a tensor, so that the formula is the one that other leaves
go through. So are the numbers, to the last bit: on a CPU ``torch._foreach_*`` runs the same kernels.

Large leaves gain nothing, and passes over all of them would leave the cache: they go one by one. So does all that may
be asked for a derivative, and all under ``vmap``, for which ``torch._foreach_*`` has no rule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree

_FEW = 8  # with fewer leaves, gathering them costs more than it saves
_SMALL = 1024  # the most numbers in a small leaf: from some 2,000 on, one by one is faster
_PLAIN = (Tensor, torch.nn.Parameter)
_TOGETHER = {
    name: getattr(torch, f"_foreach_{name}")
    for function in ("add", "addcmul", "clamp_max", "clamp_min", "div", "lerp", "mul", "neg", "sign", "sqrt", "sub")
    for name in (function, f"{function}_")
}


def map(function: Callable[..., Any], first: Any, *rest: Any) -> Any:
    """`boxopt.core.tree.map`, with a `Leaves` in the place of the small leaves where no derivative can be asked for.

    ``function`` is pure and takes tensors alone, one from each tree.
    """
    if exact.is_constant():
        try:
            return _map_constant(function, first, *rest)
        except Exception:
            pass  # what is wrong with a leaf is raised below, with its name
    return tree.map(function, first, *rest)


def _map_constant(function: Callable[..., Any], first: Any, *rest: Any) -> Any:
    """The small leaves together and the others one by one."""
    leaves, structure = tree.flatten(first)
    columns = [leaves, *(structure.flatten_up_to(other) for other in rest)]
    together = _alike(columns) if len(leaves) >= _FEW else []
    results: dict[int, Tensor] = {}
    if len(together) >= _FEW:
        whole = len(together) == len(leaves)
        small = function(*[Leaves(c if whole else [c[index] for index in together]) for c in columns]).tensors
        asked = torch.is_grad_enabled() and any(result.requires_grad for result in small)  # by a hyperparameter
        if whole and not asked:
            return structure.unflatten(small)
        results = {} if asked else dict(zip(together, small, strict=True))
    rows = enumerate(zip(*columns, strict=True))
    return structure.unflatten([results[index] if index in results else function(*row) for index, row in rows])


def _alike(columns: list[list[Any]]) -> list[int]:
    """The places of small plain tensors of one dtype, that of the first which qualifies, in each of the columns."""
    small = [index for index, x in enumerate(columns[0]) if type(x) in _PLAIN and x.is_cpu and x.numel() <= _SMALL]
    dtype = next((x.dtype for index in small if not exact.is_narrow((x := columns[0][index]).dtype)), None)
    asked = torch.is_grad_enabled()
    for column in columns:
        small = [
            index
            for index in small
            if type(x := column[index]) in _PLAIN and x.dtype is dtype and not (asked and x.requires_grad)
        ]
    return small


def members(value: Any) -> Sequence[Tensor]:
    """The tensors of `Leaves`; a tensor's is itself."""
    return value.tensors if isinstance(value, Leaves) else (value,)


def _operator(function: Callable[..., Any]) -> Any:
    def operate(self: Leaves, *others: Any) -> Any:
        return _apply(function, (self, *others), {})

    return operate


class Leaves:
    """Tensors of one dtype on a CPU, in the place of one: functions, methods and operators act on each.

    Where torch has no function on lists, that is a loop.
    """

    __slots__ = ("tensors",)
    __hash__ = None  # pyright: ignore[reportAssignmentType]

    def __init__(self, tensors: Sequence[Tensor]) -> None:
        self.tensors = tensors

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of each."""
        return self.tensors[0].dtype

    @property
    def device(self) -> torch.device:
        """The device of each."""
        return self.tensors[0].device

    @property
    def shape(self) -> list[torch.Size]:
        """Their shapes, to be compared with those of other leaves."""
        return [tensor.shape for tensor in self.tensors]

    def __bool__(self) -> bool:
        raise TypeError("leaves have no truth value")

    @classmethod
    def __torch_function__(cls, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return _apply(function, args, kwargs or {})

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(Tensor, name)
        if not callable(method):
            raise AttributeError(f"leaves have no {name!r} in common")
        return lambda *args, **kwargs: _apply(method, (self, *args), kwargs)

    __add__ = __radd__ = _operator(torch.add)
    __mul__ = __rmul__ = _operator(torch.mul)
    __sub__, __rsub__ = _operator(torch.sub), _operator(torch.rsub)
    __truediv__, __rtruediv__ = _operator(torch.div), _operator(Tensor.__rtruediv__)
    __pow__, __neg__ = _operator(torch.pow), _operator(torch.neg)
    __lt__, __le__, __gt__, __ge__ = (_operator(compare) for compare in (torch.lt, torch.le, torch.gt, torch.ge))
    __eq__, __ne__ = _operator(torch.eq), _operator(torch.ne)


def _apply(function: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """A function of tensors, on `Leaves` among its arguments."""
    name = function.__name__
    kwargs.pop("out", None)  # memory that may be reused: small leaves need not
    if name in ("clamp", "clamp_"):
        return _clamp(name.removeprefix("clamp"), *args, **kwargs)
    count = next(len(x.tensors) for x in args if isinstance(x, Leaves))
    if name in _TOGETHER and isinstance(args[0], Leaves):
        columns = [_column(x, count) if isinstance(x, Leaves | Tensor) else x for x in args]
        results = _TOGETHER[name](*columns, **kwargs)
        return args[0] if name.endswith("_") else Leaves(results)
    columns = [_column(x, count) for x in args]
    return Leaves([function(*row, **kwargs) for row in zip(*columns, strict=True)])


def _column(value: Any, count: int) -> Sequence[Any]:
    """What stands for a value in each row."""
    return value.tensors if isinstance(value, Leaves) else [value] * count


def _clamp(suffix: str, x: Leaves, min: Any = None, max: Any = None) -> Leaves:
    """``torch.clamp`` as its two halves, for which torch has functions on lists."""
    if min is None:
        return _apply(getattr(Tensor, f"clamp_max{suffix}"), (x, max), {})
    x = _apply(getattr(Tensor, f"clamp_min{suffix}"), (x, min), {})
    return x if max is None else _apply(Tensor.clamp_max_, (x, max), {})
