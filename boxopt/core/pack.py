"""Packed parameters: the leaves side by side in one flat buffer for each dtype and device.

A step over two hundred leaves is two hundred small steps; over a packed tree it is one long one. Every elementwise
transformation runs on packed trees as it is, with the same numbers. What is given leaf by leaf (bounds, learning rates,
masks) is laid out along the buffers; what needs whole leaves runs on their views: see `on_leaves`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.utils._pytree as torch_pytree
from torch import Tensor
from torch._utils import _flatten_dense_tensors

from boxopt.core import sharded, tree
from boxopt.core.donation import refuse_consumed
from boxopt.core.storage import tied
from boxopt.core.transform import GradientTransformation, bind, finished, is_elementwise, unchanged
from boxopt.core.types import MaskedNode


@dataclass(frozen=True, eq=False)
class Layout:
    """Where each leaf of a tree lies in its buffer. It holds no tensors; `pack` makes it.

    Called with a packed tree, it returns the leaves as views: ``layout(packed)``.

    Attributes:
        structure: The tree with the number of each leaf in its place.
        paths: The path of each leaf.
        buffers: The name of each leaf's buffer, its dtype (and device, if the tree is on several).
        shapes: The shape of each leaf, without batch dimensions.
        batch_dims: How many leading dimensions leaves and buffers have in common, when the layout packs.
        places: If the leaves are sharded, where each is: a buffer then holds this process's parts. See
            `boxopt.core.sharded`.
    """

    structure: Any
    paths: tuple[str, ...]
    buffers: tuple[str, ...]
    shapes: tuple[tuple[int, ...], ...]
    batch_dims: int = 0
    places: tuple[sharded.Place, ...] = ()

    def __eq__(self, other: object) -> bool:
        if self is other:
            return True
        return isinstance(other, Layout) and self._key() == other._key() and self.structure == other.structure

    def __hash__(self) -> int:
        return hash(self._key())

    def _key(self) -> tuple[Any, ...]:
        return self.paths, self.buffers, self.shapes, self.places

    def __call__(self, packed: Packed) -> Any:
        """The leaves of a packed tree, as views of its buffers, in the original structure."""
        groups = self._groups()
        if not isinstance(packed, Packed) or packed.buffers.keys() != groups.keys():
            raise ValueError(f"expected a packed tree with the buffers {', '.join(groups)}, got {packed!r:.200}")
        views: list[Any] = [None] * len(self.shapes)
        for name, indices in groups.items():
            buffer = sharded.local(packed.buffers[name]) if self.places else packed.buffers[name]
            refuse_consumed(buffer, f"buffer {name!r}")
            sizes = [self._size(index) for index in indices]
            if buffer.shape[-1] != sum(sizes):
                raise ValueError(
                    f"buffer {name!r} has {buffer.shape[-1]} numbers, the leaves {sum(sizes)}: another tree was packed"
                )
            lead = tuple(buffer.shape[:-1])
            # The derivative of one split is one concatenation; that of slices would be a buffer of zeros for each.
            for index, flat in zip(indices, torch.split(buffer, sizes, dim=-1), strict=True):
                if self.places:
                    views[index] = sharded.join(flat.view(self.places[index].local_shape), self.places[index])
                else:
                    views[index] = flat.view(lead + self.shapes[index])
        return self._unflatten(views)

    def pack(self, values: Any) -> Packed:
        """A tree of this structure and these shapes (gradients, say), packed; the dtypes may differ."""
        leaves = self._flatten(values)
        skip = self.batch_dims
        for path, shape, leaf in zip(self.paths, self.shapes, leaves, strict=True):
            if not isinstance(leaf, Tensor):
                raise TypeError(f"{tree.name(path)}: only tensors can be packed, got {type(leaf).__name__}")
            if (leaf.shape[skip:] if skip else leaf.shape) != shape:
                raise ValueError(
                    f"{tree.name(path)} has shape {tuple(leaf.shape)}, it was packed with shape {shape}"
                    + (f" after {skip} batch dimensions" if skip else "")
                )
        if self.places:
            leaves = [sharded.local_like(leaf, place) for leaf, place in zip(leaves, self.places, strict=True)]
        buffers = {
            name: self._placed(name, _side_by_side([leaves[index] for index in indices], skip))
            for name, indices in self._groups().items()
        }
        return Packed(buffers, self)

    def _placed(self, name: str, buffer: Any) -> Any:
        """A buffer of this process's parts as a sharded one, if the leaves are."""
        if not self.places or not isinstance(buffer, Tensor) or not buffer.ndim:
            return buffer
        return sharded.join_row(buffer, [self.places[index] for index in self._groups()[name]])

    def _size(self, index: int) -> int:
        """How many numbers of a leaf its buffer holds."""
        return math.prod(self.places[index].local_shape if self.places else self.shapes[index])

    def _flatten(self, values: Any) -> list[Any]:
        """What stands in the place of each leaf."""
        if torch.compiler.is_compiling():
            return tree.leaves(tree.map(lambda _, value: value, self.structure, values))
        try:
            return self._spec.flatten_up_to(values)
        except (ValueError, TypeError):
            tree.explain_mismatch(self.structure, values)
            raise

    def _unflatten(self, leaves: list[Any]) -> Any:
        if torch.compiler.is_compiling():
            return tree.map(lambda index: leaves[index], self.structure)
        return self._spec.unflatten(leaves)

    @functools.cached_property
    def _spec(self) -> Any:
        return tree.flatten(self.structure)[1]

    def expand(self, prefix: Any, like: Packed | None = None, none: float | None = None) -> Packed:
        """A pytree prefix of the original tree, laid out along buffers, on the devices of those of ``like``.

        Values are numbers, None, and tensors that broadcast to the leaves. A buffer whose leaves all have the same
        number or None gets that; else a tensor, in float64 if the buffer's dtype cannot hold the numbers exactly, with
        the number ``none`` in the place of ``None``.
        """
        if isinstance(prefix, Packed):
            return prefix
        values = tree.expand(prefix, self.structure)
        found: list[Any] = [None] * len(self.shapes)

        def note(index: int, value: Any) -> None:
            found[index] = value

        tree.map(note, self.structure, values)
        laid_out = {}
        for name, indices in self._groups().items():
            column = [found[index] for index in indices]
            buffer = None if like is None else like.buffers[name]
            buffer = buffer if isinstance(buffer, Tensor) else None  # a prefix may have one number for a whole buffer
            if _all_alike(column):
                laid_out[name] = column[0]
            else:
                along = self._along([none if x is None else x for x in column], indices, buffer)
                laid_out[name] = self._placed(name, along)
        return Packed(laid_out, self)

    def mask(self, keep: Sequence[bool], like: Packed) -> Packed:
        """Which numbers belong to some of the leaves, as Booleans along the buffers."""
        masks = {
            name: _mask([(keep[index], self._size(index)) for index in indices], like.buffers[name].device)
            for name, indices in self._groups().items()
        }
        return Packed({name: self._placed(name, mask) for name, mask in masks.items()}, self)

    def _along(self, column: Sequence[Any], indices: Sequence[int], buffer: Tensor | None) -> Tensor:
        batch = () if buffer is None else tuple(buffer.shape[:-1])
        tensors = [_as_tensor(value, buffer) for value in column]
        batched = any(t.ndim > len(self.shapes[i]) for t, i in zip(tensors, indices, strict=True))
        lead = batch if batched else ()
        dtype = tensors[0].dtype
        for t in tensors[1:]:
            dtype = torch.promote_types(dtype, t.dtype)
        flat = []
        for value, index in zip(tensors, indices, strict=True):
            try:
                full = torch.broadcast_to(value, lead + self.shapes[index])
            except RuntimeError:
                raise ValueError(
                    f"{tree.name(self.paths[index])}: a value of shape {tuple(value.shape)} does not broadcast to the "
                    f"parameter's shape {tuple(lead + self.shapes[index])}"
                ) from None
            if self.places:
                full = sharded.local_like(full, self.places[index])
            flat.append(full.reshape((*lead, -1)).to(dtype))
        return torch.cat(flat, dim=-1)

    def select(self, keep: Sequence[bool]) -> Layout:
        """The layout of some of the leaves, numbered anew; a `MaskedNode` stands in the place of each other one."""
        kept = [index for index, wanted in enumerate(keep) if wanted]
        numbers = {index: number for number, index in enumerate(kept)}
        return Layout(
            tree.map(lambda index: numbers.get(index, MaskedNode()), self.structure),
            tuple(self.paths[index] for index in kept),
            tuple(self.buffers[index] for index in kept),
            tuple(self.shapes[index] for index in kept),
            self.batch_dims,
            tuple(self.places[index] for index in kept) if self.places else (),
        )

    def span(self, index: int) -> tuple[int, int]:
        """Where a leaf begins and ends in its buffer."""
        start = sum(self._size(other) for other in range(index) if self.buffers[other] == self.buffers[index])
        return start, start + self._size(index)

    def length(self, name: str) -> int:
        """How many numbers a buffer holds; of sharded leaves, on all processes."""
        return sum(math.prod(self.shapes[index]) for index in self._groups()[name])

    def local_length(self, name: str) -> int:
        """How many numbers of a buffer this process holds."""
        return sum(self._size(index) for index in self._groups()[name])

    def _groups(self) -> dict[str, list[int]]:
        """The leaves of each buffer, in order."""
        groups: dict[str, list[int]] = {}
        for index, name in enumerate(self.buffers):
            groups.setdefault(name, []).append(index)
        return groups


