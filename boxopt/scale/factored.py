"""Adafactor's scaling: second moments of matrices, kept as the means of their rows and columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import precise, times


class FactoredState(NamedTuple):
    """The state of `scale_by_factored_rms`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        v_row: Of each factored leaf the average square along its longest dimension, kept with length 1; of others a
            placeholder of shape ``[1]``.
        v_col: The same along the second longest.
        v: Of each leaf that is not factored the average square; of others a placeholder of shape ``[1]``.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    v_row: Any
    v_col: Any
    v: Any


def scale_by_factored_rms(
    factored: bool = True,
    decay_rate: Scalar = 0.8,
    step_offset: Scalar = 0,
    min_dim_size_to_factor: int = 128,
    epsilon: Scalar = 1e-30,
    decay_rate_fn: Callable[[Tensor, Scalar], Tensor] | None = None,
) -> GradientTransformation:
    r"""Rescale gradients by the root of running averages of their squares, for matrices the outer product of two.

    $$ R \leftarrow \beta_t R + (1 - \beta_t) \operatorname{mean}_{\text{rows}}(g^2 + \epsilon), \quad
       C \leftarrow \beta_t C + (1 - \beta_t) \operatorname{mean}_{\text{columns}}(g^2 + \epsilon), \quad
       u = g \Big/ \sqrt{\frac{R\,C}{\operatorname{mean}(R)}} $$

    with $\beta_t = 1 - t^{-0.8}$. The step size is the factor of $g$, coordinate by coordinate.

    Args:
        factored: Whether to factor the second moment of leaves that have two dimensions that are long enough.
        decay_rate: The power in $\beta_t$.
        step_offset: How many updates to leave out of t, when a run goes on with new data.
        min_dim_size_to_factor: How long the second longest dimension must be.
        epsilon: ε.
        decay_rate_fn: From the number of updates made so far, and ``decay_rate``, to $\beta_t$.

    Returns:
        A gradient-space transformation with a `FactoredState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_factored_rms(min_dim_size_to_factor=2), torch.zeros(2, 3)
        >>> tx.update(torch.full((2, 3), 2.0), tx.init(params), params)[0]
        tensor([[1., 1., 1.],
                [1., 1., 1.]])

    Source:
        N. Shazeer and M. Stern, "Adafactor: adaptive learning rates with sublinear memory cost", ICML 2018;
        `optax.scale_by_factored_rms`.
    """
    return GradientTransformation(
        bind(_factored_init, least=min_dim_size_to_factor if factored else None),
        bind(
            _factored_update,
            decay_rate=decay_rate,
            step_offset=step_offset,
            epsilon=epsilon,
            decay_rate_fn=power_decay if decay_rate_fn is None else decay_rate_fn,
        ),
        _factored_step_size,
    )


def power_decay(count: Tensor, exponent: Scalar = 0.8) -> Tensor:
    """1 − t^(−exponent) for the update t that follows ``count`` others, in float64."""
    power = exponent.to(precise(count)) if isinstance(exponent, Tensor) else exponent
    return 1 - (precise(count) + 1) ** -power


def _factored_init(params: Any, *, least: int | None) -> FactoredState:
    tree.check_parameters(params)

    def along(x: Tensor, which: int) -> Tensor:
        dims = _longest(x.shape, least)
        if dims is None:
            return x.new_zeros(1)
        return torch.zeros_like(x.narrow(dims[which], 0, 1))

    rows = tree.map(lambda x: along(x, 1), params)
    columns = tree.map(lambda x: along(x, 0), params)
    whole = tree.map(lambda x: torch.zeros_like(x) if _longest(x.shape, least) is None else x.new_zeros(1), params)
    return FactoredState(zero_count(params), rows, columns, whole)


def _longest(shape: Any, least: int | None) -> tuple[int, int] | None:
    """The second longest and the longest dimension, the later ones of equal ones; None if there is no factoring."""
    if least is None or len(shape) < 2:
        return None
    *_, second, first = sorted(range(len(shape)), key=lambda dim: shape[dim])
    return None if shape[second] < max(least, 1) else (second, first)


def _factored_update(
    updates: P,
    state: FactoredState,
    params: P,
    *,
    decay_rate: Scalar,
    step_offset: Scalar,
    epsilon: Scalar,
    decay_rate_fn: Callable[[Tensor, Scalar], Tensor],
) -> tuple[P, FactoredState]:
    beta = decay_rate_fn(state.count - step_offset, decay_rate)
    old, new = exact.cast_once(beta), exact.cast_once(1 - beta)

    def square(g: Tensor) -> Tensor:
        wide = exact.wide(g)
        return wide * wide + exact.like(epsilon, wide)

    def average(moment: Tensor, values: Tensor) -> Tensor:
        wide = exact.wide(moment)
        return old(wide) * wide + new(wide) * values

    def along(moment: Tensor, g: Tensor) -> Tensor:
        if moment.ndim < 2:  # a placeholder: a factored leaf has two dimensions
            return exact.wide(moment)
        dims = [dim for dim in range(g.ndim) if moment.shape[dim] != g.shape[dim]]
        return average(moment, square(g).mean(dims, keepdim=True) if dims else square(g))

    def whole(moment: Tensor, row: Tensor, g: Tensor) -> Tensor:
        return exact.wide(moment) if row.ndim >= 2 else average(moment, square(g))

    rows, columns = tree.map(along, state.v_row, updates), tree.map(along, state.v_col, updates)
    v = tree.map(whole, state.v, state.v_row, updates)

    def scale(g: Tensor, *moments: Tensor) -> Tensor:
        wide = exact.wide(g)
        return exact.like(wide * _factor(*moments), g)

    scaled = tree.map(scale, updates, v, rows, columns)
    stored = (
        tree.map(lambda moment, value: exact.like(value, moment), before, after)
        for before, after in zip(state[1:], (rows, columns, v), strict=True)
    )
    return scaled, FactoredState(state.count + 1, *stored)


def _factored_step_size(state: FactoredState, step_size: Any) -> Any:
    return times(step_size, _factor, state.v, state.v_row, state.v_col)


def _factor(v: Tensor, row: Tensor, column: Tensor) -> Tensor:
    if row.ndim < 2:
        return _inverse_root(v)
    dims = [dim for dim in range(column.ndim) if column.shape[dim] == 1]
    mean = row.mean(dims, keepdim=True) if dims else row
    positive = mean > 0
    return _inverse_root(torch.where(positive, row / torch.where(positive, mean, 1.0), 0.0)) * _inverse_root(column)


def _inverse_root(v: Tensor) -> Tensor:
    """1/√v, and 0 where rounding to 16 bits has left v at 0."""
    positive = v > 0
    return torch.where(positive, 1 / torch.where(positive, v, 1.0).sqrt(), 0.0)
