"""One suite over all solvers of `minimize`, against SciPy, scikit-learn, CVXPY and closed forms."""

from functools import lru_cache, partial
from itertools import pairwise

import cvxpy as cp
import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.linear_model import ElasticNet, Lasso
from sklearn.svm import SVC

import boxopt as bx
from boxopt.solve.newton import newton_direction, truncated_cg
from boxopt.solve.quadratic import _solve_unrolled, solve

DTYPE = torch.float64

# How many evaluations each may take on the smooth problems below, 10-dimensional ones mostly.
BOUNDED = {
    "lbfgsb": (bx.lbfgsb, 300),
    "spg": (bx.spg, 3000),
    "fista": (bx.fista, 3000),
    "projected_newton": (bx.projected_newton, 100),
    "projected_newton, products": (partial(bx.projected_newton, cg_steps=10), 200),
    "interior_point": (bx.interior_point, 100),
    "interior_point, products": (partial(bx.interior_point, cg_steps=10), 200),
}
ANY_SET = {"spg": (bx.spg, 1000), "fista": (bx.fista, 1000)}

every_solver = pytest.mark.parametrize("name", BOUNDED)


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def styblinski_tang(x):
    return (x**4 - 16 * x**2 + 5 * x).sum() / 2


def quadratic(x, matrix, linear):
    return x @ matrix @ x / 2 + linear @ x


def draw(*shape, seed=0, scale=1.0):
    return scale * torch.randn(*shape, dtype=DTYPE, generator=torch.Generator().manual_seed(seed))


def quadratics(count, size, seed=0):
    """Convex quadratic losses with a condition number of some hundred: matrices and linear terms."""
    factor = draw(count, size, size, seed=seed)
    matrix = factor @ factor.mT / size + 0.02 * torch.eye(size, dtype=DTYPE)
    return matrix, draw(count, size, seed=seed + 1)


@lru_cache
def logistic_problem():
    features = draw(60, 6, seed=3)
    labels = (features @ draw(6, seed=4) + draw(60, seed=5) > 0).to(DTYPE)

    def loss(x):
        logits = features @ x
        return torch.nn.functional.softplus(logits).sum() - labels @ logits + 0.05 * x @ x

    return loss, bx.Box(-0.5, 0.8), torch.zeros(6, dtype=DTYPE)


PROBLEMS = {
    "rosenbrock, active": lambda: (rosenbrock, bx.Box(-2.0, 0.8), draw(5)),
    "rosenbrock, start at the bound": lambda: (rosenbrock, bx.Box(1.2, 3.0), torch.full((5,), 1.2, dtype=DTYPE)),
    "rosenbrock, free": lambda: (rosenbrock, bx.Box(), torch.tensor([0.5, 0.8], dtype=DTYPE)),
    "styblinski_tang": lambda: (styblinski_tang, bx.Box(-2.5, 5.0), draw(10, scale=2.0)),
    "logistic": logistic_problem,
    "infeasible start": lambda: (styblinski_tang, bx.Box(0.0, 2.0), torch.full((4,), 9.0, dtype=DTYPE)),
    "fixed and half-open": lambda: (
        lambda x: quadratic(x, *(part[0] for part in quadratics(1, 4))),
        bx.Box(torch.tensor([0.3, -torch.inf, 0.0, -1.0]), torch.tensor([0.3, 0.5, torch.inf, -0.9])),
        torch.zeros(4, dtype=DTYPE),
    ),
}


def scipy_solution(loss, box, start):
    """Where SciPy's L-BFGS-B ends from there."""

    def value_and_gradient(x):
        gradient, value = torch.func.grad_and_value(loss)(torch.tensor(x))
        return float(value), gradient.numpy()

    def bound(value, none):
        return torch.as_tensor(none if value is None else value, dtype=DTYPE).expand(start.shape).numpy()

    bounds = scipy.optimize.Bounds(bound(box.lower, -torch.inf), bound(box.upper, torch.inf))
    options = {"ftol": 1e-15, "gtol": 1e-10, "maxiter": 10_000}
    return scipy.optimize.minimize(
        value_and_gradient, start.numpy(), jac=True, method="L-BFGS-B", bounds=bounds, options=options
    )


# ---- boxes


