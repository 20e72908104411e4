"""The sign of the gradient, and Lion's sign of an interpolated momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise, no_state
from boxopt.core.types import P, Scalar
from boxopt.scale.moments import map_wide, update_moment, zeros_like


class ScaleByLionState(NamedTuple):
    """The state of `scale_by_lion`: the running average of gradients, ``mu``."""

    mu: Any


def scale_by_lion(
    b1: Scalar = 0.9, b2: Scalar = 0.99, *, mode: str = "hard", smooth_beta: Scalar = 1.0
) -> GradientTransformation:
    r"""The sign of an average of gradient and momentum.

    $$ u = \operatorname{sign}(\beta_1 m + (1 - \beta_1) g), \qquad m \leftarrow \beta_2 m + (1 - \beta_2) g $$

    A sign has no metric of its own: the step size is unchanged.

    Args:
        b1: β₁, the weight of the momentum in the update.
        b2: β₂, the decay of the momentum.
        mode: "hard", the sign; "smooth", $\tanh(\text{smooth_beta} \cdot x)$ in its place; or "refined", x itself
            between −1 and 1.
        smooth_beta: How steep the smooth form is at 0.

    Returns:
        A gradient-space transformation with a `ScaleByLionState`.

    Raises:
        ValueError: The mode is unknown.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_lion()
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(torch.zeros(2)), torch.zeros(2))[0]
        tensor([ 1., -1.])

    Source:
        X. Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023; `optax.scale_by_lion`.
    """
    if mode not in ("hard", "smooth", "refined"):
        raise ValueError(f'the mode is "hard", "smooth" or "refined", got {mode!r}')
    return GradientTransformation(_lion_init, bind(_lion_update, b1=b1, b2=b2, mode=mode, smooth_beta=smooth_beta))


def _lion_init(params: Any) -> ScaleByLionState:
    tree.check_parameters(params)
    return ScaleByLionState(zeros_like(params))


@elementwise
def _lion_update(
    updates: P, state: ScaleByLionState, params: P, *, b1: Scalar, b2: Scalar, mode: str, smooth_beta: Scalar
) -> tuple[P, ScaleByLionState]:
    def direction(m: Tensor, g: Tensor) -> Tensor:
        mixed = exact.like(b1, m) * m + exact.like(1 - b1, m) * g
        if mode == "smooth":
            return torch.tanh(exact.like(smooth_beta, m) * mixed)
        sign = torch.sign(mixed)
        return torch.where(mixed.abs() < 1, mixed, sign) if mode == "refined" else sign

    return map_wide(direction, state.mu, updates), ScaleByLionState(update_moment(updates, state.mu, b2, 1))


def scale_by_sign() -> GradientTransformation:
    """The sign of each number of the updates.

    A sign has no metric of its own: the step size is unchanged.

    Returns:
        A gradient-space transformation without state.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_sign()
        >>> tx.update(torch.tensor([3.0, -0.1, 0.0]), tx.init(torch.zeros(3)), torch.zeros(3))[0]
        tensor([ 1., -1.,  0.])

    Source:
        J. Bernstein et al., "signSGD: compressed optimisation for non-convex problems", ICML 2018;
        `optax.scale_by_sign`.
    """
    return GradientTransformation(no_state, _sign_update)


@elementwise
def _sign_update(updates: P, state: Any, params: P) -> tuple[Any, Any]:
    return tree.map(torch.sign, updates), state
