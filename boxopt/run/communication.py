"""How much processes exchange: counted where torch dispatches its collectives."""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from boxopt.core import tree

_NAMESPACES = ("_c10d_functional", "_c10d_functional_autograd", "c10d", "_dtensor")
_NO_EXCHANGE = ("wait_tensor", "_wrap_tensor_autograd", "barrier")
_INPUT_SECOND = ("_allgather_base_", "_reduce_scatter_base_", "allgather_", "reduce_scatter_")
_NAMES = {
    "_allgather_base_": "all_gather",
    "allgather_": "all_gather",
    "all_gather_into_tensor": "all_gather",
    "_reduce_scatter_base_": "reduce_scatter",
    "reduce_scatter_": "reduce_scatter",
    "reduce_scatter_tensor": "reduce_scatter",
    "allreduce_": "all_reduce",
    "broadcast_": "broadcast",
    "scatter_": "scatter",
}


class count_communication(TorchDispatchMode):  # noqa: N801  (used as a function)
    """Count the collectives of this process in a block, and what it hands to them.

    torch's ``CommDebugMode`` counts calls. What crosses the network follows from the bytes: with R processes and rings,
    of n bytes handed to an ``all_reduce`` each process sends 2n(R − 1)/R, to an ``all_gather`` n(R − 1), to a
    ``reduce_scatter`` n(R − 1)/R. Collectives that are started from C++ alone (``DistributedDataParallel``'s) are not
    seen.

    Attributes:
        calls: How often each collective was called, by name.
        bytes: How many bytes of input it was given.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adam(0.1), {"w": torch.zeros(3)}
        >>> state = tx.init(params)
        >>> with bx.count_communication() as communication:
        ...     updates, state = tx.update({"w": torch.ones(3)}, state, params)
        >>> communication.calls.total(), communication.bytes.total()
        (0, 0)
    """

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if any(hasattr(kind, "full_tensor") for kind in types):
            return NotImplemented  # a DTensor: let it make plain operations of this, and its collectives
        result = func(*args, **(kwargs or {}))
        name: str = func.__name__.split(".")[0]
        if func.namespace in _NAMESPACES and name not in _NO_EXCHANGE:
            given = args[name in _INPUT_SECOND]
            kind = _NAMES.get(name) or name
            self.calls[kind] += 1
            self.bytes[kind] += sum(x.nbytes for x in tree.leaves(given) if isinstance(x, Tensor))
        return result
