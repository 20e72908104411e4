"""Values that hold tensors, such as transformations, taken apart into the tensors and what remains.

A transformation is a tree of functions with arguments bound, sets and numbers. Some of its tensors are one for each
problem of a batch. So that ``vmap`` and a compiler see these as arguments, they are taken out, each leaving a `Slot`,
and put back where the transformation is used.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import Tensor

from boxopt.core import tree
from boxopt.sets.box import Box


@dataclass(frozen=True)
class Slot:
    """The place of a tensor that was taken out.

    Attributes:
        index: Which one it was.
    """

    index: int


def map_bound(function: Callable[[Any], Any], value: Any) -> Any:
    """Map over the leaves of a tree, and over those of the arguments bound in the ``functools.partial`` among them."""
    if isinstance(value, partial):
        arguments = [map_bound(function, argument) for argument in value.args]
        named = {name: map_bound(function, argument) for name, argument in value.keywords.items()}
        return partial(value.func, *arguments, **named)
    if value is None:
        return None
    if tree.is_leaf(value):
        return function(value)
    return tree.map(lambda leaf: map_bound(function, leaf), value)


def take_apart(value: Any) -> tuple[Any, list[Tensor]]:
    """A value with a `Slot` in the place of each tensor, and the tensors."""
    tensors: list[Tensor] = []
    known: dict[int, Slot] = {}

    def take(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        if id(leaf) not in known:
            known[id(leaf)] = Slot(len(tensors))
            tensors.append(leaf)
        return known[id(leaf)]

    return map_bound(take, value), tensors


def put_together(value: Any, tensors: Sequence[Tensor]) -> Any:
    """The value whose slots hold these tensors: the inverse of `take_apart`."""
    return map_bound(lambda leaf: tensors[leaf.index] if isinstance(leaf, Slot) else leaf, value)


def key_of(value: Any) -> Hashable:
    """What two values without tensors have in common if they compute the same: functions, structures and numbers."""
    if isinstance(value, partial):
        named = tuple((name, key_of(argument)) for name, argument in sorted(value.keywords.items()))
        return ("partial", value.func, tuple(key_of(argument) for argument in value.args), named)
    if tree.is_leaf(value):
        return (type(value), value if isinstance(value, Hashable) else id(value))
    leaves, structure = tree.flatten(value)
    return (structure, tuple(key_of(leaf) for leaf in leaves))


def is_each(tensor: Tensor, batch: tuple[int, ...]) -> bool:
    """Whether a tensor has an entry for each problem: its leading dimensions are those of the batch."""
    return len(batch) > 0 and tuple(tensor.shape[: len(batch)]) == batch


def shared(tensor: Tensor, batch: tuple[int, ...]) -> Tensor:
    """A tensor that all problems share, without the ones that may stand in the place of the batch's dimensions."""
    count = len(batch)
    if count and tensor.ndim >= count and all(size == 1 for size in tensor.shape[:count]):
        return tensor.reshape(tensor.shape[count:])
    return tensor


def refuse_ambiguous(value: Any, params: Any, batch: tuple[int, ...]) -> None:
    """Raise a ``ValueError`` for bounds that may be meant for each problem or for each coordinate.

    Args:
        value: A transformation.
        params: The parameters of all problems, the batch's dimensions in front.
        batch: The sizes of these dimensions.
    """
    if not batch or all(size == 1 for size in batch):
        return
    for box in boxes_in(value):
        for name in ("lower", "upper"):
            try:
                bounds = tree.expand(getattr(box, name), params)
            except ValueError:
                continue  # a box for some of the leaves
            tree.map(partial(_refuse_if_ambiguous, batch=batch, name=name), params, bounds)


def _refuse_if_ambiguous(leaf: Tensor, bound: Any, *, batch: tuple[int, ...], name: str) -> None:
    if not isinstance(bound, Tensor) or not is_each(bound, batch):
        return
    own, shape, count = tuple(leaf.shape[len(batch) :]), tuple(bound.shape), len(batch)
    if _broadcasts(shape, own) and _broadcasts(shape[count:], own):
        raise ValueError(
            f"the {name} bound of shape {shape} may be one for each problem or one for each coordinate: reshape it to "
            f"{shape + (1,) * (leaf.ndim - len(shape))} or to {(1,) * count + shape}"
        )


def boxes_in(value: Any) -> list[Box]:
    """The boxes bound in a transformation."""
    found: list[Box] = []

    def search(node: Any) -> None:
        if isinstance(node, Box):
            found.append(node)
        elif isinstance(node, partial):
            for argument in (*node.args, *node.keywords.values()):
                search(argument)
        elif node is not None and not tree.is_leaf(node):
            for child in tree.leaves_of(node, lambda inner: inner is not node):
                search(child)

    search(value)
    return found


def _broadcasts(shape: tuple[int, ...], onto: tuple[int, ...]) -> bool:
    """Whether a tensor of one shape broadcasts to another."""
    pairs = zip(reversed(shape), reversed(onto), strict=False)
    return len(shape) <= len(onto) and all(size in (1, other) for size, other in pairs)
