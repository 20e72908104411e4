"""Lookahead: k steps forward, one step back."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.expect import expects_numbers
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, apply_updates, bind, last
from boxopt.core.types import P, Scalar
from boxopt.core.values import check_nonnegative, zero_count
from boxopt.wrap.average import between
from boxopt.wrap.select import select


class LookaheadState(NamedTuple):
    """The state of `lookahead`.

    Attributes:
        fast_state: The state of the fast optimizer.
        steps_since_sync: The number of steps since fast and slow parameters were the same, an int64 scalar.
        slow: The slow parameters, for testing and inference.
    """

    fast_state: Any
    steps_since_sync: Tensor
    slow: Any


@expects_numbers
def lookahead(
    fast_optimizer: GradientTransformation, sync_period: Scalar, slow_step_size: Scalar, reset_state: bool = False
) -> GradientTransformation:
    r"""Let slow parameters follow the fast ones every k steps, and the fast ones return to them.

    $$ s \leftarrow s + \alpha (x_k - s), \qquad x \leftarrow s $$

    The parameters are the fast ones; the slow ones are in the state. With α ≤ 1 they stay in a convex set that the fast
    optimizer keeps to: ``lookahead(chain(adam, project), 5, 0.5)``; in a box, to the last bit.

    Args:
        fast_optimizer: What makes the steps, its set included.
        sync_period: k.
        slow_step_size: α.
        reset_state: Whether the fast optimizer begins anew after each synchronization.

    Returns:
        A transformation with a `LookaheadState`. It comes last in a chain: the slow parameters count on its updates
        being applied as they are.

    Raises:
        ValueError: ``sync_period`` is below 1, or ``slow_step_size`` negative.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.lookahead(bx.sgd(1.0), sync_period=2, slow_step_size=0.5), torch.zeros(1)
        >>> state = tx.init(params)
        >>> for _ in range(2):
        ...     updates, state = tx.update(torch.ones(1), state, params)
        ...     params = bx.apply_updates(params, updates)
        >>> params, state.slow
        (tensor([-1.]), tensor([-1.]))

    Source:
        M. R. Zhang et al., "Lookahead optimizer: k steps forward, 1 step back", NeurIPS 2019; `optax.lookahead`, which
        keeps the slow parameters beside the fast ones rather than in the state.
    """
    if not isinstance(sync_period, Tensor) and not sync_period >= 1:
        raise ValueError(f"sync_period is at least 1, got {sync_period!r}")
    check_nonnegative("slow_step_size", slow_step_size)
    inner = on_leaves(fast_optimizer)
    return GradientTransformation(
        bind(_lookahead_init, transformation=inner),
        bind(_lookahead_update, transformation=inner, period=sync_period, alpha=slow_step_size, reset=reset_state),
        bind(_lookahead_step_size, transformation=inner),
    )


def _lookahead_init(params: Any, *, transformation: GradientTransformation) -> LookaheadState:
    return LookaheadState(transformation.init(params), zero_count(params), tree.map(torch.clone, params))


@last
def _lookahead_update(
    updates: P,
    state: LookaheadState,
    params: P,
    *,
    transformation: GradientTransformation,
    period: Scalar,
    alpha: Scalar,
    reset: bool,
    **extra: Any,
) -> tuple[P, LookaheadState]:
    updates, fast_state = transformation.update(updates, state.fast_state, params, **extra)
    synchronize = state.steps_since_sync + 1 >= period

    def step_back(update: Tensor, x: Tensor, slow: Tensor, fast: Tensor) -> Tensor:
        target = between(exact.wide(slow), exact.wide(fast), alpha).to(x.dtype)
        low, high = torch.minimum(slow, fast).detach(), torch.maximum(slow, fast).detach()
        back = exact.land(x, target, torch.minimum(low, x.detach()), torch.maximum(high, x.detach()))
        return torch.where(synchronize.to(x.device), back.to(update.dtype), update)

    fast = apply_updates(params, updates)
    updates = tree.map(step_back, updates, params, state.slow, fast)
    slow = select(synchronize, apply_updates(params, updates), state.slow)
    if reset:
        fast_state = select(synchronize, transformation.init(params), fast_state)
    steps = torch.where(synchronize, 0, state.steps_since_sync + 1)
    return updates, LookaheadState(fast_state, steps, slow)


def _lookahead_step_size(state: LookaheadState, step_size: Any, *, transformation: GradientTransformation) -> Any:
    return transformation.step_size(state.fast_state, step_size)
