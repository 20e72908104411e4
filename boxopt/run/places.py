"""A state, taken apart into what belongs to each parameter, and put together again.

torch's optimizers keep a flat dict of tensors for each parameter, and so do their checkpoints. A transformation's state
is a tree. Its leaves that stand under a parameter's name are that parameter's; the others, counters above all, belong
to all of them, and each parameter's dict has them, as each has its ``step`` in torch.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from boxopt.core import tree
from boxopt.core.pack import Layout, Packed, pack
from boxopt.core.transform import GradientTransformation


class Places(NamedTuple):
    """Where the leaves of a state belong.

    Attributes:
        names: Of the parameters.
        structure: Of the state, its packed trees of parameters taken for leaves.
        nodes: For each of these, the name under which it is kept, and whose it is: the number of a parameter, None for
            all, or the layout by which it is every parameter's.
        shapes: The shape and the dtype of each name's tensor, for each parameter.
    """

    names: tuple[str, ...]
    structure: Any
    nodes: list[tuple[str, int | Layout | None]]
    shapes: list[dict[str, tuple[Any, Any]]]

    @classmethod
    def of(cls, state: Any, names: Sequence[str]) -> Places:
        """The places of a state of parameters ``{name: tensor}``, packed or not."""
        numbers = {name: number for number, name in enumerate(names)}

        def is_whole(node: Any) -> bool:
            return isinstance(node, Packed) and node.layout.paths == tuple(names) and _fits(node)

        values, structure = tree.flatten(state, is_whole)
        nodes: list[tuple[str, int | Layout | None]] = []
        for value, (owner, key) in zip(values, tree.owned_paths(state, names, is_leaf=is_whole), strict=True):
            nodes.append((key, value.layout if is_whole(value) else None if owner is None else numbers[owner]))
        places = cls(tuple(names), structure, nodes, [])
        shapes = [
            {key: (tuple(value.shape), value.dtype) for key, value in entry.items()} for entry in places.spread(state)
        ]
        return places._replace(shapes=shapes)

    @classmethod
    def expected(cls, transformation: GradientTransformation, params: dict[str, Tensor], packed: bool) -> Places:
        """The places of the state that a transformation would make, without making it."""
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:
            imitations = {name: mode.from_tensor(param.detach()) for name, param in params.items()}
            return cls.of(transformation.init(pack(imitations)[0] if packed else imitations), list(params))

    def spread(self, state: Any) -> list[dict[str, Any]]:
        """The dict of each parameter; what is packed comes as views."""
        entries: list[dict[str, Any]] = [{} for _ in self.names]
        for (key, owner), value in zip(self.nodes, self.structure.flatten_up_to(state), strict=True):
            if isinstance(owner, int):
                entries[owner][key] = value
            elif owner is None:
                for entry in entries:
                    entry[key] = value
            else:
                for entry, view in zip(entries, tree.leaves(owner(value)), strict=True):
                    entry[key] = view
        return entries

    def gather(self, entries: Sequence[Mapping[str, Any]]) -> Any:
        """The state, from the dict of each parameter; what is everybody's is taken from the first."""
        values = []
        for key, owner in self.nodes:
            if isinstance(owner, Layout):
                own = [entry[key] for entry in entries]
                values.append(owner.pack(tree.unflatten(tree.flatten(owner.structure)[1], own)))
            else:
                values.append(entries[owner or 0][key])
        return self.structure.unflatten(values)

    @property
    def common(self) -> list[str]:
        """The names of what is everybody's."""
        return [key for key, owner in self.nodes if owner is None]

    def check(self, entries: Sequence[Mapping[str, Any]]) -> None:
        """Raise a ``ValueError`` that names the parameter and what differs: names, a shape or a dtype."""
        for name, shapes, entry in zip(self.names, self.shapes, entries, strict=True):
            if shapes.keys() != entry.keys():
                raise ValueError(
                    f"the state of parameter {name!r} is another transformation's: expected {', '.join(shapes)}, got "
                    f"{', '.join(map(str, entry))}"
                )
            for key, (shape, dtype) in shapes.items():
                found = entry[key]
                if tuple(found.shape) != shape or found.dtype != dtype:
                    raise ValueError(
                        f"{key!r} in the state of parameter {name!r} has shape {tuple(found.shape)} and dtype "
                        f"{found.dtype}, expected {shape} and {dtype}"
                    )


def _fits(packed: Packed) -> bool:
    """Whether each buffer has a number for each of the leaves'."""
    layout = packed.layout
    return packed.buffers.keys() == set(layout.buffers) and all(
        isinstance(buffer, Tensor) and buffer.shape == (layout.length(name),) for name, buffer in packed.buffers.items()
    )