@every_solver
@pytest.mark.parametrize("problem", PROBLEMS)
def test_is_stationary_and_near_scipys_solution(name, problem):
    make, steps = BOUNDED[name]
    loss, box, start = PROBLEMS[problem]()
    result = bx.minimize(loss, start, make(box), tol=1e-7, max_steps=steps)
    assert bx.Status(int(result.status)).converged
    assert float(bx.violation(box, result.params)) == 0
    gradient = torch.func.grad(loss)(result.params)
    assert float(bx.optimality(box, result.params, gradient)) <= 1e-7
    # From where the solver ended, SciPy finds nothing lower: other minima are no fault.
    lowest = scipy_solution(loss, box, result.params).fun
    assert float(result.value) <= lowest + 1e-7 * max(1, abs(lowest))


@every_solver
def test_random_quadratics_in_one_batch(name):
    """Against a solver of another kind: complementarity pivoting is exact, and CVXPY's interior point nearly."""
    make, steps = BOUNDED[name]
    matrix, linear = quadratics(6, 8)
    upper = draw(6, 8, seed=7).abs()
    result = bx.minimize(
        quadratic,
        torch.zeros(6, 8, dtype=DTYPE),
        make(bx.Box(-0.5, upper)),
        args=(matrix, linear),
        batch_dims=1,
        tol=1e-8,
        max_steps=steps,
    )
    assert (result.optimality <= 1e-8).all()
    for index in range(6):
        x = cp.Variable(8)
        objective = cp.quad_form(x, cp.psd_wrap(matrix[index].numpy())) / 2 + linear[index].numpy() @ x
        problem = cp.Problem(cp.Minimize(objective), [x >= -0.5, x <= upper[index].numpy()])
        problem.solve(solver=cp.CLARABEL)
        assert abs(float(result.value[index]) - problem.value) < 1e-7
        np.testing.assert_allclose(result.params[index].numpy(), x.value, atol=1e-4)


@every_solver
def test_float32(name):
    make, steps = BOUNDED[name]
    start = torch.tensor([-0.5, 0.5, 0.2])
    result = bx.minimize(rosenbrock, start, make(bx.Box(-2.0, 0.8)), tol=1e-3, max_steps=steps)
    assert result.params.dtype == torch.float32
    assert bx.Status(int(result.status)).converged
    double = bx.minimize(rosenbrock, start.double(), make(bx.Box(-2.0, 0.8)), tol=1e-7, max_steps=steps)
    torch.testing.assert_close(result.params.double(), double.params, atol=5e-3, rtol=0)


def moody(x, fine, cubic):
    return fine * (((x - 0.3) ** 2).sum() + (x**4).sum()) - cubic * x.sum() ** 3


@every_solver
def test_neighbours_do_not_matter(name):
    """The neighbours' losses are not a number, flat, and unbounded below."""
    make, _ = BOUNDED[name]
    fine = torch.tensor([1.0, torch.nan, 0.0, 0.0, 1.0], dtype=DTYPE)
    cubic = torch.tensor([0.0, 0.0, 0.0, 1.0, 0.0], dtype=DTYPE)
    starts = draw(5, 3, seed=11)
    solver = make(bx.Box(None, torch.tensor([[2.0], [2.0], [2.0], [torch.inf], [0.1]], dtype=DTYPE)))
    together = bx.minimize(moody, starts, solver, args=(fine, cubic), batch_dims=1, tol=1e-8, max_steps=80)
    for index, upper in ((0, 2.0), (4, 0.1)):
        alone = bx.minimize(
            partial(moody, fine=1.0, cubic=0.0), starts[index], make(bx.Box(None, upper)), tol=1e-8, max_steps=80
        )
        assert int(together.status[index]) == int(alone.status) == bx.Status.GRADIENT
        assert int(together.steps[index]) == int(alone.steps)
        torch.testing.assert_close(together.params[index], alone.params, rtol=1e-9, atol=1e-9)
    assert int(together.status[1]) == bx.Status.NONFINITE
    assert int(together.status[2]) == bx.Status.GRADIENT
    assert int(together.status[3]) != bx.Status.GRADIENT


