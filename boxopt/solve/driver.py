"""The loop that runs a solver on one problem or on a batch, each to its own end.

A problem that stops is frozen at once: from then on each step puts its old state back, so that it does not matter how
often the host looks. When it looks, problems that have stopped make room for others: see `boxopt.solve.pool`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.bar import progress_bar
from boxopt.core import tree
from boxopt.core.transform import GradientTransformation
from boxopt.solve.batching import is_each, key_of, refuse_ambiguous, shared, take_apart
from boxopt.solve.columns import by_columns
from boxopt.solve.flat import Flat
from boxopt.solve.pool import Pool
from boxopt.solve.result import Progress, Result, is_converged
from boxopt.solve.solver import Iterate
from boxopt.solve.step import RUNNING, Evaluate, Limits, Run, Setting, Step
from boxopt.solve.track import constraint_of


def drive(
    evaluate: Evaluate,
    params: Any,
    solver: GradientTransformation,
    *,
    args: tuple[Any, ...] = (),
    batch_dims: int = 0,
    tol: Any = None,
    step_tol: Any = 0.0,
    value_tol: Any = 0.0,
    max_steps: Any = 1000,
    callback: Callable[[Progress], Any] | None = None,
    progress: bool = False,
    compile: bool = False,
    sync_every: int | None = None,
    chunk_size: int | None = None,
) -> Result:
    """Run a solver until each problem has stopped: `boxopt.minimize` with an `Evaluate` in the place of the loss."""
    if not isinstance(solver, GradientTransformation):
        raise TypeError(
            f"expected a solver, such as bx.lbfgsb(bx.Box(0.0, 1.0)), got {type(solver).__name__} {solver!r:.60}"
        )
    tree.check_parameters(params)
    params = tree.map(torch.detach, params)
    batch = batch_of(params, batch_dims)
    refuse_ambiguous(solver, params, batch)
    flat = Flat.of(params, batch_dims)
    limits = _limits(flat, batch, tol, step_tol, value_tol, max_steps)
    setting, tensors = take_apart(Setting(solver, constraint_of(solver), checked(args, batch), limits))
    each = [is_each(tensor, batch) for tensor in tensors]
    rows = [
        flattened(tensor, batch) if own else shared(tensor, batch) for tensor, own in zip(tensors, each, strict=True)
    ]
    dims: list[int | None] = [0 if own else None for own in each]
    step = Step(evaluate, key_of((flat, setting)), flat, setting)
    with torch.no_grad():
        count = math.prod(batch) if batch else None
        if count:
            step, rows, dims = by_columns(step, rows, dims)
        places = _places(1 if count is None else count, chunk_size, flat.device, compile)
        params = tree.map(lambda leaf: flattened(leaf, batch), params)
        problems = Pool(step, params, rows, dims, count, places, compile)
        if sync_every is None:
            sync_every = 1 if flat.device.type == "cpu" else 8
        with _Reporter(problems, callback, progress) as reporter:
            while reporter.look():
                for _ in range(sync_every):
                    problems.advance()
        return _result(problems.result(), flat, batch)


def _places(count: int, chunk_size: int | None, device: torch.device, compiled: bool) -> int:
    """How many problems take part at the same time.

    On a CPU, compiled, as many as fit its caches; otherwise as many as fit the memory. A compiled step is for one
    number, so the number for small batches is rounded up to a power of two.
    """
    if chunk_size is None:
        chunk_size = 1024 if compiled and device.type == "cpu" else 65536
    return min(chunk_size, 1 << (max(count, 1) - 1).bit_length()) if compiled else min(chunk_size, max(count, 1))


def batch_of(params: Any, batch_dims: int) -> tuple[int, ...]:
    """The sizes of the batch's dimensions, the first of every leaf."""
    batch: tuple[int, ...] | None = None
    for path, leaf in zip(tree.paths(params), tree.leaves(params), strict=True):
        found = tuple(leaf.shape[:batch_dims])
        if len(found) < batch_dims:
            raise ValueError(f"{tree.name(path)} has the shape {tuple(leaf.shape)}, which lacks batch dimensions")
        if batch is not None and found != batch:
            raise ValueError(f"{tree.name(path)} is of a batch {found}, the leaves before it are of {batch}")
        batch = found
    if batch is None and batch_dims:
        raise ValueError("parameters without leaves do not say how many problems there are")
    return batch or ()


