"""Sophia's scaling: momentum over an estimate of the Hessian's diagonal, clipped."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, random, tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.moments import bias_correction, map_wide, update_moment, zeros_like
from boxopt.scale.scalars import inner, maximum


class HutchinsonState(NamedTuple):
    """The state of `hutchinson_estimator_diag_hessian`: the ``key`` of the next random numbers."""

    key: Tensor


def hutchinson_estimator_diag_hessian(random_seed: int | Tensor = 0) -> GradientTransformation:
    r"""Put an unbiased estimate of the Hessian's diagonal in the place of the updates.

    $$ u = r \odot \nabla^2 f(x)\, r, \qquad r_i = \pm 1 \ \text{ at random} $$

    It is exact for a diagonal Hessian. The signs are JAX's for the same key. The step size is unchanged.

    Args:
        random_seed: A seed, or a key: see `boxopt.core.random`. Give members of an ensemble a seed each.

    Returns:
        A transformation with a `HutchinsonState`; ``update`` takes ``obj_fn=``, a function from the parameters to the
        loss.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.hutchinson_estimator_diag_hessian(), torch.ones(2)
        >>> tx.update(params, tx.init(params), params, obj_fn=lambda x: (x**3).sum())[0]
        tensor([6., 6.])

    Source:
        M. F. Hutchinson, "A stochastic estimator of the trace of the influence matrix", 1989;
        `optax.contrib.hutchinson_estimator_diag_hessian`.
    """
    return GradientTransformation(bind(_hutchinson_init, seed=random_seed), _hutchinson_update)


def _hutchinson_init(params: Any, *, seed: int | Tensor) -> HutchinsonState:
    tree.check_parameters(params)
    return HutchinsonState(random.make_key(seed, tree.device_of(params)))


def _hutchinson_update(
    updates: P, state: HutchinsonState, params: P, *, obj_fn: Callable[[P], Tensor]
) -> tuple[P, HutchinsonState]:
    leaves, structure = tree.flatten(params)
    key, used = random.split(state.key)
    if not leaves:
        return updates, HutchinsonState(key)
    keys = random.split(used, len(leaves))
    signs = [_signs(one.to(leaf.device), leaf) for one, leaf in zip(keys, leaves, strict=True)]

    def objective(values: list[Tensor]) -> Tensor:
        return obj_fn(tree.unflatten(structure, values))

    def slope(values: list[Tensor]) -> Tensor:
        return inner(torch.func.grad(objective)(values), signs)

    products = torch.func.grad(slope)(leaves)
    diagonal = [sign * product for sign, product in zip(signs, products, strict=True)]
    return tree.unflatten(structure, diagonal), HutchinsonState(key)


def _signs(key: Tensor, leaf: Tensor) -> Tensor:
    precise = torch.float64 if leaf.dtype == torch.float64 else torch.float32
    return torch.where(random.uniform(key, leaf.shape, precise, leaf) < 0.5, 1.0, -1.0).to(leaf.dtype)


class SophiaState(NamedTuple):
    """The state of `scale_by_sophia`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
        nu: The running average of the estimates of the Hessian's diagonal.
        hessian_fn_state: The estimator's.
        previous_nu: The average before, which scaled the last update: for the step size.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    mu: Any
    nu: Any
    hessian_fn_state: Any
    previous_nu: Any


HUTCHINSON = hutchinson_estimator_diag_hessian()


