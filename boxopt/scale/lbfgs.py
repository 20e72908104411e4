"""L-BFGS: an approximate inverse of the Hessian, from the last few steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation, bind, identity
from boxopt.core.types import P, ScalarOrSchedule
from boxopt.core.values import zero_count
from boxopt.scale.moments import map_wide, zeros_like
from boxopt.scale.scalars import inner, ratio, scalar_like, scaled, squared_norm
from boxopt.scale.scale import scale, scale_by_learning_rate
from boxopt.scale.zoom import scale_by_zoom_linesearch


class ScaleByLBFGSState(NamedTuple):
    """The state of `scale_by_lbfgs`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        params: The parameters of the last step.
        updates: The gradients of the last step.
        diff_params_memory: The last differences of parameters, along the first dimension, the latest last.
        diff_updates_memory: Those of gradients.
        weights_memory: The reciprocals of their products.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    params: Any
    updates: Any
    diff_params_memory: Any
    diff_updates_memory: Any
    weights_memory: Tensor


def scale_by_lbfgs(memory_size: int = 10, scale_init_precond: bool = True) -> GradientTransformation:
    r"""Multiply gradients by an approximate inverse of the Hessian, made of the last differences of both.

    With $s_i = x_{i+1} - x_i$, $y_i = g_{i+1} - g_i$, $\rho_i = 1/\langle s_i, y_i \rangle$,

    $$ H_{i+1} = (1 - \rho_i s_i y_i^\top) H_i (1 - \rho_i y_i s_i^\top) + \rho_i s_i s_i^\top, \qquad
       H_0 = \gamma = \frac{\langle s, y \rangle}{\lVert y \rVert^2}, \qquad u = H g $$

    over all leaves, by the two-loop recursion. The inverse is no diagonal metric: the step size is unchanged, and a set
    after it is projected onto in the Euclidean metric, which is a step but not Newton's: for bounds, use a solver.

    Where optax overwrites the oldest pair, here the pairs move up, so that no index is a tensor.

    Args:
        memory_size: How many pairs are kept, at least 1.
        scale_init_precond: Whether γ is as above, and min(1, 1/‖g‖) in the first step; 1 otherwise.

    Returns:
        A gradient-space transformation with a `ScaleByLBFGSState`.

    Raises:
        ValueError: ``memory_size`` is less than 1.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_lbfgs(), torch.tensor([1.0])
        >>> _, state = tx.update(4 * params, tx.init(params), params)
        >>> tx.update(2 * params, state, params / 2)[0]
        tensor([0.5000])

    Source:
        J. Nocedal and S. J. Wright, "Numerical optimization", 2nd ed., algorithm 7.4; `optax.scale_by_lbfgs`.
    """
    if memory_size < 1:
        raise ValueError(f"memory_size is at least 1, got {memory_size!r}")
    return GradientTransformation(
        bind(_lbfgs_init, memory_size=memory_size), bind(_lbfgs_update, scale_init_precond=scale_init_precond)
    )


def _lbfgs_init(params: Any, *, memory_size: int) -> ScaleByLBFGSState:
    tree.check_parameters(params)

    def stacked() -> Any:
        return tree.map(lambda x: torch.stack([torch.zeros_like(x)] * memory_size), params)

    weights = scalar_like(params, 0.0).repeat(memory_size)
    return ScaleByLBFGSState(zero_count(params), zeros_like(params), zeros_like(params), stacked(), stacked(), weights)


def _lbfgs_update(
    updates: P, state: ScaleByLBFGSState, params: P, *, scale_init_precond: bool
) -> tuple[P, ScaleByLBFGSState]:
    started = state.count > 0

    def difference(new: Tensor, old: Tensor) -> Tensor:
        return torch.where(started, new - old, 0.0)

    def append(memory: Tensor, latest: Tensor) -> Tensor:
        return torch.cat([memory[1:], latest.unsqueeze(0)])

    steps, slopes = map_wide(difference, params, state.params), map_wide(difference, updates, state.updates)
    product = inner(slopes, steps)
    weight = ratio(torch.ones_like(product), product)
    memory = ScaleByLBFGSState(
        state.count + 1,
        params,
        updates,
        tree.map(append, state.diff_params_memory, steps),
        tree.map(append, state.diff_updates_memory, slopes),
        append(state.weights_memory, exact.like(weight, state.weights_memory)),
    )
    first = torch.ones_like(weight)
    if scale_init_precond:
        square = squared_norm(slopes)
        size = squared_norm(updates).detach()
        capped = torch.where(size > 1, size.clamp_min(1).rsqrt(), 1.0)
        first = torch.where(started, torch.where(square > 0, ratio(product, square), 1.0), capped)
    return _inverse_times(updates, memory, first), memory


def _inverse_times(gradients: P, memory: ScaleByLBFGSState, first: Tensor) -> P:
    """The product of the approximate inverse and the gradients, by two loops over the pairs."""
    weights = memory.weights_memory.unbind()
    pairs = [
        tuple(tree.map(lambda x, index=index: x[index], kept) for kept in memory[3:5]) for index in range(len(weights))
    ]
    vector, shares = gradients, []
    for (step, slope), weight in zip(reversed(pairs), reversed(weights), strict=True):
        share = weight * inner(step, vector)
        vector = _add(vector, -share, slope)
        shares.append(share)
    vector = scaled(vector, first)
    for (step, slope), weight, share in zip(pairs, weights, reversed(shares), strict=True):
        vector = _add(vector, share - weight * inner(slope, vector), step)
    return vector


def _add(vector: P, factor: Tensor, direction: Any) -> P:
    return map_wide(lambda x, d: x + exact.like(factor, x) * d, vector, direction)


ZOOM = scale_by_zoom_linesearch(20, initial_guess_strategy="one")


def lbfgs(
    learning_rate: ScalarOrSchedule | None = None,
    memory_size: int = 10,
    scale_init_precond: bool = True,
    linesearch: GradientTransformation | None = ZOOM,
) -> GradientTransformation:
    """L-BFGS with a line search: see `scale_by_lbfgs` and `scale_by_zoom_linesearch` for the formulas.

    For full-batch problems without bounds. A projection after the line search undoes its guarantees.

    Args:
        learning_rate: A number, a tensor or a schedule, which the line search multiplies further; 1 if left out.
        memory_size: How many pairs of differences are kept.
        scale_init_precond: Whether the first approximation is scaled.
        linesearch: The line search; None for none.

    Returns:
        A chain whose ``update`` takes what the line search does: ``value=``, ``grad=`` and ``value_fn=``.

    Example:
        >>> import torch, boxopt as bx
        >>> f = lambda x: ((x - torch.tensor([1.0, 2.0])) ** 2 * torch.tensor([1.0, 10.0])).sum()
        >>> tx, params = bx.lbfgs(), torch.zeros(2)
        >>> state = tx.init(params)
        >>> for _ in range(8):
        ...     gradient, value = torch.func.grad_and_value(f)(params)
        ...     updates, state = tx.update(gradient, state, params, value=value, grad=gradient, value_fn=f)
        ...     params = bx.apply_updates(params, updates)
        >>> params.round(decimals=4)
        tensor([1., 2.])

    Source:
        J. Nocedal and S. J. Wright, "Numerical optimization", 2nd ed., section 7.2; `optax.lbfgs`.
    """
    return chain(
        scale_by_lbfgs(memory_size, scale_init_precond),
        scale(-1.0) if learning_rate is None else scale_by_learning_rate(learning_rate),
        identity() if linesearch is None else linesearch,
    )
