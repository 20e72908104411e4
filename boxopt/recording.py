"""What happened while it ran: a recorder in the chain, pure and of fixed memory, and what it wrote."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.core.transform import GradientTransformation, bind, lets_through, whole_leaves
from boxopt.core.types import P
from boxopt.core.values import zero_count
from boxopt.diagnostics import optimality
from boxopt.sets.base import ConstraintSet, expect_set
from boxopt.sets.box import Box
from boxopt.sets.intersection import ByPath

Measure = Callable[[Any, Any, Any], Tensor]
"""``(gradients, params, value) -> tensor``."""


class RecordState(NamedTuple):
    """The state of `record`.

    Attributes:
        step: How many updates were made, an int64 scalar.
        stride: Every how many updates something is written, an int64 scalar: a power of two.
        filled: How many places are written, an int64 scalar.
        steps: The number of the update at each place, ``[length]``, int64.
        measurements: By name what was measured, each ``[length, ...]``.
    """

    step: Tensor
    stride: Tensor
    filled: Tensor
    steps: Tensor
    measurements: dict[str, Tensor]


def record(
    constraint: ConstraintSet | None = None,
    length: int = 256,
    *,
    params: bool = False,
    sides: bool = False,
    measures: Mapping[str, Measure] | None = None,
) -> GradientTransformation:
    """Write down the loss, and where the parameters are with respect to a set, and let the updates through.

    Put it first in a chain, where the updates are gradients. Whatever the number of steps, the memory is that of
    ``length`` measurements: when they are written, every second is dropped, and from then on half as many are
    taken. So the record always covers the whole run, evenly. Read it with `history`.

    Written are, by name,

    - ``value``: the loss, if ``update`` is given it as ``value=``; NaN otherwise;
    - ``optimality``: ‖P(x − g) − x‖∞, see `boxopt.optimality`; without a set ‖g‖∞;
    - ``violation``: how far the parameters are outside of the set;
    - ``active``: with a box, or boxes by path, the share of coordinates that are at a bound;
    - ``params``, if asked for: the parameters, as one vector;
    - ``sides``, if asked for: which bound each coordinate is at, as one vector of −1, 0 and 1; see `boxopt.active`;
    - what ``measures`` say.

    A step costs a copy of what is recorded; keep ``length`` small where parameters or sides are recorded, and are many.

    Args:
        constraint: The set; none if left out.
        length: How many measurements are kept, an even number.
        params: Whether to record the parameters.
        sides: Whether to record the sides, which takes a box, or boxes by path.
        measures: From names to functions ``(gradients, params, value) -> tensor``; ``value`` is None if not given.
            Module-level functions, if the transformation is to be pickled.

    Returns:
        A transformation with a `RecordState`. ``update`` may be given ``value=``.

    Raises:
        ValueError: ``length`` is odd or less than 2, or ``sides`` are asked for of another set.
        TypeError: The constraint is not a set.

    Example:
        >>> import torch, boxopt as bx
        >>> box = bx.Box(0.0, 1.0)
        >>> tx, x = bx.chain(bx.record(box, 4), bx.sgd(0.25), bx.project(box)), torch.tensor([0.5, 0.5])
        >>> state = tx.init(x)
        >>> for _ in range(6):
        ...     gradients, value = torch.func.grad_and_value(lambda x: (x**2).sum() - 4 * x[0])(x)
        ...     updates, state = tx.update(gradients, state, x, value=value)
        ...     x = bx.apply_updates(x, updates)
        >>> written = bx.history(state)
        >>> written["step"], written["active"]
        (tensor([0, 2, 4]), tensor([0.0000, 0.5000, 0.5000]))
    """
    if length < 2 or length % 2:
        raise ValueError(f"the length of a record is an even number, 2 at least, got {length}")
    if constraint is not None:
        expect_set(constraint)
    if sides and not isinstance(constraint, Box | ByPath):
        raise ValueError(f"sides are of a box, or of boxes by path, got {type(constraint).__name__}")
    options = {"constraint": constraint, "vectors": (params, sides), "measures": dict(measures or {})}
    return GradientTransformation(bind(_record_init, length=length, **options), bind(_record_update, **options))


def history(state: Any) -> dict[str, Tensor]:
    """What a `record` wrote, in the order of the steps.

    Args:
        state: A `RecordState`, or a state that contains one; of an ensemble too.

    Returns:
        A dict of ``step``, ``[written]``, the number of updates made before it, and of each measurement,
        ``[written, ...]``. In an ensemble the batch dimensions come first, and where a member has made fewer updates
        than others the rest of its steps is −1, and of its measurements NaN.

    Raises:
        ValueError: The state contains no record, or several.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, x = bx.record(bx.Box(0.0, 1.0), 4), torch.tensor([0.5])
        >>> _, state = tx.update(torch.tensor([3.0]), tx.init(x), x)
        >>> bx.history(state)["optimality"]
        tensor([0.5000])
    """
    written = _record_in(state)
    longest, batch = int(written.filled.max()), written.filled.ndim
    empty = torch.arange(longest, device=written.filled.device) >= written.filled[..., None]

    def cut(values: Tensor, nothing: float) -> Tensor:
        values = values.narrow(batch, 0, longest)
        return torch.where(empty.reshape(empty.shape + (1,) * (values.ndim - empty.ndim)), nothing, values)

    return {"step": cut(written.steps, -1)} | {
        name: cut(values, torch.nan) for name, values in written.measurements.items()
    }


def scalars(state: Any) -> dict[str, float]:
    """The last numbers of a `record`, by name, as a logger takes them: TensorBoard's ``add_scalars``, say.

    Of an ensemble, the mean over its members. Empty before the first update.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, x = bx.record(bx.Box(0.0, 1.0), 4), torch.tensor([0.5, 1.0])
        >>> _, state = tx.update(torch.tensor([0.25, -1.0]), tx.init(x), x, value=torch.tensor(2.0))
        >>> bx.scalars(state)
        {'value': 2.0, 'optimality': 0.25, 'violation': 0.0, 'active': 0.5}
    """
    written = _record_in(state)
    begun, last = written.filled > 0, (written.filled - 1).clamp_min(0)[..., None]
    if not bool(begun.any()):
        return {}
    return {
        name: float(values.gather(-1, last)[..., 0][begun].double().mean())
        for name, values in written.measurements.items()
        if values.ndim == last.ndim
    }


def _record_in(state: Any) -> RecordState:
    """The only record in a state."""
    found = [node for node in tree.leaves_of(state, _is_record) if _is_record(node)]
    if len(found) != 1:
        raise ValueError(f"expected a state with one record in it, got {len(found) or 'none'}")
    return found[0]


def _is_record(node: Any) -> bool:
    return isinstance(node, RecordState)


def _measure(
    gradients: Any,
    params: Any,
    value: Any,
    constraint: ConstraintSet | None,
    vectors: tuple[bool, bool],
    measures: dict[str, Measure],
) -> dict[str, Tensor]:
    leaves = tree.leaves(params)
    like = leaves[0] if leaves else torch.zeros(())
    loss = torch.full((), torch.nan) if value is None else torch.as_tensor(value)
    found = {"value": loss, "optimality": optimality(Box() if constraint is None else constraint, params, gradients)}
    if constraint is not None:
        found["violation"] = constraint.violation(params)
    params_too, sides_too = vectors
    if isinstance(constraint, Box | ByPath):
        sides = tree.leaves(constraint.active(params))
        total = max(sum(side.numel() for side in sides), 1)
        found["active"] = tree.reduce(torch.add, [(side != 0).sum() for side in sides]) / total
        if sides_too:
            found["sides"] = _vector(sides, like)
    if params_too:
        found["params"] = _vector(leaves, like)
    found |= {name: measure(gradients, params, value) for name, measure in measures.items()}
    dtype = torch.float64 if like.dtype == torch.float64 else torch.float32
    return {name: _plain(number.detach()).to(device=like.device, dtype=dtype) for name, number in found.items()}


def _vector(leaves: list[Tensor], like: Tensor) -> Tensor:
    parts = [_plain(leaf).reshape(-1) for leaf in leaves]
    return torch.cat([part.to(parts[0]) for part in parts]) if parts else like.new_zeros(0)


def _plain(x: Tensor) -> Tensor:
    """All numbers of a tensor, on every process if they are spread over several."""
    return sharded.whole(x)


def _record_init(
    params: Any,
    *,
    length: int,
    constraint: ConstraintSet | None,
    vectors: tuple[bool, bool],
    measures: dict[str, Measure],
) -> RecordState:
    tree.check_parameters(params)
    if constraint is not None:
        constraint.check(params)
    first = _measure(params, params, None, constraint, vectors, measures)
    empty = {name: number.new_full((length, *number.shape), torch.nan) for name, number in first.items()}
    count = zero_count(params)
    return RecordState(
        count, count + 1, count.clone(), torch.zeros(length, dtype=torch.int64, device=count.device), empty
    )


@lets_through
@whole_leaves
def _record_update(
    updates: P,
    state: RecordState,
    params: P,
    *,
    value: Any = None,
    constraint: ConstraintSet | None,
    vectors: tuple[bool, bool],
    measures: dict[str, Measure],
) -> tuple[P, RecordState]:
    wanted = state.step % state.stride == 0
    measured = _measure(updates, params, value, constraint, vectors, measures)
    steps, measurements = state.steps, state.measurements
    places = torch.arange(steps.shape[0], device=steps.device)
    here = wanted & (places == state.filled)
    filled = state.filled + wanted
    full = filled == steps.shape[0]

    def write(old: Tensor, new: Tensor) -> Tensor:
        written = torch.where(here.reshape(-1, *(1,) * (old.ndim - 1)), new, old)
        return torch.where(full, torch.cat([written[::2], written[1::2]]), written)

    return updates, RecordState(
        state.step + 1,
        torch.where(full, state.stride * 2, state.stride),
        torch.where(full, filled // 2, filled),
        write(steps, state.step),
        {name: write(measurements[name], number) for name, number in measured.items()},
    )
