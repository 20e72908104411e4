"""Pytrees: one registration, one mapping function, prefixes, and paths for error messages.

boxopt sees trees as ``torch.func`` does (dicts in insertion order, NamedTuples, lists, registered classes) with one
difference: ``None`` is an empty tree rather than a leaf, so that a missing parameter is passed over everywhere.
Importing ``torch.utils._cxx_pytree`` makes optree share torch's registry, so that one call of `register` serves
``torch.func``, ``torch.compile`` and the fast C++ traversals of optree.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Callable, Iterable
from typing import Any, TypeGuard, TypeVar

import numpy as np
import optree
import torch
import torch.utils._cxx_pytree
import torch.utils._pytree as torch_pytree

from boxopt.core import exact, sharded
from boxopt.core.donation import refuse_consumed

PyTree = Any
T = TypeVar("T")

_NAMESPACE = "torch"
_LEAF: Any = optree.tree_structure(torch.zeros(()), namespace=_NAMESPACE)  # pyright: ignore[reportArgumentType]


def register(*fields: str, static: tuple[str, ...] = ()) -> Callable[[type[T]], type[T]]:
    """Register a class as a pytree node whose children are the named attributes; the ``static`` ones are its structure.

    Rebuilding skips ``__init__``: the transforms of ``torch.func`` pass placeholders through as children.
    """

    def decorate(cls: type[T]) -> type[T]:
        def flatten(node: Any) -> tuple[list[Any], tuple[Any, ...]]:
            return [getattr(node, field) for field in fields], tuple(getattr(node, field) for field in static)

        def unflatten(children: Iterable[Any], context: tuple[Any, ...]) -> T:
            node = object.__new__(cls)
            for field, child in zip((*fields, *static), (*children, *context), strict=True):
                object.__setattr__(node, field, child)
            return node

        cls.child_names = fields  # pyright: ignore[reportAttributeAccessIssue]
        torch_pytree.register_pytree_node(cls, flatten, unflatten, serialized_type_name=f"boxopt.{cls.__qualname__}")
        return cls

    return decorate


def is_leaf(value: Any) -> bool:
    """Whether ``value`` is a single value rather than a container. ``None`` counts as a value: no bound, say."""
    if value is None or isinstance(value, (torch.Tensor, float, int)):
        return True
    return optree.tree_is_leaf(value, namespace=_NAMESPACE)


_single = is_leaf  # for functions with an argument of that name


def is_function(value: Any) -> TypeGuard[Callable[..., Any]]:
    """Whether something is to be called, a schedule or a mask from the parameters, rather than a value or a tree."""
    return not isinstance(value, dict) and callable(value)  # the compiler cannot ask this of a dict


def leaves(tree: PyTree) -> list[Any]:
    """The leaves of a tree, in order; ``None`` has none."""
    return optree.tree_leaves(tree, namespace=_NAMESPACE)


def flatten(tree: PyTree, is_leaf: Callable[[Any], bool] | None = None) -> tuple[list[Any], Any]:
    """The leaves of a tree, and its structure, which can be compared and hashed."""
    if isinstance(tree, torch.Tensor):
        return [tree], _LEAF
    return optree.tree_flatten(tree, is_leaf=is_leaf, namespace=_NAMESPACE)


def unflatten(structure: Any, leaves: Iterable[Any]) -> PyTree:
    """The tree of this structure with these leaves."""
    return next(iter(leaves)) if structure is _LEAF else structure.unflatten(leaves)


def ranks(tree: PyTree) -> PyTree:
    """The tree with the number of each leaf in its place, counted with the keys of dicts sorted, as in JAX.

    So it does not depend on the order in which a dict was filled, as the order of `leaves` does.
    """
    count, structure = len(leaves(tree)), flatten(tree)[1]
    in_order = optree.tree_leaves(unflatten(structure, list(range(count))))  # other namespaces sort keys
    if len(in_order) != count:  # and do not know the nodes that are registered in torch's
        in_order = list(range(count))
    return unflatten(structure, [in_order.index(place) for place in range(count)])


def leaves_of(tree: PyTree, is_leaf: Callable[[Any], bool]) -> list[Any]:
    """The leaves of a tree in which some containers count as leaves."""
    return optree.tree_leaves(tree, is_leaf=is_leaf, namespace=_NAMESPACE)


def map(
    function: Callable[..., Any], tree: PyTree, *rest: PyTree, is_leaf: Callable[[Any], bool] | None = None
) -> PyTree:
    """Apply ``function`` to each leaf of ``tree`` and to what stands in its place in each tree of ``rest``.

    A mismatch, and a ``ValueError`` or ``TypeError`` raised at a leaf, come out naming the leaf's path. Finding the
    path costs a second traversal, paid only on the way to the error.
    """
    if torch.compiler.is_compiling():
        return optree.tree_map(function, tree, *rest, is_leaf=is_leaf, namespace=_NAMESPACE)
    try:
        return optree.tree_map(function, tree, *rest, is_leaf=is_leaf, namespace=_NAMESPACE)
    except (ValueError, TypeError) as error:
        _raise_with_path(error, function, tree, *rest, is_leaf=is_leaf)
        raise


class LeafError(ValueError):
    """An error that already names its leaf."""


class LeafTypeError(TypeError):
    """A wrong type that already names its leaf."""


def _raise_with_path(error: Exception, function: Any, tree: PyTree, *rest: PyTree, is_leaf: Any) -> None:
    if isinstance(error, (LeafError, LeafTypeError)):
        return
    for other in rest:
        explain_mismatch(tree, other, is_leaf=is_leaf)
    columns = [optree.tree_leaves(tree, is_leaf=is_leaf, namespace=_NAMESPACE)]
    structure = optree.tree_structure(tree, is_leaf=is_leaf, namespace=_NAMESPACE)
    columns += [structure.flatten_up_to(other) for other in rest]
    for path, *values in zip(paths(tree, is_leaf=is_leaf), *columns, strict=True):
        try:
            function(*values)
        except (ValueError, TypeError) as at_leaf:
            kind = LeafTypeError if isinstance(at_leaf, TypeError) else LeafError
            raise kind(f"{name(path)}: {at_leaf}") from at_leaf


def explain_mismatch(tree: PyTree, other: PyTree, *, is_leaf: Any = None) -> None:
    """Raise a ``ValueError`` that names where ``other`` lacks a place that ``tree`` has, or has one too many."""
    structure = optree.tree_structure(tree, is_leaf=is_leaf, namespace=_NAMESPACE)
    try:
        structure.flatten_up_to(other)
    except (ValueError, TypeError) as error:
        expected, found = set(paths(tree, is_leaf=is_leaf)), set(paths(other))
        missing = sorted(path for path in expected - found if not any(f.startswith(f"{path}.") for f in found))
        extra = sorted(path for path in found - expected if not any(path.startswith(f"{e}.") for e in expected))
        detail = "; ".join(
            f"{word} {', '.join(name(path) for path in group)}"
            for word, group in (("it lacks", missing), ("it has an unexpected", extra))
            if group
        )
        raise LeafError(
            f"the trees do not match: expected the structure of {_summary(tree)}, got {_summary(other)}"
            + (f"; {detail}" if detail else f"; {error}")
        ) from None


def _summary(tree: PyTree) -> str:
    kind = type(tree).__name__
    names = paths(tree)
    return f"{kind} with {', '.join(name(path) for path in names[:6])}{', ...' if len(names) > 6 else ''}"


def paths(tree: PyTree, *, is_leaf: Any = None) -> list[str]:
    """The path of each leaf, its keys, indices and field names joined by dots; a tree that is one leaf has path ''."""
    accessors = optree.tree_accessors(tree, is_leaf=is_leaf, namespace=_NAMESPACE)
    return [_path(accessor) for accessor in accessors]


def _path(accessor: Iterable[Any]) -> str:
    return ".".join(str(getattr(entry, "field", entry.entry)) for entry in accessor)


def owned_paths(tree: PyTree, keys: Iterable[str], *, is_leaf: Any = None) -> list[tuple[str | None, str]]:
    """For each leaf, which of some keys of dicts stands on the way to it, if one does, and its path.

    In the path that key is a star, or, if it comes last, is left out.
    """
    wanted, found = set(keys), []
    for accessor in optree.tree_accessors(tree, is_leaf=is_leaf, namespace=_NAMESPACE):
        way = list(accessor)
        places = [n for n, entry in enumerate(way) if isinstance(entry, optree.MappingEntry) and entry.entry in wanted]
        if not places:
            found.append((None, _path(way)))
            continue
        before, after = _path(way[: places[0]]), _path(way[places[0] + 1 :])
        found.append((way[places[0]].entry, f"{before}.*.{after}" if after else before))
    return found


def name(path: str) -> str:
    """How an error message calls the leaf at ``path``."""
    return f"leaf {path!r}" if path else "the single leaf"


def map_with_path(function: Callable[..., Any], tree: PyTree, *rest: PyTree) -> PyTree:
    """`map` with the leaf's path, as of `paths`, as the first argument."""
    structure = optree.tree_structure(tree, namespace=_NAMESPACE)
    columns = [structure.flatten_up_to(other) for other in (tree, *rest)]
    return structure.unflatten([function(*values) for values in zip(paths(tree), *columns, strict=True)])


