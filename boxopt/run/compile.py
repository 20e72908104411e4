"""Compiled steps that may overwrite their arguments.

A pure step returns new parameters and leaves the old ones as they are: every call allocates and writes the whole model
anew, which on a CPU costs more than the arithmetic. Donation is the caller's permission to reuse the memory, as
``jax.jit(donate_argnums=…)``: the function stays pure as written, and the compiled one writes its results over its
arguments, in the same pass.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.donation import consume, is_consumed, refuse_consumed, restore, spoil
from boxopt.core.shortcut import OPTIONS, Shortcut, needed, shortcut
from boxopt.run.dependence import dependences
from boxopt.run.interrupt import uninterrupted
from boxopt.run.memory import Memory, SharedMemoryError, materialized


def compile(
    step: Callable[..., Any], donate_argnums: int | Sequence[int] = (), **torch_compile_options: Any
) -> CompiledStep:
    """Compile a pure step, whole, and let it overwrite the arguments that you give away.

    The i-th donated argument is overwritten by the i-th output: for ``step(params, state, batch) -> (params, state,
    loss)`` donate 0 and 1. After the call use what it returned; a donated tensor that comes back raises. With donation
    the call is data in, data out: no derivative passes through it.

    **Failures.** What raises before the step runs (bad arguments, an error while it is compiled) leaves everything as
    it was. If the step fails while it runs, as for want of memory, what was donated may be half overwritten, and its
    use raises. Ctrl-C waits for the end of the step: what was donated then holds the results, and may be used.

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
        ConsumedError: When called: an argument was donated before, or to a step that failed while it ran.
        RuntimeError: When called under ``vmap`` or ``grad``, with donation: these belong inside the step. Called in a
            larger compiled function, the step becomes part of it and overwrites nothing.

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


@dataclass
class _Plan:
    """How a step is called with arguments of one structure.

    Attributes:
        structure: That of the positional and the named arguments.
        owners: The position or name of the argument that each leaf belongs to.
        donated: The places of the donated leaves, in the order of the outputs.
        others: The places of the other leaves.
        outputs: The structure of the tuple of donated arguments.
        function: The step as a function of the leaves that writes over the donated ones.
        compiled: The same, compiled.
        memory: Where the tensors that the last call returned lie.
        shortcut: To what the last call ran, if there is one.
    """

    structure: Any
    owners: list[Any]
    donated: list[int]
    others: list[int]
    outputs: Any
    function: Any
    compiled: Callable[..., Any]
    memory: Memory | None = None
    shortcut: Shortcut | None = None


def _write_over(old: Tensor, new: Tensor) -> None:
    """Write over a tensor in a function that is compiled.

    torch 2.13 follows the value of a float64 tensor without dimensions as it does a Python number's, and when it gives
    that up it drops writes to the tensor, since nothing reads what ``copy_`` returns. It does not follow a view.
    """
    if old.ndim == 0:
        old.unsqueeze(0).copy_(new.unsqueeze(0))
    else:
        old.copy_(new)


