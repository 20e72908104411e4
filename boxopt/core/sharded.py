"""Tensors whose numbers are spread over processes, torch's ``DTensor``, in the place of others.

Most formulas run on them as they are: elementwise operations leave every number where it is and communicate nothing; of
a sum each process has a part, and the parts are added up when the sum is used. Three things need to be said:

- a number that is used more than once, kept in a state or returned is added up first, once: `reduced`;
- what needs whole vectors, or matrices, runs on the local ones, or on all of them if they are cut: `on_vectors`;
- a tensor that is made anew is cut as the others are: `like`.

Here a tensor is *sharded* if it is a ``DTensor``, be it the same on all processes. Some builds of torch lack
``torch.distributed``: there no tensor is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed
from torch import Tensor

if TYPE_CHECKING or torch.distributed.is_available():
    from torch.distributed.tensor import DTensor, Partial, Replicate, Shard

    _SHARDED: tuple[type, ...] = (DTensor,)
else:
    _SHARDED = ()


@dataclass(frozen=True)
class Place:
    """Where the numbers of a sharded tensor are: what the functions below need to know of one.

    Attributes:
        device_mesh: The processes.
        placements: How the numbers are spread over them.
        shape: The shape of the whole.
        local_shape: The shape of this process's part.
    """

    device_mesh: Any
    placements: tuple[Any, ...]
    shape: torch.Size
    local_shape: torch.Size

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return len(self.shape)

    @property
    def flat(self) -> str:
        """A name for where the numbers are once they stand in a row: on how many processes each is."""
        return "_".join("shard" if p.is_shard() else "same" for p in self.placements)


def place_of(x: Any) -> Place | None:
    """Where the numbers of a tensor are, if it is sharded."""
    if not is_sharded(x):
        return None
    return Place(x.device_mesh, tuple(x.placements), x.shape, x.to_local().shape)


def is_sharded(x: Any) -> bool:
    """Whether a value is a ``DTensor``."""
    return isinstance(x, _SHARDED)


def amax(x: Tensor) -> Tensor:
    """The largest number of a leaf, also where a process has none of them; of a sharded one, still to be `reduced`."""
    if not is_sharded(x):
        return x.amax()
    part = local(_without_parts(x))
    return _largest_of_all(part.amax() if part.numel() else part.new_full((), -torch.inf), x)


def amax_along(x: Tensor, dims: Sequence[int]) -> Tensor:
    """The largest numbers along some dimensions, kept with size 1, also where a process has none of them."""
    if not is_sharded(x):
        return x.amax(tuple(dims), keepdim=True)
    x = _without_parts(x)
    part: Any = local(x)
    empty = part.new_full([1 if dim in dims else size for dim, size in enumerate(part.shape)], -torch.inf)
    found = part.amax(tuple(dims), keepdim=True) if part.numel() else empty
    places = tuple(Partial("max") if p.is_shard() and p.dim in dims else p for p in x.placements)  # pyright: ignore[reportAttributeAccessIssue]
    shape = torch.Size([1 if dim in dims else size for dim, size in enumerate(x.shape)])
    return reduced(join(found, Place(x.device_mesh, places, shape, found.shape)))  # pyright: ignore[reportAttributeAccessIssue]


def _largest_of_all(number: Tensor, x: Any) -> Tensor:
    """The largest of the processes' numbers, to be `reduced`; one that all share is as good a part as any."""
    return DTensor.from_local(number, x.device_mesh, [Partial("max")] * x.device_mesh.ndim, run_check=False)


def whole(x: Any) -> Any:
    """All numbers of a sharded tensor, gathered on every process; anything else as it is."""
    return x.full_tensor() if is_sharded(x) else x


def reduced(x: Any) -> Any:
    """A tensor of which no process has only a part of a sum; without dimensions, as a plain tensor.

    Under ``torch.func``, whose transforms do not know the exchange, it stays as it is.
    """
    if not is_sharded(x) or torch._C._are_functorch_transforms_active():
        return x
    if x.ndim == 0:
        return _nan_or_extreme(x) if any(p.is_partial("max") or p.is_partial("min") for p in x.placements) else whole(x)
    return _without_parts(x)


def _without_parts(x: Any) -> Any:
    """A sharded tensor of which no process has only a part of a sum."""
    if not any(placement.is_partial() for placement in x.placements):
        return x
    return x.redistribute(placements=[Replicate() if p.is_partial() else p for p in x.placements])


def _nan_or_extreme(x: Any) -> Tensor:
    """The largest or least of the processes' numbers, or NaN if one is: gathered, since reductions may lose a NaN."""
    places = [Shard(0) if p.is_partial() else Replicate() for p in x.placements]
    parts = DTensor.from_local(x.to_local().reshape(1), x.device_mesh, places, run_check=False).full_tensor()
    return parts.amax() if any(p.is_partial("max") for p in x.placements) else parts.amin()


def local(x: Any) -> Any:
    """This process's part of a sharded tensor; anything else as it is."""
    return x.to_local() if is_sharded(x) else x