def checked(args: tuple[Any, ...], batch: tuple[int, ...]) -> tuple[Any, ...]:
    """The arguments, arrays as tensors, whose leading dimensions have to be the batch's."""
    args = tree.map(tree.as_value, tuple(args))
    for path, leaf in zip(tree.paths(args), tree.leaves(args), strict=True):
        if batch and isinstance(leaf, Tensor) and not is_each(leaf, batch):
            raise ValueError(
                f"args: {tree.name(path)} has the shape {tuple(leaf.shape)}, which does not start with the batch's "
                f"{batch}; what all problems share belongs in a closure of the function"
            )
    return args


def flattened(tensor: Tensor, batch: tuple[int, ...]) -> Tensor:
    """A tensor with one batch dimension in the place of several."""
    tensor = tensor.detach()
    return tensor.reshape((math.prod(batch), *tensor.shape[len(batch) :])) if batch else tensor


def _limits(flat: Flat, batch: tuple[int, ...], tol: Any, step_tol: Any, value_tol: Any, max_steps: Any) -> Limits:
    def number(value: Any, dtype: torch.dtype) -> Tensor:
        return torch.as_tensor(value, dtype=dtype, device=flat.device)

    if tol is None:
        tol = 1e-6 if flat.dtype == torch.float64 else 1e-4
    steps = number(max_steps, torch.int64).expand(batch).clone()  # at least one tensor with an entry a problem
    return Limits(number(tol, flat.dtype), number(step_tol, flat.dtype), number(value_tol, flat.dtype), steps)


class _Reporter:
    """Looks at the batch, makes it smaller, and tells the caller how far it is."""

    def __init__(self, problems: Pool, callback: Callable[[Progress], Any] | None, progress: bool) -> None:
        self._problems = problems
        self._callback = callback
        self._bar = progress_bar(total=problems.count, unit="problem") if progress else None

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def look(self) -> bool:
        """Whether to go on: a problem still runs, and the callback does not object."""
        running = int((self._problems.status == RUNNING).sum())
        unfinished, total = running + self._problems.waiting, self._problems.count
        stop = False
        if self._callback is not None and total:
            run = self._problems.run
            stop = self._callback(Progress(run.steps.amax(), unfinished, total, run.state.iterate)) is True
        if self._bar is not None:
            if total == 1:
                self._bar.set_postfix(_numbers(self._problems.run), refresh=False)
            self._bar.update(total - unfinished - self._bar.n)
        if unfinished and not stop:
            self._problems.turn_over(running)
        return unfinished > 0 and not stop


def _numbers(run: Run) -> dict[str, float]:
    """Those of a single problem, whose bar stays empty until it has stopped."""
    reached = run.state.iterate
    numbers = {"evaluations": run.steps, "value": reached.value, "optimality": reached.optimality}
    return {name: float(number.amax()) for name, number in numbers.items()}


def _result(run: Run, flat: Flat, batch: tuple[int, ...]) -> Result:
    def shaped(tensor: Tensor) -> Tensor:
        return tensor.reshape((*batch, *tensor.shape[1:])) if batch else tensor

    run = tree.map(shaped, run)
    reached = best_of(run)
    parts = reached.params.split([math.prod(shape) for shape in flat.shapes], dim=-1)
    params = tree.map(
        lambda place: parts[place].reshape((*batch, *flat.shapes[place])).to(flat.dtypes[place]), flat.places
    )
    return Result(params, reached.value, reached.optimality, run.status, run.steps, run.state)


def best_of(run: Run) -> Iterate:
    """The point that met a tolerance; where none did, that of the least loss, of those in the set if any was."""
    iterate = run.state.iterate
    best = getattr(run.state, "best", iterate)
    met = is_converged(run.status)
    last = met | ~best.value.isfinite()

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(last.reshape(last.shape + (1,) * (one.ndim - last.ndim)), one, other)

    return tree.map(choose, iterate, best)
