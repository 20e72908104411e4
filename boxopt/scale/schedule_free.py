"""Schedule-free learning: averaging in the place of momentum and of a falling learning rate."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.combine import refuse_finished
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import check_nonnegative, is_true, zero_count
from boxopt.scale.moments import map_wide
from boxopt.scale.scalars import maximum, ratio, scalar_like, step_size_times


class ScheduleFreeState(NamedTuple):
    """The state of `schedule_free`.

    Attributes:
        b1: β₁, a scalar.
        weight_sum: The sum of the averaging weights, a scalar.
        step_count: One more than the number of updates made, an int64 scalar.
        max_lr: The largest learning rate so far, a scalar.
        base_optimizer_state: The base optimizer's.
        z: The sequence that the base optimizer makes.
    """

    b1: Tensor
    weight_sum: Tensor
    step_count: Tensor
    max_lr: Tensor
    base_optimizer_state: Any
    z: Any


def schedule_free(
    base_optimizer: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    weight_lr_power: Scalar = 2.0,
) -> GradientTransformation:
    r"""Train at points between a base optimizer's sequence z and its average x.

    $$ z \leftarrow z + u_b(\nabla f(y)), \qquad x \leftarrow (1 - c) x + c z, \qquad
       y^+ = (1 - \beta_1) z + \beta_1 x, \qquad c = \frac{\gamma^p}{\sum \gamma^p} $$

    The parameters are y; evaluate the model at x: `schedule_free_eval_params`. γ is the largest learning rate so far.
    The step size is the base's times $\beta_1 c + 1 - \beta_1$, by which its update enters y.

    A set comes after: ``chain(schedule_free(...), project(set))`` keeps y allowed, where gradients are taken. The
    average x extrapolates from y and z, and so is to be projected where it is used.

    Args:
        base_optimizer: A transformation whose updates descend, without momentum.
        learning_rate: The base optimizer's: a number, a 0-d tensor or a schedule, with a warm-up but without a decay.
        b1: β₁, positive.
        weight_lr_power: p.

    Returns:
        A transformation with a `ScheduleFreeState`; it takes the base's extra arguments.

    Raises:
        ValueError: The base optimizer ends in a step-space transformation, or β₁ is not positive: the average could not
            be told from the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.schedule_free(bx.sgd(0.1), 0.1), torch.ones(1)
        >>> state = tx.init(params)
        >>> for _ in range(50):
        ...     updates, state = tx.update(2 * params, state, params)
        ...     params = bx.apply_updates(params, updates)
        >>> bx.contrib.schedule_free_eval_params(state, params).abs() < 0.1
        tensor([True])

    Source:
        A. Defazio et al., "The road less scheduled", NeurIPS 2024; `optax.contrib.schedule_free`.
    """
    refuse_finished("schedule_free", base_optimizer)
    check_nonnegative("b1", b1)
    if is_true(b1 == 0):
        raise ValueError(f"b1 of schedule_free is positive, got {b1!r}")
    base = on_leaves(base_optimizer)
    return GradientTransformation(
        bind(_schedule_free_init, base_optimizer=base, b1=b1),
        bind(
            _schedule_free_update,
            base_optimizer=base,
            learning_rate=learning_rate,
            b1=b1,
            weight_lr_power=weight_lr_power,
        ),
        bind(_schedule_free_step_size, base_optimizer=base, b1=b1, weight_lr_power=weight_lr_power),
    )


def schedule_free_eval_params(state: ScheduleFreeState, params: P) -> P:
    """The average x of `schedule_free`, from its state and the parameters y.

    Args:
        state: The state of `schedule_free`.
        params: The parameters y.

    Returns:
        The parameters to evaluate the model with.

    Raises:
        TypeError: The state is of another transformation.

    Example:
        >>> import torch, boxopt as bx
        >>> params = torch.ones(1)
        >>> bx.contrib.schedule_free_eval_params(bx.contrib.schedule_free_sgd(0.1).init(params), params)
        tensor([1.])

    Source:
        `optax.contrib.schedule_free_eval_params`.
    """
    if not hasattr(state, "b1") or not hasattr(state, "z"):
        raise TypeError(f"expected a ScheduleFreeState, got {type(state).__name__}")
    return _average(params, state.z, state.b1)


def _average(params: P, z: Any, b1: Scalar) -> P:
    def extrapolate(y: Tensor, z: Tensor) -> Tensor:
        beta = exact.like(b1, y)
        return (y - (1 - beta) * z) / beta

    return map_wide(extrapolate, params, z)


def _schedule_free_init(params: Any, *, base_optimizer: GradientTransformation, b1: Scalar) -> ScheduleFreeState:
    tree.check_parameters(params)
    return ScheduleFreeState(
        scalar_like(params, b1),
        scalar_like(params, 0.0),
        zero_count(params) + 1,
        scalar_like(params, 0.0),
        base_optimizer.init(params),
        tree.map(Tensor.clone, params),
    )


def _schedule_free_update(
    updates: P,
    state: ScheduleFreeState,
    params: P,
    *,
    base_optimizer: GradientTransformation,
    learning_rate: ScalarOrSchedule,
    b1: Scalar,
    weight_lr_power: Scalar,
    **extra: Any,
) -> tuple[P, ScheduleFreeState]:
    rate = learning_rate(state.step_count) if tree.is_function(learning_rate) else learning_rate
    max_lr = maximum(state.max_lr, exact.as_tensor(rate, state.max_lr))
    weight = max_lr ** exact.like(weight_lr_power, max_lr)
    weight_sum = state.weight_sum + weight
    share = ratio(weight, weight_sum)
    base_updates, base_state = base_optimizer.update(updates, state.base_optimizer_state, params, **extra)
    z = map_wide(lambda old, u: old + u, state.z, base_updates)

    def step(y: Tensor, x: Tensor, z: Tensor) -> Tensor:
        beta, c = exact.like(b1, y), exact.like(share, y)
        return beta * ((1 - c) * x + c * z) + (1 - beta) * z - y

    new = ScheduleFreeState(state.b1, weight_sum, state.step_count + 1, max_lr, base_state, z)
    return map_wide(step, params, _average(params, state.z, b1), z), new


def _schedule_free_step_size(
    state: ScheduleFreeState,
    step_size: Any,
    *,
    base_optimizer: GradientTransformation,
    b1: Scalar,
    weight_lr_power: Scalar,
) -> Any:
    share = ratio(state.max_lr ** exact.like(weight_lr_power, state.max_lr), state.weight_sum)
    beta = exact.like(b1, share)
    return step_size_times(base_optimizer.step_size(state.base_optimizer_state, step_size), beta * share + 1 - beta)
