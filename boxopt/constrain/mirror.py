r"""Mirror descent with the entropy: steps that multiply, for weights that are not negative and have a sum.

The step is $x^+ = \arg\min_z m \cdot z + \sum_i \mathrm{KL}(z_i, x_i)/\eta_i$ over the simplex, for an update
$u = -\eta m$, with $\mathrm{KL}(z, x) = z \log(z/x) - z + x$. Its solution is $x_i^+ = x_i \exp(u_i - \tau\eta_i)$,
with the multiplier τ of the sum. For a single step size that is a softmax. For one a coordinate, $\log \sum_i x_i
\exp(u_i - \tau\eta_i)$ is a convex, decreasing function of τ, nearly linear, up to whose root Newton's method comes
monotonically from the left.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.constrain.project import _constraint_init
from boxopt.core import exact, tree
from boxopt.core.combine import chain
from boxopt.core.search import a_number_each, may_stop, search
from boxopt.core.transform import GradientTransformation, bind, finished
from boxopt.core.types import P, ScalarOrSchedule
from boxopt.scale.scale import scale_by_learning_rate
from boxopt.sets.base import ConstraintSet
from boxopt.sets.simplex import Simplex
from boxopt.sets.vectors import normalized

_NEWTON_STEPS = 40
_DERIVATIVE_STEPS = 2


def mirror(constraint: Simplex) -> GradientTransformation:
    r"""Take the step in the mirror of the entropy: multiply by its exponential, and scale to the simplex' total.

    $$ u \mapsto t\,\frac{x e^{u}}{\sum_i x_i e^{u_i}} - x $$

    It comes where `project` would, after the learning rate, and like it heeds the metric of the step size that made the
    update: after Adam, the sum is restored by $e^{-\tau\eta_i}$ with one τ rather than by one factor.

    An entry that is 0 stays 0, and has derivative 0; a positive one stays positive, unless it underflows. Start with
    positive entries. What comes out is not negative, and sums to t within 2·n·ε, n entries in a dtype of machine
    epsilon ε.

    Args:
        constraint: A `Simplex`.

    Returns:
        A step-space transformation without state.

    Raises:
        TypeError: The set is not a `Simplex`.
        ValueError: In ``init``, the set does not fit the parameters; the message names the leaf.

    Example:
        >>> import math, torch, boxopt as bx
        >>> tx = bx.chain(bx.sgd(1.0), bx.mirror(bx.sets.Simplex()))
        >>> params = torch.tensor([0.5, 0.5, 0.0])
        >>> updates, state = tx.update(torch.tensor([-math.log(3), 0.0, -9.0]), tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([0.7500, 0.2500, 0.0000])

    Source:
        A. Beck and M. Teboulle, "Mirror descent and nonlinear projected subgradient methods for convex optimization",
        Operations Research Letters 31, 2003.
    """
    if not isinstance(constraint, Simplex):
        raise TypeError(f"mirror has steps in a Simplex, got {type(constraint).__name__}")
    return GradientTransformation(
        bind(_constraint_init, constraint=constraint), bind(_mirror_update, constraint=constraint), finished
    )


def exponentiated_gradient(
    learning_rate: ScalarOrSchedule, constraint: Simplex | None = None
) -> GradientTransformation:
    r"""Exponentiated gradient, or multiplicative weights: mirror descent with the entropy on a simplex.

    $$ x \leftarrow t\,\frac{x e^{-\eta g}}{\sum_i x_i e^{-\eta g_i}} $$

    The regret over T steps is of order √(T·log n), where that of gradient descent is of order √(T·n), for gradients
    with entries of order 1.

    Args:
        learning_rate: η: a number, a tensor, a pytree prefix of the parameters, or a schedule.
        constraint: A `Simplex`, by default of vectors along the last dimension with sum 1; its ``total`` is t.

    Returns:
        A step-space transformation: see `mirror`.

    Raises:
        TypeError: The set is not a `Simplex`.
        ValueError: In ``init``, the set does not fit the parameters; the message names the leaf.

    Example:
        >>> import math, torch, boxopt as bx
        >>> tx, params = bx.exponentiated_gradient(1.0), torch.tensor([0.25, 0.75])
        >>> updates, state = tx.update(torch.tensor([0.0, math.log(3)]), tx.init(params), params)
        >>> bx.apply_updates(params, updates)
        tensor([0.5000, 0.5000])

    Source:
        J. Kivinen and M. K. Warmuth, "Exponentiated gradient versus gradient descent for linear predictors",
        Information and Computation 132, 1997.
    """
    return chain(scale_by_learning_rate(learning_rate), mirror(Simplex() if constraint is None else constraint))


def _mirror_update(
    updates: P, state: Any, params: P, *, constraint: ConstraintSet, step_size: Any = 1.0
) -> tuple[P, Any]:
    assert isinstance(constraint, Simplex)
    metric = tree.map(_metric, tree.expand(step_size, params))
    target = constraint._each(_multiplied, params, updates, metric)
    return tree.map(_land, params, target), state


def _metric(step: Any) -> Any:
    """A step size that is the same for a whole leaf is no metric."""
    return step if isinstance(step, Tensor) and step.ndim else 1.0


def _multiplied(x: Tensor, update: Tensor, step: Any, total: Tensor) -> Tensor:
    """The mirror step of each vector [..., n]."""
    most = torch.finfo(x.dtype).max / 16
    positive = x > 0
    logits = torch.where(positive, torch.where(positive, x, 1.0).log() + update.clamp(-most, most), -torch.inf)
    if isinstance(step, Tensor):
        step = normalized(step)
        goal = torch.where(total > 0, total, 1.0).log()
        multiplier = _multiplier(logits.detach(), step.detach(), goal.detach())
        for _ in range(_DERIVATIVE_STEPS):
            multiplier = _newton(multiplier, logits, step, goal)
        logits = logits - multiplier * step
    return _shares(logits)[0] * total


@search("entropic_multiplier", a_number_each)
def _multiplier(logits: Tensor, step: Tensor, goal: Tensor) -> Tensor:
    """The root τ of log Σ exp(logits − τ·step) = goal, from the left."""
    root = ((logits - goal) / step).amax(-1, keepdim=True)  # where the largest term alone reaches the goal
    root = torch.where(root > -torch.inf, root, 0.0)
    for _ in range(_NEWTON_STEPS):
        before, root = root, torch.maximum(_newton(root, logits, step, goal), root)
        if may_stop(logits) and torch.equal(before, root):
            break
    return root


def _newton(root: Tensor, logits: Tensor, step: Tensor, goal: Tensor) -> Tensor:
    shares, level = _shares(logits - root * step)
    slope = (shares * step).sum(-1, keepdim=True)
    return root + (level - goal) / torch.where(slope > 0, slope, 1.0)


def _shares(logits: Tensor) -> tuple[Tensor, Tensor]:
    """The softmax and the log Σ exp over each vector; zeros where all logits are −inf."""
    largest = logits.detach().amax(-1, keepdim=True)
    largest = torch.where(largest > -torch.inf, largest, 0.0)
    powers = (logits - largest).exp()
    sum_ = powers.sum(-1, keepdim=True)
    sum_ = torch.where(sum_ > 0, sum_, 1.0)
    return powers / sum_, largest + sum_.log()


def _land(x: Tensor, target: Tensor) -> Tensor:
    """The update to the target; where the target is positive, so is the sum: what is 0 would never return."""
    least = torch.where(target.detach() > 0, exact.next_up(torch.zeros_like(target)), 0.0).to(target.dtype)
    return exact.land(x, target, least, torch.inf)
