"""Rprop's step sizes, which depend on the signs of gradients only."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.scale.moments import map_wide, times, zeros_like


class ScaleByRpropState(NamedTuple):
    """The state of `scale_by_rprop`.

    Attributes:
        step_sizes: The step size of each number.
        prev_updates: The last update, 0 where the gradient had just changed its sign.
    """

    step_sizes: Any
    prev_updates: Any


def scale_by_rprop(
    learning_rate: Scalar,
    eta_minus: Scalar = 0.5,
    eta_plus: Scalar = 1.2,
    min_step_size: Scalar = 1e-6,
    max_step_size: Scalar = 50.0,
) -> GradientTransformation:
    r"""The sign of the gradient times a step size that grows while the sign stays and shrinks when it changes.

    $$ \eta \leftarrow \operatorname{clip}(\eta_+ \eta) \ \text{ where } g\,u_{\text{last}} > 0, \qquad
       \eta \leftarrow \operatorname{clip}(\eta_- \eta),\ u = 0 \ \text{ where } g\,u_{\text{last}} < 0, \qquad
       u = \eta \operatorname{sign}(g) \ \text{ elsewhere} $$

    For deterministic gradients. The step size is multiplied by η, coordinate by coordinate.

    Args:
        learning_rate: The first η.
        eta_minus: The factor after a change of sign.
        eta_plus: The factor after none.
        min_step_size: The least η.
        max_step_size: The largest η.

    Returns:
        A gradient-space transformation with a `ScaleByRpropState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_rprop(0.1), torch.zeros(2)
        >>> updates, state = tx.update(torch.tensor([1.0, 1.0]), tx.init(params), params)
        >>> tx.update(torch.tensor([2.0, -1.0]), state, params)[0]
        tensor([0.1200, 0.0000])

    Source:
        M. Riedmiller and H. Braun, "A direct adaptive method for faster backpropagation learning: the RPROP
        algorithm", 1993; `torch.optim.Rprop`; `optax.scale_by_rprop`, which makes each update one step late.
    """
    return GradientTransformation(
        bind(_rprop_init, learning_rate=learning_rate),
        bind(
            _rprop_update,
            eta_minus=eta_minus,
            eta_plus=eta_plus,
            min_step_size=min_step_size,
            max_step_size=max_step_size,
        ),
        _rprop_step_size,
    )


def _rprop_init(params: Any, *, learning_rate: Scalar) -> ScaleByRpropState:
    tree.check_parameters(params)
    step_sizes = tree.map(lambda x: torch.zeros_like(x) + exact.like(learning_rate, x), params)
    return ScaleByRpropState(step_sizes, zeros_like(params))


@elementwise
def _rprop_update(
    updates: P,
    state: ScaleByRpropState,
    params: P,
    *,
    eta_minus: Scalar,
    eta_plus: Scalar,
    min_step_size: Scalar,
    max_step_size: Scalar,
) -> tuple[P, ScaleByRpropState]:
    def adapt(size: Tensor, g: Tensor, last: Tensor) -> Tensor:
        agreement = torch.sign(g) * torch.sign(last)  # not of the product, which may underflow
        changed = torch.where(agreement > 0, exact.like(eta_plus, size) * size, exact.like(eta_minus, size) * size)
        least, most = exact.like(min_step_size, size), exact.like(max_step_size, size)
        return torch.where(agreement == 0, size, exact.clamp(changed, least, most))

    def move(g: Tensor, last: Tensor, size: Tensor) -> Tensor:
        return torch.where(torch.sign(g) * torch.sign(last) < 0, 0.0, size * torch.sign(g))

    step_sizes = map_wide(adapt, state.step_sizes, updates, state.prev_updates)
    moved = map_wide(move, updates, state.prev_updates, step_sizes)
    return moved, ScaleByRpropState(step_sizes, moved)


def _rprop_step_size(state: ScaleByRpropState, step_size: Any) -> Any:
    return times(step_size, lambda size: size, state.step_sizes)