@every_solver
def test_never_worse_than_the_start_where_most_points_have_no_loss(name):
    """A loss that is defined near its minimum only: trials outside are rejected."""
    make, steps = BOUNDED[name]
    result = bx.minimize(
        lambda x: (x - x.log()).sum() - (1 - x[0]).log(),
        torch.tensor([0.9, 30.0], dtype=DTYPE),
        make(bx.Box(None, 40.0)),
        tol=1e-8,
        max_steps=steps,
    )
    golden = (3 - 5**0.5) / 2
    torch.testing.assert_close(result.params, torch.tensor([golden, 1.0], dtype=DTYPE), atol=1e-6, rtol=0)


# ---- other sets


SETS = {
    "simplex": (bx.sets.Simplex(), lambda x: [x >= 0, cp.sum(x) == 1]),
    "l1": (bx.sets.L1Ball(2.0), lambda x: [cp.norm1(x) <= 2]),
    "l2": (bx.sets.L2Ball(1.5), lambda x: [cp.sum_squares(x) <= 2.25]),
}


def program(constraint):
    """A random quadratic program, and its value by CVXPY."""
    matrix, linear = (part[0] for part in quadratics(1, 15, seed=20))
    x = cp.Variable(15)
    objective = cp.quad_form(x, cp.psd_wrap(matrix.numpy())) / 2 + linear.numpy() @ x
    problem = cp.Problem(cp.Minimize(objective), SETS[constraint][1](x))
    problem.solve(solver=cp.CLARABEL)
    return partial(quadratic, matrix=matrix, linear=linear), problem.value, x.value


@pytest.mark.parametrize("constraint", SETS)
@pytest.mark.parametrize("name", ANY_SET)
def test_other_sets_against_cvxpy(name, constraint):
    make, steps = ANY_SET[name]
    loss, value, x = program(constraint)
    result = bx.minimize(loss, torch.ones(15, dtype=DTYPE), make(SETS[constraint][0]), tol=1e-8, max_steps=steps)
    assert int(result.status) == bx.Status.GRADIENT
    assert abs(float(result.value) - value) < 1e-6
    np.testing.assert_allclose(result.params.numpy(), x, atol=1e-3)


@pytest.mark.parametrize("constraint", SETS)
def test_frank_wolfe_bounds_its_error_by_its_gap(constraint):
    loss, value, _ = program(constraint)
    lipschitz = float(torch.linalg.eigvalsh(loss.keywords["matrix"]).amax())
    convex, start = SETS[constraint][0], torch.zeros(15, dtype=DTYPE)
    solver = bx.frank_wolfe(convex, lipschitz=lipschitz)
    result = bx.minimize(loss, start, solver, max_steps=500)
    gap = float(bx.frank_wolfe_gap(convex, result.params, torch.func.grad(loss)(result.params)))
    assert -1e-6 <= float(result.value) - value <= gap + 1e-6
    assert gap < 0.03


def test_radii_and_weights_of_their_own():
    """Nearest points, in closed form: soft thresholds, and points drawn into a ball."""
    center, number = draw(3, 4, seed=80, scale=2.0), torch.tensor([0.1, 0.5, 100.0], dtype=DTYPE)

    def distance(x, center):
        return ((x - center) ** 2).sum() / 2

    start = torch.zeros(3, 4, dtype=DTYPE)
    weighted = bx.fista(bx.sets.NonNegative(), bx.L1(number))
    sparse = bx.minimize(distance, start, weighted, args=(center,), batch_dims=1, tol=1e-9)
    torch.testing.assert_close(sparse.params, (center - number[:, None]).clamp_min(0), rtol=0, atol=1e-8)
    balls = bx.spg(bx.sets.L2Ball(number))
    inside = bx.minimize(distance, start, balls, args=(center,), batch_dims=1, tol=1e-9)
    share = (number / torch.linalg.vector_norm(center, dim=1)).clamp_max(1)
    torch.testing.assert_close(inside.params, share[:, None] * center, rtol=0, atol=1e-8)


# ---- spg


def test_spg_reports_the_best_point_though_its_losses_rise():
    solver, params = bx.spg(bx.Box(-2.0, 2.0)), torch.tensor([-1.2, 1.0], dtype=DTYPE)
    state, values = solver.init(params), []
    for _ in range(60):
        gradient, value = torch.func.grad_and_value(rosenbrock)(params)
        _, state = solver.update(gradient, state, params, value=value)
        values.append(float(state.iterate.value))
        params = state.trial
        assert float(state.best.value) <= min(values)
    assert any(later > earlier for earlier, later in pairwise(values))


