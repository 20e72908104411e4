"""Adadelta's scaling, in the units of the parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.scale.moments import map_wide, times, update_moment, zeros_like


class ScaleByAdaDeltaState(NamedTuple):
    """The state of `scale_by_adadelta`.

    Attributes:
        e_g: The running average of squared gradients.
        e_x: The running average of squared updates.
    """

    e_g: Any
    e_x: Any


def scale_by_adadelta(rho: Scalar = 0.9, eps: Scalar = 1e-6) -> GradientTransformation:
    r"""Rescale gradients by the root mean squares of the updates before and of themselves.

    $$ a \leftarrow \rho a + (1 - \rho) g^2, \qquad u = \sqrt{\frac{b + \epsilon}{a + \epsilon}}\, g, \qquad
       b \leftarrow \rho b + (1 - \rho) u^2 $$

    The step size is $\sqrt{(b + \epsilon)/(a + \epsilon)}$, coordinate by coordinate, with b after the update: the
    factor of $g$ in the next one, if it is the same.

    Args:
        rho: ρ, the decay of both averages.
        eps: ε.

    Returns:
        A gradient-space transformation with a `ScaleByAdaDeltaState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_adadelta(eps=1.0)
        >>> tx.update(torch.tensor([3.0]), tx.init(torch.zeros(1)), torch.zeros(1))[0]
        tensor([2.1764])

    Source:
        M. D. Zeiler, "ADADELTA: an adaptive learning rate method", 2012; `optax.scale_by_adadelta`.
    """
    return GradientTransformation(
        _adadelta_init, bind(_adadelta_update, rho=rho, eps=eps), bind(_adadelta_step_size, eps=eps)
    )


def _adadelta_init(params: Any) -> ScaleByAdaDeltaState:
    tree.check_parameters(params)
    return ScaleByAdaDeltaState(zeros_like(params), zeros_like(params))


@elementwise
def _adadelta_update(
    updates: P, state: ScaleByAdaDeltaState, params: P, *, rho: Scalar, eps: Scalar
) -> tuple[P, ScaleByAdaDeltaState]:
    e_g = update_moment(updates, state.e_g, rho, 2)
    scaled = map_wide(lambda g, a, b: g * _ratio(a, b, eps), updates, e_g, state.e_x)
    return scaled, ScaleByAdaDeltaState(e_g, update_moment(scaled, state.e_x, rho, 2))


def _adadelta_step_size(state: ScaleByAdaDeltaState, step_size: Any, *, eps: Scalar) -> Any:
    return times(step_size, lambda a, b: _ratio(a, b, eps), state.e_g, state.e_x)


def _ratio(a: Tensor, b: Tensor, eps: Scalar) -> Tensor:
    added = exact.like(eps, a)
    return torch.sqrt(b + added) / torch.sqrt(a + added)
