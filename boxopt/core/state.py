"""Reading and writing nested states by name, and mapping over the parts that look like the parameters."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import optree
import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.pack import Packed
from boxopt.core.types import MaskedNode

Filter = Callable[[str, Any], bool]


def tree_get_all(state: Any, key: str, filtering: Filter | None = None) -> list[tuple[str, Any]]:
    """All values of a name in a nested state, with their paths.

    Args:
        state: A tree of dicts, NamedTuples, lists and tensors.
        key: A dict's key, a NamedTuple's field, or its type's name; or the end of a path: its keys, fields and indices
            joined by dots, as in ``"0.mu"``.
        filtering: ``(path, value) -> bool``, to choose among these.

    Returns:
        Pairs of a path and a value, in the order of the tree, outer ones first.

    Example:
        >>> import torch, boxopt as bx
        >>> state = bx.chain(bx.scale_by_adam(), bx.trace(0.9)).init({"w": torch.zeros(1)})
        >>> bx.tree_get_all(state, "w")
        [('0.mu.w', tensor([0.])), ('0.nu.w', tensor([0.])), ('1.trace.w', tensor([0.]))]

    Source:
        `optax.tree_utils.tree_get_all_with_path`.
    """
    return [
        (path, node) for path, node in _walk("", state) if _named(path, node, key) and _wanted(filtering, path, node)
    ]


def tree_get(state: Any, key: str, default: Any = None, filtering: Filter | None = None) -> Any:
    """The one value of a name in a nested state.

    Args:
        state: A tree of dicts, NamedTuples, lists and tensors.
        key: As for `tree_get_all`.
        default: What to return if there is none.
        filtering: ``(path, value) -> bool``, to choose among several.

    Raises:
        KeyError: There are several; the message has their paths.

    Example:
        >>> import torch, boxopt as bx
        >>> state = bx.adam(0.1).init(torch.zeros(1))
        >>> bx.tree_get(state, "count"), bx.tree_get(state, "ScaleByAdamState").mu
        (tensor(0), tensor([0.]))

    Source:
        `optax.tree_utils.tree_get`.
    """
    found = tree_get_all(state, key, filtering)
    if len(found) > 1:
        raise KeyError(
            f"{key!r} stands at {', '.join(repr(path) for path, _ in found)}: give one of these paths, or a filter"
        )
    return found[0][1] if found else default


def tree_set(state: Any, filtering: Filter | None = None, /, **values: Any) -> Any:
    """A nested state with the values of some names replaced.

    Args:
        state: A tree of dicts, NamedTuples, lists and tensors; it stays as it is.
        filtering: ``(path, value) -> bool``: which of the places with the name to replace; all if left out.
        **values: The new values, each for a name or the end of a path, as for `tree_get_all`; paths are given as
            ``tree_set(state, **{"0.mu": new})``. A number in the place of a tensor becomes one of its shape and dtype.

    Raises:
        KeyError: A name is not there.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.inject_hyperparams(bx.adam)(0.1)
        >>> state = bx.tree_set(tx.init(torch.zeros(1)), learning_rate=0.5)
        >>> bx.tree_get(state, "learning_rate")
        tensor(0.5000, dtype=torch.float64)

    Source:
        `optax.tree_utils.tree_set`.
    """
    met: set[str] = set()

    def replace(path: str, node: Any) -> Any:
        for key, value in values.items():
            if _named(path, node, key) and _wanted(filtering, path, node):
                met.add(key)
                if isinstance(node, Tensor) and isinstance(value, (bool, int, float)):
                    return torch.full_like(node, value)
                return value
        level = one_level(path, node)
        if level is None:
            return node
        children, unflatten = level
        return unflatten([replace(*child) for child in children])

    new = replace("", state)
    missing = sorted(values.keys() - met)
    if missing:
        raise KeyError(
            f"nothing is called {', '.join(map(repr, missing))}" + (" and passes the filter" if filtering else "")
        )
    return new


def tree_map_params(
    params: Any,
    function: Callable[..., Any],
    state: Any,
    /,
    *rest: Any,
    transform_non_params: Callable[[Any], Any] | None = None,
) -> Any:
    """Map over those parts of a state that look like the parameters: moments, averages, masters.

    A part looks like the parameters if it has their structure, floating-point leaves, and their shapes. Leaves that
    `masked` and `partition` left out are passed over; packed parts are given leaf by leaf and packed again. With a
    single number as the parameters, every number in the state looks like it.

    Args:
        params: The parameters, or anything of their structure and shapes.
        function: ``(leaf, *leaves of rest) -> value``.
        state: A state.
        *rest: Trees of the parameters' structure: shardings, say.
        transform_non_params: What to do with all other tensors; they stay as they are if left out.

    Returns:
        The state with these leaves replaced.

    Example:
        >>> import torch, boxopt as bx
        >>> params = {"w": torch.zeros(2)}
        >>> state = bx.adam(0.1).init(params)
        >>> state = bx.tree_map_params(params, lambda leaf: leaf + 1, state)
        >>> bx.tree_get(state, "mu"), bx.tree_get(state, "count")
        ({'w': tensor([1., 1.])}, tensor(0))

    Source:
        `optax.tree_map_params`, which takes the transformation in the place of the parameters.
    """
    params = params.unpack() if isinstance(params, Packed) else params

    def visit(path: str, node: Any) -> Any:
        if isinstance(node, Packed) and _resembles(node.unpack(), params):
            mapped = _map_kept(function, node.unpack(), *rest)
            kept = all(isinstance(leaf, Tensor) for leaf in tree.leaves(mapped))
            return node.layout.pack(mapped) if kept else mapped
        if _resembles(node, params):
            return _map_kept(function, node, *rest)
        level = one_level(path, node)
        if level is None:
            return node if transform_non_params is None or node is None else transform_non_params(node)
        children, unflatten = level
        return unflatten([visit(*child) for child in children])

    return visit("", state)


def _map_kept(function: Callable[..., Any], values: Any, *rest: Any) -> Any:
    def at(leaf: Any, *others: Any) -> Any:
        return leaf if isinstance(leaf, MaskedNode) else function(leaf, *others)

    return tree.map(at, values, *rest, is_leaf=lambda node: isinstance(node, MaskedNode))


def _resembles(node: Any, params: Any) -> bool:
    """Whether a node has the structure and the shapes of the parameters, but for leaves that are left out."""
    level, expected = one_level("", node), one_level("", params)
    if isinstance(node, MaskedNode):
        return expected is None
    if level is None or expected is None:
        if not (isinstance(node, Tensor) and isinstance(params, Tensor)):
            return node is None and params is None
        return node.shape == params.shape and node.is_floating_point()
    (children, _), (others, _) = level, expected
    return (
        type(node) is type(params)
        and [path for path, _ in children] == [path for path, _ in others]
        and all(_resembles(one, two) for (_, one), (_, two) in zip(children, others, strict=True))
        and bool(children)
    )


def _walk(path: str, node: Any) -> Iterator[tuple[str, Any]]:
    yield path, node
    level = one_level(path, node)
    for child in level[0] if level else ():
        yield from _walk(*child)


def one_level(path: str, node: Any) -> tuple[list[tuple[str, Any]], Callable[[list[Any]], Any]] | None:
    """The paths and values of a container's children, and what makes one of new children; None for a leaf."""
    if tree.is_leaf(node):
        return None
    children, metadata, entries, unflatten = optree.tree_flatten_one_level(node, namespace="torch")
    fields = getattr(type(node), "_fields", getattr(type(node), "child_names", None))
    names = fields if isinstance(fields, tuple) else entries
    below = [f"{path}.{name}" if path else str(name) for name in names]
    return list(zip(below, children, strict=True)), lambda new: unflatten(metadata, new)


def _named(path: str, node: Any, key: str) -> bool:
    if path == key or path.endswith(f".{key}"):
        return bool(path)
    return hasattr(type(node), "_fields") and type(node).__name__ == key


def _wanted(filtering: Filter | None, path: str, node: Any) -> bool:
    return filtering is None or filtering(path, node)