@torch.compiler.assume_constant_result
def matches(path: str, pattern: str) -> bool:
    """Whether a shell pattern matches a leaf's path. ``"*.bias"`` matches ``"bias"`` at the top of the tree too."""
    return fnmatch.fnmatchcase(path, pattern) or fnmatch.fnmatchcase(f".{path}", pattern)


def expand(
    prefix: PyTree, tree: PyTree, *, is_leaf: Callable[[Any], bool] | None = None, none: float | None = None
) -> PyTree:
    """Repeat the values of a pytree prefix over the leaves of ``tree``. ``None`` in the prefix is a value.

    The values may be of any kind; the result has the structure of ``tree`` and is meant to be mapped over after it. A
    packed tree lays the values out along its buffers, with the number ``none`` in the place of ``None``.
    """
    if hasattr(type(tree), "expand_prefix") and not _is_number(prefix):
        return tree.expand_prefix(prefix, none)
    if _single(prefix):
        return map(lambda _: prefix, tree, is_leaf=is_leaf)

    def repeat(value: Any, subtree: PyTree) -> PyTree:
        return optree.tree_map(lambda _: value, subtree, is_leaf=is_leaf, namespace=_NAMESPACE)

    if torch.compiler.is_compiling():
        return optree.tree_map(repeat, prefix, tree, is_leaf=is_leaf, none_is_leaf=True, namespace=_NAMESPACE)
    try:
        return optree.tree_map(repeat, prefix, tree, is_leaf=is_leaf, none_is_leaf=True, namespace=_NAMESPACE)
    except (ValueError, TypeError) as error:
        found, expected = ({path for path, _ in prefix_items(values)} for values in (prefix, tree))
        strange = sorted(
            path for path in found if path not in expected and not any(e.startswith(f"{path}.") for e in expected)
        )
        missing = sorted(path for path in expected if not any(f"{path}.".startswith(f"{f}.") for f in found))
        if strange:
            detail = f"the parameters have no {', '.join(name(path) for path in strange)}"
            detail += "; for the numbers of one leaf give a tensor" if isinstance(prefix, list | tuple) else ""
        elif missing:
            detail = f"it lacks {', '.join(name(path) for path in missing)}; where there is no bound, write None"
        else:
            detail = str(error)
        raise LeafError(
            f"not a pytree prefix of the parameters: expected a prefix of {_summary(tree)}, got {_summary(prefix)}; "
            f"{detail}"
        ) from None


