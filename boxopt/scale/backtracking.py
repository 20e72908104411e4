"""A backtracking line search: as long a step as decreases the loss enough."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import zeros_like
from boxopt.scale.scalars import inner, maximum, minimum, scalar_like, scaled, step_size_times


class BacktrackingLinesearchInfo(NamedTuple):
    """How a backtracking line search went.

    Attributes:
        num_linesearch_steps: How many steps were tried, an int64 scalar.
        decrease_error: By how much the last one missed the criterion.
    """

    num_linesearch_steps: Tensor
    decrease_error: Tensor


class ScaleByBacktrackingLinesearchState(NamedTuple):
    """The state of `scale_by_backtracking_linesearch`.

    Attributes:
        learning_rate: The learning rate found, a scalar.
        value: The loss after the step, a scalar.
        grad: The gradient there, if it is stored, and () otherwise.
        info: How the search went.
    """

    learning_rate: Tensor
    value: Tensor
    grad: Any
    info: BacktrackingLinesearchInfo


def scale_by_backtracking_linesearch(
    max_backtracking_steps: int,
    slope_rtol: Scalar = 1e-4,
    decrease_factor: Scalar = 0.8,
    increase_factor: Scalar = 1.5,
    max_learning_rate: Scalar = 1.0,
    atol: Scalar = 0.0,
    rtol: Scalar = 0.0,
    store_grad: bool = False,
) -> GradientTransformation:
    r"""Multiply a descent direction by the first of a falling sequence of rates that decreases the loss enough.

    $$ f(x + \eta u) \le (1 + \text{rtol}) f(x) + c\, \eta \langle u, \nabla f(x) \rangle + \text{atol}, \qquad
       \eta = \min(a\,\eta_{\text{last}}, \eta_{\max}) \cdot b^k $$

    If no number tried makes the loss finite, the step is zero. The step size is multiplied by η.

    The loss is evaluated ``max_backtracking_steps`` + 2 times in each step, whatever it finds: nothing branches on a
    value, so that each member of an ensemble searches by itself. Derivatives go through the step with η's sequence; η
    depends on the other arguments by jumps only.

    Args:
        max_backtracking_steps: The largest k.
        slope_rtol: c.
        decrease_factor: b, less than 1.
        increase_factor: a, at least 1.
        max_learning_rate: $\eta_{\max}$.
        atol: An absolute tolerance.
        rtol: A relative tolerance.
        store_grad: Whether to compute the gradient after the step, for the next one.

    Returns:
        A transformation with a `ScaleByBacktrackingLinesearchState`. ``update`` takes ``value=`` and ``grad=``, the
        loss and its gradient, and ``value_fn=``, a function from the parameters to the loss.

    Example:
        >>> import torch, boxopt as bx
        >>> f = lambda x: 2 * (x**2).sum()
        >>> tx, params = bx.chain(bx.sgd(1.0), bx.scale_by_backtracking_linesearch(20)), torch.ones(1)
        >>> gradient = 4 * params
        >>> updates, state = tx.update(
        ...     gradient, tx.init(params), params, value=f(params), grad=gradient, value_fn=f
        ... )
        >>> f(params + updates) < f(params)
        tensor(True)

    Source:
        J. Nocedal and S. J. Wright, "Numerical optimization", 2nd ed., algorithm 3.1;
        `optax.scale_by_backtracking_linesearch`.
    """
    return GradientTransformation(
        bind(_backtracking_init, store_grad=store_grad),
        bind(
            _backtracking_update,
            steps=max_backtracking_steps,
            slope_rtol=slope_rtol,
            decrease_factor=decrease_factor,
            increase_factor=increase_factor,
            max_learning_rate=max_learning_rate,
            atol=atol,
            rtol=rtol,
            store_grad=store_grad,
        ),
        learning_rate_step_size,
    )


def _backtracking_init(params: Any, *, store_grad: bool) -> ScaleByBacktrackingLinesearchState:
    tree.check_parameters(params)
    infinite = scalar_like(params, float("inf"))
    info = BacktrackingLinesearchInfo(zero_count(params), infinite.clone())
    gradient = zeros_like(params) if store_grad else ()
    return ScaleByBacktrackingLinesearchState(scalar_like(params, 1.0), infinite, gradient, info)


def _backtracking_update(
    updates: P,
    state: ScaleByBacktrackingLinesearchState,
    params: P,
    *,
    steps: int,
    slope_rtol: Scalar,
    decrease_factor: Scalar,
    increase_factor: Scalar,
    max_learning_rate: Scalar,
    atol: Scalar,
    rtol: Scalar,
    store_grad: bool,
    value: Scalar,
    grad: P,
    value_fn: Callable[[P], Tensor],
) -> tuple[P, ScaleByBacktrackingLinesearchState]:
    rate = state.learning_rate

    def constant(number: Any) -> Tensor:
        return exact.as_tensor(number, rate).detach()

    objective = along_line(value_fn, params, updates)
    slope = exact.as_tensor(inner(updates, grad), rate).detach()
    limit = (1 + constant(rtol)) * constant(value)

    rate = minimum(exact.like(increase_factor, rate) * rate, max_learning_rate)
    error, count = torch.full_like(rate, float("inf")).detach(), torch.zeros_like(state.info.num_linesearch_steps)
    for step in range(steps + 1):
        searching = ~(error <= constant(atol))
        if step:
            rate = torch.where(searching, exact.like(decrease_factor, rate) * rate, rate)
        missed = constant(objective(rate.detach())) - limit - rate.detach() * constant(slope_rtol) * slope
        missed = maximum(torch.where(missed.isnan(), float("inf"), missed), 0.0)
        error = torch.where(searching, missed, error)
        count = count + searching

    found = torch.where(error.isinf(), 0.0, rate)
    new_value, gradient = value_and_gradient_after(value_fn, params, updates, found, store_grad)
    info = BacktrackingLinesearchInfo(count, error)
    new = ScaleByBacktrackingLinesearchState(found, exact.like(new_value, rate), gradient, info)
    return scaled(updates, found), new


def learning_rate_step_size(state: Any, step_size: Any) -> Any:
    """The step size of a line search: times the learning rate found."""
    return step_size_times(step_size, state.learning_rate)


def along_line(value_fn: Callable[[Any], Tensor], params: Any, updates: Any) -> Callable[[Tensor], Tensor]:
    """The loss as a function of the learning rate alone, with everything else held constant."""
    start, direction = tree.map(torch.detach, params), tree.map(torch.detach, updates)
    return lambda rate: value_fn(tree.add_scaled(start, rate, direction))


def value_and_gradient_after(
    value_fn: Callable[[Any], Tensor], params: Any, updates: Any, rate: Tensor, with_gradient: bool
) -> tuple[Tensor, Any]:
    """The loss after a step, and its gradient if that is asked for."""
    point = tree.add_scaled(params, rate, updates)
    leaves, structure = tree.flatten(point)
    if not with_gradient or not leaves:
        return value_fn(point), point if with_gradient else ()
    gradients, value = torch.func.grad_and_value(lambda values: value_fn(tree.unflatten(structure, values)))(leaves)
    return value, tree.unflatten(structure, gradients)