torch_pytree.register_pytree_node(
    Layout, lambda layout: ([], layout), lambda _, layout: layout, serialized_type_name="boxopt.Layout"
)


class Packed(NamedTuple):
    """A tree whose leaves lie side by side in flat buffers: a pytree of these buffers.

    Attributes:
        buffers: From the name of a dtype to a tensor of shape ``[..., n]``.
        layout: Where each leaf lies.
    """

    buffers: dict[str, Any]
    layout: Layout

    def unpack(self) -> Any:
        """The leaves as views, in the original structure."""
        return self.layout(self)

    def replaced(self, leaves: Sequence[Tensor]) -> Packed:
        """This tree with other leaves, in order, which have the same leading dimensions as its buffers."""
        buffers = {}
        for name, indices in self.layout._groups().items():
            lead = tuple(self.buffers[name].shape[:-1])
            flat = [self._local(leaves[index], index).reshape((*lead, self.layout._size(index))) for index in indices]
            buffers[name] = self.layout._placed(name, torch.cat(flat, dim=-1))
        return Packed(buffers, self.layout)

    def _local(self, leaf: Tensor, index: int) -> Tensor:
        """What this process has of a leaf."""
        return sharded.local_like(leaf, self.layout.places[index]) if self.layout.places else leaf

    def expand_prefix(self, prefix: Any, none: float | None = None) -> Packed:
        """What `boxopt.core.tree.expand` does for a packed tree."""
        return self.layout.expand(prefix, self, none)

    def select(self, keep: Sequence[bool]) -> Packed:
        """Some of the leaves, packed."""
        return self._rearranged(self.layout.select(keep), [(self, index) for index, k in enumerate(keep) if k])

    def merge(self, keep: Sequence[bool], kept: Packed) -> Packed:
        """This tree, with the leaves that `select` took replaced by those of ``kept``."""
        taken = iter(range(len(kept.layout.shapes)))
        sources = [(kept, next(taken)) if wanted else (self, index) for index, wanted in enumerate(keep)]
        return self._rearranged(self.layout, sources)

    @staticmethod
    def _rearranged(layout: Layout, sources: list[tuple[Packed, int]]) -> Packed:
        """Leaves of other packed trees in a new order, neighbours in one piece."""
        pieces: dict[str, list[tuple[Any, int, int]]] = {}
        for (packed, index), name in zip(sources, layout.buffers, strict=True):
            start, stop = packed.layout.span(index)
            row = pieces.setdefault(name, [])
            buffer = packed.buffers[name]
            if row and row[-1][0] is buffer and row[-1][2] == start:
                row[-1] = (buffer, row[-1][1], stop)
            else:
                row.append((buffer, start, stop))
        return Packed({name: layout._placed(name, _joined(row)) for name, row in pieces.items()}, layout)


