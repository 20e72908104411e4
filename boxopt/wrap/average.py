"""Points between points: averages of parameters, and what keeps them in a convex set to the last bit."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, apply_updates, bind, elementwise, finished
from boxopt.core.types import P, ScalarOrSchedule
from boxopt.core.values import check_nonnegative, current, zero_count


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
