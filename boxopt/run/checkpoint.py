"""States as flat dicts of tensors, by path, and as files."""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.donation import refuse_consumed
from boxopt.core.pack import Packed
from boxopt.core.state import one_level
from boxopt.core.storage import span
from boxopt.run.replace import replacing

T = TypeVar("T")
_CHECKSUM = "crc32"


def state_to_dict(state: Any) -> dict[str, Tensor]:
    """A state, or any other tree, as a flat dict from the path of each leaf to a tensor.

    What `torch.save`, safetensors and `torch.distributed.checkpoint` take; `state_from_dict` is the way back. Packed
    trees appear leaf by leaf, under the names that they have unpacked: a run may be resumed packed or not.

    Args:
        state: Dicts, NamedTuples, lists, constraint sets, packed trees, and in them tensors, numbers
            and None: parameters and a state together, say, as ``{"params": params, "state": state}``.

    Returns:
        Detached contiguous tensors, no two of which share memory. Where a leaf is one already, it is that leaf and no
        copy. Paths are keys, indices and field names joined by dots; None and empty containers have none.

    Raises:
        ValueError: Two leaves have the same path, as in ``{"a": {"b": x}, "a.b": y}``.
        TypeError: A leaf is neither a tensor nor a number.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.state_to_dict(bx.adam(0.1).init({"w": torch.zeros(2)}))
        {'0.count': tensor(0), '0.mu.w': tensor([0., 0.]), '0.nu.w': tensor([0., 0.])}
    """
    return _apart({path: _as_tensor(path, leaf).detach().contiguous() for path, leaf in _by_path(state).items()})


def state_from_dict(mapping: Mapping[str, Tensor], like: T) -> T:
    """The state that `state_to_dict` made a dict of.

    Everything is compared first, so that there is a whole state or an error. The order of the dict does not matter.

    Args:
        mapping: From paths to tensors.
        like: A state of the same structure, shapes and dtypes: ``tx.init(params)``. It stays as it is. Its devices and
            strides are those of the result, except that leaves on the meta device leave tensors where they are.

    Returns:
        A state with the tensors of ``mapping``, or copies where another device, strides or a packed tree need them.

    Raises:
        ValueError: Paths are missing or unexpected, or a tensor has another shape or dtype; the message names them.
        TypeError: A value is not a tensor, or one is sharded where the other is not.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.trace(0.9), {"w": torch.zeros(2)}
        >>> _, state = tx.update({"w": torch.ones(2)}, tx.init(params), params)
        >>> bx.state_from_dict(bx.state_to_dict(state), like=tx.init(params))
        TraceState(trace={'w': tensor([1., 1.])})
    """
    expected = _by_path(like)
    _compare_paths(mapping, expected)
    values = {path: _fitted(path, mapping[path], leaf) for path, leaf in expected.items()}

    def rebuild(path: str, node: Any) -> Any:
        if _is_whole(node):
            held = _held(node)
            made = held.replaced([values[_below(path, name)] for name in held.layout.paths])
            return Packed({**node.buffers, **made.buffers}, node.layout)
        level = one_level(path, node)
        if level is None:
            return None if node is None else values[path]
        below, unflatten = level
        return unflatten([rebuild(*child) for child in below])

    return rebuild("", like)


def save(path: str | os.PathLike[str], state: Any) -> None:
    """Save a state, so that there is always a whole file: the old one, until the new one is complete.

    It is written beside the old one, forced to the disk, and renamed; `torch.load` (with ``weights_only=True``) or
    safetensors read it. Several processes may save under one name: the last one stays.

    Args:
        path: The file. One whose name ends in ``.safetensors`` is one; any other is written by `torch.save`.
        state: As for `state_to_dict`.

    Raises:
        ValueError: As `state_to_dict`; then the old file is untouched, as after any other error.
        TypeError: Likewise; and for a tensor that is sharded, or of another class of its own.

    Example:
        >>> import torch, tempfile, boxopt as bx
        >>> tx, params = bx.adam(0.1), {"w": torch.zeros(2)}
        >>> everything = {"params": params, "state": tx.init(params)}
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     bx.save(f"{folder}/run.pt", everything)
        ...     loaded = bx.load(f"{folder}/run.pt", like=everything)
        >>> loaded["params"]
        {'w': tensor([0., 0.])}
    """
    mapping = state_to_dict(state)
    for place, value in mapping.items():
        if type(value) is not Tensor:
            raise tree.LeafTypeError(
                f"{tree.name(place)}: a file holds plain tensors, not a {type(value).__name__}; sharded ones are for "
                "torch.distributed.checkpoint"
            )
    with replacing(Path(path)) as new:
        if Path(path).suffix == ".safetensors":
            from safetensors.torch import save_file  # pyright: ignore[reportMissingImports]

            save_file(mapping, new, metadata={"format": "pt", _CHECKSUM: _checksum(mapping)})
        else:
            torch.save(_without_rest(mapping), new)


