"""Ensembles: trees whose leaves have one entry a member in their first dimension, as ``torch.func.vmap`` has them.

`torch.func.vmap` of ``tx.init`` and of a step is all that an ensemble needs to start and to run, and
`torch.func.stack_module_state` stacks modules. Here is what torch has for modules alone, or not at all.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.run.distributed import gather_members

T = TypeVar("T")


def stack(members: Sequence[T]) -> T:
    """Stack trees of one structure, such as states, settings and packed parameters, into an ensemble.

    Args:
        members: One or more trees of tensors. The i-th entry of each leaf of the result is the i-th member's leaf.

    Returns:
        A tree of the same structure; a leaf of shape ``[...]`` becomes one of ``[members, ...]``.

    Raises:
        ValueError: There is none, or they differ in structure, shapes or dtypes; the message names the leaf.
        TypeError: A leaf is not a tensor.

    Example:
        >>> import torch, boxopt as bx
        >>> states = [bx.adam(0.1).init({"w": torch.zeros(2)}) for _ in range(3)]
        >>> bx.tree_get(bx.stack(states), "mu")["w"].shape
        torch.Size([3, 2])
    """
    if not members:
        raise ValueError("an ensemble has at least one member, got none")
    first, *others = members
    for other in others:
        tree.explain_mismatch(other, first)
    return tree.map(_stacked, first, *others)


def _stacked(*leaves: Any) -> Tensor:
    for number, leaf in enumerate(leaves):
        if not isinstance(leaf, Tensor):
            raise TypeError(f"only tensors can be stacked, got {type(leaf).__name__} for member {number}")
        if leaf.shape != leaves[0].shape or leaf.dtype != leaves[0].dtype:
            raise ValueError(
                f"member {number} has {leaf.dtype} of shape {tuple(leaf.shape)}, member 0 has {leaves[0].dtype} of "
                f"shape {tuple(leaves[0].shape)}"
            )
    return torch.stack(leaves)


def unstack(ensemble: T) -> list[T]:
    """The members of an ensemble, one by one, as views: the inverse of `stack`.

    Args:
        ensemble: A tree whose leaves have one entry a member in their first dimension.

    Raises:
        ValueError: It has no leaves, or they differ in the number of members; the message names the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.unstack({"w": torch.tensor([[1.0, 2.0], [3.0, 4.0]])})
        [{'w': tensor([1., 2.])}, {'w': tensor([3., 4.])}]
    """
    return [take_members(ensemble, number) for number in range(count_members(ensemble))]


def take_members(ensemble: T, index: int | slice | Sequence[int] | Tensor) -> T:
    """Some members of an ensemble, in any order, with repetitions.

    Args:
        ensemble: A tree whose leaves have one entry a member in their first dimension: parameters, states and settings
            together, say.
        index: A number for one member, alone; a slice; or numbers, as a sequence or an integer tensor, for an ensemble.

    Returns:
        A tree of the same structure: views for a number and a slice, copies else. Members that are sharded
        (`shard_members`) are sent to every process, as plain tensors.

    Example:
        The worst of three gives its place to the best.

        >>> import torch, boxopt as bx
        >>> ensemble = {"w": torch.tensor([[1.0], [2.0], [3.0]])}
        >>> bx.take_members(ensemble, [0, 1, 0])
        {'w': tensor([[1.], [2.], [1.]])}
    """
    if any(sharded.is_sharded(leaf) for leaf in tree.leaves(ensemble)):
        return _take_sharded(ensemble, index)
    places = index if isinstance(index, (int, slice, Tensor)) else torch.as_tensor(index, dtype=torch.int64)
    return tree.map(lambda leaf: leaf[places.to(leaf.device) if isinstance(places, Tensor) else places], ensemble)


def _take_sharded(ensemble: T, index: int | slice | Sequence[int] | Tensor) -> T:
    if isinstance(index, slice):
        index = range(*index.indices(count_members(ensemble)))
    places = torch.as_tensor(index if isinstance(index, (int, Tensor)) else list(index), dtype=torch.int64)
    taken = gather_members(ensemble, places.reshape(-1))
    return taken if places.ndim else tree.map(lambda leaf: leaf[0], taken)


def best_members(ensemble: T, losses: Tensor, count: int = 1) -> tuple[T, Tensor]:
    """The members with the least losses, the best one first.

    Args:
        ensemble: A tree whose leaves have one entry a member in their first dimension.
        losses: What each member is judged by, shape ``[members]``; for a score, its negative. Of equal ones the first
            member is better; NaN is worse than everything.
        count: How many.

    Returns:
        An ensemble of ``count`` members, and their places in the one given, an int64 tensor. If the members are
        sharded, every process gets the same: the losses are gathered, and then these members alone.

    Raises:
        ValueError: ``losses`` has another shape, or there are fewer members than ``count``.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.best_members({"w": torch.tensor([[1.0], [2.0], [3.0]])}, torch.tensor([0.3, torch.nan, 0.2]))
        ({'w': tensor([[3.]])}, tensor([2]))
    """
    members = count_members(ensemble)
    if losses.shape != (members,):
        raise ValueError(f"expected one loss for each of {members} members, got shape {tuple(losses.shape)}")
    if not 1 <= count <= members:
        raise ValueError(f"count is between 1 and the number of members, {members}, got {count}")
    places = sharded.whole(losses).argsort(stable=True)[:count]  # NaN last
    return take_members(ensemble, places), places


def count_members(ensemble: Any) -> int:
    """How many members an ensemble has, in every leaf."""
    leaves = tree.leaves(ensemble)
    if leaves and all(isinstance(leaf, Tensor) and leaf.ndim and len(leaf) == len(leaves[0]) for leaf in leaves):
        return len(leaves[0])
    raise ValueError(_not_an_ensemble(dict(zip(tree.paths(ensemble), leaves, strict=True))))


def _not_an_ensemble(leaves: dict[str, Any]) -> str:
    if not leaves:
        return "an ensemble has tensors, with one entry a member; got a tree without leaves"
    for path, leaf in leaves.items():
        if not isinstance(leaf, Tensor) or not leaf.ndim:
            kind = "a tensor without dimensions" if isinstance(leaf, Tensor) else type(leaf).__name__
            return f"{tree.name(path)}: expected a tensor with one entry a member, got {kind}"
    first, *others = leaves
    other = next(path for path in others if len(leaves[path]) != len(leaves[first]))
    return f"{tree.name(other)} has {len(leaves[other])} members, {tree.name(first)} has {len(leaves[first])}"
