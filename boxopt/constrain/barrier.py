"""The log-barrier: as a proximal step after the optimizer, as a gradient before it, and as a value."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from boxopt.core import tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, apply_updates, bind, elementwise, finished
from boxopt.core.types import P, Scalar, ScalarOrSchedule
from boxopt.core.values import advance, check_nonnegative, current, init_scheduled
from boxopt.sets.base import ConstraintSet, expect_set


def barrier(constraint: ConstraintSet, mu: ScalarOrSchedule) -> GradientTransformation:
    r"""The proximal step of the log-barrier: strictly inside, pushed from the walls by strength μ.

    With the candidate $y = x + u$ and the step size $\eta$ that made it, coordinate by coordinate for a box,

    $$ u \mapsto \arg\min_z \tfrac{1}{2\eta}(z - y)^2 - \mu\log(z - l) - \mu\log(h - z) \;-\; x. $$

    Together with gradient descent this minimizes the loss minus μ Σ log(slack). Unlike the barrier's gradient, its
    proximal step is defined for every candidate, inside or out, and its size is not distorted by an adaptive scaler.
    As μ → 0 it tends to `project`. Let μ decay to come to the boundary.

    From parameters strictly inside, ``apply_updates(params, updates)`` is strictly inside whenever the dtype has a
    number between the bounds, also when μη underflows.

    Args:
        constraint: The set; it must have an interior.
        mu: The barrier's strength, in units of the loss, not negative: a number, a tensor, a pytree prefix of the
            parameters, or a schedule.

    Returns:
        A step-space transformation. Its state is a `CountState` if ``mu`` is a schedule, and empty otherwise.

    Raises:
        TypeError: The constraint is not a set, or has no barrier.
        ValueError, TypeError: ``mu`` is negative; or, in ``init``, the set does not fit the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.chain(bx.sgd(1.0), bx.barrier(bx.Box(lower=0.0), mu=1.0))
        >>> params = torch.tensor([1.0])  # the loss x - log(x), whose minimum is at 1
        >>> tx.update(torch.ones(1), tx.init(params), params)[0]
        tensor([0.])

    Source:
        G. Chierchia, E. Chouzenoux, P. L. Combettes and J.-C. Pesquet, The proximity operator repository; the method of
        solution is that of `boxopt.sets.log_barrier`.
    """
    expect_set(constraint, "prox_barrier")
    check_nonnegative("mu", mu)
    return on_leaves(
        GradientTransformation(
            bind(_barrier_init, constraint=constraint, mu=mu),
            bind(_barrier_update, constraint=constraint, mu=mu),
            finished,
        )
    )


def _barrier_init(params: Any, *, constraint: ConstraintSet, mu: Any) -> Any:
    constraint.check(params)
    return init_scheduled(params, value=mu)


@elementwise
def _barrier_update(
    updates: P, state: Any, params: P, *, constraint: ConstraintSet, mu: Any, step_size: Any = 1.0
) -> tuple[P, Any]:
    tau = tree.combine(lambda strength, size: strength * size, current(mu, state), step_size)
    target = constraint.prox_barrier(apply_updates(params, updates), tau)
    return constraint.land(params, target, strictly=True), advance(state)


def add_barrier(constraint: ConstraintSet, mu: ScalarOrSchedule, relax: Scalar = 1e-3) -> GradientTransformation:
    r"""Add the gradient of the log-barrier, −μ Σ log(slack), to the gradients.

    Where a slack is below δ the logarithm is continued by its second-order Taylor polynomial, so that the gradient is
    finite everywhere and points back inside from outside. It comes before the optimizer, and an adaptive scaler
    rescales it with the rest of the gradient; nothing keeps the parameters feasible but the barrier's growth. `barrier`
    has neither problem.

    Args:
        constraint: The set.
        mu: The strength, in units of the loss, not negative: a number, a tensor or a schedule.
        relax: δ, as a fraction of the box's width; with one bound, in the parameter's units.

    Returns:
        A gradient-space transformation. Its state is a `CountState` if ``mu`` is a schedule, and empty otherwise.

    Raises:
        TypeError: The constraint is not a set, or has no barrier.
        ValueError, TypeError: ``mu`` is negative; or, in ``init``, the set does not fit the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.add_barrier(bx.Box(lower=0.0), mu=1.0)
        >>> params = torch.tensor([0.5, -0.001])
        >>> tx.update(torch.zeros(2), tx.init(params), params)[0]
        tensor([-2.0000e+00, -3.0000e+03])

    Source:
        C. Feller and C. Ebenbauer, "Relaxed logarithmic barrier function based model predictive control of linear
        systems", IEEE Transactions on Automatic Control 62(3), 2017.
    """
    expect_set(constraint, "barrier_gradient")
    check_nonnegative("mu", mu)
    check_nonnegative("relax", relax)
    return on_leaves(
        GradientTransformation(
            bind(_barrier_init, constraint=constraint, mu=mu),
            bind(_add_barrier_update, constraint=constraint, mu=mu, relax=relax),
        )
    )


@elementwise
def _add_barrier_update(
    updates: P, state: Any, params: P, *, constraint: ConstraintSet, mu: Any, relax: Any
) -> tuple[P, Any]:
    slope = constraint.barrier_gradient(params, relax)
    added = tree.add_scaled(updates, current(mu, state), slope)
    return added, advance(state)


def log_barrier(constraint: ConstraintSet, params: Any, relax: Scalar = 1e-3) -> Tensor:
    """The log-barrier −Σ log(slack) of the parameters, for use in a loss.

    Args:
        constraint: The set.
        params: A tree of tensors.
        relax: Where to continue the logarithm quadratically: see `add_barrier`. With 0 it is inf outside.

    Returns:
        A scalar tensor, differentiable, finite everywhere unless ``relax`` is 0.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.log_barrier(bx.Box(0.0, 1.0), torch.tensor([0.5]))
        tensor(1.3863)
    """
    return constraint.barrier(params, relax)