def load(path: str | os.PathLike[str], like: T) -> T:
    """Load what `save` has saved. Nothing is unpickled but tensors, and no more memory is taken than the file is long.

    Files hold checksums, which are compared: a file in which a bit has changed is refused.

    Args:
        path: The file.
        like: A state of the same structure, shapes and dtypes, as for `state_from_dict`.

    Returns:
        The state.

    Raises:
        ValueError: The file is cut short, damaged, or no checkpoint, or of another state: the message names the file
            and the leaves.
        FileNotFoundError: There is no such file.

    Example:
        See `save`.
    """
    mapping = _read(Path(path))
    try:
        return state_from_dict(mapping, like)
    except (ValueError, TypeError) as error:
        raise tree.LeafError(f"{path} does not fit: {error}") from None


def _read(path: Path) -> Mapping[str, Tensor]:
    try:
        if path.suffix == ".safetensors":
            return _read_safetensors(path)
        _check_archive(path)
        mapping = torch.load(path, map_location="cpu", weights_only=True)
    except (FileNotFoundError, PermissionError, IsADirectoryError, ImportError):
        raise
    except Exception as error:  # a broken file raises one of many types
        raise ValueError(f"{path} is cut short, damaged, or not a checkpoint: {error}") from error
    if not isinstance(mapping, Mapping):
        raise ValueError(f"{path} is not a checkpoint: expected a dict of tensors, got a {type(mapping).__name__}")
    return mapping


def _check_archive(path: Path) -> None:
    """Raise an error if a file of `torch.save` is damaged: torch writes checksums, but does not read them."""
    with zipfile.ZipFile(path) as archive:
        if any(record.compress_type != zipfile.ZIP_STORED for record in archive.infolist()):
            raise ValueError("its records are compressed, which torch.save does not do")
        damaged = archive.testzip()
    if damaged is not None:
        raise ValueError(f"the checksum of {damaged} is another one")


def _read_safetensors(path: Path) -> Mapping[str, Tensor]:
    from safetensors import safe_open  # pyright: ignore[reportMissingImports]

    with safe_open(path, framework="pt") as file:
        written = (file.metadata() or {}).get(_CHECKSUM)  # files of others have none
        mapping = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no dict)
    if written is not None and written != _checksum(mapping):
        raise ValueError("the checksum of its tensors is another one")
    return mapping


def _checksum(mapping: Mapping[str, Tensor]) -> str:
    """The CRC-32 of all tensors' bytes, in the order of their paths."""
    total = 0
    for _, x in sorted(mapping.items()):
        x = x.cpu()
        flat = x.as_strided((x.numel(),), (1,))  # one number may have any stride, and would keep it
        total = zlib.crc32(flat.view(torch.uint8).numpy().data, total)
    return f"{total:08x}"


def _by_path(state: Any) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for path, leaf in _leaves("", state):
        if path in found:
            raise tree.LeafError(f"two leaves would both be called {path!r}: rename a key, or take a dot out of one")
        found[path] = leaf
    return found


