r"""Limited-memory quasi-Newton steps within bounds."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation
from boxopt.sets.box import Box
from boxopt.solve import dense_model, pair_model
from boxopt.solve.dense_model import DenseModel
from boxopt.solve.flat import Flat
from boxopt.solve.pair_model import PairModel
from boxopt.solve.solver import Iterate, first_iterate, make_solver, next_iterate
from boxopt.solve.wolfe import Search, advance_search, start_search


class LBFGSBState(NamedTuple):
    """The state of `lbfgsb`, all vectors and scalars.

    Attributes:
        iterate: The last accepted point.
        trial: The point at which the loss is wanted next.
        stalled: Whether no further decrease can be found.
        direction: Where the line search goes from the iterate.
        search: The line search.
        model: The quadratic model of the loss: a `DenseModel` or a `PairModel`.
        fresh: Whether the model has no pairs, a boolean scalar.
    """

    iterate: Iterate
    trial: Tensor
    stalled: Tensor
    direction: Tensor
    search: Search
    model: DenseModel | PairModel
    fresh: Tensor


def lbfgsb(box: Box | None = None, memory: int = 10) -> GradientTransformation:
    """TODO."""
    if memory < 1:
        raise ValueError(f"memory is at least 1, got {memory!r}")
    return make_solver(_start, _advance, Box() if box is None else box, memory=memory)


def _model(size: int, memory: int) -> Any:
    """The kind of model that takes less room: a matrix, or pairs."""
    return dense_model if size <= 2 * memory else pair_model


def _start(flat: Flat, box: Box, point: Tensor, *, memory: int) -> LBFGSBState:
    iterate = first_iterate(point)
    search = start_search(iterate.value, torch.zeros_like(iterate.value), *[torch.zeros_like(iterate.value)] * 2)
    kind = _model(point.shape[0], memory)
    model = kind.start(point) if kind is dense_model else kind.start(point, memory)
    no = torch.zeros((), dtype=torch.bool, device=point.device)
    return LBFGSBState(iterate, point, no, torch.zeros_like(point), search, model, ~no)


def _advance(
    flat: Flat, box: Box, state: LBFGSBState, gradient: Tensor, value: Tensor, *, memory: int
) -> LBFGSBState:
    old, kind = state.iterate, _model(state.trial.shape[0], memory)
    lower, upper = flat.bounds(box)
    first = old.accepted == 0
    search, accepted, failed = advance_search(state.search, value, gradient @ state.direction)
    accepted = torch.where(first, value.isfinite(), accepted)
    stuck = (state.trial == old.params).all() & ~first
    failed = (failed | stuck) & ~accepted | (first & ~accepted)
    iterate = next_iterate(flat, box, old, accepted, state.trial, gradient, value)

    step, slope = state.trial - old.params, gradient - old.gradient
    product = step @ slope
    eps = torch.finfo(value.dtype).eps
    curved = accepted & ~first & (product > eps * (slope @ slope))
    # A pair of ones stands in for one that is not used, so that nothing divides by zero.
    longer = kind.append(state.model, torch.where(curved, step, 1.0), torch.where(curved, slope, 1.0))
    empty = kind.start(step) if kind is dense_model else kind.start(step, memory)
    model = where(curved, longer, where(failed, empty, state.model))
    fresh = where(curved, torch.zeros_like(curved), state.fresh | failed)

    direction = _direction(kind, model, iterate, lower, upper)
    slope_along = iterate.gradient @ direction
    length = torch.linalg.vector_norm(direction)
    room = torch.where(direction > 0, upper - iterate.params, lower - iterate.params) / direction
    limit = torch.where(direction == 0, torch.inf, room).amin().clamp(1.0, 1e10)
    one = torch.ones_like(length)
    begun = start_search(iterate.value, slope_along, torch.where(fresh, 1 / length, one), limit)
    renewed = accepted | failed
    direction = torch.where(renewed, direction, state.direction)
    search = where(renewed, begun, search)
    trial = iterate.params + search.step * direction
    near = 4 * eps * iterate.params.abs()
    trial = torch.where(trial - lower <= near, lower, torch.where(upper - trial <= near, upper, trial))
    stalled = state.stalled | (failed & state.fresh) | (renewed & ~(slope_along < 0))
    trial = torch.where(stalled, iterate.params, trial)
    return LBFGSBState(iterate, trial, stalled, direction, search, model, fresh)


def _direction(kind: Any, model: Any, iterate: Iterate, lower: Tensor, upper: Tensor) -> Tensor:
    """From the iterate to the minimizer of the model in the box, nearly."""
    point, gradient = iterate.params, iterate.gradient
    blocked = ((point <= lower) & (gradient > 0)) | ((point >= upper) & (gradient < 0))
    steepest = torch.where(blocked, 0.0, gradient)
    size = steepest.abs().amax()
    unit = steepest / torch.where(size > 0, size, 1.0)
    curvature = unit @ kind.times(model, unit)
    rate = unit @ unit / torch.where(curvature > 0, curvature, 1.0)
    cauchy = (point - rate * gradient).clamp(lower, upper) - point
    held = (cauchy == lower - point) | (cauchy == upper - point)
    pinned = torch.where(held, cauchy, 0.0)
    change = kind.minimize_over(model, ~held, gradient + kind.times(model, pinned))
    target = torch.where(held, cauchy, change)
    target = torch.where(target.isfinite().all(), target, cauchy)

    projected = (point + target).clamp(lower, upper) - point
    onward = target - cauchy
    room = (torch.where(onward > 0, upper - point, lower - point) - cauchy) / onward
    share = torch.where(onward == 0, torch.inf, room).amin().clamp(0.0, 1.0)
    truncated = cauchy + share * onward

    best = torch.where(_decrease(kind, model, gradient, projected) > _decrease(kind, model, gradient, truncated), projected, truncated)
    return torch.where(gradient @ best < 0, best, cauchy)


def _decrease(kind: Any, model: Any, gradient: Tensor, step: Tensor) -> Tensor:
    """By how much the model falls along a step."""
    return -(gradient @ step) - step @ kind.times(model, step) / 2


def where(condition: Tensor, one: Any, other: Any) -> Any:
    """``torch.where`` of two trees."""
    return tree.map(lambda x, y: torch.where(condition, x, y), one, other)