class CompiledStep:
    """What `compile` returns: a function compiled for each structure of its arguments on the first call with it."""

    def __init__(self, step: Callable[..., Any], donated: tuple[int, ...], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, step)
        self.made: dict[Any, Any] = {}  # by `boxopt.unroll`, of the step
        self._step = step
        self._donated = donated
        self._name = getattr(step, "__name__", repr(step))
        self._options = _with_defaults(options)
        self._graphs = bool(self._options.get("options", {}).get("triton.cudagraphs"))
        self._compiled = None if donated else torch.compile(_own_code(_called(step)), **self._options)
        self._plans: dict[Any, _Plan] = {}
        self._recent: _Plan | None = None

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Run the step."""
        if self._compiled is not None:
            return self._compiled(*args, **kwargs)
        if torch.compiler.is_compiling() or torch._C._len_torch_dispatch_stack():
            return self._step(*args, **kwargs)  # part of a larger compiled function, which plans its memory itself
        if torch._C._are_functorch_transforms_active():
            raise RuntimeError(
                f"{self._name!r} overwrites its arguments, and cannot inside vmap or grad: compile the transformed "
                "step instead, as in bx.compile(vmap(step), donate_argnums=...)"
            )
        leaves, structure = tree.flatten((args, kwargs))
        plan = self._recent
        if plan is None or plan.structure != structure:
            plan = self._recent = self._plan(structure, args, kwargs)
        for place, leaf in enumerate(leaves):
            if is_consumed(leaf):
                refuse_consumed(leaf, f"a leaf of argument {plan.owners[place]!r}")
        given = [leaves[place] for place in plan.donated]
        own, memory = given, plan.memory
        if memory is None or not memory.is_of(given):  # not what the last call returned
            own = [materialized(leaf) for leaf in given]
            memory = self._memory([plan.owners[place] for place in plan.donated], own)
            for place, leaf in zip(plan.donated, own, strict=True):
                leaves[place] = leaf
        for place in plan.others:
            owner = memory.shared_with(leaves[place])
            if owner is not None:
                self._refuse_shared(owner, plan.owners[place])
        call = functools.partial(self._step_over, plan, memory, leaves, given, own)
        if plan.shortcut is None:  # it has to be compiled, which may be interrupted
            return call()
        results, interrupt = uninterrupted(call)
        if interrupt is not None:
            if all(one is other for one, other in zip(given, own, strict=True)):
                for leaf in given:  # it holds its result
                    restore(leaf)
            else:
                self._spoil(given)
            interrupt()
        return results

    def _step_over(self, plan: _Plan, memory: Memory, leaves: list[Any], given: list[Any], own: list[Any]) -> Any:
        """Run the step, and give what it returned; ``own`` is the memory that it writes over."""
        if torch.is_grad_enabled():
            with torch.no_grad():
                fits, alone, rest = self._run(plan, leaves, given)
        else:
            fits, alone, rest = self._run(plan, leaves, given)
        if not fits:
            self._explain(tree.unflatten(plan.structure, leaves)[0], rest)
        if rest:
            self._refuse_overwritten(memory, rest)
        return self._returned(plan, memory, given, own, alone, rest)

    def _run(self, plan: _Plan, leaves: list[Any], given: list[Any]) -> tuple[bool, bool, Any]:
        arguments = tuple(leaves)
        if plan.shortcut is not None and plan.shortcut.holds(arguments):
            try:
                return plan.shortcut.run(*arguments)
            except BaseException:
                self._spoil(given)
                raise
        try:
            results = plan.compiled(*arguments)
        except BaseException:
            version = None if self._graphs else shortcut(plan.function)
            if version is not None and version.holds(arguments):  # it had been compiled, so it ran
                self._spoil(given)
            raise
        if not self._graphs:  # torch counts the calls of what it records as a CUDA graph
            plan.shortcut = shortcut(plan.function)
        return results

    def _spoil(self, given: list[Any]) -> None:
        for leaf in given:
            spoil(leaf, self._name)

    def _returned(
        self, plan: _Plan, memory: Memory, given: list[Any], own: list[Any], alone: bool, rest: tuple[Any, ...]
    ) -> Any:
        """New tensors for the memory of the donated arguments, which are now used up, and the other outputs."""
        for leaf in given:
            consume(leaf, self._name)
        if own is not given:
            for leaf in own:
                consume(leaf, self._name)
        new = [leaf.detach() for leaf in own]
        if self._graphs:
            for leaf in new:
                torch._dynamo.mark_static_address(leaf, guard=False)
        plan.memory = memory.held_by(new)
        results = plan.outputs.unflatten(new)
        return results[0] if alone else (*results, *rest)

    def _plan(self, structure: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> _Plan:
        """The plan for arguments of a structure."""
        if structure in self._plans:
            return self._plans[structure]
        if max(self._donated) >= len(args):
            raise TypeError(f"argument {max(self._donated)} is donated, but there are only {len(args)} positional ones")
        positional, named = structure.children()
        owners, places = [], {}
        for part in (positional, named):
            for key, child in zip(part.entries(), part.children(), strict=True):
                places[key] = range(len(owners), len(owners) + child.num_leaves)
                owners += [key] * child.num_leaves
        donated = [place for number in self._donated for place in places[number]]
        others = [place for place, key in enumerate(owners) if key not in self._donated]
        outputs = tree.flatten(tuple(args[number] for number in self._donated))[1]
        function = _own_code(self._overwriting(structure, args, kwargs, donated))
        compiled = torch.compile(function, **self._options)
        plan = _Plan(structure, owners, donated, others, outputs, function, compiled)
        self._plans[structure] = plan
        return plan

    def _overwriting(
        self, structure: Any, args: tuple[Any, ...], kwargs: dict[str, Any], donated: list[int]
    ) -> Callable[..., Any]:
        """The step as a function of its arguments' leaves, followed by the writing of outputs over donated ones."""
        step, numbers, passed = self._step, self._donated, self._passed_on(args, kwargs, donated)
        places = structure.unflatten(range(structure.num_leaves))
        true = torch.ones((), dtype=torch.bool)

        def overwrite(*leaves: Any) -> tuple[bool, bool, Any]:
            args, kwargs = tree.map(lambda place: leaves[place], places)
            outputs = step(*args, **kwargs)
            alone = type(outputs) is not tuple
            results = (outputs,) if alone else outputs
            if len(results) < len(numbers) or not all(
                _fits(args[number], result) for number, result in zip(numbers, results, strict=False)
            ):
                return False, alone, outputs
            news = [leaf for result in results[: len(numbers)] for leaf in tree.leaves(result)]
            # The compiler would read an argument after writing over it, taking a clone for nothing; not so a choice.
            news = [
                torch.where(true, new, torch.zeros_like(new)) if index in passed else new
                for index, new in enumerate(news)
            ]
            for place, new in zip(donated, news, strict=True):
                _write_over(leaves[place], new)
            return True, alone, results[len(numbers) :]

        return overwrite

    def _passed_on(self, args: tuple[Any, ...], kwargs: dict[str, Any], donated: list[int]) -> frozenset[int]:
        """Which of the outputs' leaves depend on one donated leaf alone.

        However they are written, as a clone, a product with 1 or a concatenation of pieces, the compiler may take them
        for that leaf.
        """
        outputs = dependences(self._step, *args, **kwargs)
        results = outputs if type(outputs) is tuple else (outputs,)
        returned = [leaf for result in results[: len(self._donated)] for leaf in tree.leaves(result)]
        return frozenset(index for index, leaf in enumerate(returned) if len(leaf) == 1 and leaf <= set(donated))

    def _memory(self, owners: list[Any], tensors: list[Any]) -> Memory:
        try:
            return Memory.of(owners, tensors)
        except SharedMemoryError as shared:
            self._refuse_shared(*shared.args)
            raise

    def _refuse_shared(self, one: Any, other: Any) -> None:
        raise ValueError(
            f"argument {one!r} and argument {other!r} share memory, and one of them is donated to {self._name!r}: "
            "clone one before the call"
            if one != other
            else f"two leaves of argument {one!r} share memory, and it is donated to {self._name!r}: clone one before "
            "the call"
        ) from None

    def _refuse_overwritten(self, memory: Memory, outputs: tuple[Any, ...]) -> None:
        if any(memory.shared_with(leaf) is not None for leaf in tree.leaves(outputs)):
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


def _with_defaults(options: dict[str, Any]) -> dict[str, Any]:
    options = {"fullgraph": True, **options}
    if options.get("backend", "inductor") != "inductor":
        return options
    mode = options.pop("mode", None)
    chosen = {} if mode in (None, "default") else torch._inductor.list_mode_options(mode)
    options["options"] = {**OPTIONS, "guard_filter_fn": needed, **chosen, **(options.get("options") or {})}
    return options


def _called(step: Callable[..., Any]) -> Callable[..., Any]:
    return lambda *args, **kwargs: step(*args, **kwargs)


def _own_code(function: Any) -> Any:
    """The function, with a code object and a name of its own.

    torch keeps what it compiled with the code, at most 8 versions; and by name and line which sizes have changed, which
    it makes variables then: those of another step, and of its layout, have not.
    """
    function.__code__ = function.__code__.replace(co_name=f"{function.__name__}_{id(function):x}")
    return function


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
