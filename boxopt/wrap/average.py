"""Points between points: averages of parameters, and what keeps them in a convex set to the last bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, apply_updates, bind, elementwise, finished, last
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import check_nonnegative, current, zero_count
from boxopt.wrap.select import select


def between(first: Tensor, second: Tensor, weight: Any) -> Tensor:
    """(1 − weight)·first + weight·second, held between the two, where its rounding could carry it out of a box."""
    weight = exact.like(weight, first)
    mean = first + weight * (second - first)
    low, high = torch.minimum(first, second).detach(), torch.maximum(first, second).detach()
    return exact.clamp(mean, low, high)


class EmaParamsState(NamedTuple):
    """The state of `ema_params`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        ema: The average of the parameters, in float32 for 16-bit ones.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    ema: Any


def ema_params(decay: ScalarOrSchedule | None = 0.999, debias: bool = True) -> GradientTransformation:
    r"""Keep an average of the parameters, and let the updates through unchanged.

    $$ \bar x_t = \bar x_{t-1} + \frac{1 - \beta}{1 - \beta^t}\,(x_t - \bar x_{t-1}) $$

    It comes last in a chain, after `project`: an average of points of a convex set is in the set. Of a box, it is so to
    the last bit, in every dtype; of another set, up to rounding.

    Args:
        decay: β: a number, a tensor or a schedule; None for the plain average of all parameters, with weight 1/t.
        debias: Whether the first average is x₁, as in the formula. Otherwise it starts at the initial parameters, and
            the weight is 1 − β throughout.

    Returns:
        A step-space transformation with an `EmaParamsState`; the average is ``state.ema``.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.chain(bx.sgd(1.0), bx.ema_params(0.5, debias=False)), torch.tensor([1.0])
        >>> updates, state = tx.update(torch.tensor([1.0]), tx.init(params), params)
        >>> bx.tree_get(state, "ema")
        tensor([0.5000])

    Source:
        B. T. Polyak and A. B. Juditsky, "Acceleration of stochastic approximation by averaging", SIAM Journal on
        Control and Optimization 30, 1992; `torch.optim.swa_utils.AveragedModel`.
    """
    if decay is not None:
        check_nonnegative("decay", decay)
    return GradientTransformation(_ema_params_init, bind(_ema_params_update, decay=decay, debias=debias), finished)


def _ema_params_init(params: Any) -> EmaParamsState:
    tree.check_parameters(params)
    return EmaParamsState(zero_count(params), tree.map(lambda x: exact.wide(x).clone(), params))


@last
@elementwise
def _ema_params_update(
    updates: P, state: EmaParamsState, params: P, *, decay: ScalarOrSchedule | None, debias: bool
) -> tuple[P, EmaParamsState]:
    count = state.count + 1
    weight = _weight(current(decay, state), count, debias)
    new = apply_updates(params, updates)
    ema = tree.map(lambda old, x: between(old, exact.wide(x), weight), state.ema, new)
    return updates, EmaParamsState(count, ema)


def _weight(decay: Any, count: Tensor, debias: bool) -> Any:
    steps = count.to(torch.float32 if count.device.type == "mps" else torch.float64)
    if decay is None:
        return 1 / steps if debias else 1 / (steps + 1)
    if not debias:
        return 1 - decay
    decay = exact.as_tensor(decay, steps)
    return (1 - decay) / (1 - decay**steps)


def incremental_update(new_tensors: P, old_tensors: P, step_size: Scalar) -> P:
    """Go some way from old tensors to new ones: (1 − w)·old + w·new, as for target networks.

    Of two points of a box, what is between them is in the box to the last bit.

    Args:
        new_tensors: A tree.
        old_tensors: A tree of the same structure.
        step_size: w, between 0 and 1.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.incremental_update(torch.tensor([1.0]), torch.tensor([0.0]), 0.25)
        tensor([0.2500])

    Source:
        `optax.incremental_update`.
    """

    def move(old: Tensor, new: Tensor) -> Tensor:
        return between(exact.wide(old), exact.like(new, exact.wide(old)), step_size).to(old.dtype)

    return tree.map(move, old_tensors, new_tensors)


def periodic_update(new_tensors: P, old_tensors: P, steps: Tensor, update_period: Scalar) -> P:
    """The new tensors at every so many steps, and the old ones between.

    Args:
        new_tensors: A tree.
        old_tensors: A tree of the same structure.
        steps: The number of steps made, an integer scalar.
        update_period: How many steps apart.

    Example:
        >>> import torch, boxopt as bx
        >>> [bx.periodic_update(torch.tensor(1), torch.tensor(0), torch.tensor(step), 3).item() for step in range(4)]
        [1, 0, 0, 1]

    Source:
        `optax.periodic_update`.
    """
    return select(steps % update_period == 0, new_tensors, old_tensors)
