"""Where tensors lie in memory, and whether two have a number in common."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor


def span(tensor: Any) -> tuple[int, int] | None:
    """The first byte of a tensor and the one after its last; None if it has no elements or no memory of its own."""
    if not isinstance(tensor, Tensor) or not tensor.numel():
        return None
    start = tensor.data_ptr()
    if not start:
        return None
    if tensor.is_contiguous():
        return start, start + tensor.nbytes
    last = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride(), strict=True))
    return start, start + (last + 1) * tensor.element_size()


def share(one: Tensor, other: Tensor) -> bool:
    """Whether two tensors have a number in common, of which changing one would change the other.

    The even and the odd places of a vector have none, nor have the halves of a matrix's columns, though they alternate.
    """
    first, second = span(one), span(other)
    if first is None or second is None or first[1] <= second[0] or second[1] <= first[0]:
        return False
    if one.is_contiguous() and other.is_contiguous():
        return True
    unit = min(one.element_size(), other.element_size())
    return bool(torch.isin(_places(one, unit), _places(other, unit)).any())


def tied(tensors: Sequence[Tensor]) -> tuple[int, int] | None:
    """The places of the first two tensors found that have a number in common; where memory cannot be seen, the same."""
    seen: dict[int, int] = {}
    spans: list[tuple[int, int, int]] = []
    for index, tensor in enumerate(tensors):
        if tensor.numel() and seen.setdefault(id(tensor), index) != index:
            return seen[id(tensor)], index
        if isinstance(tensor, FakeTensor):
            continue
        try:
            place = span(tensor)
        except RuntimeError:  # under vmap and grad
            continue
        if place is not None:
            spans.append((*place, index))
    near: list[tuple[int, int]] = []
    for start, stop, index in sorted(spans):
        near = [(other_stop, other) for other_stop, other in near if other_stop > start]
        for _, other in near:
            if share(tensors[index], tensors[other]):
                return min(index, other), max(index, other)
        near.append((stop, index))
    return None


def _places(tensor: Tensor, unit: int) -> Tensor:
    """The addresses of all numbers, in units of so many bytes."""
    width = tensor.element_size() // unit
    places = torch.arange(width) + tensor.data_ptr() // unit
    for size, stride in zip(tensor.shape, tensor.stride(), strict=True):
        places = places + (torch.arange(size) * stride * width).reshape(-1, *[1] * places.ndim)
    return places
