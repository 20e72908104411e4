"""Minimize a function, or thousands of them side by side."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation
from boxopt.solve.driver import batch_of, checked, drive
from boxopt.solve.result import Progress, Result


def minimize(
    fun: Callable[..., Any],
    params: Any,
    solver: GradientTransformation,
    *,
    args: tuple[Any, ...] = (),
    has_aux: bool = False,
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
    r"""Minimize a loss from a start, or a batch of losses, each from its own start and to its own end.

    $$ \min_{x \in C} f(x) $$

    where the set C is the solver's. Every step of the loop takes one evaluation of the loss and its gradient for each
    problem that still runs. A problem stops when a tolerance is met, when the solver can go no further, or at the
    limit; it is then frozen, and nothing that happens in another problem changes it. Problems that have stopped make
    room for others, and the last go on as a smaller batch. What goes wrong in one problem is told by its ``status``;
    what ``fun`` raises is raised.

    **Batches.** With ``batch_dims=1`` the first dimension of every leaf of ``params`` and ``args`` counts problems, and
    ``fun`` is still written for one: it runs under ``vmap``. What the problems share, ``fun`` closes over. The tensors
    of the solver, such as the bounds of its box, are one for each problem if their leading dimensions are the batch's,
    and shared otherwise; ones in the place of the batch's dimensions say that a tensor is shared.

    **Solvers.** Any transformation will do. One that is not a solver, such as ``chain(adam(0.1), project(box))`` or
    ``frank_wolfe(set)``, visits its own points; the set bound in it is C.

    Args:
        fun: The loss of one problem, ``fun(params, *args)``: a scalar; with ``has_aux`` a pair of it and a tree of
            tensors.
        params: Where to start, a tree of tensors. It may lie outside of the set.
        solver: What proposes the points, such as `boxopt.lbfgsb`.
        args: Further arguments of ``fun``, trees of tensors.
        has_aux: Whether ``fun`` returns something beside the loss.
        batch_dims: How many leading dimensions of ``params`` and ``args`` count problems.
        tol: A point is a solution if ‖P(x − g) − x‖∞ ≤ ``tol``, P being the projection onto C; 1e-6 in float64 and
            1e-4 in float32 unless given. The four limits are numbers, or tensors with one for each problem.
        step_tol: Stop after a step with ‖Δx‖∞ ≤ ``step_tol`` · max(1, ‖x‖∞); 0 never does.
        value_tol: Stop after a step with ``|Δf|`` ≤ ``value_tol`` · max(1, ``|f|``); 0 never does.
        max_steps: How many evaluations a problem may take.
        callback: Called with a `boxopt.solve.result.Progress` whenever the host looks at the batch. If it returns True,
            that is the end, and what still runs has the status ``RUNNING``.
        progress: Show how many problems have stopped, or of a single one the numbers, with the package tqdm.
        compile: Compile the step, once for a loss, a solver and the kinds of tensors, whatever the size of a batch of
            more than ``chunk_size``. This takes 5 to 40 s, and is kept for the next call with the same ``fun`` and an
            equal solver.
        sync_every: After how many steps the host looks which problems have stopped. It does not change the results. 1
            on a CPU and 8 on a GPU, which would wait for it, unless given.
        chunk_size: How many problems take part in a step at most; the others wait until some have stopped. It does not
            change the results, and bounds the memory of a step: 65536 unless given, 1024 compiled on a CPU.

    Returns:
        A `Result`. ``params`` is the point that met a tolerance, or else the best that was seen.

    Raises:
        ValueError, TypeError: The parameters, the arguments and the set do not fit together; the message names the
            leaf.

    Example:
        Three problems, each with an upper bound of its own:

        >>> import torch, boxopt as bx
        >>> upper = torch.tensor([[0.5], [1.0], [4.0]])
        >>> solver = bx.chain(bx.sgd(0.1), bx.project(bx.Box(None, upper)))
        >>> result = bx.minimize(lambda x: ((x - 2) ** 2).sum(), torch.zeros(3, 1), solver, batch_dims=1)
        >>> result.params
        tensor([[0.5000],
                [1.0000],
                [2.0000]])
        >>> [bx.Status(code).name for code in result.status.tolist()]
        ['GRADIENT', 'GRADIENT', 'GRADIENT']
    """
    result = drive(
        Loss(fun, has_aux),
        params,
        solver,
        args=args,
        batch_dims=batch_dims,
        tol=tol,
        step_tol=step_tol,
        value_tol=value_tol,
        max_steps=max_steps,
        callback=callback,
        progress=progress,
        compile=compile,
        sync_every=sync_every,
        chunk_size=chunk_size,
    )
    return result._replace(aux=_aux(fun, result.params, args, batch_dims)) if has_aux else result


@dataclass(frozen=True)
class Loss:
    """A loss as `boxopt.solve.driver.Evaluate`: its gradient, its value, and itself for line searches.

    Attributes:
        fun: As of `minimize`.
        has_aux: As of `minimize`.
    """

    fun: Callable[..., Any]
    has_aux: bool = False

    def __call__(self, params: Any, *args: Any) -> tuple[Any, dict[str, Any]]:
        """The gradients, and what may be passed to ``update``."""
        leaves, structure = tree.flatten(params)

        def value_fn(params: Any) -> Tensor:
            found = self.fun(params, *args)
            value = found[0] if self.has_aux else found
            if not isinstance(value, Tensor) or value.ndim:
                kind = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(type(value))
                raise ValueError(f"the loss of one problem is a scalar tensor, fun returned {kind}")
            return value

        def of_leaves(values: list[Tensor]) -> Tensor:
            return value_fn(tree.unflatten(structure, values))

        if not leaves:
            return params, {"value": value_fn(params), "grad": params, "value_fn": value_fn}
        gradients, value = torch.func.grad_and_value(of_leaves)(leaves)
        gradients = tree.unflatten(structure, gradients)
        return gradients, {"value": value, "grad": gradients, "value_fn": value_fn}


def _aux(fun: Callable[..., Any], params: Any, args: tuple[Any, ...], batch_dims: int) -> Any:
    """What ``fun`` returns beside the loss."""
    args = checked(args, batch_of(params, batch_dims))
    leaves, structure = tree.flatten((params, args))
    dims = [0 if isinstance(leaf, Tensor) else None for leaf in leaves]

    def aux(leaves: list[Any]) -> Any:
        params, args = tree.unflatten(structure, leaves)
        return fun(params, *args)[1]

    for _ in range(batch_dims):
        aux = vmap(aux, in_dims=(dims,))
    with torch.no_grad():
        return aux(leaves)
