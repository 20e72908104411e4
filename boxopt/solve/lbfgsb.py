r"""Quasi-Newton steps within bounds, with a memory of the last few."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.transform import GradientTransformation
from boxopt.sets.box import Box
from boxopt.solve.box_step import box_step
from boxopt.solve.dense_model import DenseModel
from boxopt.solve.flat import Flat
from boxopt.solve.pair_model import PairModel
from boxopt.solve.solver import Iterate, Within, first_iterate, make_solver, max_norm, moved, next_iterate, zero_like
from boxopt.solve.wolfe import Search, advance_search, start_search


class LBFGSBState(NamedTuple):
    """The state of `lbfgsb`.

    Attributes:
        iterate: The last point accepted.
        trial: Where the loss is wanted next, a vector.
        direction: Where the line search goes from the last point accepted, a vector.
        search: The line search.
        model: The quadratic model of the loss.
        side: At which bounds the next step holds coordinates, a vector: −1 at lower ones, 1 at upper ones.
        stalled: Whether no line search finds a decrease, not even along the projected gradient.
    """

    iterate: Iterate
    trial: Tensor
    direction: Tensor
    search: Search
    model: DenseModel | PairModel
    side: Tensor
    stalled: Tensor


def lbfgsb(box: Box | None = None, *, memory: int = 10) -> GradientTransformation:
    r"""L-BFGS-B: minimize a smooth loss within bounds, by quasi-Newton steps.

    $$ d \approx \arg\min_{l \le x + d \le u} \; g \cdot d + \tfrac{1}{2} d \cdot B d, \qquad x_+ = x + \alpha d $$

    B is the BFGS approximation of the Hessian by the last pairs of steps and changes of the gradient. The model is
    minimized nearly, by a projected gradient step that finds the bounds to go to, and Newton's step in the subspace of
    the others. α satisfies the strong Wolfe conditions, unless the segment ends at a bound before. Each update
    evaluates one trial, all trials are in the box, and coordinates at their bounds are there exactly.

    Up to n = 2 · ``memory`` parameters B is kept as a matrix, which then takes less room than pairs do, and forgets
    none. Beyond that the last ``memory`` pairs are kept: O(n · ``memory``) numbers. Where the line search fails, the
    model is forgotten and the search begins anew along the projected gradient; if that fails too, the solver has
    stalled, as it does at a minimum to all digits.

    No derivative passes through an update: trials are constants.

    Args:
        box: The bounds; none if left out.
        memory: How many pairs are kept.

    Returns:
        A solver, for `minimize` or a loop of your own, with a `LBFGSBState`. ``update`` takes ``value=``, the loss.

    Raises:
        ValueError: ``memory`` is less than 1; or, in ``init``, the box does not fit the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> rosenbrock = lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2
        >>> start = torch.tensor([-1.2, 1.0], dtype=torch.float64)
        >>> result = bx.minimize(rosenbrock, start, bx.lbfgsb(bx.Box(None, 0.5)))
        >>> result.params
        tensor([0.5000, 0.2500], dtype=torch.float64)
        >>> print(bx.Status(int(result.status)))
        converged: the projected gradient is within the tolerance

    Source:
        R. H. Byrd, P. Lu, J. Nocedal and C. Zhu, "A limited memory algorithm for bound constrained optimization", SIAM
        Journal on Scientific Computing 16, 1995; J. L. Morales and J. Nocedal, "Remark on algorithm 778", ACM
        Transactions on Mathematical Software 38, 2011.
    """
    if memory < 1:
        raise ValueError(f"lbfgsb keeps at least one pair, got memory={memory}")
    constraint = Box() if box is None else box
    within = Within(_advance_within, _largest_dense(memory))
    return make_solver(_lbfgsb_start, _lbfgsb_advance, constraint, within=within, memory=memory)


def _lbfgsb_start(flat: Flat, box: Box, point: Tensor, *, memory: int) -> LBFGSBState:
    zero = zero_like(point)
    search = start_search(zero + torch.inf, zero, zero, zero)
    return LBFGSBState(
        first_iterate(point.clone()),
        point,
        torch.zeros_like(point),
        search,
        _model(point, memory),
        torch.zeros_like(point),
        zero_like(point, torch.bool),
    )


def _model(point: Tensor, memory: int) -> DenseModel | PairModel:
    """The model without pairs that takes less room."""
    return DenseModel.of(point) if point.shape[0] <= _largest_dense(memory) else PairModel.of(point, memory)


def _largest_dense(memory: int) -> int:
    """Up to how many parameters a matrix takes less room than pairs do."""
    return 2 * memory


def _lbfgsb_advance(
    flat: Flat, box: Box, state: LBFGSBState, gradient: Tensor, value: Tensor, *, memory: int
) -> LBFGSBState:
    if state.trial.shape[0] == 0:
        iterate = next_iterate(flat, box, state.iterate, value.isfinite(), state.trial, gradient, value)
        return state._replace(iterate=iterate, stalled=torch.ones_like(state.stalled))
    return _advance_within(*flat.bounds(box), state, gradient, value, memory=memory)


def _advance_within(
    lower: Tensor, upper: Tensor, state: LBFGSBState, gradient: Tensor, value: Tensor, *, memory: int
) -> LBFGSBState:
    """The same between bounds that are vectors; or, side by side, for problems along the last dimension."""
    lower, upper, gradient, value, state = tree.map(torch.detach, (lower, upper, gradient, value, state))
    old = state.iterate

    is_first = old.accepted == 0
    search, accepted, failed = advance_search(state.search, value, (gradient * state.direction).sum(0))
    accepted = torch.where(is_first, value.isfinite(), accepted)
    failed = ~accepted & (failed | is_first | (state.trial == old.params).all(0))
    optimality = max_norm(state.trial - (state.trial - gradient).clamp(lower, upper))
    iterate = moved(old, accepted, state.trial, gradient, value, optimality)

    step, change = state.trial - old.params, gradient - old.gradient
    enough = torch.finfo(value.dtype).eps * (change * change).sum(0)
    curved = accepted & ~is_first & ((step * change).sum(0) > enough)
    model = state.model.learn(step, change, curved, failed)
    side = torch.where(failed, 0.0, state.side)
    direction, side = box_step(model.hessian(), iterate.params, iterate.gradient, lower, upper, side)
    slope = (iterate.gradient * direction).sum(0)
    anew = start_search(iterate.value, slope, *_first_step(model, direction, iterate.params, lower, upper))

    turns = accepted | failed
    direction, side = torch.where(turns, direction, state.direction), torch.where(turns, side, state.side)
    search = _where(turns, anew, search)
    stalled = state.stalled | (failed & state.model.fresh) | (turns & ~(slope < 0))
    trial = _onto_bounds(iterate.params + search.step * direction, iterate.params, lower, upper)
    return LBFGSBState(iterate, torch.where(stalled, iterate.params, trial), direction, search, model, side, stalled)


def _first_step(
    model: DenseModel | PairModel, direction: Tensor, point: Tensor, lower: Tensor, upper: Tensor
) -> tuple[Tensor, Tensor]:
    """The step that a line search tries first, and the largest that it may.

    Newton's is 1. Before anything is known of the scale, it is of unit length, or 1 if all coordinates have two bounds.
    """
    room = (torch.where(direction > 0, upper, lower) - point) / direction
    limit = torch.where(direction == 0, torch.inf, room).amin(0).clamp(1.0, 1e10)
    within = (upper - lower).amax(0).isfinite()
    length = torch.linalg.vector_norm(direction, dim=0)
    return torch.where(model.fresh & ~within, 1 / length, 1.0), limit


def _onto_bounds(trial: Tensor, point: Tensor, lower: Tensor, upper: Tensor) -> Tensor:
    """The trial, at a bound where it is within roundings of it or beyond."""
    near = 4 * torch.finfo(trial.dtype).eps * point.abs()
    return torch.where(trial <= lower + near, lower, torch.where(trial >= upper - near, upper, trial))


def _where(condition: Tensor, one: Any, other: Any) -> Any:
    return tree.map(lambda x, y: torch.where(condition, x, y), one, other)
