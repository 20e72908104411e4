"""Ensembles whose members are spread over processes: what ``torch.distributed`` lacks for them.

A member is whole on one process, so that stepping it asks no other. The stacked tensors of all members are ``DTensor``
with ``Shard(0)``: ``torch.distributed.checkpoint`` saves them, and loads them on another number of processes.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.core.types import P

if TYPE_CHECKING:
    from torch.distributed.device_mesh import DeviceMesh

F = TypeVar("F", bound=Callable[..., Any])


def shard_members(members: P, mesh: DeviceMesh) -> P:
    """Spread the members of an ensemble over processes. Nothing is communicated: each keeps its own.

    Args:
        members: A tree of tensors of shape ``[members, ...]``, the same on all processes; or what has been sharded
            already. Tensors without dimensions stay as they are.
        mesh: The processes, in one dimension.

    Returns:
        The tree with a ``DTensor`` for each tensor, cut along its first dimension: process r of R has the r-th of R
        chunks, as ``torch.chunk`` makes them.

    Raises:
        ValueError: The mesh has several dimensions, or so few members leave a process without one.

    Example:
        >>> import torch, boxopt as bx
        >>> from torch.distributed.device_mesh import init_device_mesh
        >>> mesh = init_device_mesh("cpu", (world_size,))  # doctest: +SKIP
        >>> params = bx.shard_members({"w": torch.randn(64, 3)}, mesh)  # doctest: +SKIP
    """
    if mesh.ndim != 1:
        raise ValueError(f"members are spread over a mesh of one dimension, got one of shape {tuple(mesh.shape)}")
    from torch.distributed.tensor import Shard

    processes = mesh.size()

    def spread(x: Tensor) -> Tensor:
        if not x.ndim or sharded.is_sharded(x):
            return x
        if -(-x.shape[0] // -(-x.shape[0] // processes)) < processes:
            raise ValueError(f"{x.shape[0]} members leave some of {processes} processes without one")
        return sharded.like(x, sharded.Place(mesh, (Shard(0),), x.shape, x.shape))

    return tree.map(spread, members)


def on_members(function: F) -> F:
    """Let each process apply a function to the members that it has; nothing is communicated.

    The function is written for a stack of any number of members: ``torch.func.vmap`` of what one member does, say, or
    the `boxopt.compile` of that.

    Args:
        function: From trees of tensors of shape ``[members, ...]``, and whatever else it takes, to such a tree.

    Returns:
        The function of sharded members. It passes each process's part of a ``DTensor`` on, and anything else as it is;
        each tensor that comes out is the process's part of a ``DTensor`` with all members.

    Raises:
        ValueError: When called: a result does not have as many members, or no argument is sharded, or the members are
            cut otherwise than by `shard_members`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.adam(0.1)
        >>> init = bx.on_members(torch.func.vmap(tx.init))
        >>> state = init(bx.shard_members(params, mesh))  # doctest: +SKIP

    Source:
        `jax.shard_map`; ``torch.distributed.tensor.experimental.local_map`` asks for a placement of each result.
    """

    @functools.wraps(function)
    def apply(*args: Any, **kwargs: Any) -> Any:
        found = [leaf for leaf in tree.leaves((args, kwargs)) if sharded.is_sharded(leaf)]
        place, count = _common_place(found)
        local_args, local_kwargs = tree.map(sharded.local, (args, kwargs))
        results = function(*local_args, **local_kwargs)

        def join(x: Any) -> Any:
            if not isinstance(x, Tensor):
                return x
            if not x.ndim or x.shape[0] != count:
                raise ValueError(f"a result has the shape {tuple(x.shape)}, expected {count} members in front")
            whole = torch.Size([place.shape[0], *x.shape[1:]])
            return sharded.join(x.contiguous(), sharded.Place(place.device_mesh, place.placements, whole, x.shape))

        return tree.map(join, results)

    return apply  # pyright: ignore[reportReturnType]


def _common_place(found: list[Any]) -> tuple[sharded.Place, int]:
    """Where the members are, and how many this process has."""
    if not found:
        raise ValueError("no argument is sharded: expected members from shard_members")
    places = [sharded.place_of(leaf) for leaf in found]
    first = places[0]
    assert first is not None
    for place in places:
        assert place is not None
        whole_members = len(place.placements) == 1 and place.placements[0].is_shard(0)
        if not whole_members or place.device_mesh != first.device_mesh or place.shape[0] != first.shape[0]:
            raise ValueError(
                f"members are cut along their first dimension, all alike; got {place.placements} of the shape "
                f"{tuple(place.shape)}, and before {first.placements} of {tuple(first.shape)}"
            )
    return first, first.local_shape[0]


def gather_members(ensemble: P, places: Tensor) -> P:
    """The members of a sharded ensemble in these places, an integer tensor of shape ``[n]``, whole on every process.

    They are put together in one exchange.
    """
    leaves, structure = tree.flatten(ensemble)
    cut = [leaf for leaf in leaves if sharded.is_sharded(leaf)]
    place, count = _common_place(cut)
    first = place.device_mesh.get_local_rank() * -(-place.shape[0] // place.device_mesh.size())
    here = places.to(cut[0].device) % place.shape[0] - first
    is_mine = (here >= 0) & (here < count)
    parts = [sharded.local(leaf)[here.clamp(0, count - 1)] for leaf in cut]
    gathered = iter(_from_owners(parts, is_mine, place.device_mesh))
    taken = [next(gathered) if sharded.is_sharded(leaf) else leaf[places.to(leaf.device)] for leaf in leaves]
    return tree.unflatten(structure, taken)


def _from_owners(parts: list[Tensor], is_mine: Tensor, mesh: DeviceMesh) -> list[Tensor]:
    """Tensors of which each row is right on one process, right on all: a sum of bytes, all but one of them zero."""
    members = len(is_mine)
    rows = [part.reshape(members, part.numel() // members).contiguous().view(torch.uint8) for part in parts]
    total = torch.where(is_mine.unsqueeze(1), torch.cat(rows, dim=1), 0)
    torch.distributed.all_reduce(total, group=mesh.get_group())
    pieces = total.split([row.shape[1] for row in rows], dim=1)
    return [piece.contiguous().view(part.dtype).reshape(part.shape) for piece, part in zip(pieces, parts, strict=True)]
