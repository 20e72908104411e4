"""Optimistic gradients, for games."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.scale.moments import map_wide, multiply_step_size, zeros_like


class ScaleByOptimisticGradientState(NamedTuple):
    """The state of `scale_by_optimistic_gradient`.

    Attributes:
        is_initial_step: Whether no update has been made, a boolean scalar.
        previous_gradient: The last gradient.
    """

    is_initial_step: Tensor
    previous_gradient: Any


def scale_by_optimistic_gradient(alpha: Scalar = 1.0, beta: Scalar = 1.0) -> GradientTransformation:
    r"""Extrapolate the gradient by its last change.

    $$ u = \alpha g + \beta (g - g_{\text{last}}) $$

    The step size is multiplied by α.

    Args:
        alpha: α, the factor of the gradient.
        beta: β, the strength of the extrapolation: "negative momentum".

    Returns:
        A gradient-space transformation with a `ScaleByOptimisticGradientState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_optimistic_gradient(), torch.zeros(1)
        >>> updates, state = tx.update(torch.tensor([1.0]), tx.init(params), params)
        >>> tx.update(torch.tensor([1.5]), state, params)[0]
        tensor([2.])

    Source:
        A. Mokhtari, A. Ozdaglar and S. Pattathil, "A unified analysis of extra-gradient and optimistic gradient
        methods for saddle point problems", AISTATS 2020; `optax.scale_by_optimistic_gradient`.
    """
    return GradientTransformation(
        _optimistic_init, bind(_optimistic_update, alpha=alpha, beta=beta), bind(_optimistic_step_size, alpha=alpha)
    )


def _optimistic_init(params: Any) -> ScaleByOptimisticGradientState:
    tree.check_parameters(params)
    first = torch.ones((), dtype=torch.bool, device=tree.device_of(params))
    return ScaleByOptimisticGradientState(first, zeros_like(params))


@elementwise
def _optimistic_update(
    updates: P, state: ScaleByOptimisticGradientState, params: P, *, alpha: Scalar, beta: Scalar
) -> tuple[P, ScaleByOptimisticGradientState]:
    first = state.is_initial_step

    def extrapolate(g: Tensor, last: Tensor) -> Tensor:
        now, ahead = exact.like(alpha, g), exact.like(beta, g)
        return now * g + ahead * (g - torch.where(first, g, last))  # in other orders α is lost beside a large β

    scaled = map_wide(extrapolate, updates, state.previous_gradient)
    return scaled, ScaleByOptimisticGradientState(torch.zeros_like(first), updates)


def _optimistic_step_size(state: Any, step_size: Any, *, alpha: Scalar) -> Any:
    return multiply_step_size(alpha, step_size)