def test_spg_without_memory_descends():
    solver, params = bx.spg(bx.Box(-2.0, 2.0), memory=1), torch.tensor([-1.2, 1.0], dtype=DTYPE)
    state, values = solver.init(params), []
    for _ in range(60):
        gradient, value = torch.func.grad_and_value(rosenbrock)(params)
        _, state = solver.update(gradient, state, params, value=value)
        values.append(float(state.iterate.value))
        params = state.trial
    assert all(later <= earlier for earlier, later in pairwise(values))


# ---- newton


def test_projected_newton_converges_quadratically_with_active_bounds():
    """The last errors of a smooth problem: each about the square of the one before."""
    solver, params = bx.projected_newton(bx.Box(0.2, 5.0)), torch.full((3,), 2.0, dtype=DTYPE)
    weights = torch.tensor([1.0, 2.0, -3.0], dtype=DTYPE)

    def loss(x):
        return (x.exp() - 4 * weights * x).sum() + 0.1 * x.prod()

    state, errors = solver.init(params), []
    for _ in range(15):
        gradient, value = torch.func.grad_and_value(loss)(params)
        _, state = solver.update(gradient, state, params, value=value, value_fn=loss)
        errors.append(float(state.iterate.optimality))
        params = state.trial
    assert float(state.iterate.params[2]) == 0.2  # exactly
    assert any(0 < later <= 10 * error**2 for error, later in pairwise(errors) if error < 1e-2)
    assert errors[-1] < 1e-12


def test_newtons_direction_among_definite_and_indefinite_matrices():
    """In one batch: −H⁻¹g where H is positive definite, −|H|⁻¹g elsewhere, and −g for no curvature at all."""
    factor = draw(4, 5, 5, seed=70)
    definite, indefinite = factor @ factor.mT + torch.eye(5, dtype=DTYPE), factor + factor.mT
    matrix = torch.stack([definite[0], indefinite[1], definite[2], torch.zeros(5, 5, dtype=DTYPE)])
    gradient = draw(4, 5, seed=71)
    found = newton_direction(gradient, matrix)
    torch.testing.assert_close(found[::2], -torch.linalg.solve(matrix[::2], gradient[::2]))
    values, vectors = torch.linalg.eigh(matrix[1])
    torch.testing.assert_close(found[1], -vectors @ ((vectors.mT @ gradient[1]) / values.abs()))
    torch.testing.assert_close(found[3], -gradient[3])
    torch.testing.assert_close(torch.func.vmap(newton_direction)(gradient, matrix), found)


def test_conjugate_gradients_end_at_the_solution_or_at_the_boundary():
    matrix, gradient = (part[0] for part in quadratics(1, 6, seed=72))
    exact, far = -torch.linalg.solve(matrix, gradient), torch.tensor(1e9, dtype=DTYPE)
    size = torch.linalg.vector_norm(gradient)
    found = truncated_cg(lambda v: matrix @ v, gradient, far, 6)
    assert float(torch.linalg.vector_norm(matrix @ found + gradient)) <= 0.5 * float(size)
    small = 1e-8 * gradient  # for which the residual may be a small share only
    torch.testing.assert_close(truncated_cg(lambda v: matrix @ v, small, far, 6), 1e-8 * exact, rtol=1e-3, atol=0)
    for product in (lambda v: matrix @ v, lambda v: -v):
        step = truncated_cg(product, gradient, torch.tensor(0.01, dtype=DTYPE), 6)
        assert abs(float(torch.linalg.vector_norm(step)) - 0.01) < 1e-12
        assert float(step @ gradient) < 0


def test_projected_newton_leaves_a_saddle():
    start = torch.tensor([1e-3, 1.0], dtype=DTYPE)
    result = bx.minimize(lambda x: x[0] ** 4 - x[0] ** 2 + x[1] ** 2, start, bx.projected_newton(bx.Box(-3.0, 3.0)))
    torch.testing.assert_close(result.params, torch.tensor([0.5**0.5, 0.0], dtype=DTYPE), atol=1e-6, rtol=0)


# ---- interior point