def _leaves(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    """The path and the value of each leaf; those of packed trees are views."""
    if _is_whole(node):
        held = _held(node)
        for name, view in zip(held.layout.paths, tree.leaves(held.unpack()), strict=True):
            yield _below(path, name), view
        return
    level = one_level(path, node)
    if level is not None:
        for child in level[0]:
            yield from _leaves(*child)
    elif node is not None:
        yield path, node


def _below(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _is_whole(node: Any) -> bool:
    """Whether it is a packed tree of tensors, rather than of values that stand for whole buffers."""
    return isinstance(node, Packed) and all(
        isinstance(buffer, Tensor) and buffer.ndim > 0 and buffer.shape[-1] == node.layout.length(name)
        for name, buffer in node.buffers.items()
        if tree.leaves(buffer)
    )


def _held(node: Packed) -> Packed:
    """The leaves of which a packed tree holds something: float32 masters, say, of those in 16 bits alone."""
    empty = {name for name, buffer in node.buffers.items() if not tree.leaves(buffer)}
    return node.select([name not in empty for name in node.layout.buffers]) if empty else node


def _as_tensor(path: str, leaf: Any) -> Tensor:
    refuse_consumed(leaf, tree.name(path))
    if isinstance(leaf, Tensor):
        return leaf
    for kind, dtype in ((bool, torch.bool), (int, torch.int64), (float, torch.float64)):
        if isinstance(leaf, kind):
            return torch.tensor(leaf, dtype=dtype)
    raise tree.LeafTypeError(f"{tree.name(path)}: only tensors and numbers can be saved, got {type(leaf).__name__}")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, all contiguous, with copies of those that share memory with another one."""
    places = ((span(x), path) for path, x in tensors.items() if type(x) is Tensor)
    end = 0
    for (start, stop), path in sorted((place, path) for place, path in places if place is not None):
        if start < end:
            tensors[path] = tensors[path].clone()
        end = max(end, stop)
    return tensors


def _without_rest(mapping: dict[str, Tensor]) -> dict[str, Tensor]:
    """The tensors, with copies of those in a storage of which other parts would be saved too: one member's, say."""
    needed: dict[int, int] = {}
    for x in mapping.values():
        start = x.untyped_storage().data_ptr()
        needed[start] = needed.get(start, 0) + x.nbytes
    return {
        path: x.clone() if needed[x.untyped_storage().data_ptr()] < x.untyped_storage().nbytes() else x
        for path, x in mapping.items()
    }


def _compare_paths(mapping: Mapping[str, Any], expected: Mapping[str, Any]) -> None:
    groups = (
        ("it lacks", [path for path in expected if path not in mapping]),
        ("it has an unexpected", [path for path in mapping if path not in expected]),
    )
    if any(paths for _, paths in groups):
        raise tree.LeafError(
            "the state has another structure than expected: "
            + "; ".join(f"{word} {_listed(paths)}" for word, paths in groups if paths)
        )


def _listed(paths: list[str]) -> str:
    few = ", ".join(tree.name(str(path)) for path in paths[:6])
    return few if len(paths) <= 6 else f"{few} and {len(paths) - 6} more"


def _fitted(path: str, value: Any, like: Any) -> Any:
    """A value of the mapping in the place of a leaf; an error if it has another shape or dtype."""
    leaf = _as_tensor(path, like)
    if not isinstance(value, Tensor):
        raise tree.LeafTypeError(f"{tree.name(path)}: expected a tensor, got {type(value).__name__}")
    if value.shape != leaf.shape or value.dtype != leaf.dtype:
        raise tree.LeafError(
            f"{tree.name(path)}: expected {leaf.dtype} of shape {tuple(leaf.shape)}, got {value.dtype} of shape "
            f"{tuple(value.shape)}"
        )
    if not isinstance(like, Tensor):
        return type(like)(value.item())
    value = value.detach()
    if type(value) is not type(leaf.detach()):
        raise tree.LeafTypeError(
            f"{tree.name(path)}: expected a {type(leaf.detach()).__name__}, got a {type(value).__name__}"
        )
    if leaf.device.type != "meta":
        value = value.to(leaf.device)
    if value.stride() == leaf.stride():
        return value
    # The order in which numbers lie in memory is the order in which sums add them up.
    laid_out = torch.empty_like(leaf, device=value.device)
    return value if laid_out.stride() == value.stride() else laid_out.copy_(value)
