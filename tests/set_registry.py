"""Every set that the library exports, with what the laws of test_sets.py need to know of it."""

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch

import boxopt as bx

S = bx.sets
_generator = torch.Generator().manual_seed(7)
NORMAL = torch.randn(6, generator=_generator, dtype=torch.float64)
MATRIX = torch.randn(2, 6, generator=_generator, dtype=torch.float64)
ROWS = torch.cat([MATRIX, torch.randn(6, 6, generator=_generator, dtype=torch.float64)])


class Numbers(NamedTuple):
    """A set's hyperparameters: numbers, tensors, or the batched tensors of an ensemble."""

    radius: Any = 1.25
    offset: Any = 0.5


@dataclass(frozen=True)
class SetEntry:
    """A set and its properties.

    Attributes:
        name: The export.
        build: From hyperparameters to the set.
        shape: That of a leaf it fits.
        exact: Whether results have a violation of 0, in float64, in every dtype.
        tolerance: The violation otherwise, in units of the dtype's epsilon.
        convex: Whether it is.
        metric: How exactly projections in a metric satisfy their optimality condition.
        exempt: Laws that cannot hold, and why.
        traced: What to compile instead: the same with fewer sweeps, which are long to trace.
    """

    name: str
    build: Callable[[Numbers], Any]
    shape: tuple[int, ...] = (4, 6)
    exact: bool = False
    tolerance: float = 64.0
    convex: bool = True
    metric: float = 1e-9
    exempt: dict[str, str] = field(default_factory=dict)
    traced: Callable[[Numbers], Any] | None = None

    def __str__(self) -> str:
        return self.name


E_ = SetEntry
LENGTH = {"dim": "its vectors have a fixed length: test_projections.py"}
STEPS = {
    "derivative in a metric": "that of a few steps of an iteration, as the set is not convex: boxopt.sets.matrices"
}
SETS = [
    E_("Box", lambda h: bx.Box(-0.5, h.offset), exact=True),
    E_("NonNegative", lambda h: S.NonNegative(), exact=True),
    E_("Simplex", lambda h: S.Simplex(h.radius)),
    E_("L1Ball", lambda h: S.L1Ball(h.radius), exact=True),
    E_("L2Ball", lambda h: S.L2Ball(h.radius), exact=True),
    E_("LInfBall", lambda h: S.LInfBall(h.radius), exact=True),
    E_("L2Sphere", lambda h: S.L2Sphere(h.radius), convex=False),
    E_("Hyperplane", lambda h: S.Hyperplane(NORMAL, h.offset), exempt=LENGTH),
    E_("Halfspace", lambda h: S.Halfspace(NORMAL, h.offset), exact=True, exempt=LENGTH),
    E_(
        "Affine",
        lambda h: S.Affine(MATRIX, torch.tensor([0.5, -0.25], dtype=torch.float64)),
        tolerance=1e3,
        exempt=LENGTH,
    ),
    E_(
        "Polyhedron",
        lambda h: S.Polyhedron(ROWS, h.offset + torch.ones(8, dtype=torch.float64)),
        exact=True,
        metric=1e-7,
        exempt=LENGTH,
    ),
    E_("BoxHyperplane", lambda h: S.BoxHyperplane(-0.5, 0.75, NORMAL, h.offset), exempt=LENGTH),
    E_("SecondOrderCone", lambda h: S.SecondOrderCone(), exact=True),
    E_("Monotone", lambda h: S.Monotone(), exact=True),
    E_("Sparse", lambda h: S.Sparse(2), exact=True, convex=False),
    E_("PSD", lambda h: S.PSD(), shape=(2, 4, 4)),
    E_("SpectralBall", lambda h: S.SpectralBall(h.radius), shape=(2, 4, 3), exact=True),
    E_("NuclearBall", lambda h: S.NuclearBall(h.radius), shape=(2, 4, 3), exact=True),
    E_("Stiefel", lambda h: S.Stiefel(), shape=(2, 4, 3), convex=False, exempt=STEPS),
    E_(
        "TransportPolytope",
        lambda h: S.TransportPolytope(1.0, 4 / 3),
        shape=(2, 4, 3),
    ),
    E_(
        "Intersection",
        lambda h: S.Intersection(S.L2Ball(h.radius), bx.Box(-0.4, h.offset)),
        tolerance=1e6,
        metric=1e-6,
        exempt={"derivative": "of fifty sweeps: checked to first order, from near by, in test_projections.py"},
        traced=lambda h: S.Intersection(S.L2Ball(h.radius), bx.Box(-0.4, h.offset), sweeps=3),
    ),
    E_("ByPath", lambda h: S.ByPath({"*": S.Simplex(h.radius)})),
]
OTHER_EXPORTS = {"ConstraintSet", "from_torch"}