def test_interior_point_never_touches_a_bound():
    box = bx.Box(0.0, torch.tensor([1.0, 2.0, torch.inf]))
    solver, params = bx.interior_point(box), torch.tensor([0.0, 5.0, -1.0], dtype=DTYPE)
    state = solver.init(params)

    def loss(x):
        return x[0] - 2 * x[1] + (x[2] - 3) ** 2 - x.log().sum() * 1e-3

    for _ in range(40):
        params = state.trial
        assert ((params > 0) & (params < torch.tensor([1.0, 2.0, torch.inf]))).all()
        gradient, value = torch.func.grad_and_value(loss)(params)
        _, state = solver.update(gradient, state, params, value=value, value_fn=loss)
    assert float(state.iterate.optimality) < 1e-7
    # The multiplier of the second upper bound is the slope there.
    torch.testing.assert_close(state.upper_dual[1], torch.tensor(2.0005, dtype=DTYPE), rtol=1e-5, atol=0)


@pytest.mark.parametrize("scale", [1e-4, 1e4])
def test_interior_point_takes_any_units_of_the_loss(scale):
    loss, box, start = PROBLEMS["rosenbrock, active"]()
    result = bx.minimize(lambda x: scale * loss(x), start, bx.interior_point(box), tol=1e-7 * scale, max_steps=120)
    assert int(result.status) == bx.Status.GRADIENT


# ---- fista


@pytest.mark.parametrize("positive", [True, False])
def test_fista_is_scikit_learns_elastic_net(positive):
    features = draw(40, 20, seed=30)
    target = features[:, :4].sum(1) + draw(40, seed=31, scale=0.1)
    for strength, ratio in ((0.1, 1.0), (0.05, 0.4)):
        kind = partial(Lasso, strength) if ratio == 1 else partial(ElasticNet, strength, l1_ratio=ratio)
        model = kind(positive=positive, fit_intercept=False, tol=1e-12, max_iter=100_000)
        coefficients = model.fit(features.numpy(), target.numpy()).coef_
        regularizer = bx.ElasticNet(strength * ratio, strength * (1 - ratio))
        solver = bx.fista(bx.sets.NonNegative() if positive else None, regularizer)

        def loss(x):
            return (features @ x - target).square().sum() / 80

        result = bx.minimize(loss, torch.ones(20, dtype=DTYPE), solver, tol=1e-10)
        assert int(result.status) == bx.Status.GRADIENT
        np.testing.assert_allclose(result.params.numpy(), coefficients, atol=1e-8)
        assert ((result.params == 0) == torch.tensor(coefficients == 0)).all()
        total = loss(result.params) + regularizer(result.params)
        torch.testing.assert_close(result.value, total)
        gradient = torch.func.grad(loss)(result.params)
        stepped = regularizer.prox(result.params - gradient)
        stepped = stepped.clamp_min(0) if positive else stepped
        torch.testing.assert_close(result.optimality, (result.params - stepped).abs().amax(), atol=1e-15, rtol=1e-6)


def test_fista_with_a_set_that_needs_a_sum():
    """A group lasso on a simplex: Dykstra's sum is the proximal step, and CVXPY's solution is the same."""
    matrix, linear = (part[0] for part in quadratics(1, 6, seed=40))
    solver = bx.fista(bx.sets.Simplex(2.0), bx.L2(0.5))
    result = bx.minimize(partial(quadratic, matrix=matrix, linear=linear), torch.ones(6, dtype=DTYPE), solver, tol=1e-8)
    x = cp.Variable(6)
    objective = cp.quad_form(x, cp.psd_wrap(matrix.numpy())) / 2 + linear.numpy() @ x + cp.sum_squares(x) / 4
    cp.Problem(cp.Minimize(objective), [x >= 0, cp.sum(x) == 2]).solve(solver=cp.CLARABEL)
    np.testing.assert_allclose(result.params.numpy(), x.value, atol=1e-5)


def test_fista_is_accelerated():
    """With curvatures from 1 to 0.001, a third of the evaluations of steps of 1/L, though each takes two."""
    scale = torch.logspace(0, -3, 30, dtype=DTYPE)
    loss = lambda x: (scale * (x - 1) ** 2).sum() / 2  # noqa: E731
    start = torch.zeros(30, dtype=DTYPE)
    fast = bx.minimize(loss, start, bx.fista(), tol=1e-5, max_steps=1500)
    slow = bx.minimize(loss, start, bx.sgd(1.0), tol=1e-5, max_steps=int(fast.steps) * 3)
    assert int(fast.status) == bx.Status.GRADIENT
    assert int(slow.status) == bx.Status.LIMIT


# ---- augmented Lagrangian


