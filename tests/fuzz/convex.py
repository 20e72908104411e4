"""Convex sets with random data, and by how much a direction misses their normal cone.

A point p of a convex set C is the projection of x if x − p is a normal of C at p, and it minimizes a convex loss over C
if minus the gradient is. What a normal is does not depend on how the point was found:

- of {x: A x ≤ b, E x = e}: Aᵀλ + Eᵀν with λ ≥ 0 and λᵀ(b − A x) = 0, which SciPy's `nnls` looks for;
- of a ball of radius r of a norm: ⟨d, p⟩ = r ‖d‖ in the dual norm;
- of a cone: d in the polar cone, and ⟨d, p⟩ = 0.
"""

from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch

import boxopt as bx

S = bx.sets
DTYPE = torch.float64
INF = float("inf")


class Rows(NamedTuple):
    """{x: A x ≤ b, E x = e}."""

    matrix: Any
    offset: Any
    equal: Any
    right: Any

    def outside(self, p):
        p = p.reshape(-1)
        less = (self.matrix @ p - self.offset).clamp(min=0) / _size(self.matrix)
        equal = (self.equal @ p - self.right).abs() / _size(self.equal)
        return float(torch.cat([less, equal, torch.zeros(1, dtype=DTYPE)]).max())

    def size(self):
        """How far away walls are."""
        far = torch.cat([self.offset / _size(self.matrix), self.right / _size(self.equal), torch.zeros(1, dtype=DTYPE)])
        return float(torch.where(far.isfinite(), far.abs(), 0.0).max())

    def off_normal(self, p, d, step):
        """In the coordinates x/√step, in which the metric is Euclid's."""
        p, d, root = p.reshape(-1), d.reshape(-1), step.reshape(-1).sqrt()
        keep = self.offset < INF
        less, equal = self.matrix[keep] * root, self.equal * root
        size = torch.cat([_size(less), _size(equal), _size(equal)])
        columns = torch.cat([less, equal, -equal]) / size[:, None]
        room = torch.cat(
            [(self.offset[keep] - self.matrix[keep] @ p).clamp(min=0), torch.zeros(2 * len(equal), dtype=DTYPE)]
        )
        length = (p / root).norm() + (d * root).norm()
        if length == 0 or not len(columns):
            return float((d * root).norm())
        system = torch.cat([columns, (room / size / length)[:, None]], 1).mT
        right = torch.cat([d * root, torch.zeros(1, dtype=DTYPE)])
        unit = float(right.norm()) or 1.0
        return unit * _distance_to_cone(system.numpy(), right.numpy() / unit)


class Ball(NamedTuple):
    """{x: ‖x‖ ≤ r}, by its norm and the dual one."""

    radius: Any
    norm: Any
    dual: Any

    def outside(self, p):
        return float((self.norm(p) - self.radius).clamp(min=0))

    def size(self):
        return float(self.radius)

    def off_normal(self, p, d, step):
        """How much further some point of the ball is along d, over the lengths."""
        length = (p / step.sqrt()).norm() + (d * step.sqrt()).norm() + self.radius / step.max().sqrt()
        return float((self.radius * self.dual(d) - (d * p).sum()).clamp(min=0) / length)


class Cone(NamedTuple):
    """A cone that is its own dual, by how far a point is outside."""

    distance: Any

    def outside(self, p):
        return float(self.distance(p))

    def size(self):
        return 0.0

    def off_normal(self, p, d, step):
        root = step.sqrt()
        length = _some((p / root).norm() + (d * root).norm())
        return float(self.distance(-d) * root.min() + (d * p).sum().abs() / length)


def _some(number):
    return torch.where(number > 0, number, 1.0)


def _size(rows):
    return _some(rows.norm(dim=-1)) if len(rows) else torch.ones(0, dtype=DTYPE)


def _distance_to_cone(columns, right):
    try:
        return scipy.optimize.nnls(columns, right, maxiter=100 * columns.shape[1])[1]
    except RuntimeError:  # it goes in circles
        return np.sqrt(2 * scipy.optimize.lsq_linear(columns, right, (0, np.inf), tol=1e-14).cost)


class Example(NamedTuple):
    """A set, the shape of its points, what is known of it, and how exact its projections are where not to rounding."""

    members: Any
    shape: tuple
    facts: Any
    exact_to: float = 0.0


NAMES = (
    "Box", "Simplex", "L1Ball", "L2Ball", "LInfBall", "Hyperplane", "Halfspace", "Affine", "BoxHyperplane", "Monotone",
    "Polyhedron", "TransportPolytope", "SecondOrderCone", "PSD", "SpectralBall", "NuclearBall",
)  # fmt: skip


