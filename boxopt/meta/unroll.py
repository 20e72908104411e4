"""An inner loop of pure steps, through which derivatives pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.meta.closure import convert, is_recorded, is_transformed
from boxopt.meta.scan import Step, StepFunction, Tensors, scan


def unroll(
    step: Callable[..., tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    args: tuple[Any, ...] = (),
    checkpoint: bool | int | None = None,
    truncate: int | None = None,
) -> tuple[Any, Any]:
    r"""Repeat a pure step, handing a carry from one to the next: an inner loop that can be differentiated.

    $$ (c_{t+1}, y_t) = \mathrm{step}(c_t, x_t), \qquad t = 0, \dots, n - 1 $$

    It runs under ``torch.func.grad``, ``vjp``, ``jvp`` and ``vmap``, nested as you like, under autograd, and, each step
    a part of the graph, under ``torch.compile``. Derivatives pass to the initial carry, to ``xs``, to ``args``, and to
    whatever the step closes over: a learning rate, bounds, data.

    **Memory.** A derivative in reverse needs what every step has computed. With ``checkpoint`` only the carry is kept,
    every so many steps, and what lies between is computed again. With √n steps between, memory grows as √n.

    **Compile time.** A loop inside of a compiled function is compiled step after step. Give a step that is compiled by
    itself, ``unroll(bx.compile(step), ...)``, and one step is compiled, with one for each transform around the loop,
    whatever their number. Derivatives then reach what comes as ``carry``, ``xs`` and ``args``: a step that
    closes over anything that is differentiated or batched is refused. Make the step once, outside of the loss.

    **Truncation.** With ``truncate=k`` derivatives stop at every k-th step, counted from the first: less memory and no
    exploding derivatives, for a biased hypergradient.

    Args:
        step: ``step(carry, x, *args) -> (carry, y)``. The new carry is a tree of tensors like the old one.
        carry: A tree of tensors.
        xs: A tree of tensors whose leading dimension is that of the steps, or None: then x is None.
        length: The number of steps; needed if ``xs`` has no leaves.
        args: What each step is given besides; trees of tensors if the step is compiled.
        checkpoint: True for checkpoints every √n steps, or the number of steps between them. Steps are then computed
            more than once, so that they must be functions of their arguments alone. Of a compiled step so many are
            compiled as one (one unless given), and with True one at a time. Inside of a compiled function it has no
            effect.
        truncate: The number of steps after which derivatives stop.

    Returns:
        The last carry, and a tree of the ys stacked along a new leading dimension.

    Raises:
        ValueError: The number of steps is not given or contradicts ``xs``; or a step changes the structure of the
            carry, or the shape or dtype of a leaf, which the message names.

    Example:
        The derivative of three bounded steps with respect to the learning rate.

        >>> import torch, boxopt as bx
        >>> from torch.func import grad
        >>> def trained(lr):
        ...     tx = bx.chain(bx.sgd(lr), bx.project(bx.Box(0.0, 1.0)))
        ...     def step(carry, _):
        ...         params, state = carry
        ...         updates, state = tx.update(2 * (params - 0.5), state, params)
        ...         return (bx.apply_updates(params, updates), state), None
        ...     params = torch.tensor(1.0)
        ...     (params, _), _ = bx.unroll(step, (params, tx.init(params)), length=3, checkpoint=True)
        ...     return params
        >>> grad(trained)(torch.tensor(0.25))  # of 0.5 + 0.5 (1 - 2 lr)³
        tensor(-0.7500)

    Source:
        D. Maclaurin, D. Duvenaud and R. P. Adams, "Gradient-based hyperparameter optimization through reversible
        learning", ICML 2015; A. Griewank, "Achieving logarithmic growth of temporal and spatial complexity in reverse
        automatic differentiation", Optimization Methods and Software 1, 1992 (checkpoints); `jax.lax.scan`.
    """
    length = _length(xs, length)
    tree.map(_check_tensor, (carry, xs))
    window = _positive("truncate", truncate) or max(length, 1)
    root = math.isqrt(max(length - 1, 0)) + 1
    every = root if checkpoint is True else _positive("checkpoint", checkpoint or None)
    compiled: Any = step if hasattr(step, "made") else None
    if torch.compiler.is_compiling() or length == 0 or (compiled is None and every is None):
        run = partial(_one_by_one, step if compiled is None else compiled.__wrapped__, args)
    elif compiled is not None:
        run = partial(_compiled, compiled, args, every or 1, checkpoint is True)
    else:
        run = partial(_recomputed, step, args, every or 1)
    rows = []
    for start in range(0, max(length, 1), window):
        some = xs if window >= length else tree.map(lambda x, start=start: x[start : start + window], xs)
        carry = tree.map(torch.detach, carry) if start else carry
        carry, ys = run(carry, some, min(window, length - start))
        rows.append(ys)
    return carry, rows[0] if len(rows) == 1 else tree.map(lambda *column: torch.cat(column), *rows)


def _one_by_one(step: Any, args: tuple[Any, ...], carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """The steps one after the other, each of them part of what torch records."""
    if length == 0:
        _, y = step(carry, tree.map(lambda x: x.new_zeros(x.shape[1:]), xs), *args)
        return carry, tree.map(lambda y: y.new_empty(0, *y.shape), y)
    columns, ys = tree.map(lambda x: x.unbind(0), xs), []
    for number in range(length):
        x = tree.map(lambda _, column, number=number: column[number], xs, columns)
        new, y = step(carry, x, *args)
        if number == 0:
            _check_step(carry, new, y)
        carry = new
        ys.append(y)
    return carry, tree.map(lambda *column: torch.stack(column), *ys)


def _recomputed(step: Any, args: tuple[Any, ...], every: int, carry: Any, xs: Any, length: int) -> tuple[Any, Any]:
    """The steps as one operation that keeps the carry at these intervals, whatever the step closes over."""
    bound = partial(_with_args, step, args)
    constants, step_with = convert(bound)
    if not all(map(is_transformed, constants)):
        # Autograd's parameters: a step reaches those of a model also where it puts others in their place. What it does
        # not use must not become an input: then results would ask for derivatives that nobody wants.
        x = tree.map(lambda x: x[0], xs)
        if not any(map(is_recorded, tree.leaves(bound(carry, x)))):
            constants, step_with = convert(bound, is_transformed)
    flat = _Flat(carry, xs, ())

    def one(constants: Tensors, carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        return flat(step_with(constants), [], carry, x)

    single = Step(one)
    group = Step(partial(_scan_of, single, every))
    leaves, ys = _in_groups(single, group, every, constants, tree.leaves(carry), tree.leaves(xs), length)
    return flat.trees(leaves, ys)


def _compiled(
    step: Any, args: tuple[Any, ...], every: int, nested: bool, carry: Any, xs: Any, length: int
) -> tuple[Any, Any]:
    """The steps as one operation, which calls what has been compiled of one of them, or of several in a row."""
    if convert(step.__wrapped__)[0]:
        raise ValueError("a compiled step closes over a tensor that is differentiated or batched: pass it in args")
    constants = tree.leaves(args)
    tree.map(_check_tensor, args)
    key = tuple(tree.flatten(part)[1] for part in (carry, xs, args))
    if key not in step.made:
        flat = _Flat(carry, xs, args)
        with torch.no_grad():  # once as it is, to know its outputs
            flat(step.__wrapped__, constants, tree.leaves(carry), [x[0] for x in tree.leaves(xs)])
        step.made[key] = flat, Step(partial(flat, step.__wrapped__), compiled=True)
    flat, single = step.made[key]
    group = Step(partial(_scan_of, single, every)) if nested else single.derived(_repeated, every)
    leaves, ys = _in_groups(single, group, every, constants, tree.leaves(carry), tree.leaves(xs), length)
    return flat.trees(leaves, ys)


def _with_args(step: Any, args: tuple[Any, ...], carry: Any, x: Any) -> Any:
    return step(carry, x, *args)


def _in_groups(
    single: Step, group: Step, every: int, constants: Tensors, carry: Tensors, xs: Tensors, length: int
) -> tuple[Tensors, Tensors]:
    """A loop of groups of so many steps, and one of the steps that are left."""
    covered, pieces = (length // every) * every if every > 1 else 0, []
    if covered:
        grouped = [x[:covered].unflatten(0, (-1, every)) for x in xs]
        carry, ys = scan(group, covered // every, constants, carry, grouped)
        pieces.append([y.flatten(0, 1) for y in ys])
    if covered < length:
        carry, ys = scan(single, length - covered, constants, carry, [x[covered:] for x in xs])
        pieces.append(ys)
    return carry, pieces[0] if len(pieces) == 1 else [torch.cat(column) for column in zip(*pieces, strict=True)]


def _scan_of(step: Step, count: int, constants: Tensors, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
    return scan(step, count, constants, carry, xs)


def _repeated(step: StepFunction, count: int) -> StepFunction:
    """So many steps in a row as one."""

    def several(constants: Tensors, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
        ys = []
        for number in range(count):
            carry, y = step(constants, carry, [x[number] for x in xs])
            ys.append(y)
        return carry, [torch.stack(column) for column in zip(*ys, strict=True)]

    return several


class _Flat:
    """A step as a function of leaves, for arguments of one structure."""

    def __init__(self, carry: Any, xs: Any, args: tuple[Any, ...]) -> None:
        numbered = (
            tree.unflatten(structure, range(len(leaves))) for leaves, structure in map(tree.flatten, (carry, xs, args))
        )
        self.carry, self.x, self.args = numbered
        self.structures: Any = None

    def __call__(self, step: Any, constants: Tensors, carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        old, part, args = (
            tree.map(lambda place, leaves=leaves: leaves[place], places)
            for leaves, places in ((carry, self.carry), (x, self.x), (constants, self.args))
        )
        new, y = step(old, part, *args)
        if self.structures is None:
            _check_step(old, new, y)
            self.structures = tree.flatten(new)[1], tree.flatten(y)[1]
        return tree.leaves(new), tree.leaves(y)

    def trees(self, carry: Tensors, ys: Tensors) -> tuple[Any, Any]:
        """The last carry and the ys of their leaves."""
        return tree.unflatten(self.structures[0], carry), tree.unflatten(self.structures[1], ys)


def _check_step(old: Any, new: Any, y: Any) -> None:
    if not torch.compiler.is_compiling():
        tree.map(_check_same, old, new)
        tree.explain_mismatch(new, old)
        tree.map(_check_tensor, y)


def _length(xs: Any, length: int | None) -> int:
    sizes = {x.shape[0] for x in tree.leaves(xs)} | ({length} if length is not None else set())
    if not sizes:
        raise ValueError("without xs, length is the number of steps, got None")
    if len(sizes) > 1:
        raise ValueError(
            f"length and the leading dimensions of xs are the number of steps, got length={length} and "
            f"{', '.join(f'{tree.name(path)}: {tuple(x.shape)}' for path, x in tree.prefix_items(xs))}"
        )
    return sizes.pop()


def _positive(name: str, number: int | None) -> int | None:
    if number is not None and (isinstance(number, bool) or number < 1):
        raise ValueError(f"{name} is a positive number of steps, got {number!r}")
    return number


def _check_tensor(leaf: Any) -> None:
    if not isinstance(leaf, Tensor):
        raise TypeError(f"expected a tensor, got {type(leaf).__name__} {leaf!r:.60}")


def _check_same(old: Tensor, new: Any) -> None:
    _check_tensor(new)
    if old.shape != new.shape or old.dtype != new.dtype:
        raise ValueError(
            f"a step makes shape {tuple(new.shape)} and dtype {new.dtype} of shape {tuple(old.shape)} and {old.dtype}"
        )
