"""Projections against solvers and libraries that we did not write."""

import warnings

import cvxpy as cp
import numpy as np
import pytest
import torch
from sklearn.isotonic import isotonic_regression

import boxopt as bx
from tests.fuzz.convex import Ball, Cone, Rows
from tests.set_registry import MATRIX, NORMAL

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import entmax
    import jax
    import jaxopt
    import optax
    import ot

S = bx.sets
COST = np.array([3.0, 1.0, 2.0])


def vectors(n):
    """Random and adversarial vectors, the same for every set."""
    generator = np.random.default_rng(3)
    normal = generator.normal(size=n)
    return {
        "normal": normal,
        "large": 30 * generator.normal(size=n),
        "zeros": np.zeros(n),
        "ties": np.repeat([1.0, -0.5], (n + 1) // 2)[:n],
        "all equal": np.full(n, 0.7),
        "tiny": 1e-30 * normal,
        "offset": 1e6 + normal,
    }


def matrices(shape):
    generator = np.random.default_rng(4)
    normal = generator.normal(size=shape)
    return {
        "normal": normal,
        "large": 10 * generator.normal(size=shape),
        "zeros": np.zeros(shape),
        "equal singular values": np.eye(*shape) * 2.0,
        "low rank": np.outer(np.arange(1.0, shape[0] + 1), np.ones(shape[1])),
        "tiny": 1e-30 * normal,
    }


# From a set to what cvxpy calls it, given the variable.
VECTOR_SETS = {
    "Box": (bx.Box(-0.5, 0.25), lambda z: [z >= -0.5, z <= 0.25]),
    "Simplex": (S.Simplex(1.25), lambda z: [z >= 0, cp.sum(z) == 1.25]),
    "L1Ball": (S.L1Ball(1.25), lambda z: [cp.norm1(z) <= 1.25]),
    "L2Ball": (S.L2Ball(1.25), lambda z: [cp.norm2(z) <= 1.25]),
    "LInfBall": (S.LInfBall(1.25), lambda z: [cp.norm_inf(z) <= 1.25]),
    "Hyperplane": (S.Hyperplane(NORMAL, 0.5), lambda z: [NORMAL.numpy() @ z == 0.5]),
    "Halfspace": (S.Halfspace(NORMAL, 0.5), lambda z: [NORMAL.numpy() @ z <= 0.5]),
    "Affine": (S.Affine(MATRIX, torch.tensor([0.5, -0.25])), lambda z: [MATRIX.numpy() @ z == np.array([0.5, -0.25])]),
    "BoxHyperplane": (
        S.BoxHyperplane(-0.5, 0.75, NORMAL, 0.5),
        lambda z: [z >= -0.5, z <= 0.75, NORMAL.numpy() @ z == 0.5],
    ),
    "SecondOrderCone": (S.SecondOrderCone(), lambda z: [cp.norm2(z[:-1]) <= z[-1]]),
    "Monotone": (S.Monotone(), lambda z: [cp.diff(z) >= 0]),
    "Intersection": (
        S.Intersection(S.L2Ball(1.25), bx.Box(-0.4, 0.6)),
        lambda z: [cp.norm2(z) <= 1.25, z >= -0.4, z <= 0.6],
    ),
}
MATRIX_SETS = {
    "PSD": (S.PSD(), (4, 4), lambda z: [z >> 0, z == z.T]),
    "SpectralBall": (S.SpectralBall(1.25), (4, 3), lambda z: [cp.sigma_max(z) <= 1.25]),
    "NuclearBall": (S.NuclearBall(1.25), (4, 3), lambda z: [cp.normNuc(z) <= 1.25]),
    "TransportPolytope": (
        S.TransportPolytope(1.0, 4 / 3),
        (4, 3),
        lambda z: [z >= 0, cp.sum(z, axis=1) == 1, cp.sum(z, axis=0) == 4 / 3],
    ),
}
# An intersection is found by a fixed number of sweeps.
SWEEPS = {"normal": 1e-7, "zeros": 1e-9, "ties": 1e-7, "all equal": 1e-7, "tiny": 1e-9}


def energy(x, y, step):
    return float(((x - y) ** 2 / step).sum())


def solve(y, step, constraints):
    """The nearest point as Clarabel finds it."""
    z = cp.Variable(y.shape)
    scale = max(1.0, float(np.abs(y).max()))
    weight = np.sqrt(step.min() / step)
    problem = cp.Problem(cp.Minimize(cp.sum_squares(cp.multiply(weight, (z - y) / scale))), constraints(z))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # "may be inaccurate": what that means is in `check`
        problem.solve(cp.CLARABEL, tol_gap_abs=1e-11, tol_gap_rel=1e-11, tol_feas=1e-11)
    return z.value


def check(members, y, step, constraints, slack=0.0):
    """As near to y as the solver's point, or nearer, and at that point where the solver is precise.

    By strong convexity points of the set whose energies differ by e are at a distance of at most √e.
    """
    expected = solve(y, step, constraints)
    wide = members.project(torch.tensor(y), torch.tensor(step))
    ours, theirs = energy(wide.numpy(), y, step), energy(expected, y, step)
    assert ours <= theirs * (1 + 1e-8) + 1e-9 + slack
    if np.abs(y).max() < 1e3:
        scale = max(1.0, float(np.abs(y).max()))
        assert np.abs(wide.numpy() - expected).max() <= max(2e-5 * scale, slack)
    narrow = members.project(torch.tensor(y, dtype=torch.float32), torch.tensor(step, dtype=torch.float32))
    at = members.project(torch.tensor(y).float().double(), torch.tensor(step).float().double())
    scale = max(1.0, float(wide.abs().max()))
    assert np.abs(narrow.numpy() - at.numpy()).max() <= max(1e-5 * scale, slack)


@pytest.mark.parametrize("in_metric", [False, True])
@pytest.mark.parametrize("kind", vectors(6))
@pytest.mark.parametrize("name", VECTOR_SETS)
def test_vector_sets_against_cvxpy(name, kind, in_metric):
    members, constraints = VECTOR_SETS[name]
    y = vectors(6)[kind]
    step = np.exp(np.random.default_rng(5).normal(size=6)) if in_metric else np.ones(6)
    if name == "Intersection" and kind not in SWEEPS:
        pytest.skip("from far away fifty sweeps are not enough: the docstring says how near they come")
    check(members, y, step, constraints, SWEEPS[kind] if name == "Intersection" else 0.0)


@pytest.mark.parametrize("in_metric", [False, True])
@pytest.mark.parametrize("kind", matrices((4, 4)))
@pytest.mark.parametrize("name", MATRIX_SETS)
def test_matrix_sets_against_cvxpy(name, kind, in_metric):
    members, shape, constraints = MATRIX_SETS[name]
    y = matrices(shape)[kind]
    step = np.exp(0.7 * np.random.default_rng(5).normal(size=shape)) if in_metric else np.ones(shape)
    if name == "PSD":  # whose metric, like its members, is symmetric
        y, step = (y + y.T) / 2, np.sqrt(step * step.T)
    check(members, y, step, constraints)


MATRICES = {
    "normal": lambda draw, shape: draw(*shape),
    "large": lambda draw, shape: 1e3 * draw(*shape),
    "low rank": lambda draw, shape: draw(shape[0], 1) @ draw(1, shape[1]),
    "equal singular values": lambda draw, shape: 2 * torch.eye(*shape, dtype=torch.float64),
    "zeros": lambda draw, shape: torch.zeros(shape, dtype=torch.float64),
    "inside": lambda draw, shape: 1e-3 * torch.eye(*shape, dtype=torch.float64),
}


@pytest.mark.parametrize("spread", [1.0, 3.0, 6.0])
@pytest.mark.parametrize("kind", MATRICES)
@pytest.mark.parametrize("name", ["PSD", "SpectralBall", "NuclearBall"])
def test_matrices_in_metrics_of_step_sizes_that_differ_by_a_million(name, kind, spread):
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
    for shape in ((4, 4),) if name == "PSD" else ((1, 1), (1, 3), (5, 2), (2, 5), (4, 4)):
        y = MATRICES[kind](draw, shape)
        step = 10 ** (spread * (torch.rand(shape, dtype=torch.float64, generator=generator) - 0.5))
        if name == "PSD":
            y, step = (y + y.mT) / 2, (step * step.mT).sqrt()
            facts = Cone(lambda p: (-torch.linalg.eigvalsh((p + p.mT) / 2).min()).clamp(min=0))
            x = S.PSD().project(y, step)
        else:
            spectral, nuclear = (
                (lambda p: torch.linalg.matrix_norm(p, 2)),
                (lambda p: torch.linalg.matrix_norm(p, "nuc")),
            )
            norms = (spectral, nuclear) if name == "SpectralBall" else (nuclear, spectral)
            facts = Ball(torch.tensor(0.7, dtype=torch.float64), *norms)
            x = getattr(S, name)(0.7).project(y, step)
        size = x.norm() + y.norm() + 1
        assert facts.outside(x) <= 1e-14 * size
        length = (x / step.sqrt()).norm() + (y / step.sqrt()).norm()
        assert facts.off_normal(x, (y - x) / step, step) <= 1e-11 * length


def simplex_in_long_double(y, total, step=None):
    """By trying every threshold between neighbours, in 80-bit arithmetic."""
    y = np.asarray(y, dtype=np.longdouble)
    y = y - y.max() if step is None else y  # exactly; the result is the same
    step = np.ones_like(y) if step is None else np.asarray(step, dtype=np.longdouble)
    y = y - (y / step).max() * step  # so that sums are near 0, where even long doubles are finer
    order = np.argsort(-y / step)
    levels = (np.cumsum(y[order]) - total) / np.cumsum(step[order])
    support = np.nonzero(y[order] / step[order] > levels)[0][-1]
    return np.maximum(y - levels[support] * step, 0)


@pytest.mark.parametrize("kind", vectors(1000))
@pytest.mark.parametrize("in_metric", [False, True])
def test_the_simplex_to_rounding(kind, in_metric):
    y = vectors(1000)[kind]
    step = np.exp(np.random.default_rng(5).normal(size=1000)) if in_metric else np.ones(1000)
    for dtype, eps in (("float64", 2.3e-16), ("float32", 1.2e-7)):
        at, metric = y.astype(dtype), step.astype(dtype)
        result = S.Simplex(1.0).project(torch.tensor(at), torch.tensor(metric) if in_metric else 1.0)
        expected = simplex_in_long_double(at, 1, metric if in_metric else None)
        assert np.abs(result.numpy() - expected).max() <= 8 * eps * (1e3 if in_metric else 1)
        assert abs(float(result.double().sum()) - 1) <= 2 * 1000 * eps


@pytest.mark.parametrize("in_metric", [False, True])
@pytest.mark.parametrize("members", [S.Simplex(8000.0), S.L1Ball(8000.0)])
def test_a_total_far_above_each_entry(members, in_metric):
    generator = np.random.default_rng(6)
    y, step = (torch.tensor(generator.normal(size=100_000), dtype=torch.float32) for _ in range(2))
    step = step.exp() if in_metric else None
    wide = members.project(y.double(), 1.0 if step is None else step.double())
    assert (members.project(y, 1.0 if step is None else step) - wide).abs().max() < 1e-5


def test_one_entry():
    one = torch.tensor([3.5], dtype=torch.float64)
    assert S.Simplex(2.0).project(one) == 2
    assert S.L1Ball(2.0).project(one) == pytest.approx(2)
    assert S.L2Ball(2.0).project(one) == pytest.approx(2)
    assert S.LInfBall(2.0).project(one) == 2
    assert S.Monotone().project(one) == 3.5
    assert S.BoxHyperplane(0.0, 9.0, 2.0, 3.0).project(one) == pytest.approx(1.5)
    assert S.SecondOrderCone().project(-one) == 0


@pytest.mark.parametrize("dtype", ["float64", "float32"])
def test_against_optax_and_jaxopt(dtype):
    y = np.random.default_rng(0).normal(size=(50, 9)).astype(dtype)
    with jax.enable_x64(dtype == "float64"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pairs = {
            "optax simplex": (S.Simplex(), optax.projections.projection_simplex),
            "jaxopt simplex": (S.Simplex(), jaxopt.projection.projection_simplex),
            "optax l1": (S.L1Ball(0.8), lambda v: optax.projections.projection_l1_ball(v, 0.8)),
            "jaxopt l1": (S.L1Ball(0.8), lambda v: jaxopt.projection.projection_l1_ball(v, 0.8)),
            "optax l2": (S.L2Ball(0.8), lambda v: optax.projections.projection_l2_ball(v, 0.8)),
            "jaxopt l2": (S.L2Ball(0.8), lambda v: jaxopt.projection.projection_l2_ball(v, 0.8)),
            "optax sphere": (S.L2Sphere(0.8), lambda v: optax.projections.projection_l2_sphere(v, 0.8)),
            "optax linf": (S.LInfBall(0.8), lambda v: optax.projections.projection_linf_ball(v, 0.8)),
            "jaxopt box section": (
                S.BoxHyperplane(-0.5, 0.5, 1.0, 0.3),
                lambda v: jaxopt.projection.projection_box_section(v, (-0.5, 0.5, np.ones(9, dtype), 0.3)),
            ),
            "jaxopt halfspace": (
                S.Halfspace(1.0, 0.3),
                lambda v: jaxopt.projection.projection_halfspace(v, (np.ones(9, dtype), 0.3)),
            ),
            "jaxopt hyperplane": (
                S.Hyperplane(1.0, 0.3),
                lambda v: jaxopt.projection.projection_hyperplane(v, (np.ones(9, dtype), 0.3)),
            ),
        }
        for name, (members, project) in pairs.items():
            expected = np.asarray(jax.vmap(project)(jax.numpy.asarray(y)))
            result = members.project(torch.tensor(y)).numpy()
            tolerance = 1e-9 if dtype == "float64" else 1e-5
            if name == "jaxopt box section":
                tolerance = 1e-4  # that of its bisection
            assert np.abs(result - expected).max() <= tolerance, name


def test_the_sums_of_peers_are_off_where_ours_are_right():
    """Entries near 10⁶ in float32, whose cumulative sums peers take."""
    y = (1e6 + np.random.default_rng(0).normal(size=1000)).astype(np.float32)
    ours = float(S.Simplex().project(torch.tensor(y)).double().sum())
    theirs = float(np.asarray(optax.projections.projection_simplex(jax.numpy.asarray(y))).astype(float).sum())
    assert abs(ours - 1) <= 1e-5
    assert abs(theirs - 1) > 0.1


def test_against_sparsemax():
    scores = torch.randn(20, 7, dtype=torch.float64)
    torch.testing.assert_close(S.Simplex().project(scores), entmax.sparsemax(scores, dim=-1), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("n", [1, 2, 50, 3000])
def test_against_scikit_learns_isotonic_regression(n):
    generator = np.random.default_rng(n)
    y, weight = generator.normal(size=n).cumsum() / 10 + generator.normal(size=n), np.exp(generator.normal(size=n))
    increasing = S.Monotone().project(torch.tensor(y), torch.tensor(1 / weight))
    np.testing.assert_allclose(increasing, isotonic_regression(y, sample_weight=weight), rtol=1e-9, atol=1e-9)
    decreasing = S.Monotone(decreasing=True).project(torch.tensor(y))
    np.testing.assert_allclose(decreasing, isotonic_regression(y, increasing=False), rtol=1e-9, atol=1e-9)


@pytest.mark.filterwarnings("ignore:scipy.optimize. The `disp`:DeprecationWarning")  # POT sets them
def test_transport_against_pot():
    generator = np.random.default_rng(1)
    cost = generator.random((6, 5))
    row, column = generator.dirichlet(np.ones(6)), generator.dirichlet(np.ones(5))
    members = S.TransportPolytope(torch.tensor(row), torch.tensor(column), sweeps=400)
    entropic = members.project_kl(torch.tensor(-cost), 0.05)
    np.testing.assert_allclose(entropic, ot.sinkhorn(row, column, cost, 0.05, stopThr=1e-14), atol=1e-9)
    # Quadratically regularized transport is the Euclidean projection of −cost/strength.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # POT's use of SciPy
        plan = ot.smooth.smooth_ot_dual(row, column, cost, 0.1, reg_type="l2", stopThr=1e-14, numItermax=10000)
    np.testing.assert_allclose(members.project(torch.tensor(-cost / 0.1)), plan, atol=1e-6)
    exact = members.project(torch.tensor(-cost / 1e-4))  # so little of it that the plan is optimal
    assert float((exact * torch.tensor(cost)).sum()) == pytest.approx(ot.emd2(row, column, cost), rel=1e-9)
    for plan in (entropic, exact):
        assert float(members.violation(plan)) <= 1e-15


def test_vectors_of_a_fixed_length_along_other_dimensions():
    x = torch.randn(6, 3, dtype=torch.float64)
    offset = torch.tensor([0.5, -0.25], dtype=torch.float64)
    kinds = {
        "Hyperplane": lambda a, **dim: S.Hyperplane(a, 0.5, **dim),
        "Halfspace": lambda a, **dim: S.Halfspace(a, 0.5, **dim),
        "BoxHyperplane": lambda a, **dim: S.BoxHyperplane(-0.5, 0.75, a, 0.5, **dim),
    }
    for kind in kinds.values():
        along = kind(NORMAL[:, None], dim=0).project(x)
        torch.testing.assert_close(along, kind(NORMAL).project(x.T).T, rtol=1e-12, atol=1e-12)
    along = S.Affine(MATRIX, offset, dim=0).project(x)
    torch.testing.assert_close(along, S.Affine(MATRIX, offset).project(x.T).T, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: S.Simplex(-1.0), "total is not negative"),
        (lambda: S.L2Ball(float("nan")), "radius is not negative"),
        (lambda: S.Hyperplane("normal"), "normal is a number or a tensor"),
        (lambda: S.BoxHyperplane(1.0, 0.0), "lower > upper"),
        (lambda: S.Affine(torch.ones(2, 3), torch.zeros(2)), "depend on each other"),
        (lambda: S.Affine(torch.ones(3, 2), torch.zeros(3)), "m ≤ n"),
        (lambda: S.Sparse(-1), "k is an integer"),
        (lambda: S.TransportPolytope(torch.ones(3), torch.ones(2)), "row sums add to"),
        (
            lambda: S.TransportPolytope().check({"w": torch.zeros(2, 3)}),
            "leaf 'w'.*row sums add to 2.0, column sums to 3.0",
        ),
        (lambda: S.TransportPolytope(torch.ones(3), 1.0).check({"w": torch.zeros(4, 4)}), "leaf 'w': row has shape"),
        (lambda: S.TransportPolytope(1.0, torch.ones(3)).check({"w": torch.zeros(4, 4)}), "leaf 'w': column has shape"),
        (lambda: S.SpectralBall(torch.ones(3)).check({"w": torch.zeros(2, 2, 2)}), "leaf 'w': radius has shape"),
        (lambda: S.Intersection(3), "Intersection is of sets"),
        (lambda: S.ByPath({"*": 3}), "ByPath maps patterns to sets"),
        (lambda: S.PSD().check({"w": torch.zeros(2, 3)}), "leaf 'w'.*square"),
        (lambda: S.ByPath({"bias": S.Simplex()}).check({"w": torch.zeros(2)}), "no leaf matches 'bias'"),
        (lambda: S.Hyperplane(torch.ones(3)).check({"w": torch.zeros(2)}), "leaf 'w'.*does not broadcast"),
        (lambda: S.from_torch(torch.distributions.constraints.lower_cholesky), "no set is known"),
    ],
)
def test_clear_about_bad_input(make, message):
    with pytest.raises((ValueError, TypeError, NotImplementedError), match=message):
        make()


def test_from_torch():
    constraints = torch.distributions.constraints
    x = torch.tensor([[-2.0, 0.5], [0.25, 3.0]])
    for constraint in (
        constraints.unit_interval,
        constraints.interval(-1.0, 1.0),
        constraints.positive,
        constraints.greater_than(0.5),
        constraints.less_than(0.5),
        constraints.nonnegative,
        constraints.simplex,
        constraints.positive_semidefinite,
        constraints.real_vector,
        constraints.independent(constraints.unit_interval, 1),
    ):
        nearest = S.from_torch(constraint).project(x)
        closed = nearest + 1e-6 if constraint in (constraints.positive,) else nearest
        if constraint is constraints.positive_semidefinite:
            closed = closed + 1e-6 * torch.eye(2)
        strict = isinstance(constraint, type(constraints.greater_than(0.5)) | type(constraints.less_than(0.5)))
        assert strict or constraint.check(closed).all()


def test_the_cones_derivative_at_entries_of_zero():
    point = torch.tensor([0.0, 2.0, 0.5], dtype=torch.float64, requires_grad=True)
    step = torch.tensor([2.0, 1.0, 0.7], dtype=torch.float64)
    assert torch.autograd.gradcheck(S.SecondOrderCone().project, point)
    assert torch.autograd.gradcheck(lambda x: S.SecondOrderCone().project(x, step), point)
    assert torch.autograd.gradgradcheck(S.SecondOrderCone().project, point)


@pytest.mark.parametrize("spread", [1e-4, 1e-2, 1.0])
def test_a_polyhedron_with_rows_that_are_nearly_parallel(spread):
    """What is left over at the projection is a sum of the active rows: SciPy's nnls looks for it."""
    generator = torch.Generator().manual_seed(3)
    normal = lambda *shape: torch.randn(shape, dtype=torch.float64, generator=generator)  # noqa: E731
    for _ in range(20):
        rows = normal(1, 8) * normal(20, 1).sign() + spread * normal(20, 8)
        inside, y = 1000 * normal(8), 30 * normal(8)
        offset = rows @ inside + rows.norm(dim=1) * (0.01 + normal(20).abs())
        x = S.Polyhedron(rows, offset).project(y)
        assert bool((rows @ x <= offset).all())
        facts = Rows(rows, offset, rows[:0], offset[:0])
        assert facts.off_normal(x, y - x, torch.ones_like(x)) <= 1e-7 * (x.norm() + y.norm())


def test_in_the_cone_however_its_norm_is_added_up():
    x = torch.randn(3, 20_000, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    cone = S.SecondOrderCone(dim=0)
    x = cone.project(x)
    assert cone.violation(x) == 0
    assert S.SecondOrderCone().violation(x.mT.contiguous()) == 0
    assert (x[:-1].square().sum(0).sqrt() <= x[-1]).all()
    assert (torch.hypot(x[0], x[1]) <= x[2]).all()
    torch.testing.assert_close(cone.project(x), x, rtol=1e-14, atol=0.0)


@pytest.mark.parametrize("step", [1.0, torch.tensor([2.0, 1.0, 0.7])])
def test_below_the_cone_on_its_axis(step):
    for dtype in (torch.float32, torch.float64):
        assert not S.SecondOrderCone().project(torch.tensor([0.0, -0.0, -2.0], dtype=dtype), step).any()


def test_an_intersections_derivative():
    """To first order, from near by; that of a projection is symmetric."""
    members = S.Intersection(S.L2Ball(1.0), bx.Box(-0.4, 0.5))
    point = torch.tensor([0.9, -0.7, 0.3, 0.2], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(members.project, point, atol=1e-6)
    slope = torch.autograd.functional.jacobian(members.project, point)
    torch.testing.assert_close(slope, slope.T, rtol=1e-6, atol=1e-6)


@pytest.mark.filterwarnings("ignore:scipy.optimize. The `disp`:DeprecationWarning")  # POT sets them
def test_transport_far_from_sums_that_are_small():
    """Nearly a linear program: Newton's direction is long there, and most of it leads too far."""
    y = torch.tensor(np.random.default_rng(7).normal(size=(4, 32, 32)))
    members = S.TransportPolytope(1 / 32, 1 / 32)
    eager, traced = members.project(y), members.project(y.clone().requires_grad_()).detach()
    assert members.violation(eager) < 1e-12
    assert members.violation(traced) < 1e-12
    assert (eager - traced).abs().max() < 1e-9
    marginal = np.full(32, 1 / 32)
    for point, plan in zip(y.numpy(), eager.numpy(), strict=True):
        peer = ot.smooth.smooth_ot_semi_dual(
            marginal, marginal, -point, 1.0, reg_type="l2", numItermax=5000, stopThr=1e-10
        )
        assert ((plan - point) ** 2).sum() <= ((peer - point) ** 2).sum() + 1e-4  # its sums are off by 1e-6
        assert np.abs(peer - plan).max() < 2e-2 / 32


def test_sets_of_sets_say_what_they_are_of():
    box, ball = bx.Box(0.0, 1.0), bx.sets.L2Ball(2.0)
    assert repr(bx.sets.Intersection(box, ball)) == f"Intersection({box!r}, {ball!r})"
    assert repr(bx.sets.ByPath({"a": ball})) == f"ByPath({{'a': {ball!r}}})"
    x = torch.tensor([3.0, -1.0])
    assert torch.equal(bx.sets.Intersection(ball).project(x), ball.project(x))


def test_a_wide_orthogonal_matrix_has_the_tangents_of_its_transpose():
    x = bx.sets.Stiefel().project(torch.randn(3, 5, dtype=torch.float64))
    gradient = torch.randn(3, 5, dtype=torch.float64)
    tangent = bx.sets.Stiefel().tangent(x, gradient)
    torch.testing.assert_close(tangent, bx.sets.Stiefel().tangent(x.mT, gradient.mT).mT)
    torch.testing.assert_close(x @ tangent.mT, -(tangent @ x.mT))  # to first order X Xᵀ stays as it is