def _mask(pieces: list[tuple[bool, int]], device: torch.device) -> Tensor:
    """Booleans, each so many times. A few runs are comparisons of indices, which a compiler makes without memory."""
    runs: list[tuple[bool, int, int]] = []
    stop = 0
    for value, length in pieces:
        start = runs.pop()[1] if runs and runs[-1][0] == value else stop
        stop += length
        runs.append((value, start, stop))
    if torch.compiler.is_compiling() and len(runs) <= 16:
        index, chosen = torch.arange(stop, device=device), torch.zeros((), dtype=torch.bool, device=device)
        for value, start, end in runs:
            if value:
                chosen = chosen | ((index >= start) & (index < end))
        return chosen
    return torch.cat([torch.full((end - start,), value, device=device) for value, start, end in runs])


def _all_alike(column: Sequence[Any]) -> bool:
    """Whether one number, None or tensor without dimensions stands for all leaves."""
    first = column[0]
    if isinstance(first, Tensor):
        return first.ndim == 0 and all(value is first for value in column)
    return all(not isinstance(value, Tensor) and value == first for value in column)


def _joined(pieces: list[tuple[Any, int, int]]) -> Any:
    """The spans of some buffers, one after the other; buffers may be numbers, of every span alike."""
    first = pieces[0][0]
    pieces = [(sharded.local(buffer), start, stop) for buffer, start, stop in pieces]
    if all(buffer is first for buffer, _, _ in pieces) and not (isinstance(first, Tensor) and first.ndim):
        return first
    example = next((buffer for buffer, _, _ in pieces if isinstance(buffer, Tensor) and buffer.ndim), None)
    spans = []
    for buffer, start, stop in pieces:
        if example is not None and isinstance(buffer, Tensor) and buffer.ndim:
            spans.append(buffer[..., start:stop].to(example.device))
        elif example is None:
            spans.append(torch.as_tensor(buffer, dtype=torch.float64).expand(stop - start))
        else:
            value = torch.as_tensor(buffer, dtype=example.dtype, device=example.device)
            spans.append(value.expand((*example.shape[:-1], stop - start)))
    return spans[0] if len(spans) == 1 else torch.cat(spans, dim=-1)


