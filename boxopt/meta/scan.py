"""A loop of steps as one operation, for which torch's transforms have rules of their own.

``torch.func`` would record every operation of every step. Here it records the loop: its inputs, and the carry before
each step. What the loop becomes under a transform is a loop again, of transformed steps, so that the rules hold for
what they produce. Derivatives of any order, and batches in batches, come from three of them:

- in reverse, a loop from the last step to the first, which computes each step anew and pulls cotangents back;
- forwards, a loop that carries tangents along;
- batched, a loop of batched steps.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact

Tensors = list[Tensor]
Step = Callable[[Tensors, Tensors, Tensors], tuple[Tensors, Tensors]]
"""``(constants, carry, x) -> (carry, y)``."""


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
        constants, carry, xs = self.split(leaves)
        slices = [leaf.unbind(0) for leaf in xs]
        before, outputs = [], []
        for count in range(self.length):
            number = self.length - 1 - count if self.backwards else count
            if self.saves:
                before.append(carry)
            carry, y = self.step(constants, carry, [leaf[number] for leaf in slices])
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
        constants, _, xs = ([None if dim is None else 0 for dim in group] for group in self.split(dims))
        step: Any = torch.func.vmap(self.step, in_dims=(constants, 0, xs), randomness=randomness)
        return replace(self, step=step)

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


def _pulled_back(
    loop: Scan, leaves: Tensors, saved: Tensors, cotangents: list[list[Tensor | None]], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The cotangents of the leaves of a loop, given those of its outputs."""
    constants, carry, xs = loop.split(leaves)
    floating = [x.is_floating_point() for x in leaves]
    need_constants, _, need_xs = loop.split([need and moves for need, moves in zip(needed, floating, strict=True)])
    wanted, moving, entering = _where(need_constants), _where([x.is_floating_point() for x in carry]), _where(need_xs)
    of_carry, of_ys, of_saved = cotangents
    ys, late = _where([x is not None for x in of_ys]), _where([x is not None for x in of_saved])

    def pull(constants: Tensors, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
        before, x, of_y, of_before = _cut(xs, loop.carry, len(need_xs), len(ys))
        of_next, totals = _cut(carry, len(moving))

        def outputs(*inputs: Tensor) -> tuple[Tensor, ...]:
            some_constants, some_carry, some_x = _cut(inputs, len(wanted), len(moving))
            next_carry, y = loop.step(
                _put(constants, wanted, some_constants), _put(before, moving, some_carry), _put(x, entering, some_x)
            )
            return (*_at(next_carry, moving), *_at(y, ys))

        inputs = (*_at(constants, wanted), *_at(before, moving), *_at(x, entering))
        pullback: Any = torch.func.vjp(outputs, *inputs)[1]
        of_constants, of_carry, of_x = _cut(pullback((*of_next, *of_y)), len(wanted), len(moving))
        for place, cotangent in zip(late, of_before, strict=True):
            of_carry[moving.index(place)] = of_carry[moving.index(place)] + cotangent
        return [*of_carry, *map(torch.add, totals, of_constants)], of_x

    start = [torch.zeros_like(carry[place]) if of_carry[place] is None else of_carry[place] for place in moving]
    totals = [torch.zeros_like(constants[place]) for place in wanted]
    back = Scan(pull, loop.constants, len(start) + len(totals), loop.length, backwards=not loop.backwards)
    inputs = (*constants, *start, *totals, *saved, *xs, *_at(of_ys, ys), *_at(of_saved, late))
    pulled = _cut(_Operation.apply(back, *inputs), len(moving), len(wanted))
    to_carry, to_constants, to_xs = pulled
    return [
        *_spread(to_constants, wanted, loop.constants),
        *_spread(to_carry, moving, loop.carry),
        *_spread(to_xs, entering, len(xs)),
    ]


def _pushed_forward(
    loop: Scan, leaves: Sequence[Tensor], tangents: list[list[Tensor | None]], floating: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """The tangents of the outputs of a loop, given those of its leaves."""
    constants, carry, xs = loop.split(leaves)
    wanted, _, entering = (_where([tangent is not None for tangent in group]) for group in tangents)
    moving, count = _where([x.is_floating_point() for x in carry]), len(xs)
    _, of_ys, of_saved = loop.split_outputs(floating)

    def push(constants: Tensors, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
        constants, constant_tangents = _cut(constants, loop.constants)
        carry, carry_tangents = _cut(carry, loop.carry)
        x, x_tangents = _cut(xs, count)

        def outputs(*inputs: Tensor) -> Any:
            some_constants, some_carry, some_x = _cut(inputs, len(wanted), len(moving))
            next_carry, y = loop.step(
                _put(constants, wanted, some_constants), _put(carry, moving, some_carry), _put(x, entering, some_x)
            )
            return (*_at(next_carry, moving), *_at(y, _where(of_ys))), next_carry

        primals = (*_at(constants, wanted), *_at(carry, moving), *_at(x, entering))
        tangents = (*constant_tangents, *carry_tangents, *x_tangents)
        pushed: Any = torch.func.jvp(outputs, primals, tangents, has_aux=True)
        next_carry, to_carry, to_y = pushed[2], *_cut(pushed[1], len(moving))
        return [*next_carry, *to_carry], to_y

    start = [torch.zeros_like(carry[i]) if tangents[1][i] is None else tangents[1][i] for i in moving]
    forth = replace(loop, step=push, constants=loop.constants + len(wanted), carry=loop.carry + len(moving))
    outputs = _Operation.apply(
        forth, *constants, *_at(tangents[0], wanted), *carry, *start, *xs, *_at(tangents[2], entering)
    )
    last, to_ys, saved = forth.split_outputs(outputs)
    return (
        *_spread(last[loop.carry :], moving, loop.carry),
        *_spread(to_ys, _where(of_ys), len(of_ys)),
        *_spread(saved[loop.carry :], _where(of_saved), len(of_saved)),
    )


def _cut(values: Sequence[Any], *counts: int) -> list[list[Any]]:
    """Consecutive pieces with these counts, and the rest."""
    pieces, rest = [], list(values)
    for count in counts:
        pieces.append(rest[:count])
        rest = rest[count:]
    return [*pieces, rest]


def _where(flags: Sequence[bool]) -> list[int]:
    return [place for place, flag in enumerate(flags) if flag]


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
