"""Constraint sets: what is allowed."""

from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box, NonNegative

__all__ = ["Box", "ConstraintSet", "NonNegative"]