def _is_number(value: Any) -> bool:
    """Whether a value means the same for every leaf, whatever its shape."""
    return value is None or isinstance(value, float | int) or (isinstance(value, torch.Tensor) and value.ndim == 0)


def combine(function: Callable[[Any, Any], Any], first: PyTree, second: PyTree) -> PyTree:
    """Apply ``function`` to two prefixes of one tree; the result is as deep as the deeper of the two at each place."""
    if hasattr(type(first), "expand_prefix"):
        second = expand(second, first)
    elif hasattr(type(second), "expand_prefix"):
        first = expand(first, second)
    if is_leaf(first):
        return map(lambda value: function(first, value), second)
    if is_leaf(second):
        return map(lambda value: function(value, second), first)
    return optree.tree_map(
        lambda one, other: combine(function, one, other),
        first,
        second,
        is_leaf=lambda node: node is not first,
        namespace=_NAMESPACE,
    )


def map_prefix(function: Callable[[Any], Any], prefix: PyTree) -> PyTree:
    """Apply ``function`` to each value of a prefix, ``None`` included."""
    return optree.tree_map(function, prefix, none_is_leaf=True, namespace=_NAMESPACE)


def prefix_items(prefix: PyTree) -> list[tuple[str, Any]]:
    """The path and the value of each leaf of a prefix, ``None`` included."""
    accessors = optree.tree_accessors(prefix, none_is_leaf=True, namespace=_NAMESPACE)
    values = optree.tree_leaves(prefix, none_is_leaf=True, namespace=_NAMESPACE)
    return list(zip((_path(accessor) for accessor in accessors), values, strict=True))