def norm_constraint(x):
    return (x * x).sum() - 40


def product_constraint(x):
    return 25 - x.prod()


INNER = {
    "lbfgsb": bx.lbfgsb,
    "projected_newton": bx.projected_newton,
    "interior_point": bx.interior_point,
}


@pytest.mark.parametrize("name", INNER)
def test_hock_schittkowski_71(name):
    solver = bx.augmented_lagrangian(
        INNER[name](bx.Box(1.0, 5.0)), equality=norm_constraint, inequality=product_constraint
    )
    start = torch.tensor([1.0, 5.0, 5.0, 1.0], dtype=DTYPE)
    result = bx.minimize(lambda x: x[0] * x[3] * x[:3].sum() + x[2], start, solver, tol=1e-6, max_steps=2000)
    assert int(result.status) == bx.Status.GRADIENT
    torch.testing.assert_close(float(result.value), 17.0140173, rtol=0, atol=2e-6)
    solution = torch.tensor([1.0, 4.7429994, 3.8211503, 1.3794082], dtype=DTYPE)
    torch.testing.assert_close(result.params, solution, rtol=0, atol=1e-5)
    assert float(result.state.infeasibility) <= 1e-6
    # IPOPT's multipliers for this problem.
    multipliers = result.state.multipliers
    torch.testing.assert_close(multipliers.equality, torch.tensor([0.1614686], dtype=DTYPE), rtol=0, atol=1e-4)
    torch.testing.assert_close(multipliers.inequality, torch.tensor([0.5522937], dtype=DTYPE), rtol=0, atol=1e-4)


ANYWHERE = bx.Box(-torch.inf, torch.inf)
GENERAL = {
    # name: loss, box, equality, inequality, start; Hock and Schittkowski's numbers
    "HS6": (lambda x: (1 - x[0]) ** 2, ANYWHERE, lambda x: 10 * (x[1] - x[0] ** 2), None, [-1.2, 1.0]),
    "HS21": (lambda x: 0.01 * x[0] ** 2 + x[1] ** 2 - 100, bx.Box(torch.tensor([2.0, -50.0]), 50.0), None,
             lambda x: 10 - 10 * x[0] + x[1], [-1.0, -1.0]),
    "HS35": (lambda x: 9 - 8 * x[0] - 6 * x[1] - 4 * x[2] + 2 * x[0] ** 2 + 2 * x[1] ** 2 + x[2] ** 2
             + 2 * x[0] * x[1] + 2 * x[0] * x[2], bx.Box(0.0, torch.inf), None,
             lambda x: x[0] + x[1] + 2 * x[2] - 3, [0.5, 0.5, 0.5]),
    "HS43": (lambda x: (x * x).sum() + x[2] ** 2 - 5 * x[0] - 5 * x[1] - 21 * x[2] + 7 * x[3], ANYWHERE, None,
             lambda x: torch.stack([
                 (x * x).sum() + x[0] - x[1] + x[2] - x[3] - 8,
                 x[0] ** 2 + 2 * x[1] ** 2 + x[2] ** 2 + 2 * x[3] ** 2 - x[0] - x[3] - 10,
                 2 * x[0] ** 2 + x[1] ** 2 + x[2] ** 2 + 2 * x[0] - x[1] - x[3] - 5,
             ]), [0.0, 0.0, 0.0, 0.0]),
    "HS48": (lambda x: (x[0] - 1) ** 2 + (x[1] - x[2]) ** 2 + (x[3] - x[4]) ** 2, ANYWHERE,
             lambda x: torch.stack([x.sum() - 5, x[2] - 2 * (x[3] + x[4]) + 3]), None, [3.0, 5.0, -3.0, 2.0, -2.0]),
}  # fmt: skip
OPTIMA = {"HS6": 0.0, "HS21": -99.96, "HS35": 1 / 9, "HS43": -44.0, "HS48": 0.0}


