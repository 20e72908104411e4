"""Transformations made of transformations: in sequence, on some of the leaves, and one for each group of leaves."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from boxopt.core import tree
from boxopt.core.pack import Layout, Packed, _on_leaves_update, on_leaves
from boxopt.core.transform import GradientTransformation, accepted, bind, finished, is_identity, is_last, members
from boxopt.core.types import MaskedNode, P


def chain(*transformations: GradientTransformation) -> GradientTransformation:
    r"""Apply transformations one after the other, and let the step size travel down with the updates.

    Each member's ``update`` gets the updates of the one before, and, if it names them, the ``step_size`` of all before
    it and the caller's extra arguments. With Adam, $\eta = \text{lr}/(\sqrt{\hat v} + \epsilon)$ reaches the proximal
    steps that follow. Nothing is computed that no later member names.

    Args:
        *transformations: In the order of application. Chains nest.

    Returns:
        A transformation whose state is the tuple of its members' states.

    Raises:
        ValueError: A member that may scale or redirect the updates comes after a step-space one (`project`, `barrier`,
            …): the parameters could leave the set again.
        TypeError: A member is not a `GradientTransformation`; or, in ``update``, an extra argument is one that no
            member takes.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.chain(bx.sgd(0.1), bx.project(bx.Box(0.0, 1.0)))
        >>> params = torch.tensor([0.5, 0.05])
        >>> updates, state = tx.update(torch.ones(2), tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([0.4000, 0.0000])

    Source:
        `optax.chain`; the step size is boxopt's addition.
    """
    return _sequence(tuple(str(index) for index in range(len(transformations))), transformations, named=False)


def named_chain(*transformations: tuple[str, GradientTransformation]) -> GradientTransformation:
    """A `chain` whose state is a dict, so that a member's state is found by name.

    Args:
        *transformations: Pairs of a name and a transformation; the names differ.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.named_chain(("adam", bx.scale_by_adam()), ("step", bx.scale(-0.1)))
        >>> list(tx.init(torch.zeros(1)))
        ['adam', 'step']

    Source:
        `optax.named_chain`.
    """
    names = tuple(name for name, _ in transformations)
    if len(set(names)) < len(names):
        raise ValueError(f"the names of a chain's members differ, got {', '.join(names)}")
    return _sequence(names, tuple(transformation for _, transformation in transformations), named=True)


def _sequence(
    names: tuple[str, ...], transformations: tuple[GradientTransformation, ...], named: bool
) -> GradientTransformation:
    for name, member in zip(names, transformations, strict=True):
        if not isinstance(member, GradientTransformation):
            raise TypeError(f"member {name} of the chain is not a GradientTransformation: {member!r}{_hint(member)}")
    _refuse_unfinished(names, transformations)
    return _run(tuple(on_leaves(member) for member in transformations), names if named else None)


def _hint(member: Any) -> str:
    """How to make a transformation of what is none, where that is clear."""
    if hasattr(member, "project"):
        return "; a set becomes one by bx.project(...), say"
    return f"; call it: {member.__name__}(...)" if inspect.isfunction(member) else ""


def _run(transformations: tuple[GradientTransformation, ...], names: tuple[str, ...] | None) -> GradientTransformation:
    taken = tuple(accepted(transformation) for transformation in transformations)
    return GradientTransformation(
        bind(_chain_init, transformations=transformations, names=names),
        bind(_chain_update, transformations=transformations, names=names, taken=taken),
        bind(_chain_step_size, transformations=transformations, names=names),
    )


def _chain_init(params: Any, *, transformations: Any, names: tuple[str, ...] | None) -> Any:
    return _states([transformation.init(params) for transformation in transformations], names)


def _chain_update(
    updates: P,
    state: Any,
    params: P,
    *,
    transformations: tuple[GradientTransformation, ...],
    names: tuple[str, ...] | None,
    taken: tuple[frozenset[str] | None, ...],
    **extra: Any,
) -> tuple[P, Any]:
    step_size = extra.pop("step_size", 1.0)
    _refuse_unknown(extra, taken)
    states = list(state.values()) if names is not None else list(state)
    if len(states) != len(transformations):
        raise ValueError(f"the state is of a chain of {len(states)} members, this one has {len(transformations)}")
    uses = [wanted is None or "step_size" in wanted for wanted in taken]
    for index, (transformation, wanted) in enumerate(zip(transformations, taken, strict=True)):
        given = {name: value for name, value in extra.items() if wanted is None or name in wanted}
        if uses[index]:
            given["step_size"] = step_size
        updates, states[index] = transformation.update(updates, states[index], params, **given)
        if any(uses[index + 1 :]):
            step_size = transformation.step_size(states[index], step_size)
    return updates, _states(states, names)


def _chain_step_size(state: Any, step_size: Any, *, transformations: Any, names: tuple[str, ...] | None) -> Any:
    states = state.values() if names is not None else state
    for transformation, member_state in zip(transformations, states, strict=True):
        step_size = transformation.step_size(member_state, step_size)
    return step_size


def _states(states: list[Any], names: tuple[str, ...] | None) -> Any:
    return tuple(states) if names is None else dict(zip(names, states, strict=True))


def _refuse_unknown(extra: Mapping[str, Any], taken: tuple[frozenset[str] | None, ...]) -> None:
    if not extra or None in taken:
        return
    known = frozenset().union(*(names for names in taken if names is not None)) - {"step_size"}
    unknown = sorted(set(extra) - known)
    if unknown:
        raise TypeError(
            f"no member of the chain takes the argument {', '.join(map(repr, unknown))}; "
            + (f"they take {', '.join(map(repr, sorted(known)))}" if known else "they take no extra argument")
        )


def _refuse_unfinished(names: tuple[str, ...], transformations: tuple[GradientTransformation, ...]) -> None:
    finisher, keeper = None, None
    for name, member in zip(names, transformations, strict=True):
        kinds = _kinds(member)
        if keeper is not None and kinds - {"last"}:
            raise ValueError(
                f"member {name} of the chain ({_describe(member)}) comes after member {keeper[0]} "
                f"({_describe(keeper[1])}), which counts on its updates being applied as they are. Put it before."
            )
        if finisher is not None and "gradient" in kinds:
            raise ValueError(
                f"member {name} of the chain ({_describe(member)}) comes after member {finisher[0]} "
                f"({_describe(finisher[1])}), a finished step into a set: it could carry the parameters out again. "
                "Put it before."
            )
        if "step" in kinds:
            finisher = (name, member)
        if "last" in kinds:
            keeper = (name, member)


def _kinds(transformation: GradientTransformation) -> set[str]:
    """Whether a transformation changes gradients, finishes steps, does both ("gradient" first), or neither.

    And whether it has to be the last: then, if it wraps nothing, it changes nothing.
    """
    inner = tuple(members(transformation))
    own: set[str] = {"last"} if is_last(transformation) else set()
    if inner or own:
        return own.union(*(_kinds(member) for member in inner))
    if transformation.step_size is finished:
        return {"step"}
    return set() if is_identity(transformation) else {"gradient"}


def refuse_finished(wrapper: str, transformation: GradientTransformation) -> None:
    """Raise a ``ValueError`` if a wrapper that changes updates would be given finished steps into a set."""
    if "step" in _kinds(transformation):
        raise ValueError(
            f"{wrapper} changes the updates of what it wraps, which ends in a finished step into a set: it could carry "
            f"the parameters out again. Put the step after: chain({wrapper}(...), project(...))."
        )


def _describe(transformation: GradientTransformation) -> str:
    function = getattr(transformation.update, "func", transformation.update)
    if function is _on_leaves_update:
        return _describe(next(members(transformation)))
    return getattr(function, "__name__", repr(function)).strip("_").removesuffix("_update")


class SelectedNode(NamedTuple):
    """What stands in a selection in the place of a leaf that is kept. It has no leaves."""


class MaskedState(NamedTuple):
    """The state of `masked`.

    Attributes:
        inner: The state of the inner transformation, for the kept leaves.
        selection: The tree of the parameters with a `SelectedNode` or `MaskedNode` for each leaf. It holds no tensors.
    """

    inner: Any
    selection: Any


def masked(transformation: GradientTransformation, mask: Any) -> GradientTransformation:
    """Apply a transformation to some of the leaves and let the others through unchanged.

    Args:
        transformation: What to apply.
        mask: Which leaves: a pytree prefix of the parameters with booleans, a function from the parameters to one, or
            a pattern for the leaves' paths such as ``"*.bias"`` (``*`` matches dots too, and ``"*.bias"`` matches a
            ``"bias"`` at the top).

    Raises:
        ValueError: In ``init``, the mask is not a prefix of the parameters, or holds something other than booleans.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.masked(bx.scale(10.0), "*.bias")
        >>> params = {"layer": {"weight": torch.zeros(1), "bias": torch.zeros(1)}}
        >>> gradients = {"layer": {"weight": torch.ones(1), "bias": torch.ones(1)}}
        >>> tx.update(gradients, tx.init(params), params)[0]
        {'layer': {'weight': tensor([1.]), 'bias': tensor([10.])}}

    Source:
        `optax.masked`; patterns are boxopt's addition.
    """
    transformation = on_leaves(transformation)
    return GradientTransformation(
        bind(_masked_init, transformation=transformation, mask=mask),
        bind(_masked_update, transformation=transformation),
        bind(_masked_step_size, transformation=transformation),
    )


def _masked_init(params: Any, *, transformation: GradientTransformation, mask: Any) -> MaskedState:
    leaves = params.unpack() if isinstance(params, Packed) else params
    selection = tree.map(_as_node, tree.expand(_resolve(mask, leaves), leaves))
    if isinstance(params, Packed):
        selection = PackedSelection(selection, params.layout)
    return MaskedState(transformation.init(_keep(selection, params)), selection)


def _masked_update(
    updates: P, state: MaskedState, params: P, *, transformation: GradientTransformation, **extra: Any
) -> tuple[P, MaskedState]:
    if "step_size" in extra:
        extra["step_size"] = _keep_prefix(state.selection, extra["step_size"])
    kept = _keep(state.selection, updates)
    changed, inner = transformation.update(kept, state.inner, _keep(state.selection, params), **extra)
    return _merge(state.selection, changed, updates), MaskedState(inner, state.selection)


def _masked_step_size(state: MaskedState, step_size: Any, *, transformation: GradientTransformation) -> Any:
    selection = state.selection
    inner = transformation.step_size(state.inner, _keep_prefix(selection, step_size))
    if isinstance(selection, PackedSelection):
        return _merge(
            selection, selection.layout.select(selection.flags()).expand(inner), selection.layout.expand(step_size)
        )
    outer = tree.expand(step_size, selection, is_leaf=_is_node)
    return _merge(selection, tree.expand(inner, selection, is_leaf=_is_node), outer)


def _resolve(mask: Any, params: Any) -> Any:
    if isinstance(mask, str):
        return tree.map_with_path(lambda path, _: tree.matches(path, mask), params)
    return mask(params) if tree.is_function(mask) else mask


def _as_node(keep: Any) -> SelectedNode | MaskedNode:
    if not isinstance(keep, bool):
        raise ValueError(f"a mask holds booleans, got {keep!r}")
    return SelectedNode() if keep else MaskedNode()


def _is_node(node: Any) -> bool:
    return isinstance(node, (SelectedNode, MaskedNode))


class PackedSelection(NamedTuple):
    """Which leaves of packed parameters are kept: a tree of `SelectedNode` and `MaskedNode`, and their layout."""

    nodes: Any
    layout: Layout

    def flags(self) -> list[bool]:
        """Whether each leaf is kept, in the order of the layout."""
        return tree.leaves(tree.map(lambda _, node: isinstance(node, SelectedNode), self.layout.structure, self.nodes))


def _keep(selection: Any, values: Any) -> Any:
    if isinstance(selection, PackedSelection):
        return values.select(selection.flags())
    return tree.map(
        lambda node, value: value if isinstance(node, SelectedNode) else node, selection, values, is_leaf=_is_node
    )


def _keep_prefix(selection: Any, prefix: Any) -> Any:
    if isinstance(selection, PackedSelection):
        return selection.layout.expand(prefix).select(selection.flags())
    return _keep(selection, tree.expand(prefix, selection, is_leaf=_is_node))


def _merge(selection: Any, kept: Any, others: Any) -> Any:
    if isinstance(selection, PackedSelection):
        return others.merge(selection.flags(), kept)
    return tree.map(
        lambda node, mine, other: mine if isinstance(node, SelectedNode) else other,
        selection,
        kept,
        others,
        is_leaf=_is_node,
    )


def partition(
    transformations: Mapping[str, GradientTransformation], labels: Any | Callable[[Any], Any] | None = None
) -> GradientTransformation:
    """Apply to each group of leaves a transformation of its own.

    Args:
        transformations: One for each label.
        labels: A pytree prefix of the parameters with labels, or a function from the parameters to one. Left out, the
            labels are path patterns, and each leaf goes to the first that matches: see `masked`.

    Returns:
        A transformation whose state is a dict from label to `MaskedState`.

    Raises:
        ValueError: In ``init``, a leaf has a label without a transformation, or matches no pattern; the message names
            the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.partition({"*.bias": bx.sgd(1.0), "*": bx.chain(bx.sgd(0.1), bx.project(bx.sets.NonNegative()))})
        >>> params = {"weight": torch.zeros(1), "bias": torch.zeros(1)}
        >>> gradients = {"weight": torch.ones(1), "bias": torch.ones(1)}
        >>> tx.update(gradients, tx.init(params), params)[0]
        {'weight': tensor([0.]), 'bias': tensor([-1.])}

    Source:
        `optax.partition`; patterns are boxopt's addition.
    """
    groups = tuple(transformations)
    parts = (
        masked(transformation, bind(_labelled, label=label, labels=labels, groups=groups))
        for label, transformation in transformations.items()
    )
    return _run(tuple(parts), groups)


def _labelled(params: Any, *, label: str, labels: Any, groups: tuple[str, ...]) -> Any:
    """The mask of the leaves that carry a label."""
    if labels is None:
        return tree.map_with_path(lambda path, _: _first_match(path, groups) == label, params)
    values = tree.expand(labels(params) if tree.is_function(labels) else labels, params)

    def is_labelled(path: str, _: Any, value: Any) -> bool:
        if value not in groups:
            raise ValueError(f"{tree.name(path)} has the label {value!r}, there is none but {', '.join(groups)}")
        return value == label

    return tree.map_with_path(is_labelled, params, values)


def _first_match(path: str, patterns: tuple[str, ...]) -> str:
    for pattern in patterns:
        if tree.matches(path, pattern):
            return pattern
    raise ValueError(
        f"{tree.name(path)} matches none of the patterns {', '.join(patterns)}; "
        'end with {"*": identity()} to let the rest through'
    )
