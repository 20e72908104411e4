"""Constraint sets: what is allowed."""

from boxopt.sets.affine import Affine, BoxHyperplane, Halfspace, Hyperplane
from boxopt.sets.balls import L1Ball, L2Ball, L2Sphere, LInfBall
from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box, NonNegative
from boxopt.sets.cones import SecondOrderCone
from boxopt.sets.from_torch import from_torch
from boxopt.sets.intersection import ByPath, Intersection
from boxopt.sets.matrices import PSD, NuclearBall, SpectralBall, Stiefel
from boxopt.sets.orders import Monotone, Sparse
from boxopt.sets.polyhedron import Polyhedron
from boxopt.sets.simplex import Simplex
from boxopt.sets.transport import TransportPolytope

__all__ = [
    "PSD",
    "Affine",
    "Box",
    "BoxHyperplane",
    "ByPath",
    "ConstraintSet",
    "Halfspace",
    "Hyperplane",
    "Intersection",
    "L1Ball",
    "L2Ball",
    "L2Sphere",
    "LInfBall",
    "Monotone",
    "NonNegative",
    "NuclearBall",
    "Polyhedron",
    "SecondOrderCone",
    "Simplex",
    "Sparse",
    "SpectralBall",
    "Stiefel",
    "TransportPolytope",
    "from_torch",
]
