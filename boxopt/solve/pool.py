"""Many problems on a few places: those that stop make room for those that wait.

Only the problems that have a place take part in a step, so that the memory of a step does not grow with the batch, and
a compiled step always sees the same number of them. Each is frozen when it stops, so that the result does not depend on
when its place is given to another.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import lru_cache, partial
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.run.compile import CompiledStep, compile
from boxopt.run.memory import materialized
from boxopt.solve.columns import ColumnStep
from boxopt.solve.result import Status
from boxopt.solve.step import RUNNING, Run, Step

# torch's own defaults, with which steps of solvers take two thirds of the time that they take with boxopt's.
_OPTIONS = {"realize_opcount_threshold": 30, "max_fusion_size": 64}

TURN_OVER = 4  # places are given to others when one in so many is free


class Pool:
    """The problems of a batch, of which some are on a place; or a single problem.

    Args:
        step: What to do.
        params: The parameters of all problems, whose first dimension counts them if there is a batch.
        tensors: What the step reads beside the run.
        dims: Along which dimension each of these has an entry for each problem; None where they share it.
        count: How many problems there are; None for a single one, without a dimension for it.
        places: How many may take part at the same time.
        compiled: Whether to compile the step, for as many problems as there are places.
    """

    def __init__(
        self,
        step: Step,
        params: Any,
        tensors: list[Tensor],
        dims: list[int | None],
        count: int | None,
        places: int,
        compiled: bool,
    ) -> None:
        self.count = 1 if count is None else count
        self.waiting = 0  # for a place, the last of all
        self._step = step
        self._is_batch = count is not None
        self._dim = step.problems_dim
        self._dims = dims
        self._places = places if compiled else 0  # how many there are, if it does not change
        self._all_tensors = self._tensors = tensors
        self._layout, self._all = self._start(params)
        self._is_own = False  # whether the memory of what is kept of all problems is used for nothing else
        self._run = self._all
        self._rows: Tensor | None = None  # which problems are on the places; None where all are, in order
        if self._is_batch and (places < self.count or compiled):
            self.waiting = max(0, self.count - places)
            self._load(torch.arange(self.count - self.waiting, device=step.flat.device))
        elif compiled:
            self._run = [leaf.clone() for leaf in self._all]  # to be written over, each by itself
        self._advance = _on_leaves(step, self._layout, dims if self._is_batch else None)
        self._all_running = False  # whether that is known; a compiled step does not ask
        if compiled:
            kinds = tuple((leaf.dtype, leaf.device, leaf.shape) for leaf in (*self._run, *self._tensors))
            structure = tree.flatten(self._layout)[1]
            self._advance = _compiled(_Program(step, structure, kinds, tuple(dims), self._advance))

    def _start(self, params: Any) -> tuple[Any, list[Tensor]]:
        """The layout of a run, and the leaves of that of all problems."""
        leaves, structure = tree.flatten(params)
        layouts: list[Any] = []

        def start(leaves: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
            run = self._step.start(tree.unflatten(structure, leaves), tensors)
            values, found = tree.flatten(run)
            layouts.append(tree.unflatten(found, range(len(values))))
            return values

        if not self._is_batch:
            values = start(leaves, self._tensors)
        elif self.count:
            values = vmap(start, in_dims=(0 if leaves else None, self._dims))(leaves, self._tensors)
            if self._dim:
                values = [leaf.movedim(0, self._dim).contiguous() for leaf in values]
        else:  # the state of one problem, without it
            tensors = [
                t if d is None else t.new_ones(t.shape[1:]) for t, d in zip(self._tensors, self._dims, strict=True)
            ]
            values = start([leaf.new_zeros(leaf.shape[1:]) for leaf in leaves], tensors)
            values = [value.new_zeros((0, *value.shape)) for value in values]
        return layouts[-1], values

    @property
    def run(self) -> Run:
        """The problems on places, in the first dimension."""
        return _laid_out(self._layout, self._in_front(self._run))

    @property
    def status(self) -> Tensor:
        """The codes of the problems on places."""
        return self._run[self._layout.status]

    def _in_front(self, leaves: list[Tensor]) -> list[Tensor]:
        return [leaf.movedim(self._dim, 0) for leaf in leaves] if self._is_batch else leaves

    def advance(self) -> None:
        """One evaluation and one update of each problem that has a place."""
        known = (True,) if self._all_running else ()
        self._run, self._all_running = self._advance(self._run, self._tensors, *known), False

    def turn_over(self, running: int) -> None:
        """Give the places of problems that have stopped to others; if none wait, have fewer places.

        Args:
            running: How many of those on places run.
        """
        self._all_running = not self._places and running == self.status.numel()
        if not self._is_batch:
            return
        status = self.status
        places, free = len(status), len(status) - running
        if free * TURN_OVER < places if self.waiting else self._places or running > places // 2:
            return
        self._put_back()
        rows = torch.argsort(status != RUNNING, stable=True)[:running]
        rows = rows if self._rows is None else self._rows[rows]
        first, new = self.count - self.waiting, min(free, self.waiting)
        self.waiting -= new
        self._load(torch.cat([rows, torch.arange(first, first + new, device=rows.device)]))

    def _put_back(self) -> None:
        """Write what is on the places into what is kept of all problems."""
        if self._rows is None:
            self._all, self._is_own = [materialized(leaf) for leaf in self._run], True
            return
        if not self._is_own:
            self._all = [leaf.clone(memory_format=torch.contiguous_format) for leaf in self._all]
            self._is_own = True
        for leaf, part in zip(self._all, self._run, strict=True):
            leaf.index_copy_(self._dim, self._rows, part.narrow(self._dim, 0, len(self._rows)))

    def _load(self, rows: Tensor) -> None:
        """Put problems on places; a place that is left over holds one that does not run."""
        left_over = max(0, self._places - len(rows))
        taken = torch.cat([rows, rows[:1].expand(left_over)])

        def select(leaf: Tensor, dim: int | None) -> Tensor:
            return leaf if dim is None else leaf.index_select(dim, taken.to(leaf.device))

        self._run = [select(leaf, self._dim) for leaf in self._all]
        self._tensors = [select(leaf, dim) for leaf, dim in zip(self._all_tensors, self._dims, strict=True)]
        self._rows = rows
        self.status[len(rows) :] = int(Status.LIMIT)

    def result(self) -> Run:
        """All problems, in their order."""
        if self._is_batch:
            self._put_back()
            return _laid_out(self._layout, self._in_front(self._all))
        return self.run


def _laid_out(layout: Any, leaves: list[Tensor]) -> Any:
    """The tree with these leaves, by their numbers: a structure cannot be traced."""
    return tree.map(lambda place: leaves[place], layout)


def _on_leaves(step: Step, layout: Any, dims: list[int | None] | None) -> Callable[..., list[Tensor]]:
    """A step as a function of the leaves of a run, of a batch if there are dimensions; and of whether all run."""

    def advance(leaves: list[Tensor], tensors: list[Tensor], all_running: bool = False) -> list[Tensor]:
        return tree.leaves(step.advance(_laid_out(layout, leaves), tensors, all_running))

    if dims is None:
        return advance

    def advance_all(leaves: list[Tensor], tensors: list[Tensor], all_running: bool = False) -> list[Tensor]:
        if isinstance(step, ColumnStep):
            return tree.leaves(step.advance_all(_laid_out(layout, leaves), tensors, dims, all_running))
        return vmap(partial(advance, all_running=all_running), in_dims=(0, dims))(leaves, tensors)

    return advance_all


@dataclass(frozen=True)
class _Program:
    """What is compiled once: a step, and the kinds of tensors that it gets."""

    step: Step
    structure: Any
    kinds: tuple[Any, ...]
    dims: tuple[int | None, ...]
    function: Callable[..., Any] = field(compare=False)


@lru_cache(maxsize=32)
def _compiled(program: _Program) -> CompiledStep:
    """The compiled step, kept for the next call with the same loss and solver."""
    return compile(program.function, donate_argnums=0, options=_OPTIONS)
