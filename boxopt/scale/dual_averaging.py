"""MADGRAD: dual averaging from the first parameters, with momentum and a cube root."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import current, latest, zero_count
from boxopt.scale.moments import map_wide, zeros_like


class MadgradState(NamedTuple):
    """The state of `scale_by_madgrad`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        grad_sum_sq: The weighted sum of the squared gradients.
        s: The weighted sum of the gradients.
        x0: The first parameters.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    grad_sum_sq: Any
    s: Any
    x0: Any


def scale_by_madgrad(
    learning_rate: ScalarOrSchedule, momentum: Scalar = 0.9, eps: Scalar = 1e-6
) -> GradientTransformation:
    r"""Move towards what the weighted sum of all gradients says, seen from the first parameters.

    $$ \lambda = (\text{lr} + \epsilon) \sqrt{t}, \qquad s \leftarrow s + \lambda g, \quad
       G \leftarrow G + \lambda g^2, \quad z = x_0 - \frac{s}{\sqrt[3]{G} + \epsilon}, \quad
       x^+ = (1 - \beta) z + \beta x $$

    The update descends already; no learning rate follows it. The step size is
    $(1 - \beta) \lambda / (\sqrt[3]{G} + \epsilon)$, by which the latest gradient enters.

    Args:
        learning_rate: A number, a 0-d tensor, or a schedule.
        momentum: β.
        eps: ε.

    Returns:
        A gradient-space transformation with a `MadgradState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_madgrad(1.0, momentum=0.0, eps=0.0), torch.zeros(1)
        >>> tx.update(torch.tensor([8.0]), tx.init(params), params)[0]
        tensor([-2.])

    Source:
        A. Defazio and S. Jelassi, "Adaptivity without compromise: a momentumized, adaptive, dual averaged gradient
        method for stochastic optimization", JMLR 23, 2022; `optax.contrib.scale_by_madgrad`.
    """
    return GradientTransformation(
        _madgrad_init,
        bind(_madgrad_update, learning_rate=learning_rate, momentum=momentum, eps=eps),
        bind(_madgrad_step_size, learning_rate=learning_rate, momentum=momentum, eps=eps),
    )


def _madgrad_init(params: Any) -> MadgradState:
    tree.check_parameters(params)
    return MadgradState(zero_count(params), zeros_like(params), zeros_like(params), tree.map(Tensor.clone, params))


@elementwise
def _madgrad_update(
    updates: P, state: MadgradState, params: P, *, learning_rate: ScalarOrSchedule, momentum: Scalar, eps: Scalar
) -> tuple[P, MadgradState]:
    weight = _weight(current(learning_rate, state), state.count + 1, eps)
    squares = map_wide(lambda s, g: s + exact.like(weight, s) * g * g, state.grad_sum_sq, updates)
    total = map_wide(lambda s, g: s + exact.like(weight, s) * g, state.s, updates)

    def step(p: Tensor, p0: Tensor, s: Tensor, square: Tensor) -> Tensor:
        target = p0 - s / (_cube_root(square) + exact.like(eps, p))
        beta = exact.like(momentum, p)
        return (1 - beta) * target + beta * p - p

    new = map_wide(step, params, state.x0, total, squares)
    return new, MadgradState(state.count + 1, squares, total, state.x0)


def _madgrad_step_size(
    state: MadgradState, step_size: Any, *, learning_rate: ScalarOrSchedule, momentum: Scalar, eps: Scalar
) -> Any:
    weight = _weight(latest(learning_rate, state), state.count, eps)

    def size(square: Tensor, outer: Any) -> Tensor:
        square = exact.wide(square)
        kept = (1 - exact.like(momentum, square)) * exact.like(weight, square)
        return exact.like(outer, square) * kept / (_cube_root(square) + exact.like(eps, square))

    return tree.map(size, state.grad_sum_sq, tree.expand(step_size, state.grad_sum_sq))


def _weight(learning_rate: Any, count: Tensor, eps: Scalar) -> Tensor:
    precise = torch.float32 if count.device.type == "mps" else torch.float64
    return (learning_rate + eps) * count.to(precise).sqrt()


def _cube_root(x: Tensor) -> Tensor:
    """∛x for x ≥ 0, with derivative 0 at 0, to any order."""
    positive = x > 0
    return torch.where(positive, torch.where(positive, x, 1.0) ** (1 / 3), 0.0)
