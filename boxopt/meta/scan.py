"""A loop of steps as one operation, for which torch's transforms have rules of their own.

``torch.func`` would record every operation of every step. Here it records the loop: its inputs, and the carry before
each step. What the loop becomes under a transform is a loop again, of transformed steps, so that the rules hold for
what they produce. Derivatives of any order, and batches in batches, come from three of them:

- in reverse, a loop from the last step to the first, which computes each step anew and pulls cotangents back;
- forwards, a loop that carries tangents along;
- batched, a loop of batched steps.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.core.shortcut import OPTIONS, Shortcut, needed, shortcut

Tensors = list[Tensor]
StepFunction = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
"""``(constants, carry, x) -> (carry, y)``."""


class Step:
    """A step, and what has been made of it.

    What a transform makes of a step is made once for each way in which it is applied: of a compiled step, it is
    compiled too, and nothing is compiled again in the next loop.

    Attributes:
        function: The step.
        compiled: Whether it, and what is made of it, is compiled.
    """

    def __init__(self, function: StepFunction, compiled: bool = False) -> None:
        self.function = function
        self.compiled = compiled
        self._made: dict[Any, Step] = {}
        self._source = _of_groups(function)
        self._compiled: Any = torch.compile(
            self._source, fullgraph=True, dynamic=False, options={**OPTIONS, "guard_filter_fn": needed}
        )
        self._shortcut: Shortcut | None = None

    def begin(self, *groups: Tensors) -> tuple[StepFunction, tuple[Tensors, Tensors]]:
        """One step made, and what makes more of them in the same loop."""
        if not self.compiled:
            return self.function, self.function(*groups)
        if self._shortcut is None or not self._shortcut.holds(groups):
            outputs = self._compiled(*groups)
            self._shortcut = shortcut(self._source)
            return self._compiled if self._shortcut is None else self._shortcut.run, outputs
        return self._shortcut.run, self._shortcut.run(*groups)

    def derived(self, make: Callable[..., StepFunction], *how: Any) -> Step:
        """What ``make`` makes of the step."""
        key = (make, *how)
        if key not in self._made:
            self._made[key] = Step(make(self.function, *how), self.compiled)
        return self._made[key]


def _of_groups(function: StepFunction) -> Any:
    def called(*groups: Tensors) -> tuple[Tensors, Tensors]:
        return function(*groups)

    called.__code__ = called.__code__.replace()  # torch keeps at most 8 compiled versions with a code object
    return called


def scan(step: Step, length: int, constants: Tensors, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    """The last carry and the stacked ys; one operation wherever a derivative may be asked for."""
    loop, leaves = Scan(step, len(constants), len(carry), length), (*constants, *carry, *xs)
    if not exact.is_constant(*leaves):
        outputs = _Operation.apply(replace(loop, saves=True), *leaves)
        outputs = outputs[: len(outputs) - len(carry)]
    else:
        outputs = loop.run(*leaves)
    return list(outputs[: len(carry)]), list(outputs[len(carry) :])


@dataclass(frozen=True, eq=False)
class Scan:
    """A loop, as a function from the leaves of its constants, carry and xs to those of the last carry and the ys.

    Attributes:
        step: What it repeats.
        constants: How many of its arguments every step is given.
        carry: How many of them are handed from step to step. The rest are the xs, with a leading dimension.
        length: The number of steps.
        backwards: Whether it goes from the last of the xs to the first.
        saves: Whether the carry before each step is among its outputs, after the ys.
    """

    step: Step
    constants: int
    carry: int
    length: int
    backwards: bool = False
    saves: bool = False

    def run(self, *leaves: Tensor) -> tuple[Tensor, ...]:
        """The loop as its steps."""
        compiled = self.step.compiled
        if compiled:  # all steps are given tensors of one kind, so that one compiled version is right for all
            leaves = tuple(leaf.detach().contiguous() for leaf in leaves)
        constants, carry, xs = self.split(leaves)
        slices, step = [leaf.unbind(0) for leaf in xs], None
        before, outputs = [], []
        for count in range(self.length):
            number = self.length - 1 - count if self.backwards else count
            if self.saves:
                before.append(carry)
            x = [leaf[number] for leaf in slices]
            if step is None:
                step, (carry, y) = self.step.begin(constants, carry, x)
            else:
                carry, y = step(constants, carry, x)
            if compiled:
                carry = [leaf.contiguous() for leaf in carry]
            outputs.append(y)
        if self.backwards:
            before, outputs = before[::-1], outputs[::-1]
        return (*carry, *(torch.stack(column) for rows in (outputs, before) for column in zip(*rows, strict=True)))

    def split(self, leaves: Sequence[Any]) -> list[list[Any]]:
        """What belongs to the constants, to the carry and to the xs."""
        return _cut(leaves, self.constants, self.carry)

    def split_outputs(self, outputs: Sequence[Any]) -> list[list[Any]]:
        """What belongs to the last carry, to the ys and to what is saved."""
        saved = self.carry if self.saves else 0
        return _cut(outputs, self.carry, len(outputs) - self.carry - saved)

    def batched(self, dims: Sequence[int | None], randomness: str) -> Scan:
        """The loop of batched steps, for leaves as `arranged` has them."""
        constants, _, xs = (tuple(dim is not None for dim in group) for group in self.split(dims))
        return replace(self, step=self.step.derived(_batched, constants, xs, randomness))

    def arranged(self, leaves: Sequence[Tensor], dims: Sequence[int | None], size: int) -> list[Tensor]:
        """The leaves with the batch dimension in front in every step; each leaf of the carry has one."""
        constants, carry, xs = (
            list(zip(*group, strict=True)) for group in zip(self.split(leaves), self.split(dims), strict=True)
        )
        return [
            *(leaf if dim is None else leaf.movedim(dim, 0) for leaf, dim in constants),
            *(leaf.expand(size, *leaf.shape) if dim is None else leaf.movedim(dim, 0) for leaf, dim in carry),
            *(leaf if dim is None else leaf.movedim(dim, 1) for leaf, dim in xs),
        ]


class _Operation(torch.autograd.Function):
    """A loop under autograd and the transforms of ``torch.func``."""

    @staticmethod
    def forward(loop: Scan, *leaves: Tensor) -> tuple[Tensor, ...]:
        given = {id(leaf) for leaf in leaves}  # a carry that no step changes; what an operation returns is new
        return tuple(x.view_as(x) if id(x) in given else x for x in loop.run(*leaves))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        loop, *leaves = inputs
        ctx.loop = loop
        ctx.floating = [x.is_floating_point() for x in output]
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*(x for x in output if not x.is_floating_point()))
        ctx.save_for_backward(*leaves, *loop.split_outputs(output)[2])
        ctx.save_for_forward(*leaves)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor | None) -> tuple[Tensor | None, ...]:
        loop, needed = ctx.loop, ctx.needs_input_grad[1:]
        leaves, saved = _cut(ctx.saved_tensors, len(needed))
        if not loop.saves:
            again = replace(loop, saves=True)
            saved = again.split_outputs(_Operation.apply(again, *leaves))[2]
        return (None, *_pulled_back(loop, leaves, saved, loop.split_outputs(cotangents), needed))

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _: None, *tangents: Tensor | None
    ) -> tuple[Tensor | None, ...]:
        return _pushed_forward(ctx.loop, ctx.saved_tensors, ctx.loop.split(tangents), ctx.floating)

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], loop: Scan, *leaves: Tensor
    ) -> tuple[Any, Any]:
        arranged = loop.arranged(leaves, in_dims[1:], info.batch_size)
        outputs = _Operation.apply(loop.batched(in_dims[1:], info.randomness), *arranged)
        return outputs, tuple(0 if place < loop.carry else 1 for place in range(len(outputs)))


def _batched(step: StepFunction, constants: tuple[bool, ...], xs: tuple[bool, ...], randomness: str) -> StepFunction:
    """A step for a batch, which these of the constants and of the parts of x have too, and the whole carry."""
    in_dims = ([0 if has else None for has in constants], 0, [0 if has else None for has in xs])
    batched: Any = torch.func.vmap(step, in_dims=in_dims, randomness=randomness)
    return batched


class _Places(NamedTuple):
    """Which of the constants, of the carry and of the parts of x a derivative is taken with respect to."""

    constants: tuple[int, ...]
    carry: tuple[int, ...]
    x: tuple[int, ...]

    def take(self, *groups: Tensors) -> Tensors:
        return [group[place] for group, places in zip(groups, self, strict=True) for place in places]

    def put(self, groups: list[Tensors], moved: Sequence[Tensor]) -> list[Tensors]:
        others = self.split(moved)
        return [_put(*group) for group in zip(groups, self, others, strict=True)]

    def split(self, moved: Sequence[Tensor]) -> list[Tensors]:
        return _cut(moved, len(self.constants), len(self.carry))


def _pulled_back(
    loop: Scan, leaves: Tensors, saved: Tensors, cotangents: list[list[Tensor | None]], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The cotangents of the leaves of a loop, given those of its outputs."""
    constants, carry, xs = loop.split(leaves)
    moves = [[x.is_floating_point() for x in group] for group in (constants, carry, xs)]
    need_constants, _, need_xs = loop.split(needed)
    places = _Places(
        _where(need and floats for need, floats in zip(need_constants, moves[0], strict=True)),
        _where(moves[1]),
        _where(need and floats for need, floats in zip(need_xs, moves[2], strict=True)),
    )
    of_carry, of_ys, of_saved = cotangents
    ys, late = _where(x is not None for x in of_ys), _where(x is not None for x in of_saved)
    start = [torch.zeros_like(carry[place]) if of_carry[place] is None else of_carry[place] for place in places.carry]
    totals = [torch.zeros_like(constants[place]) for place in places.constants]
    step = loop.step.derived(_pulling, places, ys, late, len(xs))
    back = Scan(step, loop.constants, len(start) + len(totals), loop.length, backwards=not loop.backwards)
    inputs = (*constants, *start, *totals, *saved, *xs, *_at(of_ys, ys), *_at(of_saved, late))
    to_carry, to_constants, to_xs = _cut(_Operation.apply(back, *inputs), len(start), len(totals))
    return [
        *_spread(to_constants, places.constants, loop.constants),
        *_spread(to_carry, places.carry, loop.carry),
        *_spread(to_xs, places.x, len(xs)),
    ]