def example(chance, name, bounds, matrix):
    """One with random data."""
    n = chance.of(1, 2, 3, 5, 8)
    none, nothing = torch.zeros(0, n, dtype=DTYPE), torch.zeros(0, dtype=DTYPE)
    eye, one = torch.eye(n, dtype=DTYPE), torch.ones(n, dtype=DTYPE)
    radius = chance.of(1.0, 1e-6, 1e3) * (0.5 + chance.uniform())
    inside = chance.normal(n) * chance.of(0.0, 1.0, 1e3)
    match name:
        case "Box":
            lower, upper = bounds(chance, n)
            return Example(bx.Box(lower, upper), (n,), _box(lower, upper))
        case "Simplex":
            return Example(S.Simplex(radius), (n,), Rows(-eye, 0 * one, one[None], radius.reshape(1)))
        case "L1Ball":
            return Example(S.L1Ball(radius), (n,), Ball(radius, lambda p: p.abs().sum(), lambda d: d.abs().max()))
        case "L2Ball":
            return Example(S.L2Ball(radius), (n,), Ball(radius, torch.linalg.vector_norm, torch.linalg.vector_norm))
        case "LInfBall":
            return Example(S.LInfBall(radius), (n,), Ball(radius, lambda p: p.abs().max(), lambda d: d.abs().sum()))
        case "Hyperplane" | "Halfspace":
            row = _nonzero(matrix(chance, 1, n)[0])
            offset = row @ inside
            rows = (
                (none, nothing, row[None], offset[None])
                if name == "Hyperplane"
                else (row[None], offset[None], none, nothing)
            )
            return Example(getattr(S, name)(row, offset), (n,), Rows(*rows))
        case "Affine":
            rows = chance.normal(chance.of(1, max(1, n // 2), n), n) * 10 ** (4 * chance.uniform(n) - 2)
            return Example(S.Affine(rows, rows @ inside), (n,), Rows(none, nothing, rows, rows @ inside), 1e-9)
        case "BoxHyperplane":
            lower, upper = bounds(chance, n)
            row = _nonzero(matrix(chance, 1, n)[0])
            point = torch.clamp(chance.normal(n), lower, upper)
            offset = row @ point
            facts = _box(lower, upper)._replace(equal=row[None], right=offset[None])
            return Example(S.BoxHyperplane(lower, upper, row, offset), (n,), facts)
        case "Monotone":
            less = eye[:-1] - eye[1:]
            return Example(S.Monotone(), (n,), Rows(less, torch.zeros(n - 1, dtype=DTYPE), none, nothing))
        case "Polyhedron":
            rows = matrix(chance, chance.of(1, 2, 4, 8, 20), n)
            rows = rows[rows.norm(dim=1) > 0] if (rows.norm(dim=1) > 0).any() else one[None]
            offset = rows @ inside + rows.norm(dim=1) * chance.of(1e-3, 1.0) * (0.1 + chance.uniform(len(rows)))
            return Example(S.Polyhedron(rows, offset), (n,), Rows(rows, offset, none, nothing), 1e-7)
        case "TransportPolytope":
            m, k = chance.of((1, 1), (2, 2), (3, 2), (2, 5), (4, 4))
            plan = chance.uniform(m, k) * radius
            row, column = plan.sum(1), plan.sum(0)
            column = column * (row.sum() / column.sum())
            sums = torch.cat([torch.eye(m).repeat_interleave(k, 1), torch.eye(k).repeat(1, m)]).to(DTYPE)
            facts = Rows(
                -torch.eye(m * k, dtype=DTYPE), torch.zeros(m * k, dtype=DTYPE), sums, torch.cat([row, column])
            )
            return Example(S.TransportPolytope(row, column), (m, k), facts, 1e-8)
        case "SecondOrderCone":
            n = max(n, 2)
            return Example(S.SecondOrderCone(), (n,), Cone(lambda p: (p[:-1].norm() - p[-1]).clamp(min=0)))
        case "PSD":
            k = chance.of(1, 2, 4)
            return Example(
                S.PSD(), (k, k), Cone(lambda p: (-torch.linalg.eigvalsh((p + p.mT) / 2).min()).clamp(min=0)), 1e-6
            )
    shape = chance.of((1, 1), (2, 3), (4, 4), (5, 2))
    spectral, nuclear = (lambda p: torch.linalg.matrix_norm(p, 2)), (lambda p: torch.linalg.matrix_norm(p, "nuc"))
    if name == "SpectralBall":
        return Example(S.SpectralBall(radius), shape, Ball(radius, spectral, nuclear), 1e-6)
    return Example(S.NuclearBall(radius), shape, Ball(radius, nuclear, spectral), 1e-6)


def _box(lower, upper):
    eye = torch.eye(len(lower), dtype=DTYPE)
    none, nothing = torch.zeros(0, len(lower), dtype=DTYPE), torch.zeros(0, dtype=DTYPE)
    return Rows(torch.cat([-eye, eye]), torch.cat([-lower, upper]), none, nothing)


def _nonzero(row):
    return row if row.norm() > 0 else torch.ones_like(row)


def candidate(chance, example):
    """A point anywhere: normal, with ties, whole numbers, at 0, near by or far away."""
    point = chance.normal(*example.shape)
    kind = chance.of("normal", "ties", "whole numbers", "zero", "small", "far")
    apart = {
        "ties": point.sign(),
        "whole numbers": point.round(),
        "zero": 0 * point,
        "small": 1e-6 * point,
        "far": 1e4 * point,
    }
    return apart.get(kind, point)


def metric(chance, example):
    """A step size: 1, another number, one a coordinate; symmetric for symmetric matrices."""
    match chance.of("one", "one", "number", "coordinates", "scales"):
        case "number":
            step = torch.ones(example.shape, dtype=DTYPE) * 10 ** (4 * chance.uniform() - 2)
        case "coordinates":
            step = chance.normal(*example.shape).exp()
        case "scales":
            step = 10 ** (6 * chance.uniform(*example.shape) - 3)
        case _:
            step = torch.ones(example.shape, dtype=DTYPE)
    return (step * step.mT).sqrt() if isinstance(example.members, S.PSD) else step