def pack(params: Any, batch_dims: int = 0) -> tuple[Packed, Layout]:
    """Lay the leaves of a tree side by side in one flat buffer for each dtype and device.

    The packed tree is a pytree like any other: `chain` and all else take it in the place of the parameters. Give the
    loss ``unpack(packed)``: the gradient then arrives packed, gathered once.

    Args:
        params: A tree of tensors. Leaves that are not contiguous are packed in their logical order; those without
            elements take no room.
        batch_dims: How many leading dimensions all leaves share, those of an ensemble, say: the buffers keep them, with
            shape ``[members, n]``. Under ``vmap`` it is 0.

    Returns:
        The packed tree, and its layout: ``unpack(packed)`` returns the leaves as views, ``unpack.pack(tree)`` packs
        another tree of the same structure, and ``unpack.expand(prefix, packed)`` lays out a pytree prefix of numbers.

    Raises:
        ValueError: Two leaves are the same tensor, or views that have numbers in common: packed, they would part. Give
            it once.
        TypeError: A leaf is not a dense tensor.

    Example:
        >>> import torch, boxopt as bx
        >>> params = {"weight": torch.zeros(2, 2), "bias": torch.ones(2)}
        >>> packed, unpack = bx.pack(params)
        >>> packed.buffers
        {'float32': tensor([0., 0., 0., 0., 1., 1.])}
        >>> loss = lambda packed: (unpack(packed)["weight"] - 1).square().sum()
        >>> torch.func.grad(loss)(packed).buffers
        {'float32': tensor([-2., -2., -2., -2.,  0.,  0.])}
    """
    layout = _layout_of(params, batch_dims)
    return layout.pack(params), layout


