"""Compiled steps that may overwrite their arguments.

A pure step returns new parameters and leaves the old ones as they are: every call allocates and writes the whole model
anew, which on a CPU costs more than the arithmetic. Donation is the caller's permission to reuse the memory, as
``jax.jit(donate_argnums=…)``: the function stays pure as written, and the compiled one writes its results over its
arguments, in the same pass.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from boxopt.core import tree
from boxopt.core.donation import consume, is_consumed, refuse_consumed

# The inductor repeats an intermediate result at each use until it has 30 operations. With 5, long formulas (a barrier's
# proximal step) compile in a sixth of the time. Each intermediate then counts as a step of a fused kernel, of which 64
# are allowed: a chain of five would become two passes with nine buffers of the model's size between them.
_OPTIONS = {"realize_opcount_threshold": 5, "max_fusion_size": 1000}


def compile(
    step: Callable[..., Any], donate_argnums: int | Sequence[int] = (), **torch_compile_options: Any
) -> CompiledStep:
    """Compile a pure step, whole, and let it overwrite the arguments that you give away.

    The i-th donated argument is overwritten by the i-th output: for ``step(params, state, batch) -> (params, state,
    loss)`` donate 0 and 1. After the call use what it returned; a donated tensor that comes back raises. With donation
    the call is data in, data out: no derivative passes through it. If it fails while it runs, what was donated to it
    may be half overwritten; if it raises before, nothing has been.

    Args:
        step: A pure function of trees of tensors, such as one made with ``vmap`` and ``grad`` from `tx.update`.
        donate_argnums: The positions of the arguments to overwrite: an integer or several.
        **torch_compile_options: Passed to ``torch.compile``; ``fullgraph`` is True unless given. ``mode`` may be
            ``"reduce-overhead"``, for CUDA graphs.

    Returns:
        The compiled step, a `CompiledStep`; call it as ``step``.

    Raises:
        ValueError: When called: an output differs from the argument that it should overwrite in structure, shape, dtype
            or device (the message names the leaf; nothing has been overwritten); or two arguments share memory and one
            of them is donated.
        ConsumedError: When called: an argument was donated before.

    Example:
        The updates take the place of the gradients, and the new state that of the old. (A training step donates the
        parameters: see ``docs/performance.md``.)

        >>> import torch, boxopt as bx
        >>> tx = bx.chain(bx.adam(0.1), bx.project(bx.Box(0.0, 1.0)))
        >>> update = bx.compile(tx.update, donate_argnums=(0, 1))
        >>> params, unpack = bx.pack({"weight": torch.zeros(2, 2), "bias": torch.ones(2)})
        >>> gradients = unpack.pack({"weight": -torch.ones(2, 2), "bias": torch.ones(2)})
        >>> updates, state = update(gradients, tx.init(params), params)
        >>> params = bx.apply_updates(params, updates)
        >>> unpack(params)["bias"]
        tensor([0.9000, 0.9000])
        >>> gradients.buffers["float32"] is updates.buffers["float32"]  # the same memory, another tensor
        False
    """
    donated = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    if len(set(donated)) < len(donated) or any(number < 0 for number in donated):
        raise ValueError(f"donate_argnums holds different positions from 0 on, got {donated}")
    return CompiledStep(step, donated, torch_compile_options)


class _Donation(NamedTuple):
    """A donated argument: its position, the tree and its leaves, where they lie in memory, and the tensors given."""

    number: int
    value: Any
    leaves: list[Any]
    structure: Any
    spans: list[tuple[int, int]]
    originals: list[Any]


class _LastCall(NamedTuple):
    """What the next call will most likely be given: what this one returned."""

    donations: list[_Donation]
    structure: list[Any]
    function: Callable[..., Any]


class CompiledStep:
    """What `compile` returns: a function compiled for each structure of its arguments on the first call with it."""

    def __init__(self, step: Callable[..., Any], donated: tuple[int, ...], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, step)
        self._step = step
        self._donated = donated
        self._static = options.get("mode") in ("reduce-overhead", "max-autotune")
        self._name = getattr(step, "__name__", repr(step))
        self._options = _with_defaults(options, bool(donated))
        self._compiled: dict[Any, Callable[..., Any]] = {}
        self._last: _LastCall | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step."""
        if not self._donated:
            return self._function_for(None, args, kwargs)(*args, **kwargs)
        if max(self._donated) >= len(args):
            raise TypeError(f"argument {max(self._donated)} is donated, but there are only {len(args)} positional ones")
        donations, structure = self._own(args)
        structure.extend(self._unshared(donations, args, kwargs))
        arguments = list(args)
        for donation in donations:
            arguments[donation.number] = donation.value
        last = self._last
        if last is not None and last.structure == structure:
            function = last.function
        else:
            function = self._function_for(tuple(structure), tuple(arguments), kwargs)
        if torch.is_grad_enabled():
            with torch.no_grad():
                fits, outputs = function(*arguments, **kwargs)
        else:
            fits, outputs = function(*arguments, **kwargs)
        if not fits:
            self._explain(tuple(arguments), outputs)
        results = list(outputs) if type(outputs) is tuple else [outputs]
        self._refuse_overwritten(donations, results[len(donations) :])
        donations = [self._renewed(donation) for donation in donations]
        results[: len(donations)] = [donation.value for donation in donations]
        self._last = _LastCall(donations, structure, function)
        return tuple(results) if type(outputs) is tuple else results[0]

    def _function_for(self, structure: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """The compiled function for arguments of a structure."""
        if structure not in self._compiled:
            function = self._step if structure is None else self._overwriting(args, kwargs)
            self._compiled[structure] = torch.compile(_own_code(function), **self._options)
        return self._compiled[structure]

    def _overwriting(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Callable[..., Any]:
        """The step followed by the writing of its outputs over the donated arguments."""
        step, donated, passed = self._step, self._donated, self._passed_on(args, kwargs)
        true = torch.ones((), dtype=torch.bool)

        def overwrite(*args: Any, **kwargs: Any) -> tuple[bool, Any]:
            outputs = step(*args, **kwargs)
            results = outputs if type(outputs) is tuple else (outputs,)
            if len(results) < len(donated) or not all(
                _fits(args[number], result) for number, result in zip(donated, results, strict=False)
            ):
                return False, outputs
            olds = [leaf for number in donated for leaf in tree.leaves(args[number])]
            news = [leaf for result in results[: len(donated)] for leaf in tree.leaves(result)]
            # The compiler takes a clone for nothing and would read an argument after writing over it; not so a choice.
            news = [
                torch.where(true, new, torch.zeros_like(new)) if index in passed else new
                for index, new in enumerate(news)
            ]
            for old, new in zip(olds, news, strict=True):
                old.copy_(new)
            rest = (*(None for _ in donated), *results[len(donated) :])
            return True, rest if type(outputs) is tuple else rest[0]

        return overwrite

    def _passed_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> frozenset[int]:
        """Which of the outputs' leaves are donated arguments as they were, or views of them; nothing is computed."""
        with torch.no_grad(), FakeTensorMode(allow_non_fake_inputs=True) as mode:

            def fake(leaf: Any) -> Any:
                return mode.from_tensor(leaf) if isinstance(leaf, Tensor) else leaf

            imitations = tree.map(fake, args)
            outputs = self._step(*imitations, **tree.map(fake, kwargs))
        results = outputs if type(outputs) is tuple else (outputs,)
        given = {
            leaf.untyped_storage()._cdata
            for number in self._donated
            for leaf in tree.leaves(imitations[number])
            if isinstance(leaf, Tensor)
        }
        returned = [leaf for result in results[: len(self._donated)] for leaf in tree.leaves(result)]
        return frozenset(
            index
            for index, leaf in enumerate(returned)
            if isinstance(leaf, Tensor) and leaf.untyped_storage()._cdata in given
        )

    def _own(self, args: tuple[Any, ...]) -> tuple[list[_Donation], list[Any]]:
        """The donated arguments, each number in a place of its own, and their structures; none may be used up."""
        donations = []
        for position, number in enumerate(self._donated):
            donation = self._last.donations[position] if self._last is not None else None
            if donation is None or donation.value is not args[number]:  # not what the last call returned
                leaves, structure = tree.flatten(args[number])
                own = [_materialized(leaf) for leaf in leaves]
                value = tree.unflatten(structure, own)
                donation = _Donation(number, value, own, structure, _spans(own), leaves)
            for leaf in donation.originals:
                if is_consumed(leaf):
                    refuse_consumed(leaf, f"a leaf of argument {number}")
            donations.append(donation)
        return donations, [donation.structure for donation in donations]

    def _unshared(self, donations: list[_Donation], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Iterator[Any]:
        """The structures of the other arguments; raises if a donated one shares memory with another."""
        spans = [(start, stop, donation.number) for donation in donations for start, stop in donation.spans]
        for key, argument in (*enumerate(args), *kwargs.items()):
            if key in self._donated:
                continue
            leaves, structure = tree.flatten(argument)
            for leaf in leaves:
                if is_consumed(leaf):
                    refuse_consumed(leaf, f"a leaf of argument {key!r}")
            spans += [(start, stop, key) for start, stop in _spans(leaves)]
            yield key, structure
        self._refuse_shared(spans)

    def _refuse_shared(self, spans: list[tuple[int, int, Any]]) -> None:
        """Raise an error if a span of a donated argument overlaps with any other."""
        furthest = (0, 0, None)
        for span in sorted(spans, key=itemgetter(0)):
            one, other = furthest[2], span[2]
            if span[0] < furthest[1] and (one in self._donated or other in self._donated):
                raise ValueError(
                    f"argument {one!r} and argument {other!r} share memory, and one of them is donated to "
                    f"{self._name!r}: clone one before the call"
                    if one != other
                    else f"two leaves of argument {one!r} share memory, and it is donated to {self._name!r}: clone one "
                    "before the call"
                )
            if span[1] > furthest[1]:
                furthest = span

    def _renewed(self, donation: _Donation) -> _Donation:
        """New tensors for the memory of a donated argument, which is now used up."""
        for leaf in donation.leaves:
            consume(leaf, self._name)
        if donation.originals is not donation.leaves:
            for leaf in donation.originals:
                consume(leaf, self._name)
        leaves = [leaf.detach() for leaf in donation.leaves]
        if self._static:
            for leaf in leaves:
                torch._dynamo.mark_static_address(leaf, guard=False)
        value = tree.unflatten(donation.structure, leaves)
        return _Donation(donation.number, value, leaves, donation.structure, donation.spans, leaves)

    def _refuse_overwritten(self, donations: list[_Donation], outputs: list[Any]) -> None:
        for start, stop in _spans([leaf for output in outputs for leaf in tree.flatten(output)[0]]):
            if any(start < end and begin < stop for donation in donations for begin, end in donation.spans):
                raise ValueError(
                    f"{self._name!r} returns a donated argument, or a view of one, which has been overwritten: "
                    "return a clone of it"
                )

    def _explain(self, args: tuple[Any, ...], outputs: Any) -> None:
        """Raise the error that says which output does not fit the argument it should overwrite."""
        results = outputs if type(outputs) is tuple else (outputs,)
        for position, number in enumerate(self._donated):
            place = f"argument {number} of {self._name!r} is donated"
            if position >= len(results):
                raise ValueError(f"{place}, but there is no output {position} to overwrite it with")
            try:
                tree.map(_compare, args[number], results[position])
                tree.explain_mismatch(results[position], args[number])
            except (ValueError, TypeError) as error:
                raise ValueError(f"{place}, and output {position} does not fit it: {error}") from None
        raise AssertionError("an output was refused that fits")


_LIBRARIES = re.compile(r"\['__import_(boxopt|optree|torch)_(?!dot_testing)")
_OF_STRUCTURE = {
    "TYPE_MATCH",
    "CLASS_MATCH",
    "SEQUENCE_LENGTH",
    "DICT_KEYS_MATCH",
    "NOT_PRESENT_IN_GENERIC_DICT",
    "HASATTR",
}


def _needed(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's guards, checked on each call, are about something that may change.

    Most watch the insides of boxopt and optree, which do not. The types and lengths of the arguments have been compared
    with their structure, by which the compiled functions are kept.
    """
    return [
        not _LIBRARIES.search(guard.name)
        and not (guard.name.startswith(("args", "kwargs", "type(args")) and guard.guard_type in _OF_STRUCTURE)
        for guard in guards
    ]


def _with_defaults(options: dict[str, Any], donates: bool) -> dict[str, Any]:
    options = {"fullgraph": True, **options}
    if options.get("backend", "inductor") != "inductor":
        return options
    mode = options.pop("mode", None)
    chosen = {} if mode in (None, "default") else torch._inductor.list_mode_options(mode)
    guards = {"guard_filter_fn": _needed} if donates else {}
    options["options"] = {**_OPTIONS, **guards, **chosen, **(options.get("options") or {})}
    return options


def _own_code(function: Callable[..., Any]) -> Callable[..., Any]:
    """A function with a code object of its own: torch keeps what it compiled with the code, at most 8 versions."""

    def call(*args: Any, **kwargs: Any) -> Any:
        return function(*args, **kwargs)

    call.__code__ = call.__code__.replace()
    return call


def _fits(old: Any, new: Any) -> bool:
    try:
        return all(tree.leaves(tree.map(_same_kind, old, new))) and len(tree.leaves(old)) == len(tree.leaves(new))
    except (ValueError, TypeError):
        return False


def _same_kind(old: Any, new: Any) -> bool:
    both = isinstance(old, Tensor) and isinstance(new, Tensor)
    return both and old.shape == new.shape and old.dtype == new.dtype and old.device == new.device


def _compare(old: Any, new: Any) -> None:
    if not isinstance(old, Tensor) or not isinstance(new, Tensor):
        raise ValueError(f"only tensors can be overwritten, by tensors; got {type(old).__name__}, {type(new).__name__}")
    for name in ("shape", "dtype", "device"):
        one, other = getattr(old, name), getattr(new, name)
        if one != other:
            raise ValueError(f"its {name} is {_plain(one)}, the output has {_plain(other)}")


def _plain(value: Any) -> Any:
    return tuple(value) if isinstance(value, torch.Size) else value


def _materialized(leaf: Any) -> Any:
    """A tensor in which each number has a place of its own: ``vmap(tx.init)`` returns expanded counters."""
    if isinstance(leaf, Tensor) and any(n > 1 and s == 0 for n, s in zip(leaf.shape, leaf.stride(), strict=True)):
        return leaf.contiguous()
    return leaf.detach() if isinstance(leaf, Tensor) and leaf.requires_grad else leaf


def _spans(leaves: list[Any]) -> list[tuple[int, int]]:
    """The first byte of each tensor and the one after its last; nothing for those without elements."""
    spans = []
    for leaf in leaves:
        if not isinstance(leaf, Tensor) or not leaf.numel():
            continue
        start = leaf.data_ptr()
        if leaf.is_contiguous():
            spans.append((start, start + leaf.nbytes))
        else:
            last = sum((n - 1) * s for n, s in zip(leaf.shape, leaf.stride(), strict=True))
            spans.append((start, start + (last + 1) * leaf.element_size()))
    return spans