def scale_by_sophia(
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: GradientTransformation = HUTCHINSON,
) -> GradientTransformation:
    r"""Divide the averaged gradient by an averaged estimate of the Hessian's diagonal, and clip.

    $$ m \leftarrow \beta_1 m + (1 - \beta_1) g, \qquad
       u = \operatorname{clip}\left(\frac{\hat m}{\max(\gamma h, \epsilon)}, \pm\rho\right), \qquad
       h \leftarrow \beta_2 h + (1 - \beta_2) \hat h \ \text{ every so many steps} $$

    The step size is the factor of $\hat m$, where it is clipped too: $1/\max(\gamma h, \epsilon, |\hat m|/\rho)$.

    The estimate is computed in every step and used in some, since nothing branches on a counter.

    Args:
        b1: β₁.
        b2: β₂.
        eps: ε.
        gamma: γ; the larger, the fewer coordinates are clipped.
        clip_threshold: ρ; None does not clip.
        update_interval: Every how many steps the estimate enters the average, from the first on.
        hessian_diagonal_fn: A transformation that estimates the diagonal.

    Returns:
        A gradient-space transformation with a `SophiaState`; ``update`` takes what the estimator does, ``obj_fn=``.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_sophia(), torch.ones(2)
        >>> f = lambda x: (x**2).sum()
        >>> _, state = tx.update(2 * params, tx.init(params), params, obj_fn=f)
        >>> tx.update(torch.tensor([1e-4, 1.0]), state, params, obj_fn=f)[0] > 0.5
        tensor([True, True])

    Source:
        H. Liu et al., "Sophia: a scalable stochastic second-order optimizer for language model pre-training", ICLR
        2024; optax's ``scale_by_sophia``.
    """
    return GradientTransformation(
        bind(_sophia_init, hessian_diagonal_fn=on_leaves(hessian_diagonal_fn)),
        bind(
            _sophia_update,
            b1=b1,
            b2=b2,
            eps=eps,
            gamma=gamma,
            clip_threshold=clip_threshold,
            update_interval=update_interval,
            hessian_diagonal_fn=on_leaves(hessian_diagonal_fn),
        ),
        bind(_sophia_step_size, b1=b1, eps=eps, gamma=gamma, clip_threshold=clip_threshold),
    )


def _sophia_init(params: Any, *, hessian_diagonal_fn: GradientTransformation) -> SophiaState:
    tree.check_parameters(params)
    mu, nu, previous = (zeros_like(params) for _ in range(3))
    return SophiaState(zero_count(params), mu, nu, hessian_diagonal_fn.init(params), previous)


def _sophia_update(
    updates: P,
    state: SophiaState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    gamma: Scalar,
    clip_threshold: Scalar | None,
    update_interval: int,
    hessian_diagonal_fn: GradientTransformation,
    **extra: Any,
) -> tuple[P, SophiaState]:
    count = state.count + 1
    mu = update_moment(updates, state.mu, b1, 1)
    correction = bias_correction(b1, count)

    def direction(m: Tensor, h: Tensor) -> Tensor:
        step = m / exact.like(correction, m) / _curvature(h, gamma, eps)
        if clip_threshold is None:
            return step
        limit = exact.like(clip_threshold, m)
        return exact.clamp(step, -limit, limit)

    estimate, estimator_state = hessian_diagonal_fn.update(updates, state.hessian_fn_state, params, **extra)
    due = state.count % update_interval == 0

    def choose(new: Any, old: Any) -> Any:
        return tree.map(lambda x, y: torch.where(due, x, y), new, old)

    nu = choose(update_moment(estimate, state.nu, b2, 1), state.nu)
    estimator_state = choose(estimator_state, state.hessian_fn_state)
    return map_wide(direction, mu, state.nu), SophiaState(count, mu, nu, estimator_state, state.nu)


def _sophia_step_size(
    state: SophiaState, step_size: Any, *, b1: Scalar, eps: Scalar, gamma: Scalar, clip_threshold: Scalar | None
) -> Any:
    correction = bias_correction(b1, state.count)

    def size(m: Tensor, h: Tensor, outer: Any) -> Tensor:
        m = exact.wide(m)
        curvature = _curvature(exact.wide(h), gamma, eps)
        if clip_threshold is not None:
            steepest = m.abs() / exact.like(correction, m) / exact.like(clip_threshold, m)
            curvature = maximum(curvature, steepest)
        return exact.like(outer, m) / curvature

    return tree.map(size, state.mu, state.previous_nu, tree.expand(step_size, state.mu))


def _curvature(h: Tensor, gamma: Scalar, eps: Scalar) -> Tensor:
    return maximum(exact.like(gamma, h) * h, exact.like(eps, h))
