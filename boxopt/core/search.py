"""Searches that the transforms of torch see as one operation.

A projection often comes down to finding a number by iteration, and only what follows has a derivative: the search runs
on detached tensors. Traced step by step it would be a long graph, with as many steps for every problem as the hardest
needs. As an operator of torch's it is one node for ``torch.compile``, has a rule for ``vmap``, and inside of it tensors
are plain: it may look at their values and stop.

The operators are in torch's namespace ``boxopt``. No derivative passes through them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


def a_number_each(shape: torch.Size) -> tuple[int, ...]:
    """The shape of a result with one number a vector."""
    return (*shape[:-1], 1)


def search(
    name: str, result: Callable[[torch.Size], tuple[int, ...]] = tuple
) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Make an operator of a function of tensors that broadcast together.

    Args:
        name: The operator's name, in the namespace ``boxopt``.
        result: From the shape of the first argument, which has all the batch dimensions, to that of the result, whose
            dtype and device are the first argument's too. The same unless given.

    The function's arguments are annotated as ``Tensor``, ``Tensor | None``, ``int``, ``float``, ``bool`` or ``str``. It
    neither returns nor overwrites an argument.
    """

    def decorate(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
        operator = torch.library.custom_op(f"boxopt::{name}", function, mutates_args=())

        def fake(first: Tensor, *_: Any) -> Tensor:
            return first.new_empty(result(first.shape))

        def batched(info: Any, in_dims: tuple[int | None, ...], *arguments: Any) -> tuple[Tensor, int]:
            return operator(*_aligned(arguments, in_dims, info.batch_size)), 0

        operator.register_fake(fake)
        operator.register_vmap(batched)
        return operator

    return decorate


def _aligned(arguments: tuple[Any, ...], in_dims: tuple[int | None, ...], size: int) -> list[Any]:
    """The arguments with the dimension of ``vmap`` in front, and the dimensions after it in step."""
    first = arguments[0] if in_dims[0] is None else arguments[0].movedim(in_dims[0], 0)[0]
    aligned: list[Any] = []
    for argument, dim in zip(arguments, in_dims, strict=True):
        if not isinstance(argument, Tensor) or (dim is None and aligned):
            aligned.append(argument)
            continue
        value = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
        missing = first.ndim - (value.ndim - 1)
        aligned.append(value.reshape(size, *(1,) * missing, *value.shape[1:]))
    return aligned


def may_stop(x: Tensor, dear: bool = False) -> bool:
    """Whether to look at values for whether a search is done.

    On a CPU that costs less than the steps it saves. On a GPU it waits, which only ``dear`` steps are worth, and must
    not be in a graph that is recorded.
    """
    if torch._C._len_torch_dispatch_stack():  # fake tensors have no values
        return False
    return x.device.type == "cpu" or (dear and not (x.is_cuda and torch.cuda.is_current_stream_capturing()))
