"""Sets from the constraints of torch.distributions, and of GPyTorch."""

from __future__ import annotations

from typing import Any

from torch.distributions import constraints

from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box
from boxopt.sets.matrices import PSD
from boxopt.sets.simplex import Simplex


def from_torch(constraint: Any) -> ConstraintSet:
    """The closed set that a constraint of ``torch.distributions.constraints`` describes.

    Open intervals become closed ones: ``positive`` allows 0. Use `boxopt.barrier` to stay strictly inside.
    ``constraints.independent`` counts as what it is made of. GPyTorch's ``Interval``, ``Positive``, ``GreaterThan`` and
    ``LessThan`` are boxes too, known by their attributes ``lower_bound`` and ``upper_bound``.

    Args:
        constraint: For example ``constraints.unit_interval`` or ``torch.distributions.Beta.arg_constraints["..."]``.

    Raises:
        NotImplementedError: There is no such set here.

    Example:
        >>> import torch, boxopt as bx
        >>> from torch.distributions import constraints
        >>> bx.sets.from_torch(constraints.interval(-1.0, 2.0)).project(torch.tensor([-3.0, 3.0]))
        tensor([-1.,  2.])
    """
    while isinstance(constraint, constraints.independent):  # pyright: ignore[reportArgumentType]
        constraint = constraint.base_constraint
    lower, upper = getattr(constraint, "lower_bound", None), getattr(constraint, "upper_bound", None)
    if lower is not None or upper is not None:
        return Box(lower, upper)
    if constraint in (constraints.real, constraints.real_vector):
        return Box()
    if constraint is constraints.simplex:
        return Simplex()
    if constraint in (constraints.positive_definite, constraints.positive_semidefinite):
        return PSD()
    raise NotImplementedError(f"no set is known for the constraint {constraint!r}")
