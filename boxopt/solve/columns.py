"""A step of all problems at once: they are the columns of matrices.

Under ``vmap`` a problem's vector is a row. Where vectors are short, operations on rows are short too. Along a row of a
matrix whose columns are the vectors, neighbours in memory are the same number of different problems: a reduction adds
rows, and kernels need not know how long a vector is. What is left to ``vmap`` is the loss, which gets rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.core.search import search
from boxopt.core.transform import bound_in
from boxopt.sets.box import Box
from boxopt.solve.batching import Slot, put_together
from boxopt.solve.solver import Within, finite
from boxopt.solve.step import Run, Setting, Step, next_run


@dataclass(frozen=True)
class ColumnStep(Step):
    """A step whose run has problems along the last dimension, and whose last two tensors are the bounds of vectors."""

    problems_dim = -1

    def advance_all(self, run: Run, tensors: list[Tensor], dims: list[int | None], all_running: bool) -> Run:
        """The run of all problems after one more evaluation; the same for those that have ended.

        Args:
            run: The run of all problems.
            tensors: What the step reads beside it.
            dims: Along which dimension each of these has an entry for each problem; None where they share it.
            all_running: Whether it is known that none has ended.
        """
        *tensors, lower, upper = tensors
        setting: Setting = put_together(self.setting, tensors)

        def evaluate(trial: Tensor, tensors: list[Tensor]) -> tuple[Tensor, Any]:
            own: Setting = put_together(self.setting, tensors)
            gradients, extra = self.evaluate(self.flat.unravel(trial), *own.args)
            return self.flat.ravel(gradients), extra["value"]

        gradient, value = vmap(evaluate, in_dims=(0, dims[:-2]))(transposed(run.state.trial), tensors)
        bound, found = bound_in(setting.solver.update), finite(transposed(gradient), value)
        state = bound["within"].advance(lower, upper, run.state, *found, **bound["options"])
        if any(dtype != self.flat.dtype for dtype in self.flat.dtypes):
            rounded = vmap(lambda trial: self.flat.ravel(self.flat.unravel(trial)))(transposed(state.trial))
            state = state._replace(trial=transposed(rounded))
        return next_run(run, state, setting.limits, all_running)


@search("transposed", result=lambda shape: (*shape[:-2], shape[-1], shape[-2]))
def transposed(x: Tensor) -> Tensor:
    """The transpose of a matrix, laid out anew.

    An operator, so that nothing is fused across it: torch 2.13's inductor, where it mixes rows and columns in one loop,
    may write all of a vector's problems over one another.
    """
    return x.mT.clone(memory_format=torch.contiguous_format)


def by_columns(
    step: Step, tensors: list[Tensor], dims: list[int | None]
) -> tuple[Step, list[Tensor], list[int | None]]:
    """The same step by columns, with what it reads, if its solver can.

    Args:
        step: A step for one problem.
        tensors: What it reads, with the problems of a batch in the first dimension.
        dims: That dimension, or None where they share a tensor.
    """
    setting: Setting = step.setting
    bound = bound_in(setting.solver.update)
    within: Within | None = bound.get("within")
    size = sum(shape.numel() for shape in step.flat.shapes)
    if within is None or not 0 < size <= within.size or not isinstance(bound["constraint"], Box):
        return step, tensors, dims

    def bounds(tensors: list[Tensor]) -> tuple[Tensor, Tensor]:
        return step.flat.bounds(put_together(bound["constraint"], tensors))

    slots = [slot.index for slot in tree.leaves(bound["constraint"]) if isinstance(slot, Slot)]
    if any(dims[slot] is not None for slot in slots):
        limits, place = [limit.movedim(0, -1).contiguous() for limit in vmap(bounds, in_dims=(dims,))(tensors)], -1
    else:
        limits, place = [limit.unsqueeze(-1) for limit in bounds(tensors)], None
    column_step = ColumnStep(step.evaluate, step.key, step.flat, step.setting)
    return column_step, [*tensors, *limits], [*dims, place, place]
