"""Projected Newton: the Hessian's step among the coordinates that are free, bent along the box."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core.transform import GradientTransformation
from boxopt.sets.box import Box
from boxopt.solve.flat import Flat
from boxopt.solve.newton import Product, hessian, hessian_product, newton_direction, shortened, truncated_cg
from boxopt.solve.solver import (
    Iterate,
    at_least_one,
    first_iterate,
    is_stuck,
    make_solver,
    max_norm,
    next_iterate,
    nonzero,
    shorter,
    zero_like,
)

_ENOUGH = 1e-4  # of the decrease that the slope promises
_NEAR = 1e-3  # how near to a bound, relative to it, a coordinate may be taken to be at it


class ProjectedNewtonState(NamedTuple):
    """The state of `projected_newton`.

    Attributes:
        iterate: The point reached.
        trial: Where the loss is wanted next, a vector.
        direction: The step from the iterate before it is bent, a vector.
        held: Which coordinates are at a bound, or as good as, and stay there: booleans, a vector.
        fraction: λ, how much of the direction the trial goes, a scalar.
        radius: The largest length of the next direction, a scalar.
        stalled: Whether the trial cannot be told from the iterate.
    """

    iterate: Iterate
    trial: Tensor
    direction: Tensor
    held: Tensor
    fraction: Tensor
    radius: Tensor
    stalled: Tensor


def projected_newton(constraint: Box, *, cg_steps: int | None = None) -> GradientTransformation:
    r"""Newton's method in a box, with exact second derivatives: few evaluations, for up to some hundred parameters.

    $$ x(\lambda) = P_C(x + \lambda d), \qquad d_F = -H_{FF}^{-1} g_F $$

    F are the free coordinates; those within ε of a bound, and within a gradient step, go to it. ε falls with the
    projected gradient, so that near the solution the right ones are held, and convergence is quadratic. λ is halved, or
    less, until the loss falls by 10⁻⁴ of what the slope promises; one trial is evaluated in each update. Where H is
    indefinite, the absolute values of its eigenvalues take their place. The length of d is limited to a multiple of the
    last step's.

    The Hessian is n products with it, at about two gradients each, in each update. With ``cg_steps`` it is not formed:
    as many conjugate-gradient steps, each a product, find d approximately. That is for more parameters than some
    hundred.

    Args:
        constraint: A box.
        cg_steps: How many conjugate-gradient steps at most; None for the whole Hessian.

    Returns:
        A solver, for `minimize` or a loop of your own, with a `ProjectedNewtonState`. ``update`` takes ``value=``, the
        loss, and ``value_fn=``, a function from the parameters to the loss, twice differentiable.

    Raises:
        TypeError: The set is not a box.
        ValueError: ``cg_steps`` is less than 1; or, in ``init``, the box does not fit the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> loss = lambda x: (x**4).sum() + (x[0] - x[1]) ** 2 - x.sum()
        >>> solver, params = bx.projected_newton(bx.Box(0.0, 0.5)), torch.zeros(2)
        >>> state = solver.init(params)
        >>> for _ in range(3):
        ...     gradient, value = torch.func.grad_and_value(loss)(params)
        ...     updates, state = solver.update(gradient, state, params, value=value, value_fn=loss)
        ...     params = bx.apply_updates(params, updates)
        >>> state.iterate.params
        tensor([0.5000, 0.5000])

    Source:
        D. P. Bertsekas, "Projected Newton methods for optimization problems with simple constraints", SIAM Journal on
        Control and Optimization 20, 1982; T. Steihaug, "The conjugate gradient method and trust regions in large scale
        optimization", SIAM Journal on Numerical Analysis 20, 1983.
    """
    if not isinstance(constraint, Box):
        raise TypeError(f"projected_newton is for a box, got {type(constraint).__name__}; `spg` takes any set")
    if cg_steps is not None and cg_steps < 1:
        raise ValueError(f"projected_newton takes at least one conjugate-gradient step, got cg_steps={cg_steps}")
    return make_solver(_newton_start, _newton_advance, constraint, takes_value_fn=True, cg_steps=cg_steps)


def _newton_start(flat: Flat, constraint: Box, point: Tensor, *, cg_steps: int | None) -> ProjectedNewtonState:
    return ProjectedNewtonState(
        first_iterate(point),
        point.clone(),
        torch.zeros_like(point),
        torch.zeros_like(point, dtype=torch.bool),
        zero_like(point) + 1,
        10 * at_least_one(max_norm(point)),
        zero_like(point, torch.bool),
    )


def _newton_advance(
    flat: Flat,
    constraint: Box,
    state: ProjectedNewtonState,
    gradient: Tensor,
    value: Tensor,
    *,
    value_fn: Callable[[Any], Tensor],
    cg_steps: int | None,
) -> ProjectedNewtonState:
    old = state.iterate
    step = state.trial - old.params
    promised = (old.gradient * torch.where(state.held, step, state.fraction * state.direction)).sum()
    rounding = 4 * torch.finfo(value.dtype).eps * old.value.abs()
    accept = (value <= old.value + _ENOUGH * promised + rounding) & (value < torch.inf)

    new = next_iterate(flat, constraint, old, accept, state.trial, gradient, value)
    length = torch.linalg.vector_norm(step)
    grown = torch.where(state.fraction == 1, torch.maximum(state.radius, 4 * length), 2 * length)
    radius = torch.where(accept & (old.accepted > 0), grown, state.radius)
    product, matrix = _second_derivatives(flat, value_fn, new, cg_steps)
    held, bound = _held(*flat.bounds(constraint), new, product)
    direction = _direction(torch.where(held, 0.0, new.gradient), product, matrix, held, radius, cg_steps)
    direction = torch.where(held, bound - new.params, direction)

    direction = torch.where(accept, direction, state.direction)
    fraction = torch.where(accept, 1.0, shorter(state.fraction, promised, value - old.value))
    trial = flat.project(constraint, new.params + fraction * direction)
    return ProjectedNewtonState(
        new,
        trial,
        direction,
        torch.where(accept, held, state.held),
        fraction,
        radius,
        (new.accepted > 0) & is_stuck(trial, new.params, fraction),
    )


def _second_derivatives(
    flat: Flat, value_fn: Callable[[Any], Tensor], iterate: Iterate, cg_steps: int | None
) -> tuple[Product, Tensor | None]:
    """The product with the Hessian, and the Hessian if it is wanted whole."""
    if cg_steps is not None or not iterate.params.numel():
        return hessian_product(flat, value_fn, iterate.params), None
    matrix = hessian(flat, value_fn, iterate.params)
    return lambda vector: matrix @ vector, matrix


def _held(lower: Tensor, upper: Tensor, iterate: Iterate, product: Product) -> tuple[Tensor, Tensor]:
    """Which coordinates are near to a bound that the gradient pushes against, and that bound.

    What is not yet at it must also reach it by a step along −g to where the loss is least.
    """
    x, gradient = iterate.params.detach(), iterate.gradient.detach()
    bound = torch.where(gradient > 0, lower, upper)
    way = (x - bound).abs()
    moving = torch.where(way > 0, gradient, 0.0)
    square, curvature = (moving * moving).sum(), (moving * product(moving)).sum()
    length = torch.where(curvature > 0, square / nonzero(curvature), torch.inf)
    near = torch.minimum(iterate.optimality, _NEAR * bound.abs().clamp_min(1))
    reached = way <= torch.minimum(near, length * gradient.abs())
    return reached & (gradient != 0), bound


def _direction(
    gradient: Tensor,
    product: Product,
    matrix: Tensor | None,
    held: Tensor,
    radius: Tensor,
    cg_steps: int | None,
) -> Tensor:
    """Newton's step in the free coordinates, zero in the others."""
    if cg_steps is not None:
        return truncated_cg(lambda v: torch.where(held, 0.0, product(v)), gradient, radius, cg_steps)
    if matrix is None:
        return gradient
    among_free = torch.where(held[:, None] | held, 0.0, matrix) + torch.diag(held.to(matrix.dtype))
    return shortened(newton_direction(gradient, among_free), radius)