def _layout_of(params: Any, batch_dims: int = 0) -> Layout:
    leaves, paths = tree.leaves(params), tree.paths(params)
    for path, leaf in zip(paths, leaves, strict=True):
        if not isinstance(leaf, Tensor) or leaf.layout != torch.strided:
            kind = f"{leaf.layout} tensor" if isinstance(leaf, Tensor) else type(leaf).__name__
            raise TypeError(f"{tree.name(path)}: only dense tensors can be packed, got a {kind}")
        refuse_consumed(leaf, tree.name(path))
        if leaf.ndim < batch_dims or leaf.shape[:batch_dims] != leaves[0].shape[:batch_dims]:
            raise ValueError(
                f"{tree.name(path)} has shape {tuple(leaf.shape)}; with batch_dims={batch_dims} it should begin with "
                f"{tuple(leaves[0].shape[:batch_dims])}"
            )
    _refuse_tied(paths, leaves)
    places = () if batch_dims else _places(paths, leaves)
    several = len({leaf.device for leaf in leaves}) > 1
    names = [str(leaf.dtype).removeprefix("torch.") + (f"_{leaf.device}" if several else "") for leaf in leaves]
    names = [f"{name}_{place.flat}" for name, place in zip(names, places, strict=True)] if places else names
    numbers = iter(range(len(leaves)))
    return Layout(
        tree.map(lambda _: next(numbers), params),
        tuple(paths),
        tuple(names),
        tuple(tuple(leaf.shape[batch_dims:]) for leaf in leaves),
        batch_dims,
        places,
    )


def _places(paths: list[str], leaves: list[Tensor]) -> tuple[sharded.Place, ...]:
    """Where sharded leaves are; none if they are not."""
    places = [sharded.place_of(leaf) for leaf in leaves]
    found = [place for place in places if place is not None]
    if not found:
        return ()
    for path, place in zip(paths, places, strict=True):
        if place is None or place.device_mesh != found[0].device_mesh:
            raise ValueError(
                f"{tree.name(path)} is {'not sharded' if place is None else 'sharded over other processes'}, other "
                "leaves are: leaves that are packed together are sharded over the same mesh"
            )
        if not sharded.is_even(place):
            raise ValueError(
                f"{tree.name(path)} of shape {tuple(place.shape)} is not divided evenly by the mesh of shape "
                f"{tuple(place.device_mesh.shape)}: such a leaf cannot be packed, leave it out"
            )
    return tuple(found)


def _refuse_tied(paths: list[str], leaves: list[Tensor]) -> None:
    pair = None if torch.compiler.is_compiling() else tied([sharded.local(leaf) for leaf in leaves])
    if pair is not None:
        first, second = (tree.name(paths[index]) for index in pair)
        raise ValueError(
            f"{second} and {first} are the same tensor, or views of one that have numbers in common, and would part "
            "when packed: give it once, or clone it"
        )


def _side_by_side(leaves: list[Tensor], batch_dims: int) -> Tensor:
    transformed = torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active()
    if len(leaves) > 1 and not batch_dims and not transformed:
        return _flatten_dense_tensors(leaves)  # a view for each leaf would cost more than the copy
    lead = tuple(leaves[0].shape[:batch_dims])
    flat = [leaf.reshape((*lead, -1)) if leaf.numel() else leaf.new_zeros((*lead, 0)) for leaf in leaves]
    return torch.cat(flat, dim=-1)


def _as_tensor(value: Any, buffer: Tensor | None) -> Tensor:
    """A value for a leaf: a tensor stays; a number takes the buffer's dtype if that holds it exactly, else float64."""
    if isinstance(value, Tensor):
        return value if buffer is None else value.to(buffer.device)
    exact = torch.full((), float(value), dtype=torch.float64, device=None if buffer is None else buffer.device)
    if buffer is None or torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
        return exact
    cast = exact.to(buffer.dtype)
    return cast if bool(cast == exact) else exact


class PackedState(NamedTuple):
    """The state of `packed`.

    Attributes:
        inner: The state of the inner transformation, packed.
        layout: Where the leaves lie. It holds no tensors.
    """

    inner: Any
    layout: Layout