def _pulling(
    step: StepFunction, places: _Places, ys: tuple[int, ...], late: tuple[int, ...], width: int
) -> StepFunction:
    """The step of a loop backwards.

    Its carry is the cotangent of the carry, and those of the constants summed so far. Its x is the carry before the
    step, the step's x, of ``width`` parts, and the cotangents of some of the ys and of some of the saved carry.
    """

    def pull(constants: Tensors, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
        of_next, totals = _cut(carry, len(places.carry))
        before, x, of_y, of_before = _cut(xs, len(xs) - width - len(ys) - len(late), width, len(ys))

        def outputs(*moved: Tensor) -> tuple[Tensor, ...]:
            next_carry, y = step(*places.put([constants, before, x], moved))
            return (*_at(next_carry, places.carry), *_at(y, ys))

        pullback: Any = torch.func.vjp(outputs, *places.take(constants, before, x))[1]
        of_constants, of_carry, of_x = places.split(pullback((*of_next, *of_y)))
        for place, cotangent in zip(late, of_before, strict=True):
            number = places.carry.index(place)
            of_carry[number] = of_carry[number] + cotangent
        totals = [total + cotangent for total, cotangent in zip(totals, of_constants, strict=True)]
        return [*of_carry, *totals], of_x

    return pull


def _pushed_forward(
    loop: Scan, leaves: Sequence[Tensor], tangents: list[list[Tensor | None]], floating: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The tangents of the outputs of a loop, given those of its leaves."""
    constants, carry, xs = loop.split(leaves)
    places = _Places(
        _where(tangent is not None for tangent in tangents[0]),
        _where(x.is_floating_point() for x in carry),
        _where(tangent is not None for tangent in tangents[2]),
    )
    _, of_ys, of_saved = loop.split_outputs(floating)
    start = [torch.zeros_like(carry[i]) if tangents[1][i] is None else tangents[1][i] for i in places.carry]
    step = loop.step.derived(_pushing, places, _where(of_ys), loop.constants, loop.carry, len(xs))
    forth = replace(
        loop, step=step, constants=loop.constants + len(places.constants), carry=loop.carry + len(places.carry)
    )
    inputs = (*constants, *_at(tangents[0], places.constants), *carry, *start, *xs, *_at(tangents[2], places.x))
    last, to_ys, saved = forth.split_outputs(_Operation.apply(forth, *inputs))
    return (
        *_spread(last[loop.carry :], places.carry, loop.carry),
        *_spread(to_ys, _where(of_ys), len(of_ys)),
        *_spread(saved[loop.carry :], _where(of_saved), len(of_saved)),
    )


def _pushing(step: StepFunction, places: _Places, ys: tuple[int, ...], *counts: int) -> StepFunction:
    """The step of a loop of tangents: with each group of a step's arguments, of these counts, come tangents of some.

    The ys are the tangents of some of the step's.
    """

    def push(*groups: Tensors) -> tuple[Tensors, Tensors]:
        (constants, *_), (carry, *_), (x, *_) = both = [
            _cut(group, count) for group, count in zip(groups, counts, strict=True)
        ]

        def outputs(*moved: Tensor) -> Any:
            next_carry, y = step(*places.put([constants, carry, x], moved))
            return (*_at(next_carry, places.carry), *_at(y, ys)), next_carry

        tangents = tuple(tangent for _, group in both for tangent in group)
        pushed: Any = torch.func.jvp(outputs, tuple(places.take(constants, carry, x)), tangents, has_aux=True)
        to_carry, to_y = _cut(pushed[1], len(places.carry))
        return [*pushed[2], *to_carry], to_y

    return push


def _cut(values: Sequence[Any], *counts: int) -> list[list[Any]]:
    """Consecutive pieces with these counts, and the rest."""
    pieces, rest = [], list(values)
    for count in counts:
        pieces.append(rest[:count])
        rest = rest[count:]
    return [*pieces, rest]


def _where(flags: Iterable[bool]) -> tuple[int, ...]:
    return tuple(place for place, flag in enumerate(flags) if flag)


def _at(values: Sequence[Any], places: Sequence[int]) -> list[Any]:
    return [values[place] for place in places]


def _put(values: Sequence[Any], places: Sequence[int], others: Sequence[Any]) -> list[Any]:
    """The values with others in some places."""
    new = list(values)
    for place, other in zip(places, others, strict=True):
        new[place] = other
    return new


def _spread(values: Sequence[Any], places: Sequence[int], count: int) -> list[Any]:
    """So many values, these in their places and None elsewhere."""
    return _put([None] * count, places, values)
