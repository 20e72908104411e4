"""Steps of ensembles that are larger than the memory of what runs them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.donation import consume, refuse_consumed
from boxopt.run.ensemble import count_members
from boxopt.run.memory import Memory, SharedMemoryError, materialized


def chunked(
    step: Callable[..., Any],
    chunk_size: int,
    in_dims: int | Sequence[int | None] = 0,
    donate_argnums: int | Sequence[int] = (),
    device: torch.device | str | None = None,
    empty: Callable[..., Tensor] = torch.empty,
) -> Callable[..., Any]:
    """Run a vmapped step on a few members of an ensemble at a time, which alone need to be on the device.

    ``torch.func.vmap`` with ``chunk_size`` limits what a step needs between its inputs and its outputs. Here inputs and
    outputs may stay where there is room: in the memory of the CPU while a GPU runs the step, or in files mapped into
    memory (`torch.from_file`) while the CPU does. The i-th donated argument is overwritten by the i-th output, chunk by
    chunk, as by `compile`: so an ensemble exists once. After the call use what it returned; a donated tensor that comes
    back raises. No derivative passes through the call.

    Args:
        step: A function of ensembles that treats members separately: ``vmap(step)``, or ``bx.compile`` of that. On a
            CPU it may be one that donates the same arguments, and then writes over the ensemble itself.
        chunk_size: How many members at a time. A number that divides that of the members spares a compiled step the
            odd chunk at the end, for which it would be compiled anew.
        in_dims: As for ``vmap``: 0 for arguments with one entry a member in the first dimension of each leaf, None for
            those that all members share; one number for all arguments, or one each.
        donate_argnums: The positions of the arguments to overwrite: an integer or several.
        device: Where the step runs; the chunks stay where they are if it is None. Outputs come back to the device of
            the donated argument, others to the CPU, or where ``empty`` makes room.
        empty: What makes room for outputs that take no donated argument's place: called with a shape and ``dtype=``.

    Returns:
        The step, for the whole ensemble. Each leaf of its outputs has one entry a member.

    Raises:
        ValueError: At once: ``chunk_size`` is below 1, or ``in_dims`` other than 0 and None. When called: arguments
            differ in the number of members, or share memory with a donated one; or an output differs in structure,
            shape or dtype from the argument that it should overwrite. If that, or an error in the step, happens at a
            later chunk, the members before it have made their step.
        ConsumedError: When called: an argument was donated before.

    Example:
        >>> import torch, boxopt as bx
        >>> from torch.func import vmap
        >>> def step(weights, target):
        ...     return weights + 0.5 * (target - weights), (target - weights).abs()
        >>> train = bx.chunked(vmap(step, in_dims=(0, None)), 2, in_dims=(0, None), donate_argnums=0)
        >>> weights, distances = train(torch.tensor([0.0, 1.0, 2.0]), torch.tensor(1.0))
        >>> weights, distances
        (tensor([0.5000, 1.0000, 1.5000]), tensor([1., 0., 1.]))
    """
    donated = (donate_argnums,) if isinstance(donate_argnums, int) else tuple(donate_argnums)
    dims = in_dims if isinstance(in_dims, int) else tuple(in_dims)
    if chunk_size < 1:
        raise ValueError(f"chunk_size is at least 1, got {chunk_size}")
    if any(dim not in (0, None) for dim in (dims if isinstance(dims, tuple) else (dims,))):
        raise ValueError(f"in_dims are 0 or None, got {in_dims}")
    if len(set(donated)) < len(donated) or any(number < 0 for number in donated):
        raise ValueError(f"donate_argnums holds different positions from 0 on, got {donated}")
    return _Chunked(step, chunk_size, dims, donated, device, empty)


@dataclass(frozen=True)
class _Chunked:
    """What `chunked` returns."""

    step: Callable[..., Any]
    chunk_size: int
    in_dims: int | tuple[int | None, ...]
    donated: tuple[int, ...]
    device: torch.device | str | None
    empty: Callable[..., Tensor]

    @torch.no_grad()
    def __call__(self, *args: Any) -> Any:
        dims = (self.in_dims,) * len(args) if isinstance(self.in_dims, int) else self.in_dims
        if len(dims) != len(args) or any(number >= len(args) or dims[number] is None for number in self.donated):
            raise ValueError(f"{len(args)} arguments do not fit in_dims={dims} and donate_argnums={self.donated}")
        batched = [number for number, dim in enumerate(dims) if dim == 0]
        members = count_members(tuple(args[number] for number in batched))
        for path, leaf in zip(tree.paths(args), tree.leaves(args), strict=True):
            refuse_consumed(leaf, f"argument {path}")
        own = {number: tree.map(materialized, args[number]) for number in self.donated}
        self._refuse_shared(own, args)
        whole = [own.get(number, argument) for number, argument in enumerate(args)]
        shared = {number: self._moved(whole[number]) for number in range(len(args)) if number not in batched}
        rest, alone = None, False
        for start in range(0, members, self.chunk_size):
            span = slice(start, min(start + self.chunk_size, members))
            chunk = [tree.map(lambda x, span=span: x[span], x) if n in batched else x for n, x in enumerate(whole)]
            outputs = self.step(*(shared[n] if n in shared else self._moved(x) for n, x in enumerate(chunk)))
            alone = type(outputs) is not tuple
            results = (outputs,) if alone else outputs
            self._overwrite(chunk, results)
            further = results[len(self.donated) :]
            if rest is None:
                rest = tree.map(lambda x, span=span: self._room(x, span, members), further)
            tree.map(lambda room, x, span=span: room[span].copy_(x), rest, further)
        for number in self.donated:
            for leaf in tree.leaves(args[number]):
                consume(leaf, getattr(self.step, "__name__", repr(self.step)))
        returned = (*(tree.map(Tensor.detach, own[number]) for number in self.donated), *(rest or ()))
        return returned[0] if alone else returned

    def _moved(self, values: Any) -> Any:
        if self.device is None:
            return values
        return tree.map(lambda x: x.to(self.device, non_blocking=True) if isinstance(x, Tensor) else x, values)

    def _room(self, output: Any, span: slice, members: int) -> Tensor:
        if not isinstance(output, Tensor) or output.ndim == 0 or len(output) != span.stop - span.start:
            kind = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
            raise ValueError(
                f"an output of {span.stop - span.start} members should have one entry for each, got {kind}"
            )
        return self.empty((members, *output.shape[1:]), dtype=output.dtype)

    def _overwrite(self, chunk: list[Any], results: tuple[Any, ...]) -> None:
        """Write the first outputs over a chunk of the donated arguments, if all of them fit."""
        if len(results) < len(self.donated):
            raise ValueError(f"{len(self.donated)} arguments are donated, but there are only {len(results)} outputs")
        for position, number in enumerate(self.donated):
            try:
                tree.map(_compare, chunk[number], results[position])
                tree.explain_mismatch(results[position], chunk[number])
            except (ValueError, TypeError) as error:
                raise ValueError(
                    f"argument {number} is donated, and output {position} does not fit it: {error}"
                ) from None
        for position, number in enumerate(self.donated):
            tree.map(_write, chunk[number], results[position])

    def _refuse_shared(self, own: dict[int, Any], args: tuple[Any, ...]) -> None:
        leaves = [(number, leaf) for number, values in own.items() for leaf in tree.leaves(values)]
        try:
            memory = Memory.of([number for number, _ in leaves], [leaf for _, leaf in leaves])
        except SharedMemoryError as shared:
            one, other = shared.args
        else:
            pairs = (
                (memory.shared_with(leaf), number)
                for number, argument in enumerate(args)
                if number not in own
                for leaf in tree.leaves(argument)
            )
            one, other = next(((one, other) for one, other in pairs if one is not None), (None, None))
        if one is not None:
            raise ValueError(
                f"leaves of arguments {one} and {other} share memory, and one is donated: clone one of them"
            )


def _compare(old: Tensor, new: Any) -> None:
    if not isinstance(new, Tensor):
        raise ValueError(f"a tensor can be overwritten by a tensor, got {type(new).__name__}")
    if old.shape != new.shape or old.dtype != new.dtype:
        raise ValueError(
            f"it has {old.dtype} of shape {tuple(old.shape)}, the output {new.dtype} of shape {tuple(new.shape)}"
        )


def _write(old: Tensor, new: Tensor) -> None:
    if old.data_ptr() != new.data_ptr():  # else a step that donates has written it
        old.copy_(new)