def like(value: Any, x: Any) -> Any:
    """A tensor that broadcasts to ``x`` and is the same on all processes, cut as ``x`` is; nothing is communicated."""
    if is_sharded(value):
        return reduced(value)
    if not isinstance(value, Tensor) or not value.ndim or not (is_sharded(x) or isinstance(x, Place)):
        return value
    value = value.reshape((1,) * (x.ndim - value.ndim) + value.shape)
    places = [p if p.is_shard() and value.shape[p.dim] == x.shape[p.dim] else Replicate() for p in x.placements]
    everywhere = DTensor.from_local(value, x.device_mesh, [Replicate()] * len(places), run_check=False)
    return everywhere.redistribute(placements=places)


def placed(x: Any, like: Any) -> Any:
    """A sharded tensor with the placements of another."""
    return x if x.placements == like.placements else x.redistribute(placements=like.placements)


def local_like(value: Any, x: Any) -> Any:
    """This process's part of a tensor that broadcasts to ``x``."""
    if not isinstance(value, Tensor) or not value.ndim:
        return whole(value)
    value = like(value, x)
    return (placed(value, x) if value.shape == x.shape else value).to_local()


def join(part: Tensor, x: Any) -> Tensor:
    """The sharded tensor with the shape and the placements of ``x`` of which this is the process's part."""
    stride = _contiguous(x.shape)
    return DTensor.from_local(part, x.device_mesh, x.placements, run_check=False, shape=x.shape, stride=stride)


def join_row(part: Tensor, members: Sequence[Place]) -> Tensor:
    """The flat sharded tensor of which this part holds those of several others, one after the other.

    Its numbers are in the order of processes, which differs from that of the tensors and from one number of processes
    to another.
    """
    size = torch.Size([sum(place.shape.numel() for place in members)])
    placements = tuple(Shard(0) if p.is_shard() else Replicate() for p in members[0].placements)
    return join(part, Place(members[0].device_mesh, placements, size, part.shape))


def _contiguous(shape: torch.Size) -> tuple[int, ...]:
    strides = [1]
    for size in reversed(shape[1:]):
        strides.append(strides[-1] * max(size, 1))
    return tuple(reversed(strides)) if len(shape) else ()


def cuts(x: Any, axes: Sequence[int]) -> bool:
    """Whether a tensor is sharded along one of these dimensions, or holds parts of sums."""
    return is_sharded(x) and any(p.is_partial() or (p.is_shard() and p.dim in axes) for p in x.placements)


def is_even(x: Any) -> bool:
    """Whether each process has as many numbers of a sharded tensor as any other."""
    pairs = ((size, p.dim) for size, p in zip(x.device_mesh.shape, x.placements, strict=True) if p.is_shard())
    return all(x.shape[dim] % size == 0 for size, dim in pairs)


def flattens(x: Any) -> bool:
    """Whether torch can flatten a sharded tensor as it lies: what is cut is cut evenly, and more than one number."""
    return is_even(x) and all(not p.is_shard() or x.shape[p.dim] > 1 for p in x.placements)


def on_vectors(
    function: Callable[..., Tensor],
    axes: Sequence[int],
    leaf: Tensor,
    numbers: Sequence[Any] = (),
    others: Sequence[Any] = (),
    combine: str | None = None,
) -> Tensor:
    """Apply a function to the vectors of a leaf, and put what comes of it in the leaf's place.

    A leaf that is cut between its vectors communicates nothing. One that is cut along them is gathered, and each
    process computes the same.

    Args:
        function: ``(leaf, *numbers, *others) -> result``, of plain tensors.
        axes: The dimensions of the vectors.
        leaf: The leaf.
        numbers: One number a vector: tensors that broadcast to the leaf's shape without ``axes``, or numbers.
        others: Tensors that broadcast to the leaf, or numbers.
        combine: The result is a scalar that combines those of all vectors, the "sum" or "max"; if left out, it has the
            shape of the leaf.
    """
    if not is_sharded(leaf):
        return function(leaf, *numbers, *others)
    if cuts(leaf, axes):
        result = function(whole(leaf), *map(whole, numbers), *map(whole, others))
        if combine == "max":
            return _largest_of_all(result, leaf)
        return result if combine else like(result, leaf)
    numbers = [_local_number(number, leaf, axes) for number in numbers]
    result = function(leaf.to_local(), *numbers, *[local_like(other, leaf) for other in others])  # pyright: ignore[reportAttributeAccessIssue]
    if combine is None:
        return join(result, leaf)
    if combine == "max":
        return _largest_of_all(result, leaf)
    places = [Partial(combine) if p.is_shard() else Replicate() for p in leaf.placements]  # pyright: ignore[reportAttributeAccessIssue]
    return DTensor.from_local(result, leaf.device_mesh, places, run_check=False)  # pyright: ignore[reportAttributeAccessIssue]


def _local_number(number: Any, leaf: Tensor, axes: Sequence[int]) -> Any:
    """This process's numbers of vectors."""
    if not isinstance(number, Tensor) or not number.ndim:
        return number
    number = whole(number).expand([size for axis, size in enumerate(leaf.shape) if axis not in axes])
    for axis in sorted(axes):
        number = number.unsqueeze(axis)
    return local_like(number, leaf).squeeze(tuple(axes))
