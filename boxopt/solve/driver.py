"""The loop that runs a solver on one problem or on a batch, each to its own end.

A problem that stops is frozen at once: from then on each step puts its old state back, so that it does not matter how
often the host looks. When it looks, and half of the problems have stopped, the others go on as a smaller batch.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation, accepted
from boxopt.run.compile import CompiledStep, compile
from boxopt.solve.batching import is_each, key_of, put_together, refuse_ambiguous, shared, take_apart
from boxopt.solve.flat import Flat
from boxopt.solve.result import Progress, Result, Status
from boxopt.solve.solver import Iterate
from boxopt.solve.track import TrackedState, constraint_of, is_solver_state, tracked

Evaluate = Callable[..., tuple[Any, dict[str, Any]]]
"""``evaluate(params, *args) -> (gradients, extra)`` for one problem; ``extra`` holds ``value`` and what else the
solver's ``update`` may want, of which it gets what it names. Two that are equal and hash alike compute the same."""


# Plain integers: the compiler does not know members of an Enum.
_RUNNING = int(Status.RUNNING)
_REASONS = tuple(
    int(reason)
    for reason in (Status.GRADIENT, Status.STEP, Status.VALUE, Status.NONFINITE, Status.STALLED, Status.LIMIT)
)


class Limits(NamedTuple):
    """When a problem stops: numbers, or tensors with one for each problem.

    Attributes:
        tol: The largest optimality ‖P(x − g) − x‖∞ of a solution.
        step_tol: How small a step, relative to the parameters where they are above 1, ends the search; 0 none.
        value_tol: How small a change of the loss, relative to it where it is above 1, ends the search; 0 none.
        max_steps: How many evaluations are allowed.
    """

    tol: Any
    step_tol: Any
    value_tol: Any
    max_steps: Any


class Run(NamedTuple):
    """How far a problem is.

    Attributes:
        state: The state of the solver.
        status: A code of `Status`, int8.
        steps: The evaluations used, int64.
    """

    state: Any
    status: Tensor
    steps: Tensor


class _Setting(NamedTuple):
    """All that a step reads beside the run: what may hold tensors."""

    solver: GradientTransformation
    constraint: Any
    args: tuple[Any, ...]
    limits: Limits


@dataclass(frozen=True)
class _Step:
    """One evaluation and one update of one problem, as functions of tensors.

    Attributes:
        evaluate: As `Evaluate`.
        key: What equal steps have in common beside it.
        flat: How the parameters lie in a vector.
        setting: A `_Setting` without its tensors.
    """

    evaluate: Evaluate
    key: Hashable
    flat: Flat = field(compare=False)
    setting: Any = field(compare=False)

    def start(self, params: Any, tensors: list[Tensor]) -> Run:
        """The run before the first evaluation."""
        setting = put_together(self.setting, tensors)
        state = setting.solver.init(params)
        if not is_solver_state(state):
            state = tracked(setting.solver, setting.constraint).init(params)
        zero = torch.zeros((), dtype=torch.int64, device=self.flat.device)
        return Run(state, zero.to(torch.int8), zero)

    def advance(self, run: Run, tensors: list[Tensor]) -> Run:
        """The run after one more evaluation; the same if it has ended."""
        setting = put_together(self.setting, tensors)
        solver, names = setting.solver, accepted(setting.solver)
        if isinstance(run.state, TrackedState):
            solver, names = tracked(solver, setting.constraint), None
        params = self.flat.unravel(run.state.trial)
        gradients, extra = self.evaluate(params, *setting.args)
        extra = {name: value for name, value in extra.items() if names is None or name in names}
        _, state = solver.update(gradients, run.state, params, **extra)
        steps = run.steps + 1
        new = Run(state, _status(run.state.iterate, state, steps, setting.limits), steps)
        running = run.status == _RUNNING
        return tree.map(lambda one, other: torch.where(running, one, other), new, run)


