r"""A step that makes a quadratic model small within bounds: a Cauchy point, and a subspace.

$$ m(d) = g \cdot d + \tfrac{1}{2} d \cdot B d, \qquad l \le x + d \le u $$

First a projected gradient step, of the length that is best for the model until the first bound, tells which bounds to
go to. The model's minimizer over the other coordinates may leave the box. Of two ways back, the projection and the
point where the segment from the first step leaves the box, the one with the smaller model is taken.

Where that is next to the first step, the next step holds at their bounds the coordinates that were in the way, and goes
on holding them while the model's slope there points outward: or a gradient that points a little inward where the
minimizer points outward would make all steps gradient steps. A step that holds coordinates is taken where its model is
smaller than that of the first step.

Vectors are along the first dimension. There may be a further one, which counts problems.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from boxopt.core.search import may_stop
from boxopt.solve.dense_model import DenseModel
from boxopt.solve.pair_model import CompactHessian

_IN_THE_WAY = 0.1
"""Up to which share of the way to the subspace's minimizer a bound is in the way."""


class BoxStep(NamedTuple):
    """A step within bounds.

    Attributes:
        step: The step d, along which the loss decreases at first; zeros only where the gradient's projection is.
        side: At which bounds the next step holds coordinates: −1 at lower ones, 1 at upper ones, 0 at none.
    """

    step: Tensor
    side: Tensor


def box_step(
    hessian: DenseModel | CompactHessian, point: Tensor, gradient: Tensor, lower: Tensor, upper: Tensor, side: Tensor
) -> BoxStep:
    """The step from a point. ``side`` says at which bounds it holds coordinates, as the step before has found."""
    below, above = lower - point, upper - point
    cauchy = _cauchy_step(hessian, gradient, below, above)
    pinned = torch.where(side < 0, below, torch.where(side > 0, above, cauchy))
    held = (pinned <= below) | (pinned >= above)
    pinned = torch.where(held, pinned, 0.0)
    change = hessian.minimize_over(~held, gradient + hessian.times(pinned))
    target = torch.where(held, pinned, change)
    target = torch.where(target.isfinite().all(0), target, cauchy)

    onward = target - cauchy
    room = torch.where(onward == 0, 1.0, (torch.where(onward > 0, above, below) - cauchy) / onward)
    share = room.amin(0).clamp(0.0, 1.0)
    projected, truncated = target.clamp(below, above), (cauchy + share * onward).clamp(below, above)

    def model(step: Tensor) -> Tensor:
        return (gradient * step).sum(0) + hessian.curvature(step) / 2

    at_projected, at_truncated = model(projected), model(truncated)
    bent = at_projected < at_truncated
    step = torch.where(bent, projected, truncated)
    following = torch.where(~bent & (room < _IN_THE_WAY), onward.sign(), 0.0)
    if not _is_known_false(side != 0):
        slope = gradient + hessian.times(step)
        following = torch.where(side * slope < 0, side, following)
        worse = (side != 0).any(0) & ~(torch.where(bent, at_projected, at_truncated) < model(cauchy))
        step, following = torch.where(worse, cauchy, step), torch.where(worse, 0.0, following)
    return BoxStep(torch.where((gradient * step).sum(0) < 0, step, cauchy), following)


def _is_known_false(condition: Tensor) -> bool:
    """Whether a condition holds nowhere, where that may be looked at: work that is seldom wanted is left out."""
    if torch.compiler.is_compiling() or not may_stop(condition):
        return False
    try:
        return not bool(condition.any())
    except RuntimeError:  # under vmap
        return False


def _cauchy_step(hessian: DenseModel | CompactHessian, gradient: Tensor, below: Tensor, above: Tensor) -> Tensor:
    """P(x − tg) − x, where t minimizes the model along −g as far as no bound forbids it at once."""
    blocked = ((below >= 0) & (gradient > 0)) | ((above <= 0) & (gradient < 0))
    steepest = torch.where(blocked, 0.0, gradient)
    size = steepest.abs().amax(0)
    unit = steepest / torch.where(size > 0, size, 1.0)
    curvature = hessian.curvature(unit)
    rate = (unit * unit).sum(0) / torch.where(curvature > 0, curvature, 1.0)
    return (-rate * gradient).clamp(below, above)
