"""Where tensors lie in memory, and whether they share it."""

from __future__ import annotations

import weakref
from bisect import bisect_left
from collections.abc import Iterable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core.storage import span


class Memory(NamedTuple):
    """The memory of some tensors that share none of it.

    Attributes:
        tensors: References to the tensors, in order; they do not keep them alive.
        starts: The first byte of each tensor that has elements, in ascending order.
        stops: The byte after its last, likewise.
        owners: To which argument each belongs, likewise.
    """

    tensors: list[Any]
    starts: list[int]
    stops: list[int]
    owners: list[Any]

    @classmethod
    def of(cls, owners: Iterable[Any], tensors: list[Any]) -> Memory:
        """The memory of tensors, each of which belongs to an owner; raises `SharedMemoryError` for two that overlap."""
        found = ((owner, span(tensor)) for owner, tensor in zip(owners, tensors, strict=True))
        spans = sorted(((*place, owner) for owner, place in found if place is not None), key=lambda place: place[:2])
        for (_, stop, one), (start, _, other) in pairwise(spans):
            if start < stop:
                raise SharedMemoryError(one, other)
        starts, stops, names = ([place[column] for place in spans] for column in range(3))
        return cls([], starts, stops, names).held_by(tensors)

    def held_by(self, tensors: list[Any]) -> Memory:
        """The same memory under other tensors."""
        references = [weakref.ref(tensor) if isinstance(tensor, Tensor) else None for tensor in tensors]
        return Memory(references, self.starts, self.stops, self.owners)

    def is_of(self, tensors: list[Any]) -> bool:
        """Whether it is the memory of these very tensors."""
        held = self.tensors
        return len(held) == len(tensors) and all(
            reference is not None and reference() is tensor for reference, tensor in zip(held, tensors, strict=True)
        )

    def shared_with(self, tensor: Any) -> Any:
        """The owner of a tensor here that overlaps with another tensor; None if none does."""
        place = span(tensor)
        if place is None:
            return None
        before = bisect_left(self.starts, place[1]) - 1
        return self.owners[before] if before >= 0 and self.stops[before] > place[0] else None


class SharedMemoryError(ValueError):
    """Two tensors that should have memory of their own share it: ``args`` are their owners."""


def materialized(tensor: Any) -> Any:
    """A tensor in which each number has a place of its own: ``vmap(tx.init)`` returns expanded counters."""
    if not isinstance(tensor, Tensor):
        return tensor
    if not tensor.is_contiguous():
        reach = 0
        for stride, size in sorted((s, n) for s, n in zip(tensor.stride(), tensor.shape, strict=True) if n > 1):
            if stride <= reach:
                return tensor.detach().contiguous()
            reach += (size - 1) * stride
    return tensor.detach() if tensor.requires_grad or isinstance(tensor, torch.nn.Parameter) else tensor