def _status(old: Iterate, state: Any, steps: Tensor, limits: Limits) -> Tensor:
    """Whether the point reached is the last, and why."""
    new = state.iterate
    again = (new.accepted > old.accepted) & (old.accepted > 0)
    step, size = _largest(new.params - old.params), _largest(new.params)
    change, scale = (new.value - old.value).abs(), torch.maximum(new.value.abs(), old.value.abs())
    holds = (  # in the order of _REASONS, of which the first counts
        (new.optimality <= limits.tol) & (new.accepted > 0),
        again & (limits.step_tol > 0) & (step <= limits.step_tol * size.clamp_min(1)),
        again & (limits.value_tol > 0) & (change <= limits.value_tol * scale.clamp_min(1)),
        new.accepted == 0,
        state.stalled,
        steps >= limits.max_steps,
    )
    status = torch.full_like(steps, _RUNNING, dtype=torch.int8)
    for reason, held in zip(reversed(_REASONS), reversed(holds), strict=True):
        status = torch.where(held, torch.full_like(status, reason), status)
    return status


def _largest(vector: Tensor) -> Tensor:
    return vector.abs().amax() if vector.numel() else vector.sum()


class _Batch:
    """The problems that still run, as lists of tensors, and what became of the others.

    Attributes:
        size: How many problems still take part; None for a single problem.
    """

    def __init__(self, step: _Step, tensors: list[Tensor], each: list[bool], params: Any, is_batch: bool) -> None:
        self.size = int(tensors[-1].shape[0]) if is_batch else None
        self._step = step
        self._tensors = tensors
        self._each = each
        leaves, structure = tree.flatten(params)
        places: list[Any] = []

        def start(leaves: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
            run = step.start(tree.unflatten(structure, leaves), tensors)
            values, found = tree.flatten(run)
            places.append(tree.unflatten(found, range(len(values))))
            return values

        self._run: list[Tensor] = self._batched(start, bool(leaves))(leaves, tensors)
        self._places = places[-1]
        self._advance = self._batched(_on_leaves(step, self._places))
        self._rows: Tensor | None = None
        self._ended: list[Tensor] = []

    def _batched(self, function: Callable[..., Any], has_leaves: bool = True) -> Callable[..., Any]:
        if self.size is None:
            return function
        return vmap(function, in_dims=(0 if has_leaves else None, [0 if own else None for own in self._each]))

    def compile(self) -> None:
        """From now on run compiled steps, which overwrite the run."""
        self._run = [leaf.clone(memory_format=torch.contiguous_format) for leaf in self._run]
        kinds = tuple(
            (own, leaf.dtype, leaf.device, leaf.shape[1:] if own else leaf.shape)
            for own, leaf in zip([self.size is not None] * len(self._run) + self._each, self._leaves(), strict=True)
        )
        self._advance = _compiled(
            _Program(self._step, tree.flatten(self._places)[1], kinds, self.size == 1, self._advance)
        )
        self._mark()

    def _leaves(self) -> list[Tensor]:
        return [*self._run, *self._tensors]

    def _mark(self) -> None:
        """Tell the compiler that the number of problems changes."""
        if self.size is not None and isinstance(self._advance, CompiledStep):
            for own, leaf in zip([True] * len(self._run) + self._each, self._leaves(), strict=True):
                if own:
                    torch._dynamo.maybe_mark_dynamic(leaf, 0)

    @property
    def run(self) -> Run:
        """The problems that still take part."""
        return _laid_out(self._places, self._run)

    def advance(self) -> None:
        """One evaluation and one update of each."""
        self._run = self._advance(self._run, self._tensors)

    def compact(self, running: int) -> None:
        """Go on with those that run, if that halves the batch."""
        least = 2 if isinstance(self._advance, CompiledStep) else 1  # a size of 1 would be compiled anew
        keep = max(running, least)
        if self.size is None or keep > self.size // 2:
            return
        self._put_back()
        kept = torch.argsort(self.run.status != _RUNNING, stable=True)[:keep]
        self._rows = kept if self._rows is None else self._rows[kept]
        self._run = [leaf.index_select(0, kept) for leaf in self._run]
        self._tensors = [
            leaf.index_select(0, kept.to(leaf.device)) if own else leaf
            for leaf, own in zip(self._tensors, self._each, strict=True)
        ]
        self.size = keep
        self._mark()

    def _put_back(self) -> None:
        if self._rows is None:
            self._ended = [leaf if leaf.is_contiguous() else leaf.contiguous() for leaf in self._run]
        else:
            for leaf, part in zip(self._ended, self._run, strict=True):
                leaf.index_copy_(0, self._rows, part)

    def result(self) -> Run:
        """All problems, in their order."""
        self._put_back()
        return _laid_out(self._places, self._ended)


def _laid_out(places: Any, leaves: list[Tensor]) -> Any:
    """The tree with these leaves, of numbers of places rather than a structure: these a compiler can trace."""
    return tree.map(lambda place: leaves[place], places)


def _on_leaves(step: _Step, places: Any) -> Callable[[list[Tensor], list[Tensor]], list[Tensor]]:
    """A step as a function of the leaves of a run."""

    def advance(leaves: list[Tensor], tensors: list[Tensor]) -> list[Tensor]:
        return tree.leaves(step.advance(_laid_out(places, leaves), tensors))

    return advance


@dataclass(frozen=True)
class _Program:
    """What is compiled once: a step, and the kinds of tensors that it gets."""

    step: _Step
    structure: Any
    kinds: tuple[Any, ...]
    alone: bool
    function: Callable[..., Any] = field(compare=False)


@lru_cache(maxsize=32)
def _compiled(program: _Program) -> CompiledStep:
    """The compiled step, kept for the next call with the same loss and solver."""
    return compile(program.function, donate_argnums=0)


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
) -> Result:
    """Run a solver until each problem has stopped. The arguments are those of `boxopt.minimize`.

    Args:
        evaluate: As `Evaluate`, in the place of the loss.
    """
    tree.check_parameters(params)
    params = tree.map(torch.detach, params)
    batch = batch_of(params, batch_dims)
    refuse_ambiguous(solver, params, batch)
    flat = Flat.of(params)._replace(shapes=tuple(leaf.shape[batch_dims:] for leaf in tree.leaves(params)))
    limits = _limits(flat, batch, tol, step_tol, value_tol, max_steps)
    setting, tensors = take_apart(_Setting(solver, constraint_of(solver), checked(args, batch), limits))
    each = [is_each(tensor, batch) for tensor in tensors]
    rows = [
        flattened(tensor, batch) if own else shared(tensor, batch) for tensor, own in zip(tensors, each, strict=True)
    ]
    step = _Step(evaluate, key_of((flat, setting)), flat, setting)
    with torch.no_grad():
        problems = _Batch(step, rows, each, tree.map(lambda leaf: flattened(leaf, batch), params), bool(batch))
        if compile:
            problems.compile()
        if sync_every is None:
            sync_every = 1 if flat.device.type == "cpu" else 8
        with _Reporter(problems, callback, progress) as reporter:
            while reporter.look():
                for _ in range(sync_every):
                    problems.advance()
        return _result(problems.result(), flat, batch)


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

    def __init__(self, problems: _Batch, callback: Callable[[Progress], Any] | None, progress: bool) -> None:
        self._problems = problems
        self._callback = callback
        self._total = problems.size or 1
        self._bar = _progress_bar(self._total) if progress else None

    def __enter__(self) -> _Reporter:
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.close()

    def look(self) -> bool:
        """Whether any problem still runs."""
        run = self._problems.run
        running = int((run.status == _RUNNING).sum())
        if self._callback is not None:
            iterate = run.state.iterate
            self._callback(Progress(run.steps.max(), running, self._total, iterate.value, iterate.optimality))
        if self._bar is not None:
            self._bar.update(self._total - running - self._bar.n)
        if running:
            self._problems.compact(running)
        return running > 0


def _progress_bar(total: int) -> Any:
    try:
        from tqdm.auto import tqdm
    except ImportError as error:
        raise ImportError("progress=True needs the package tqdm: pip install tqdm") from error
    return tqdm(total=total, unit="problem")


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
    met = (run.status >= int(Status.GRADIENT)) & (run.status <= int(Status.VALUE))
    last = met | ~best.value.isfinite()

    def choose(one: Tensor, other: Tensor) -> Tensor:
        return torch.where(last.reshape(last.shape + (1,) * (one.ndim - last.ndim)), one, other)

    return tree.map(choose, iterate, best)