def prefix_pairs(first: PyTree, second: PyTree) -> list[tuple[str, Any, Any]]:
    """The pairs of values that two prefixes give to one place, with the path of the deeper of the two."""
    ones, others = dict(prefix_items(first)), dict(prefix_items(second))
    pairs = []
    for path, one in ones.items():
        above = [other for other in _ancestors(path) if other in others]
        pairs += [(path, one, others[above[0]])] if above else []
    for path, other in others.items():
        above = [one for one in _ancestors(path) if one in ones]
        pairs += [(path, ones[above[0]], other)] if above and above[0] != path else []
    return pairs


def _ancestors(path: str) -> list[str]:
    """The path itself and every shorter one above it, the root '' last."""
    parts = path.split(".") if path else []
    return [".".join(parts[:count]) for count in range(len(parts), -1, -1)]


def reduce(function: Callable[[Any, Any], Any], tree: PyTree) -> torch.Tensor:
    """Fold the leaves, which are scalars, on the device of the first; 0 for an empty tree."""
    scalars = leaves(tree)
    if not scalars:
        return torch.zeros(())
    total = scalars[0]
    for scalar in scalars[1:]:
        total = function(total, scalar.to(total.device))
    return sharded.reduced(total)


def add_scaled(tree: PyTree, factor: PyTree, direction: PyTree) -> PyTree:
    """Tree + factor · direction, in the dtype of each leaf of ``tree``; ``factor`` is a number, tensor or prefix."""

    def add(x: torch.Tensor, by: torch.Tensor, scale: Any) -> torch.Tensor:
        w = exact.wide(x)  # a factor may be too large for 16 bits, and what it multiplies 0
        return (w + exact.like(scale, w) * by.to(w.dtype)).to(x.dtype)

    return map(add, tree, direction, expand(factor, tree))


def as_value(value: Any) -> Any:
    """Numpy arrays and scalars as tensors and Python numbers; the rest unchanged."""
    if isinstance(value, np.ndarray):
        return torch.as_tensor(value)
    if isinstance(value, np.generic):
        return value.item()
    return value


def check_parameters(params: PyTree) -> None:
    """Raise a ``TypeError`` naming the first leaf that is not a tensor of floating-point numbers."""
    for leaf in leaves(params):
        refuse_consumed(leaf, "the parameter")
        if not (isinstance(leaf, torch.Tensor) and leaf.is_floating_point()):
            break
    else:
        return
    for path, leaf in zip(paths(params), leaves(params), strict=True):
        if not isinstance(leaf, torch.Tensor):
            hint = "; torch.as_tensor makes one" if isinstance(leaf, float | int | np.ndarray) else ""
            raise LeafTypeError(
                f"{name(path)}: parameters are floating-point tensors, got {type(leaf).__name__} {leaf!r:.60}{hint}"
            )
        if not leaf.is_floating_point():
            raise LeafTypeError(
                f"{name(path)}: parameters are floating-point tensors, got dtype {leaf.dtype}; leave it out of the "
                "parameters, or convert it"
            )


def device_of(params: PyTree) -> torch.device:
    """The device of the first leaf, where a transformation keeps its counter; the CPU for an empty tree."""
    for leaf in leaves(params):
        return leaf.device
    return torch.device("cpu")
