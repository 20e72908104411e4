"""Proximal steps of regularizers."""

from __future__ import annotations

from typing import Any

from boxopt.core.pack import on_leaves
from boxopt.core.transform import (
    EmptyState,
    GradientTransformation,
    apply_updates,
    bind,
    elementwise,
    finished,
)
from boxopt.core.types import P
from boxopt.regularizers.base import Regularizer
from boxopt.sets.base import ConstraintSet


def prox(regularizer: Regularizer) -> GradientTransformation:
    r"""The proximal step of a regularizer: exact zeros for L1, and no step-size limit.

    $$ u \mapsto \arg\min_z r(z) + \tfrac{1}{2\eta}\|z - (x + u)\|^2 \;-\; x $$

    The proximal step is taken in the metric 1/η, η being the step size that made the update: a number for SGD, one a
    coordinate for Adam and its like. With a threshold of lr·λ instead, the iteration after Adam would end elsewhere.

    **With a box.** For a separable regularizer and a box, first `prox`, then `project`, is the proximal step of both at
    once; the other order is not. For y = 3, r(x) = ``|x|`` and the box [0, 2], prox then project gives 2, which is the
    minimizer; project then prox gives 1. `boxopt.regularizers` lists what else composes exactly, and has a `Sum` for
    what does not.

    Args:
        regularizer: One of `boxopt.regularizers`, or your own `boxopt.regularizers.Regularizer`.

    Returns:
        A step-space transformation without state.

    Raises:
        TypeError: It is no regularizer.
        ValueError, TypeError: In ``init``, the regularizer does not fit the parameters; the message names the leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.chain(bx.sgd(1.0), bx.prox(bx.L1(1.0)), bx.project(bx.Box(0.0, 2.0)))
        >>> params = torch.tensor([3.0, 0.5, 1.5])
        >>> updates, state = tx.update(torch.zeros(3), tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([2.0000, 0.0000, 0.5000])

    Source:
        N. Parikh and S. Boyd, Proximal Algorithms, 2014; Y.-L. Yu, "On decomposing the proximal map", NeurIPS 2013, for
        the order.
    """
    if not isinstance(regularizer, Regularizer):
        hint = "; a set is for `project`, or a term of a `Sum`" if isinstance(regularizer, ConstraintSet) else ""
        raise TypeError(f"prox takes a regularizer, got {type(regularizer).__name__}{hint}")
    init, update = bind(_prox_init, regularizer=regularizer), bind(_prox_update, regularizer=regularizer)
    return on_leaves(GradientTransformation(init, update, finished))


def _prox_init(params: Any, *, regularizer: Regularizer) -> EmptyState:
    regularizer.check(params)
    return EmptyState()


@elementwise
def _prox_update(
    updates: P, state: EmptyState, params: P, *, regularizer: Regularizer, step_size: Any = 1.0
) -> tuple[P, EmptyState]:
    target = regularizer.prox(apply_updates(params, updates), step_size)
    return regularizer.land(params, target), state
