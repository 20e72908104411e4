"""On which arguments the outputs of a function depend, without computing them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.utils._pytree as torch_pytree
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

from boxopt.core import tree


def dependences(function: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
    """The outputs of a function, with the set of the argument leaves that it depends on in the place of each tensor.

    The leaves are numbered as in ``tree.flatten((args, kwargs))``. The function is run on tensors without numbers.
    """
    with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
        leaves, structure = tree.flatten((args, kwargs))
        imitations = [mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        record = _Record()
        for number, imitation in enumerate(imitations):
            record.add(imitation, frozenset([number]))
        args, kwargs = tree.unflatten(structure, imitations)
        with record:
            outputs = function(*args, **kwargs)
        return tree.map(record.of, outputs)


class _Record(TorchDispatchMode):
    """Notes for each storage on which argument leaves it depends, operation by operation."""

    def __init__(self) -> None:
        super().__init__()
        self._notes: dict[int, tuple[frozenset[int], Any]] = {}  # with the storages, lest another takes their place

    def of(self, value: Any) -> frozenset[int]:
        """On which leaves a tensor depends."""
        if not isinstance(value, Tensor):
            return frozenset()
        return self._notes.get(value.untyped_storage()._cdata, (frozenset(), None))[0]

    def add(self, value: Any, leaves: frozenset[int]) -> None:
        """Note that a tensor depends on some leaves too."""
        if isinstance(value, Tensor):
            storage = value.untyped_storage()
            self._notes[storage._cdata] = (self.of(value) | leaves, storage)

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        outputs = func(*args, **(kwargs or {}))
        inputs = torch_pytree.tree_leaves((args, kwargs))
        read = frozenset().union(*(self.of(value) for value in inputs))
        written = inputs if func._schema.is_mutable else []
        for value in (*torch_pytree.tree_leaves(outputs), *written):
            self.add(value, read)
        return outputs
