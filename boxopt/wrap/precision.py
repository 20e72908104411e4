"""16-bit parameters: 32-bit masters beside them, or stochastic rounding; in the set either way."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.pack import Packed, on_leaves
from boxopt.core.random import make_key, split, uniform
from boxopt.core.transform import GradientTransformation, apply_updates, bind, last
from boxopt.core.types import MaskedNode, P
from boxopt.sets.base import ConstraintSet


class MasterWeightsState(NamedTuple):
    """The state of `master_weights`.

    Attributes:
        inner_state: The state of the inner transformation, in float32.
        masters: The parameters in float32 for 16-bit leaves; nothing for the others.
    """

    inner_state: Any
    masters: Any


class StochasticRoundingState(NamedTuple):
    """The state of `stochastic_rounding`.

    Attributes:
        inner_state: The state of the inner transformation, in float32.
        key: The key of the random numbers to come, an int64 tensor of two words.
    """

    inner_state: Any
    key: Tensor


def master_weights(
    transformation: GradientTransformation, within: ConstraintSet | None = None
) -> GradientTransformation:
    """Keep masters of 16-bit parameters in float32, so that small steps are not lost, and let the parameters follow.

    The inner transformation sees the masters, and its set bounds them; the parameters are the masters, rounded. A
    rounding may leave a set that its argument is in (in bfloat16, 0.702 becomes 0.7031): with ``within``, both are in
    the set to the last bit. Leaves of 32 and 64 bits are updated as without the wrapper.

    It comes last in a chain: what changed its updates would part the parameters from their masters. One sum of 16-bit
    numbers does not reach every other; where it misses the rounded master, by a rounding of the update, a later one
    reaches it.

    Args:
        transformation: What makes the steps, its set included: ``chain(adam(1e-3), project(box))``.
        within: The set, for the rounded parameters.

    Returns:
        A transformation with a `MasterWeightsState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.master_weights(bx.sgd(1e-3))
        >>> params = torch.ones(1, dtype=torch.bfloat16)
        >>> state = tx.init(params)
        >>> for _ in range(8):  # each step is a quarter of what bfloat16 can resolve at 1
        ...     updates, state = tx.update(torch.ones_like(params), state, params)
        ...     params = bx.apply_updates(params, updates)
        >>> params, state.masters
        (tensor([0.9922], dtype=torch.bfloat16), tensor([0.9920]))

    Source:
        P. Micikevicius et al., "Mixed precision training", ICLR 2018.
    """
    inner = on_leaves(transformation)
    return GradientTransformation(
        bind(_master_weights_init, transformation=inner, within=within),
        bind(_master_weights_update, transformation=inner, within=within),
        bind(_inner_step_size, transformation=inner),
    )


def stochastic_rounding(
    transformation: GradientTransformation, within: ConstraintSet | None = None, seed: int | Tensor = 0
) -> GradientTransformation:
    """Step in float32, and round 16-bit parameters up or down at random, so that they are right on average.

    The number above is chosen with a probability that is the share of the gap below: the mean of the rounded parameters
    is the unrounded one, and small steps are not lost, at no cost in memory. With ``within``, the rounding goes
    towards the interior wherever the other neighbour is outside. Leaves of 32 and 64 bits are updated as without the
    wrapper.

    Args:
        transformation: What makes the steps, its set included: ``chain(adam(1e-3), project(box))``.
        within: The set, for the rounded parameters.
        seed: An integer, an integer tensor (one a member under ``vmap``), or a key.

    Returns:
        A transformation with a `StochasticRoundingState`; only sets may follow it.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.stochastic_rounding(bx.sgd(1e-3))
        >>> params = torch.ones(10_000, dtype=torch.bfloat16)
        >>> updates, state = tx.update(torch.ones_like(params), tx.init(params), params)
        >>> bool((params.double() + updates.double() - 0.999).mean().abs() < 1e-4)
        True

    Source:
        S. Gupta et al., "Deep learning with limited numerical precision", ICML 2015.
    """
    inner = on_leaves(transformation)
    return GradientTransformation(
        bind(_stochastic_rounding_init, transformation=inner, within=within, seed=seed),
        bind(_stochastic_rounding_update, transformation=inner, within=within),
        bind(_inner_step_size, transformation=inner),
    )


def _master_weights_init(
    params: Any, *, transformation: GradientTransformation, within: ConstraintSet | None
) -> MasterWeightsState:
    tree.check_parameters(params)
    _check(within, params)
    wide = tree.map(exact.wide, params)
    masters = tree.map(lambda x, w: w if exact.is_narrow(x.dtype) else MaskedNode(), params, wide)
    return MasterWeightsState(transformation.init(wide), masters)


@last
def _master_weights_update(
    updates: P,
    state: MasterWeightsState,
    params: P,
    *,
    transformation: GradientTransformation,
    within: ConstraintSet | None,
    **extra: Any,
) -> tuple[P, MasterWeightsState]:
    wide = tree.map(lambda x, master: x if isinstance(master, MaskedNode) else master, params, state.masters)
    changed, inner = transformation.update(tree.map(exact.wide, updates), state.inner_state, wide, **extra)
    new = apply_updates(wide, changed)
    rounded = tree.map(lambda x, master: master.to(x.dtype), params, new)
    masters = tree.map(lambda x, master: master if exact.is_narrow(x.dtype) else MaskedNode(), params, new)
    return _towards(rounded, params, changed, within), MasterWeightsState(inner, masters)


def _stochastic_rounding_init(
    params: Any, *, transformation: GradientTransformation, within: ConstraintSet | None, seed: Any
) -> StochasticRoundingState:
    tree.check_parameters(params)
    _check(within, params)
    key = make_key(seed, tree.device_of(params)).clone()
    return StochasticRoundingState(transformation.init(tree.map(exact.wide, params)), key)


def _stochastic_rounding_update(
    updates: P,
    state: StochasticRoundingState,
    params: P,
    *,
    transformation: GradientTransformation,
    within: ConstraintSet | None,
    **extra: Any,
) -> tuple[P, StochasticRoundingState]:
    wide = tree.map(exact.wide, params)
    changed, inner = transformation.update(tree.map(exact.wide, updates), state.inner_state, wide, **extra)
    new = apply_updates(wide, changed)
    keys = iter(split(state.key, 1 + len(tree.leaves(params))).unbind())
    following = next(keys)

    def rounded(x: Tensor, target: Tensor) -> Tensor:
        key = next(keys)
        return round_at_random(target, x.dtype, key.to(x.device)) if exact.is_narrow(x.dtype) else target

    target = tree.map(rounded, params, new)
    return _towards(target, params, changed, within), StochasticRoundingState(inner, following)


def round_at_random(x: Tensor, dtype: torch.dtype, key: Tensor) -> Tensor:
    """One of the two neighbours of x in a narrower dtype, such that the expected value is x; the derivative is 1."""
    nearest = exact.rounded(x.to(dtype))
    value, back = x.detach(), nearest.to(x.dtype)
    below = torch.where(back > value, exact.next_down(nearest), nearest)
    above = torch.where(back < value, exact.next_up(nearest), nearest)
    low, high = below.to(x.dtype), above.to(x.dtype)
    gap = torch.where(high > low, high - low, torch.ones_like(low))
    chosen = torch.where(uniform(key, x.shape, like=x) < (value - low) / gap, above, below)
    return exact.replaced(x.to(dtype), chosen)


def _towards(target: Any, params: P, changed: Any, within: ConstraintSet | None) -> P:
    """The updates to these 16-bit parameters, and the inner updates of the other leaves."""
    if within is None:
        updates = tree.map(lambda x, goal: exact.land(x, goal, -torch.inf, torch.inf), params, target)
    elif isinstance(params, Packed) and not within.separable:
        leaves = params.unpack()
        updates = params.layout.pack(within.land(leaves, within.project(target.unpack())))
    else:
        updates = within.land(params, within.project(target))
    return tree.map(lambda x, u, whole: u if exact.is_narrow(x.dtype) else whole, params, updates, changed)


def _check(within: ConstraintSet | None, params: Any) -> None:
    if within is not None:
        within.check(params if within.separable or not isinstance(params, Packed) else params.unpack())


def _inner_step_size(state: Any, step_size: Any, *, transformation: GradientTransformation) -> Any:
    return transformation.step_size(state.inner_state, step_size)