@pytest.mark.parametrize("problem", GENERAL)
def test_general_constraints_against_slsqp(problem):
    loss, box, equality, inequality, start = GENERAL[problem]
    start = torch.tensor(start, dtype=DTYPE)
    solver = bx.augmented_lagrangian(bx.projected_newton(box), equality=equality, inequality=inequality)
    result = bx.minimize(loss, start, solver, tol=1e-7, max_steps=3000)
    assert int(result.status) == bx.Status.GRADIENT
    assert abs(float(result.value) - OPTIMA[problem]) < 1e-5

    def numpy(function, sign=1.0):
        return lambda x: sign * function(torch.tensor(x)).numpy()

    constraints = [
        {"type": kind, "fun": numpy(function, sign)}
        for kind, function, sign in (("eq", equality, 1.0), ("ineq", inequality, -1.0))
        if function is not None
    ]
    low, high = (torch.as_tensor(side, dtype=DTYPE).expand(start.shape) for side in (box.lower, box.upper))
    found = scipy.optimize.minimize(
        numpy(loss),
        start.clamp(low, high).numpy(),
        method="SLSQP",
        constraints=constraints,
        bounds=scipy.optimize.Bounds(low.numpy(), high.numpy()),
        options={"ftol": 1e-12},
    )
    np.testing.assert_allclose(float(result.value), found.fun, atol=1e-5)
    np.testing.assert_allclose(result.params.numpy(), found.x, atol=2e-3)


def wong(x):
    """HS113's loss, Wong's second problem; and its constraints, negative where they hold."""
    a, b, c, d, e, f, g, h, i, j = x
    loss = a**2 + b**2 + a * b - 14 * a - 16 * b + (c - 10) ** 2 + 4 * (d - 5) ** 2 + (e - 3) ** 2 + 2 * (f - 1) ** 2
    loss = loss + 5 * g**2 + 7 * (h - 11) ** 2 + 2 * (i - 10) ** 2 + (j - 7) ** 2 + 45
    sides = (
        4 * a + 5 * b - 3 * g + 9 * h - 105,
        10 * a - 8 * b - 17 * g + 2 * h,
        -8 * a + 2 * b + 5 * i - 2 * j - 12,
        3 * (a - 2) ** 2 + 4 * (b - 3) ** 2 + 2 * c**2 - 7 * d - 120,
        5 * a**2 + 8 * b + (c - 6) ** 2 - 2 * d - 40,
        0.5 * (a - 8) ** 2 + 2 * (b - 4) ** 2 + 3 * e**2 - f - 30,
        a**2 + 2 * (b - 2) ** 2 - 2 * a * b + 14 * e - 6 * f,
        -3 * a + 6 * b + 12 * (i - 8) ** 2 - 7 * j,
    )
    return loss, torch.stack(sides)


def test_the_first_penalty_from_a_feasible_start():
    """From there, where the loss is 753, a penalty of its size would be 300 times too large."""
    start = torch.tensor([2.0, 3, 5, 5, 1, 2, 7, 3, 6, 10], dtype=DTYPE)
    solver = bx.augmented_lagrangian(bx.lbfgsb(), inequality=lambda x: wong(x)[1])
    result = bx.minimize(lambda x: wong(x)[0], start, solver, max_steps=600)
    assert int(result.status) == bx.Status.GRADIENT
    assert abs(float(result.value) - 24.3062091) < 1e-6


def weighted_sum(x, weights, total):
    return weights @ x - total


def test_constraints_of_their_own_in_a_batch():
    """The nearest points of planes: x = c − w (w·c − t)/(w·w)."""
    center, weights, total = draw(5, 4, seed=50), draw(5, 4, seed=51), draw(5, seed=52)
    solver = bx.augmented_lagrangian(bx.lbfgsb(bx.Box()), equality=partial(weighted_sum, weights=weights, total=total))
    result = bx.minimize(
        lambda x, center: ((x - center) ** 2).sum() / 2,
        torch.zeros(5, 4, dtype=DTYPE),
        solver,
        args=(center,),
        batch_dims=1,
        tol=1e-9,
    )
    excess = (weights * center).sum(1) - total
    expected = center - weights * (excess / weights.square().sum(1))[:, None]
    torch.testing.assert_close(result.params, expected, rtol=0, atol=1e-8)


def test_general_constraints_in_float32():
    solver = bx.augmented_lagrangian(
        bx.projected_newton(bx.Box(1.0, 5.0)), equality=norm_constraint, inequality=product_constraint
    )
    start = torch.tensor([1.0, 5.0, 5.0, 1.0])
    result = bx.minimize(lambda x: x[0] * x[3] * x[:3].sum() + x[2], start, solver, tol=1e-3, max_steps=300)
    assert int(result.status) == bx.Status.GRADIENT
    assert abs(float(result.value) - 17.0140173) < 1e-2


