"""An inner loop of pure steps, through which derivatives pass."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.meta.closure import convert
from boxopt.meta.scan import Tensors, scan


def unroll(
    step: Callable[[Any, Any], tuple[Any, Any]],
    carry: Any,
    xs: Any = None,
    length: int | None = None,
    *,
    checkpoint: bool | int | None = None,
    truncate: int | None = None,
) -> tuple[Any, Any]:
    r"""Repeat a pure step, handing a carry from one to the next: an inner loop that can be differentiated.

    $$ (c_{t+1}, y_t) = \mathrm{step}(c_t, x_t), \qquad t = 0, \dots, n - 1 $$

    It runs under ``torch.func.grad``, ``vjp``, ``jvp`` and ``vmap``, nested as you like, under autograd, and (each
    step a part of the graph) under ``torch.compile``. Derivatives pass to the initial carry, to ``xs``, and to
    whatever the step closes over: a learning rate, bounds, data.

    **Memory.** A derivative in reverse needs what every step has computed. With ``checkpoint`` only the carry is kept,
    every so many steps, and what lies between is computed again, two steps forward and one backward instead of one and
    one. With √n steps between, memory grows as √n.

    **Truncation.** With ``truncate=k`` derivatives pass through the last k steps only, and those of the ys through the
    steps since the last multiple of k: less memory and no exploding derivatives, for a biased hypergradient.

    Args:
        step: ``step(carry, x) -> (carry, y)``. The new carry is a tree of tensors like the old one.
        carry: A tree of tensors.
        xs: A tree of tensors whose leading dimension is that of the steps, or None: then x is None.
        length: The number of steps; needed if ``xs`` has no leaves.
        checkpoint: True for checkpoints every √n steps, or the number of steps between them. Steps are then computed
            more than once, so that they must be functions of their arguments alone. Under ``torch.compile`` it has no
            effect: the compiler plans its memory itself.
        truncate: The number of steps through which derivatives pass.

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
    every = _positive("checkpoint", math.isqrt(max(length - 1, 0)) + 1 if checkpoint is True else checkpoint or None)
    window = _positive("truncate", truncate) or max(length, 1)
    flat = _Flat(step, carry, xs)
    leaves, columns, rows = tree.leaves(carry), tree.leaves(xs), []
    for start in range(0, length, window):
        count = min(window, length - start)
        piece = columns if window >= length else [x[start : start + count] for x in columns]
        leaves, ys = _run(flat, count, leaves if start == 0 else [x.detach() for x in leaves], piece, every)
        rows.append(ys)
    if not rows:
        leaves, ys = flat(leaves, [x.new_zeros(x.shape[1:]) for x in columns])
        return carry, flat.outputs([y.new_empty(0, *y.shape) for y in ys])
    ys = rows[0] if len(rows) == 1 else [torch.cat(column) for column in zip(*rows, strict=True)]
    return tree.unflatten(flat.carry, leaves), flat.outputs(ys)


class _Flat:
    """A step as a function of the leaves of the carry and of x, which returns those of the next carry and of y."""

    def __init__(self, step: Callable[[Any, Any], tuple[Any, Any]], carry: Any, xs: Any) -> None:
        tree.map(_check_tensor, (carry, xs))
        self.step = step
        self.carry = tree.flatten(carry)[1]
        self.x = tree.flatten(xs)[1]
        self.y: Any = None

    def __call__(self, carry: Tensors, x: Tensors, step: Any = None) -> tuple[Tensors, Tensors]:
        old = tree.unflatten(self.carry, carry)
        new, y = (step or self.step)(old, tree.unflatten(self.x, x))
        y_leaves, structure = tree.flatten(y)
        if self.y is None:
            if not torch.compiler.is_compiling():
                tree.map(_check_same, old, new)
                tree.explain_mismatch(new, old)
                tree.map(_check_tensor, y)
            self.y = structure
        return tree.leaves(new), y_leaves

    def outputs(self, leaves: Tensors) -> Any:
        return tree.unflatten(self.y, leaves)


def _run(flat: _Flat, length: int, carry: Tensors, xs: Tensors, every: int | None) -> tuple[Tensors, Tensors]:
    """So many steps, with checkpoints at these intervals."""
    if every is None or torch.compiler.is_compiling():
        slices, rows = [x.unbind(0) for x in xs], []
        for number in range(length):
            carry, y = flat(carry, [x[number] for x in slices])
            rows.append(y)
        return carry, [torch.stack(column) for column in zip(*rows, strict=True)]

    constants, step_with = convert(flat.step)

    def one(constants: Tensors, carry: Tensors, x: Tensors) -> tuple[Tensors, Tensors]:
        return flat(carry, x, step_with(constants))

    def several(constants: Tensors, carry: Tensors, xs: Tensors) -> tuple[Tensors, Tensors]:
        return scan(one, every, constants, carry, xs)

    if every == 1:
        return scan(one, length, constants, carry, xs)
    segments = length // every
    covered, pieces = segments * every, []
    if segments:
        grouped = [x[:covered].unflatten(0, (segments, every)) for x in xs]
        carry, ys = scan(several, segments, constants, carry, grouped)
        pieces.append([y.flatten(0, 1) for y in ys])
    if covered < length:
        carry, ys = scan(one, length - covered, constants, carry, [x[covered:] for x in xs])
        pieces.append(ys)
    return carry, [torch.cat(column) for column in zip(*pieces, strict=True)]


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
