"""DoG and DoWG: the distance from the start over the root of the sum of squared gradients as a learning rate."""

from __future__ import annotations

from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import safe_sqrt
from boxopt.scale.scalars import maximum, norm, scalar_like, scaled, squared_distance, squared_norm, step_size_times


class DoGState(NamedTuple):
    """The state of `scale_by_dog`.

    Attributes:
        count: The number of updates made, an int64 scalar, where optax has a flag for the first.
        init_params: The first parameters.
        max_dist: The largest distance from them.
        sum_sq_norm_grads: The sum of the squared norms of the gradients.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    init_params: Any
    max_dist: Tensor
    sum_sq_norm_grads: Tensor


def scale_by_dog(
    init_step: tuple[Literal["distance", "learning_rate", "heuristic"], Scalar], eps: Scalar = 1e-8
) -> GradientTransformation:
    r"""Multiply the gradients by the distance travelled over the root of the sum of all their squares.

    $$ \bar r \leftarrow \max(\bar r, \lVert x - x_0 \rVert), \qquad G \leftarrow G + \lVert g \rVert^2, \qquad
       u = \eta g, \quad \eta = \bar r / \sqrt{G + \epsilon} $$

    with norms over all leaves. The step size is η, one number.

    Args:
        init_step: How the first step is found: ``("distance", r)``, a first $\bar r$; ``("heuristic", a)``, which
            means $\bar r = a (1 + \lVert x_0 \rVert)$; or ``("learning_rate", lr)``, the first η.
        eps: ε.

    Returns:
        A gradient-space transformation with a `DoGState`.

    Raises:
        ValueError: ``init_step`` has another tag.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_dog(("distance", 0.5)), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.3000, 0.4000])

    Source:
        M. Ivgi, O. Hinder and Y. Carmon, "DoG is SGD's best friend: a parameter-free dynamic step size schedule",
        ICML 2023; `optax.contrib.scale_by_dog`.
    """
    tag, value = init_step
    if tag not in ("distance", "learning_rate", "heuristic"):
        raise ValueError(f"the first step is given by 'distance', 'learning_rate' or 'heuristic', got {tag!r}")
    first_rate = value if tag == "learning_rate" else None
    return GradientTransformation(
        bind(_dog_init, tag=tag, value=value),
        bind(_dog_update, first_rate=first_rate, eps=eps),
        bind(_dog_step_size, first_rate=first_rate, eps=eps),
    )


def _dog_init(params: Any, *, tag: str, value: Scalar) -> DoGState:
    tree.check_parameters(params)
    distance = scalar_like(params, 0.0 if tag == "learning_rate" else value)
    if tag == "heuristic":
        distance = distance * (1 + norm(params))
    return DoGState(zero_count(params), tree.map(Tensor.clone, params), distance, scalar_like(params, 0.0))


@elementwise  # of a packed tree the norms are the same
def _dog_update(
    updates: P, state: DoGState, params: P, *, first_rate: Scalar | None, eps: Scalar
) -> tuple[P, DoGState]:
    distance = safe_sqrt(squared_distance(state.init_params, params))
    new = DoGState(
        state.count + 1,
        state.init_params,
        maximum(state.max_dist, distance),
        state.sum_sq_norm_grads + squared_norm(updates),
    )
    return scaled(updates, _dog_rate(new, first_rate, eps)), new


def _dog_step_size(state: DoGState, step_size: Any, *, first_rate: Scalar | None, eps: Scalar) -> Any:
    return step_size_times(step_size, _dog_rate(state, first_rate, eps))


def _dog_rate(state: DoGState, first_rate: Scalar | None, eps: Scalar) -> Tensor:
    rate = state.max_dist / safe_sqrt(state.sum_sq_norm_grads + exact.like(eps, state.sum_sq_norm_grads))
    return rate if first_rate is None else torch.where(state.count == 1, exact.like(first_rate, rate), rate)


class DoWGState(NamedTuple):
    """The state of `scale_by_dowg`.

    Attributes:
        init_params: The first parameters.
        weighted_sq_norm_grads: The sum of the squared norms of the gradients, weighted by the squared distances.
        estim_sq_dist: The square of the largest distance from the first parameters.
    """

    init_params: Any
    weighted_sq_norm_grads: Tensor
    estim_sq_dist: Tensor


@expects_numbers
def scale_by_dowg(init_estim_sq_dist: Scalar | None = None, eps: Scalar = 1e-4) -> GradientTransformation:
    r"""`scale_by_dog` with gradients weighted by the distance, which forgets the early ones.

    $$ r \leftarrow \max(r, \lVert x - x_0 \rVert^2), \qquad w \leftarrow w + r \lVert g \rVert^2, \qquad
       u = \eta g, \quad \eta = r / (\sqrt w + \epsilon) $$

    The step size is η, one number.

    Args:
        init_estim_sq_dist: The first r; ε if left out.
        eps: ε.

    Returns:
        A gradient-space transformation with a `DoWGState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_dowg(1.0), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.6000, 0.8000])

    Source:
        A. Khaled, K. Mishchenko and C. Jin, "DoWG unleashed: an efficient universal parameter-free gradient descent
        method", NeurIPS 2023; `optax.contrib.scale_by_dowg`.
    """
    first = eps if init_estim_sq_dist is None else init_estim_sq_dist
    return GradientTransformation(
        bind(_dowg_init, first=first), bind(_dowg_update, eps=eps), bind(_dowg_step_size, eps=eps)
    )


def _dowg_init(params: Any, *, first: Scalar) -> DoWGState:
    tree.check_parameters(params)
    return DoWGState(tree.map(Tensor.clone, params), scalar_like(params, 0.0), scalar_like(params, first))


@elementwise  # of a packed tree the norms are the same
def _dowg_update(updates: P, state: DoWGState, params: P, *, eps: Scalar) -> tuple[P, DoWGState]:
    distance = maximum(state.estim_sq_dist, squared_distance(state.init_params, params))
    weighted = state.weighted_sq_norm_grads + distance * squared_norm(updates)
    new = DoWGState(state.init_params, weighted, distance)
    return scaled(updates, _dowg_rate(new, eps)), new


def _dowg_step_size(state: DoWGState, step_size: Any, *, eps: Scalar) -> Any:
    return step_size_times(step_size, _dowg_rate(state, eps))


def _dowg_rate(state: DoWGState, eps: Scalar) -> Tensor:
    weighted = state.weighted_sq_norm_grads
    return state.estim_sq_dist / (safe_sqrt(weighted) + exact.like(eps, weighted))


class ScaleByDistanceOverGradientsState(NamedTuple):
    """The state of `scale_by_distance_over_gradients`, leaf by leaf.

    Attributes:
        max_dist: The largest distance from the first parameters.
        grad_sum_of_squares: The sum of the squared norms of the gradients.
        init_params: The first parameters.
    """

    max_dist: Any
    grad_sum_of_squares: Any
    init_params: Any


def scale_by_distance_over_gradients(
    reps_rel: Scalar = 1e-6, eps: Scalar = 1e-8, global_scale: Scalar = 1.0
) -> GradientTransformation:
    r"""Layer-wise DoG: `scale_by_dog` with norms and rates for each leaf.

    $$ \bar r \leftarrow \max(\bar r, \lVert x - x_0 \rVert), \qquad G \leftarrow G + \lVert g \rVert^2, \qquad
       u = \eta g, \quad \eta = c\, \bar r / \sqrt{G + \epsilon} $$

    The step size is η, one number for each leaf. optax keeps the first parameters in float32 unless told otherwise;
    here they stay in their dtype.

    Args:
        reps_rel: The first $\bar r$ is this times $1 + \lVert x_0 \rVert$.
        eps: ε.
        global_scale: c.

    Returns:
        A gradient-space transformation with a `ScaleByDistanceOverGradientsState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.scale_by_distance_over_gradients(0.5), torch.zeros(2)
        >>> tx.update(torch.tensor([3.0, 4.0]), tx.init(params), params)[0]
        tensor([0.3000, 0.4000])

    Source:
        M. Ivgi, O. Hinder and Y. Carmon, ICML 2023; `optax.scale_by_distance_over_gradients`.
    """
    return GradientTransformation(
        bind(_layerwise_init, reps_rel=reps_rel),
        bind(_layerwise_update, eps=eps, global_scale=global_scale),
        bind(_layerwise_step_size, eps=eps, global_scale=global_scale),
    )


def _layerwise_init(params: Any, *, reps_rel: Scalar) -> ScaleByDistanceOverGradientsState:
    tree.check_parameters(params)

    def first(x: Tensor) -> Tensor:
        x = exact.wide(x)
        return exact.like(reps_rel, x) * (1 + norm(x))

    zeros = tree.map(lambda x: exact.wide(x).new_zeros(()), params)
    return ScaleByDistanceOverGradientsState(tree.map(first, params), zeros, tree.map(Tensor.clone, params))


def _layerwise_update(
    updates: P, state: ScaleByDistanceOverGradientsState, params: P, *, eps: Scalar, global_scale: Scalar
) -> tuple[P, ScaleByDistanceOverGradientsState]:
    def farthest(distance: Tensor, x: Tensor, start: Tensor) -> Tensor:
        return maximum(distance, safe_sqrt(squared_distance(start, x)))

    max_dist = tree.map(farthest, state.max_dist, params, state.init_params)
    squares = tree.map(lambda total, g: total + squared_norm(g), state.grad_sum_of_squares, updates)

    def scale(g: Tensor, distance: Tensor, total: Tensor) -> Tensor:
        return scaled(g, _layerwise_rate(distance, total, eps, global_scale))

    new = tree.map(scale, updates, max_dist, squares)
    return new, ScaleByDistanceOverGradientsState(max_dist, squares, state.init_params)


def _layerwise_step_size(
    state: ScaleByDistanceOverGradientsState, step_size: Any, *, eps: Scalar, global_scale: Scalar
) -> Any:
    def size(distance: Tensor, total: Tensor, outer: Any) -> Tensor:
        return exact.like(outer, distance) * _layerwise_rate(distance, total, eps, global_scale)

    return tree.map(size, state.max_dist, state.grad_sum_of_squares, tree.expand(step_size, state.max_dist))


def _layerwise_rate(distance: Tensor, total: Tensor, eps: Scalar, global_scale: Scalar) -> Tensor:
    return exact.like(global_scale, distance) * distance / safe_sqrt(total + exact.like(eps, total))