def packed(transformation: GradientTransformation) -> GradientTransformation:
    """Run a transformation on packed parameters, gradients and state: the same numbers, faster for many leaves.

    Trees come and go as they are; the parameters and gradients are packed, and the updates are views of a buffer. To
    save the packing too, keep the parameters packed: see `pack`.

    Args:
        transformation: Any. One that needs whole leaves runs on views of them: see `on_leaves`.

    Returns:
        A transformation with a `PackedState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.packed(bx.chain(bx.adam(0.1), bx.project(bx.Box(0.0, 1.0))))
        >>> params = {"weight": torch.zeros(2, 2), "bias": torch.ones(2)}
        >>> updates, state = tx.update(params, tx.init(params), params)
        >>> updates["bias"]
        tensor([-0.1000, -0.1000])
    """
    return GradientTransformation(
        bind(_packed_init, transformation=on_leaves(transformation)),
        bind(_packed_update, transformation=on_leaves(transformation)),
        bind(_packed_step_size, transformation=on_leaves(transformation)),
    )


flatten = packed  # the name in optax


def _packed_init(params: Any, *, transformation: GradientTransformation) -> PackedState:
    if isinstance(params, Packed):
        return PackedState(transformation.init(params), params.layout)
    tree.check_parameters(params)
    values, layout = pack(params)
    return PackedState(transformation.init(values), layout)


def _packed_update(
    updates: Any, state: PackedState, params: Any, *, transformation: GradientTransformation, **extra: Any
) -> tuple[Any, PackedState]:
    if isinstance(params, Packed):
        updates, inner = transformation.update(updates, state.inner, params, **extra)
        return updates, PackedState(inner, state.layout)
    layout = state.layout
    changed, inner = transformation.update(layout.pack(updates), state.inner, layout.pack(params), **extra)
    return layout(changed), PackedState(inner, layout)


def _packed_step_size(state: PackedState, step_size: Any, *, transformation: GradientTransformation) -> Any:
    # A tree of leaves, which fits what follows whether the parameters are packed there or not.
    return _unpacked_prefix(transformation.step_size(state.inner, step_size))


def on_leaves(transformation: GradientTransformation) -> GradientTransformation:
    """Give a transformation whole leaves, where the parameters are packed; elsewhere, leave it as it is.

    Norms of leaves, factored moments, rows of a matrix: what is not `elementwise` needs this. `chain`, `masked` and
    `packed` apply it to every transformation that is not declared elementwise, yours included.

    Args:
        transformation: Any; an elementwise one is returned as it is.

    Example:
        >>> import torch, boxopt as bx
        >>> centre = bx.stateless(lambda updates, _: {name: u - u.mean() for name, u in updates.items()})
        >>> params, unpack = bx.pack({"a": torch.tensor([1.0, 3.0]), "b": torch.tensor([5.0])})
        >>> tx = bx.on_leaves(centre)
        >>> tx.update(params, tx.init(params), params)[0].buffers
        {'float32': tensor([-1.,  1.,  0.])}
    """
    if is_elementwise(transformation):
        return transformation
    return GradientTransformation(
        bind(_on_leaves_init, transformation=transformation),
        bind(_on_leaves_update, transformation=transformation),
        transformation.step_size
        if transformation.step_size in (unchanged, finished)
        else bind(_on_leaves_step_size, transformation=transformation),
    )


def _unpacked(values: Any) -> Any:
    return values.unpack() if isinstance(values, Packed) else values


def _on_leaves_init(params: Any, *, transformation: GradientTransformation) -> Any:
    return transformation.init(_unpacked(params))


def _on_leaves_update(
    updates: Any, state: Any, params: Any, *, transformation: GradientTransformation, **extra: Any
) -> tuple[Any, Any]:
    if not isinstance(params, Packed):
        return transformation.update(updates, state, params, **extra)
    if isinstance(extra.get("step_size"), Packed):
        extra["step_size"] = _unpacked_prefix(extra["step_size"])
    updates, state = transformation.update(_unpacked(updates), state, params.unpack(), **extra)
    return params.layout.pack(updates), state


def _on_leaves_step_size(state: Any, step_size: Any, *, transformation: GradientTransformation) -> Any:
    return transformation.step_size(state, _unpacked_prefix(step_size))


def _unpacked_prefix(step_size: Any) -> Any:
    if not isinstance(step_size, Packed):
        return step_size
    whole = {
        name: b if isinstance(b, Tensor) and b.ndim else _as_tensor(b, None).expand(step_size.layout.local_length(name))
        for name, b in step_size.buffers.items()
    }
    return Packed(whole, step_size.layout).unpack()