def test_says_how_infeasible_an_impossible_problem_stays():
    solver = bx.augmented_lagrangian(bx.lbfgsb(bx.Box(0.0, 1.0)), equality=lambda x: x.sum() - 4)
    result = bx.minimize(lambda x: (x * x).sum(), torch.zeros(3, dtype=DTYPE), solver, max_steps=2000)
    assert int(result.status) == bx.Status.STALLED
    torch.testing.assert_close(result.params, torch.ones(3, dtype=DTYPE))
    torch.testing.assert_close(float(result.state.infeasibility), 1.0)


def test_support_vectors_are_scikit_learns():
    """The dual of a support vector machine: a box, and one equality."""
    features = draw(40, 2, seed=60)
    labels = torch.where(features.sum(1) + draw(40, seed=61, scale=0.5) > 0, 1.0, -1.0).to(DTYPE)
    kernel = torch.exp(-0.5 * torch.cdist(features, features) ** 2)
    matrix = labels[:, None] * labels * kernel
    solver = bx.augmented_lagrangian(bx.lbfgsb(bx.Box(0.0, 1.0)), equality=lambda a: labels @ a)
    result = bx.minimize(
        lambda a: a @ matrix @ a / 2 - a.sum(), torch.zeros(40, dtype=DTYPE), solver, tol=1e-8, max_steps=5000
    )
    model = SVC(C=1.0, kernel="rbf", gamma=0.5, tol=1e-10).fit(features.numpy(), labels.numpy())
    expected = np.zeros(40)
    expected[model.support_] = np.abs(model.dual_coef_[0])
    np.testing.assert_allclose(result.params.numpy(), expected, atol=1e-5)
    # The multiplier of the equality is the intercept.
    np.testing.assert_allclose(float(result.state.multipliers.equality), model.intercept_[0], atol=1e-5)
    # The same on the set itself, by a projection.
    both = bx.sets.BoxHyperplane(0.0, 1.0, labels, 0.0)
    same = bx.minimize(lambda a: a @ matrix @ a / 2 - a.sum(), torch.zeros(40, dtype=DTYPE), bx.spg(both), tol=1e-8)
    torch.testing.assert_close(same.params, result.params, rtol=0, atol=1e-5)


# ---- what is refused


@pytest.mark.parametrize("make", [bx.projected_newton, bx.interior_point])
def test_boxes_only(make):
    with pytest.raises(TypeError, match="is for a box, got Simplex"):
        make(bx.sets.Simplex())
    with pytest.raises(ValueError, match="cg_steps=0"):
        make(bx.Box(), cg_steps=0)


def test_clear_about_bad_input():
    with pytest.raises(ValueError, match="memory=0"):
        bx.spg(bx.Box(), memory=0)
    with pytest.raises(TypeError, match="got ElasticNet for the set"):
        bx.fista(bx.L1(1.0))
    with pytest.raises(TypeError, match="got Box for the regularizer"):
        bx.fista(bx.Box(), bx.Box())
    with pytest.raises(ValueError, match="neither an equality nor an inequality"):
        bx.augmented_lagrangian(bx.spg(bx.Box()))
    with pytest.raises(ValueError, match="penalty is not negative"):
        bx.augmented_lagrangian(bx.spg(bx.Box()), equality=torch.sum, penalty=-1.0)
    with pytest.raises(TypeError, match="needs a solver, such as spg"):
        bx.augmented_lagrangian(bx.adam(0.1), equality=torch.sum).init(torch.zeros(2))


@pytest.mark.parametrize("size", [1, 2, 5, 8])
def test_small_systems_number_by_number(size):
    """What compiled code does with them, in eager mode, against LAPACK; also in a batch, and what is not definite."""
    root = torch.randn(4, size, size, dtype=DTYPE)
    matrix, right = root @ root.mT + torch.eye(size, dtype=DTYPE), torch.randn(4, size, dtype=DTYPE)
    expected = torch.linalg.solve(matrix, right)
    torch.testing.assert_close(torch.func.vmap(_solve_unrolled)(matrix, right), expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(torch.func.vmap(solve)(matrix, right), expected, rtol=1e-9, atol=1e-12)
    assert not _solve_unrolled(torch.zeros(size, size, dtype=DTYPE), right[0]).isfinite().any()
