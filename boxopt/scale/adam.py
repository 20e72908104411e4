"""Adam's scaling of the gradient."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import bias_correction, divide_by_root, map_wide, update_moment, zeros_like


class ScaleByAdamState(NamedTuple):
    """The state of `scale_by_adam`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
        nu: The running average of their squares.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any
    nu: Any


def scale_by_adam(
    b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8, eps_root: Scalar = 0.0, *, nesterov: bool = False
) -> GradientTransformation:
    r"""Rescale gradients by running averages of themselves and of their squares.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad v \leftarrow \beta_2 v + (1 - \beta_2) g^2, \qquad
       u = \frac{\hat m}{\sqrt{\hat v + \epsilon_r} + \epsilon}, \quad
       \hat m = \frac{m}{1 - \beta_1^t}, \quad \hat v = \frac{v}{1 - \beta_2^t} $$

    The step size is $1/(\sqrt{\hat v + \epsilon_r} + \epsilon)$, coordinate by coordinate. Derivatives through the
    update are finite at zero gradients.

    Args:
        b1: β₁, the decay of the first moment.
        b2: β₂, the decay of the second moment.
        eps: ε, added to the root.
        eps_root: εᵣ, added under the root.
        nesterov: Look ahead by one step, as NAdam does.

    Returns:
        A gradient-space transformation with a `ScaleByAdamState`.

    Raises:
        TypeError: In ``init``, a leaf is not a tensor of floating-point numbers; the message names it.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.scale_by_adam()
        >>> params = torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, -0.1]), tx.init(params), params)[0]
        tensor([ 1.0000, -1.0000])

    Source:
        D. P. Kingma and J. Ba, "Adam: a method for stochastic optimization", ICLR 2015; `optax.scale_by_adam`.
    """
    return GradientTransformation(
        _adam_init,
        bind(_adam_update, b1=b1, b2=b2, eps=eps, eps_root=eps_root, nesterov=nesterov),
        bind(_adam_step_size, b1=b1, b2=b2, eps=eps, eps_root=eps_root),
    )


def _adam_init(params: Any) -> ScaleByAdamState:
    tree.check_parameters(params)
    return ScaleByAdamState(zero_count(params), zeros_like(params), zeros_like(params))


@elementwise
def _adam_update(
    updates: P,
    state: ScaleByAdamState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    eps_root: Scalar,
    nesterov: bool,
) -> tuple[P, ScaleByAdamState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, b1, 1)
    nu = update_moment(updates, state.nu, b2, 2)
    over_root = _over_root(count, b1, b2, eps, eps_root)
    if not nesterov:
        return map_wide(over_root, mu, nu), ScaleByAdamState(count, mu, nu)
    ratio = bias_correction(b1, count) / bias_correction(b1, count + 1)

    def ahead(m: Tensor, v: Tensor, g: Tensor) -> Tensor:  # in optax's form: the gradient enters once more
        beta = exact.like(b1, m)
        return over_root(beta * m * exact.like(ratio, m) + (1 - beta) * g, v)

    return map_wide(ahead, mu, nu, updates), ScaleByAdamState(count, mu, nu)


def _adam_step_size(
    state: ScaleByAdamState, step_size: Any, *, b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar
) -> Any:
    mean_scale, over_root = bias_correction(b1, state.count), _over_root(state.count, b1, b2, eps, eps_root)

    def size(v: Tensor, outer: Any) -> Tensor:
        v = exact.wide(v)
        return over_root(exact.as_tensor(outer, v) * exact.like(mean_scale, v), v)

    return tree.map(size, state.nu, tree.expand(step_size, state.nu))


def _over_root(
    count: Tensor, b1: Scalar, b2: Scalar, eps: Scalar, eps_root: Scalar
) -> Callable[[Tensor, Tensor], Tensor]:
    """x/((√(v̂ + εᵣ) + ε)·(1 − β₁ᵗ)) as a function of x and v: the mean's bias is corrected without another pass."""
    mean_scale = bias_correction(b1, count)
    factor = exact.cast_once(mean_scale * mean_scale / bias_correction(b2, count))
    no_eps_root = isinstance(eps_root, float | int) and eps_root == 0
    under_root = None if no_eps_root else exact.cast_once(mean_scale * mean_scale * eps_root)
    added = exact.cast_once(mean_scale * eps)

    def over_root(x: Tensor, v: Tensor) -> Tensor:
        square = v * factor(v)
        if under_root is not None:
            square = square + under_root(v)
        return divide_by_root(x, square, added(v))

    return over_root
