"""Measurements of the updates, kept in the state."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from boxopt.core import sharded, tree
from boxopt.core.transform import EmptyState, GradientTransformation, bind, lets_through
from boxopt.core.types import P
from boxopt.scale.moments import zeros_like


class SnapshotState(NamedTuple):
    """The state of `snapshot`: ``measurement``, a dict of one name and what was measured."""

    measurement: dict[str, Any]


def snapshot(measure_name: str, measure: Callable[[Any], Any]) -> GradientTransformation:
    """Keep a measurement of the updates at this place of a chain in the state, and let them through.

    Args:
        measure_name: What to call it.
        measure: From the updates to a tree of tensors; a module-level function, if the transformation is to be pickled.

    Returns:
        A transformation with a `SnapshotState`; at first it holds the measurement of the parameters, as in optax.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.chain(bx.snapshot("largest", torch.max), bx.scale(-0.1)), torch.zeros(2)
        >>> _, state = tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)
        >>> state[0].measurement
        {'largest': tensor(4.)}

    Source:
        `optax.snapshot`.
    """
    return GradientTransformation(
        bind(_snapshot_init, name=measure_name, measure=measure),
        bind(_snapshot_update, name=measure_name, measure=measure),
    )


def _snapshot_init(params: Any, *, name: str, measure: Callable[[Any], Any]) -> SnapshotState:
    tree.check_parameters(params)
    return SnapshotState({name: tree.map(sharded.reduced, measure(params))})


@lets_through
def _snapshot_update(
    updates: P, state: SnapshotState, params: P, *, name: str, measure: Callable[[Any], Any]
) -> tuple[P, SnapshotState]:
    return updates, SnapshotState({name: tree.map(sharded.reduced, measure(updates))})


class MonitorState(NamedTuple):
    """The state of `monitor`.

    Attributes:
        measurements: A dict of names and what was measured.
        measure_states: The states of the measures that are transformations, in their order.
    """

    measurements: dict[str, Any]
    measure_states: tuple[Any, ...]


def monitor(measures: Mapping[str, GradientTransformation | Callable[[Any], Any]]) -> GradientTransformation:
    """Keep several measurements of the updates in the state, and let them through.

    Args:
        measures: From names to functions of the updates, or to transformations, whose updates are the measurement:
            `ema` for an average, say.

    Returns:
        A transformation with a `MonitorState`; at first it holds the measurements of zeros.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.monitor({"norm": torch.linalg.vector_norm, "mean": bx.ema(0.5)}), torch.zeros(2)
        >>> _, state = tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)
        >>> state.measurements
        {'norm': tensor(5.), 'mean': tensor([3., 4.])}

    Source:
        `optax.monitor`.
    """
    measures = dict(measures)
    return GradientTransformation(bind(_monitor_init, measures=measures), bind(_monitor_update, measures=measures))


def _monitor_init(params: Any, *, measures: dict[str, Any]) -> MonitorState:
    tree.check_parameters(params)
    states = tuple(m.init(params) if isinstance(m, GradientTransformation) else EmptyState() for m in measures.values())
    _, first = _monitor_update(zeros_like(params), MonitorState({}, states), params, measures=measures)
    return MonitorState(first.measurements, states)


@lets_through
def _monitor_update(updates: P, state: MonitorState, params: P, *, measures: dict[str, Any]) -> tuple[P, MonitorState]:
    measurements, states = {}, []
    for (name, measure), old in zip(measures.items(), state.measure_states, strict=True):
        new = old
        if isinstance(measure, GradientTransformation):
            measurements[name], new = measure.update(updates, old, params)
        else:
            measurements[name] = tree.map(sharded.reduced, measure(updates))
        states.append(new)
    return updates, MonitorState(measurements, tuple(states))
