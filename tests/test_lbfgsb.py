"""L-BFGS-B against SciPy, scikit-learn and closed forms, and each problem of a batch against itself alone."""

import numpy as np
import pytest
import scipy.optimize
import torch
from torch.func import vmap

import boxopt as bx
from boxopt.core import tree
from boxopt.solve.box_step import box_step
from boxopt.solve.columns import ColumnStep
from boxopt.solve.dense_model import DenseModel
from boxopt.solve.lbfgsb import _first_step
from boxopt.solve.pair_model import PairModel
from boxopt.solve.solver import finite, is_stuck, shorter
from boxopt.solve.wolfe import CURVATURE, DECREASE, PATIENCE, TRIALS, Point, advance_search, next_step, start_search

F64 = torch.float64
INF = float("inf")


def random(*shape, seed=0, dtype=F64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def scipy_solution(loss, start, lower, upper):
    """By SciPy's L-BFGS-B, to the last digits that it can tell apart."""

    def evaluate(x):
        gradient, value = torch.func.grad_and_value(loss)(torch.tensor(x))
        return float(value), gradient.numpy()

    bounds = scipy.optimize.Bounds(lower, upper)
    options = {"ftol": 0.0, "gtol": 1e-10, "maxiter": 5000, "maxfun": 20000}
    return scipy.optimize.minimize(evaluate, start, jac=True, method="L-BFGS-B", bounds=bounds, options=options)


def quadratic(x, matrix, slope):
    return x @ matrix @ x / 2 + slope @ x


def random_quadratics(members, size, seed=0):
    root = random(members, size, size, seed=seed)
    return root @ root.mT / size + 0.01 * torch.eye(size, dtype=F64), 2 * random(members, size, seed=seed + 1)


# --- against others ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("size", "memory"), [(1, 10), (8, 10), (8, 3), (30, 5)])
def test_quadratics_as_scipy(size, memory):
    members = 12
    matrix, slope = random_quadratics(members, size)
    lower, upper = -random(members, size, seed=5).abs(), random(members, size, seed=6).abs()
    solver = bx.lbfgsb(bx.Box(lower, upper), memory=memory)
    start = torch.zeros(members, size, dtype=F64)
    result = bx.minimize(quadratic, start, solver, args=(matrix, slope), batch_dims=1, tol=1e-9)
    assert (result.status == bx.Status.GRADIENT).all()
    for i in range(members):
        expected = scipy_solution(lambda x, i=i: quadratic(x, matrix[i], slope[i]), start[i], lower[i], upper[i])
        assert float(result.value[i]) <= expected.fun + 1e-9 * abs(expected.fun)
        torch.testing.assert_close(result.params[i], torch.tensor(expected.x), rtol=0, atol=1e-6)


def cancer():
    from sklearn.datasets import load_breast_cancer
    from sklearn.preprocessing import StandardScaler

    inputs, labels = load_breast_cancer(return_X_y=True)
    return torch.tensor(StandardScaler().fit_transform(inputs)), torch.tensor(2.0 * labels - 1)


def test_logistic_regression_as_scikit_learn_and_with_bounds_as_scipy():
    from sklearn.linear_model import LogisticRegression

    inputs, signs = cancer()

    def loss(params):
        margins = signs * (inputs @ params["weights"] + params["bias"])
        return torch.nn.functional.softplus(-margins).sum() + params["weights"].square().sum() / 2

    start = {"weights": torch.zeros(30, dtype=F64), "bias": torch.zeros((), dtype=F64)}
    free = bx.minimize(loss, start, bx.lbfgsb(), tol=1e-7)
    fitted = LogisticRegression(tol=1e-10, max_iter=10000).fit(inputs, signs)
    torch.testing.assert_close(free.params["weights"], torch.tensor(fitted.coef_[0]), rtol=0, atol=1e-5)

    box = bx.Box({"weights": -0.5, "bias": None}, {"weights": 0.1, "bias": None})
    result = bx.minimize(loss, start, bx.lbfgsb(box), tol=1e-7)
    expected = scipy_solution(
        lambda x: loss({"weights": x[1:], "bias": x[0]}), np.zeros(31), [-INF] + [-0.5] * 30, [INF] + [0.1] * 30
    )
    torch.testing.assert_close(result.params["weights"], torch.tensor(expected.x[1:]), rtol=0, atol=1e-6)
    at_bound = (result.params["weights"] == -0.5) | (result.params["weights"] == 0.1)
    assert int(at_bound.sum()) == int(((expected.x[1:] == -0.5) | (expected.x[1:] == 0.1)).sum()) > 5


def test_the_dual_of_a_support_vector_machine_as_scikit_learn():
    from sklearn.svm import LinearSVC

    inputs, signs = cancer()
    inputs, signs = inputs[:200], signs[:200]
    rows = signs[:, None] * inputs
    result = bx.minimize(
        lambda alpha: (alpha @ rows).square().sum() / 2 - alpha.sum(),
        torch.zeros(200, dtype=F64),
        bx.lbfgsb(bx.Box(0.0, 0.1)),
        tol=1e-6,
        max_steps=5000,
    )
    assert bx.Status(int(result.status)) is bx.Status.GRADIENT
    fitted = LinearSVC(C=0.1, loss="hinge", fit_intercept=False, tol=1e-10, max_iter=1000000, random_state=0)
    fitted.fit(inputs, signs)
    torch.testing.assert_close(result.params @ rows, torch.tensor(fitted.coef_[0]), rtol=0, atol=1e-4)


def test_hyperparameters_of_a_gaussian_process_as_scikit_learn():
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.gaussian_process import GaussianProcessRegressor
    from sklearn.gaussian_process.kernels import RBF, ConstantKernel, WhiteKernel

    inputs = random(40, 2, seed=1)
    targets = torch.sin(2 * inputs[:, 0]) + 0.1 * random(40, seed=2)  # the second input says nothing
    bounds = {"variance": (0.1, 10.0), "lengths": (0.1, 20.0), "noise": (1e-3, 1.0)}

    def loss(logs):
        scaled = inputs / logs["lengths"].exp()
        distances = (scaled[:, None] - scaled[None]).square().sum(-1)
        kernel = logs["variance"].exp() * torch.exp(-distances / 2) + logs["noise"].exp() * torch.eye(40, dtype=F64)
        factor = torch.linalg.cholesky(kernel)
        solved = torch.linalg.solve_triangular(factor, targets[:, None], upper=False)
        return solved.square().sum() / 2 + factor.diagonal().log().sum() + 20 * np.log(2 * np.pi)

    lower = {name: float(np.log(low)) for name, (low, _) in bounds.items()}
    upper = {name: float(np.log(high)) for name, (_, high) in bounds.items()}
    start = {"variance": torch.zeros((), dtype=F64), "lengths": torch.zeros(2, dtype=F64)}
    start["noise"] = torch.full((), np.log(0.1), dtype=F64)
    result = bx.minimize(loss, start, bx.lbfgsb(bx.Box(lower, upper)), tol=1e-5)

    kernel = ConstantKernel(1.0, bounds["variance"]) * RBF([1.0, 1.0], bounds["lengths"])
    model = GaussianProcessRegressor(kernel + WhiteKernel(0.1, bounds["noise"]), alpha=0.0)
    with pytest.warns(ConvergenceWarning, match="close to the specified upper bound"):
        model.fit(inputs, targets)
    assert float(result.value) <= -model.log_marginal_likelihood_value_ + 1e-5
    torch.testing.assert_close(result.params["lengths"][1].exp(), torch.tensor(20.0, dtype=F64))  # at its bound
    theta = torch.cat([result.params["variance"][None], result.params["lengths"], result.params["noise"][None]])
    torch.testing.assert_close(theta, torch.tensor(model.kernel_.theta), rtol=0, atol=1e-2)


# --- batches -------------------------------------------------------------------------------------------------------


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


@pytest.mark.parametrize("memory", [10, 2])
def test_a_problem_of_a_batch_ends_as_it_does_alone(memory):
    """Also beside losses that are NaN, constant, unbounded below, or not finite in places."""

    def loss(x, kind):
        found = torch.where(kind == 3, -1e30, 0.0) * x.square().sum() + torch.where(kind % 2 == 1, 0.0, rosenbrock(x))
        wall = torch.where((kind == 4) & (x.amax() > 0.3), torch.inf, 0.0)
        return torch.where(kind == 1, torch.nan, 0.0) + torch.where(kind == 2, 0.0, found) + wall

    kinds = torch.tensor([0, 1, 0, 2, 0, 3, 0, 4, 0])
    start = random(9, 6, seed=3).clamp(-2, 0.25)
    solver = bx.lbfgsb(bx.Box(None, 0.8), memory=memory)
    result = bx.minimize(loss, start, solver, args=(kinds,), batch_dims=1, max_steps=200)
    names = [bx.Status(code).name for code in result.status.tolist()]
    assert names[1] == "NONFINITE"
    assert names[3] == "GRADIENT"
    for i in (0, 2, 4, 6, 8):
        assert names[i] == "GRADIENT"
        alone = bx.minimize(rosenbrock, start[i], solver, max_steps=200)
        assert int(alone.steps) == int(result.steps[i])
        torch.testing.assert_close(result.params[i], alone.params, rtol=1e-9, atol=1e-9)
    assert result.value[7].isfinite()
    assert (result.params <= 0.8).all()


def test_bounds_of_each_problem_nested_batches_and_compiled():
    upper = torch.tensor([[[0.5], [0.7]], [[0.9], [2.0]]], dtype=F64)
    start = torch.full((2, 2, 4), -1.0, dtype=F64)
    solver = bx.lbfgsb(bx.Box(-1.5, upper))
    result = bx.minimize(rosenbrock, start, solver, batch_dims=2)
    for i in range(2):
        for j in range(2):
            alone = bx.minimize(rosenbrock, start[i, j], bx.lbfgsb(bx.Box(-1.5, upper[i, j])))
            torch.testing.assert_close(result.params[i, j], alone.params, rtol=1e-9, atol=1e-9)
    assert (result.params[..., 0] <= upper[..., 0]).all()


# --- corners -------------------------------------------------------------------------------------------------------


def solve(loss, start, lower=None, upper=None, **options):
    start = torch.tensor(start, dtype=options.pop("dtype", F64))
    low, high = (None if b is None else torch.tensor(b, dtype=start.dtype) for b in (lower, upper))
    return bx.minimize(loss, start, bx.lbfgsb(bx.Box(low, high)), **options)


def test_fixed_coordinates_stay_and_the_others_move():
    result = solve(rosenbrock, [0.0, 0.5, 0.0], [-INF, 0.5, -1.0], [INF, 0.5, 4.0])
    assert float(result.params[1]) == 0.5
    expected = scipy_solution(rosenbrock, [0, 0.5, 0], [-INF, 0.5, -1.0], [INF, 0.5, 4.0])
    assert float(result.value) == pytest.approx(expected.fun, rel=1e-9)


def test_all_coordinates_fixed():
    result = solve(rosenbrock, [3.0, 3.0], [1.0, 2.0], [1.0, 2.0])
    assert result.params.tolist() == [1.0, 2.0]
    assert bx.Status(int(result.status)) is bx.Status.GRADIENT


@pytest.mark.parametrize("start", [[-5.0, 7.0], [0.0, 0.0], [0.5, 2.0], [1e6, -1e6], [0.0, 2.0]])
def test_starts_outside_at_a_bound_and_at_a_vertex(start):
    result = solve(rosenbrock, start, [0.0, 0.0], [0.5, 2.0])
    torch.testing.assert_close(result.params, torch.tensor([0.5, 0.25], dtype=F64), rtol=0, atol=1e-6)
    assert float(result.params[0]) == 0.5


def test_one_parameter():
    assert float(solve(lambda x: (x - 3) ** 2, 0.0, -1.0, 2.0).params) == 2.0
    assert float(solve(lambda x: torch.cosh(x - 3), 0.0).params) == pytest.approx(3.0, abs=1e-6)


def test_degenerate_bounds():
    """The minimum is at bounds with zero gradient: neither active nor free."""
    result = solve(lambda x: (x**2).sum() + x[0] * x[1], [1.0, 2.0, 3.0], [0.0] * 3)
    torch.testing.assert_close(result.params, torch.zeros(3, dtype=F64), rtol=0, atol=1e-6)


def test_flat_directions_and_linear_losses():
    result = solve(lambda x: (x[0] + x[1] - 1) ** 2, [5.0, 5.0], [0.0, 0.0], [10.0, 10.0])
    assert float(result.value) < 1e-12
    result = solve(lambda x: x[0] - 1e-8 * x[1] + 1e8 * x[2], [0.3, 0.3, 0.3], [0.0] * 3, [1.0] * 3, tol=0.0)
    assert result.params.tolist() == [0.0, 1.0, 0.0]


@pytest.mark.parametrize("memory", [10, 1])
def test_nothing_is_learned_where_the_gradient_does_not_change(memory):
    solver, point, slope = (
        bx.lbfgsb(memory=memory),
        torch.zeros(3, dtype=F64),
        torch.tensor([1.0, -2.0, 0.5], dtype=F64),
    )
    state = solver.init(point)
    for _ in range(4):
        updates, state = solver.update(slope, state, point, value=slope @ point)
        point = point + updates
        assert bool(state.model.fresh)
        assert not bool(state.stalled)
    assert all(leaf.isfinite().all() for leaf in tree.leaves(state.model))
    assert {leaf.dtype for leaf in tree.leaves(state)} <= {F64, torch.int64, torch.bool}


def test_unbounded_below_ends_at_the_limit():
    result = solve(lambda x: -x.sum(), [0.0, 0.0], None, [INF, 1.0], max_steps=30)
    assert bx.Status(int(result.status)) is bx.Status.LIMIT
    assert float(result.params[1]) == 1.0


def test_a_loss_that_is_not_finite_everywhere():
    """The first steps go where the logarithm is NaN; they are taken back."""
    result = solve(lambda x: x.sum() - torch.log(x).sum() * 100, [1.0, 2.0])
    torch.testing.assert_close(result.params, torch.full((2,), 100.0, dtype=F64), rtol=1e-6, atol=0)


def test_badly_scaled():
    scales = torch.logspace(-4, 4, 9, dtype=F64)
    result = solve(lambda x: (scales * (x - 1) ** 2).sum(), [0.0] * 9, tol=1e-9, upper=[2.0] * 9)
    torch.testing.assert_close(result.params, torch.ones(9, dtype=F64), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("size", "seed"), [(4, 49), (5, 135), (5, 162)])
def test_a_gradient_that_points_inward_where_the_minimizer_points_outward(size, seed):
    """Steps go on along the face, rather than along the gradient for ever."""
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(size, size, dtype=F64, generator=generator) * 10 ** torch.linspace(-3, 1, size, dtype=F64)
    center = torch.randn(size, dtype=F64, generator=generator)
    lower = torch.tensor([0.3] + [-INF] * (size - 1), dtype=F64)
    solver = bx.lbfgsb(bx.Box(lower, None))
    result = bx.minimize(lambda x: ((matrix @ (x - center)) ** 2).sum() / 2, torch.zeros(size, dtype=F64), solver)
    assert result.status == bx.Status.GRADIENT
    assert result.steps < 100


def test_what_more_memory_is_worth():
    """As docs/solvers.md says: least squares of a bad condition, for which ten pairs are too few."""
    size, problems = 30, 3
    matrix = random(problems, size, size, seed=1) * 10 ** torch.linspace(-3, 1, size, dtype=F64)
    center = random(problems, size, seed=2)
    lower = torch.where(random(problems, size, seed=3) < 0, -0.2, -INF)
    start = torch.zeros(problems, size, dtype=F64)
    assert (torch.linalg.cond(matrix) > 1e4).all()

    def loss(x, matrix, center):
        return ((matrix @ (x - center)) ** 2).sum() / 2

    def run(memory):
        solver = bx.lbfgsb(bx.Box(lower, None), memory=memory)
        return bx.minimize(loss, start, solver, args=(matrix, center), batch_dims=1, tol=1e-6, max_steps=1000)

    enough, few = run(15), run(10)
    assert (enough.status == bx.Status.GRADIENT).all()
    assert (enough.steps < 450).all()
    assert (few.status == bx.Status.LIMIT).all()
    for a, c, bound, x in zip(*(part.numpy() for part in (matrix, center, lower, start)), strict=True):

        def both(x, a=a, c=c):
            residual = a @ (x - c)
            return residual @ residual / 2, a.T @ residual

        options = {"ftol": 0.0, "gtol": 1e-6, "maxiter": 1000, "maxfun": 1000}
        bounds = scipy.optimize.Bounds(bound, np.inf)
        assert not scipy.optimize.minimize(both, x, jac=True, method="L-BFGS-B", bounds=bounds, options=options).success


def test_stalls_at_a_minimum_to_all_digits():
    result = solve(rosenbrock, [-1.2, 1.0], tol=0.0, max_steps=300)
    assert bx.Status(int(result.status)) in (bx.Status.STALLED, bx.Status.GRADIENT)
    torch.testing.assert_close(result.params, torch.ones(2, dtype=F64), rtol=0, atol=1e-8)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_narrower_numbers(dtype):
    result = solve(rosenbrock, [-1.0, 1.0], [-2.0, -2.0], [0.5, 2.0], dtype=dtype, max_steps=200)
    assert result.params.dtype == dtype
    torch.testing.assert_close(result.params.double(), torch.tensor([0.5, 0.25], dtype=F64), rtol=0, atol=3e-3)


def test_every_trial_is_in_the_box_and_a_step_from_a_loop_lands_on_it():
    box = bx.Box(torch.tensor([-2.0, 1e-6, -0.1], dtype=F64), torch.tensor([0.7, 0.3, INF], dtype=F64))
    solver, params = bx.lbfgsb(box), torch.tensor([-1.5, 0.3, 2.0], dtype=F64)
    state = solver.init(params)
    for _ in range(40):
        gradient, value = torch.func.grad_and_value(rosenbrock)(params)
        updates, state = solver.update(gradient, state, params, value=value)
        params = bx.apply_updates(params, updates)
        assert float(bx.violation(box, params)) == 0
        torch.testing.assert_close(params, state.trial, rtol=1e-15, atol=1e-15)
    assert float(state.iterate.optimality) < 1e-8


def test_refuses_no_memory_and_names_the_number():
    with pytest.raises(ValueError, match="memory=0"):
        bx.lbfgsb(memory=0)


# --- the parts -----------------------------------------------------------------------------------------------------


def pairs_of_a_quadratic(count, size):
    matrix = random_quadratics(1, size)[0][0]
    steps = random(count, size, seed=9)
    return steps, steps @ matrix


def bfgs(steps, changes, scale):
    """The textbook's formula, in NumPy."""
    matrix = scale * np.eye(steps.shape[1])
    for s, y in zip(steps.numpy(), changes.numpy(), strict=True):
        image = matrix @ s
        matrix = matrix - np.outer(image, image) / (s @ image) + np.outer(y, y) / (s @ y)
    return torch.tensor(matrix)


def matrix_of(model, size):
    """The matrix that a model multiplies by."""
    hessian = model.hessian() if hasattr(model, "hessian") else model
    return torch.stack([hessian.times(column) for column in torch.eye(size, dtype=F64)], 1)


def learned(model, steps, changes):
    yes = torch.tensor(True)
    for step, change in zip(steps, changes, strict=True):
        model = model.learn(step, change, yes, ~yes)
    return model


@pytest.mark.parametrize("count", [1, 3, 7])
def test_models_are_bfgs_matrices(count, monkeypatch):
    size, memory = 6, 4
    monkeypatch.setattr("boxopt.solve.pair_model._WIDTH", 4)
    steps, changes = pairs_of_a_quadratic(count, size)
    zero, unit = torch.zeros(size, dtype=F64), torch.eye(size, dtype=F64)

    first = float(changes[0] @ changes[0] / (changes[0] @ steps[0]))
    dense = learned(DenseModel.of(zero), steps, changes)
    torch.testing.assert_close(matrix_of(dense, size), bfgs(steps, changes, first))

    last = float(changes[-1] @ changes[-1] / (changes[-1] @ steps[-1]))
    pairs = learned(PairModel.of(zero, memory), steps, changes)
    torch.testing.assert_close(matrix_of(pairs, size), bfgs(steps[-memory:], changes[-memory:], last))

    free, slope = torch.tensor([True, False, True, True, False, True]), random(size, seed=4)
    for model in (dense, pairs.hessian()):
        expected = torch.zeros(size, dtype=F64)
        expected[free] = -torch.linalg.solve(matrix_of(model, size)[free][:, free], slope[free])
        torch.testing.assert_close(model.minimize_over(free, slope), expected)

    no = torch.tensor(False)
    for model in (dense, pairs):
        kept, forgotten = model.learn(steps[0], changes[0], no, no), model.learn(steps[0], changes[0], no, ~no)
        torch.testing.assert_close(matrix_of(kept, size), matrix_of(model, size))
        torch.testing.assert_close(matrix_of(forgotten, size), unit)
        assert bool(forgotten.fresh)
        assert not bool(kept.fresh)
        again = learned(forgotten, steps[:1], changes[:1])
        torch.testing.assert_close(matrix_of(again, size), bfgs(steps[:1], changes[:1], first))


def test_a_loss_with_many_roundings():
    """Where they hide what the loss loses, slopes tell it."""

    def loss(x):
        value = (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum() + 24
        return value + 60 * 24 * torch.finfo(F64).eps * torch.cos(1e9 * x.detach().sum())

    result = bx.minimize(loss, random(8, seed=2) * 0.5, bx.lbfgsb(bx.Box(-2.0, 0.9)), tol=1e-8, max_steps=150)
    assert int(result.status) == bx.Status.GRADIENT


@pytest.mark.parametrize("size", [2, 4, 6])
def test_steps_are_mirror_images_and_better_than_gradient_steps(size):
    """Of ill-conditioned models from points at and near bounds, whichever coordinates the step before wants held."""
    generator = torch.Generator().manual_seed(size)
    draw = lambda *shape: torch.randn(shape, dtype=F64, generator=generator)  # noqa: E731
    for _ in range(200):
        root = draw(size, size) * 10 ** torch.linspace(-2, 2, size, dtype=F64)
        matrix, slope = root.mT @ root, draw(size) * 10 ** draw(size)
        model = DenseModel(matrix, torch.tensor(False))
        lower = -torch.rand(size, dtype=F64, generator=generator) * (torch.arange(size) > 0)
        upper = 10 ** draw(size)
        point, side = torch.zeros(size, dtype=F64), torch.zeros(size, dtype=F64)
        value = lambda d, m=matrix, g=slope: g @ d + d @ m @ d / 2  # noqa: E731
        rate = slope @ slope / (slope @ matrix @ slope)
        for _ in range(3):
            step, following = box_step(model, point, slope, lower, upper, side)
            assert ((step >= lower) & (step <= upper)).all()
            mirrored = box_step(model, point, -slope, -upper, -lower, -side)
            torch.testing.assert_close(mirrored.step, -step, rtol=1e-9, atol=1e-12)
            assert torch.equal(mirrored.side, -following)
            assert value(step) <= value((-rate * slope).clamp(lower, upper)) + 1e-12 * value(step).abs()
            side = following


def test_a_step_within_bounds_is_least_on_the_face_that_it_goes_to():
    """The first coordinate goes to its bound; the second then to where its slope, which the first has changed, is 0."""
    matrix, point, slope = torch.tensor([[2.0, 0.8], [0.8, 1.0]]), torch.zeros(2), torch.tensor([8.0, 0.5])
    model = DenseModel(matrix.to(F64), torch.tensor(False))
    lower, point = torch.tensor([-1.0, -9.0], dtype=F64), point.to(F64)
    step, following = box_step(model, point, slope.to(F64), lower, -lower, point)
    torch.testing.assert_close(step, torch.tensor([-1.0, -(0.5 - 0.8) / 1.0], dtype=F64))
    assert not following.any()


def test_what_is_in_the_way_is_held_by_the_next_step_until_its_slope_points_inward():
    """The gradient at the first coordinate's bound points inward, but the minimizer over both is beyond it."""
    model = DenseModel(torch.tensor([[1.0, 5.0], [5.0, 100.0]], dtype=F64), torch.tensor(False))
    lower, upper = torch.tensor([0.0, -INF], dtype=F64), torch.full((2,), INF, dtype=F64)
    point = side = torch.zeros(2, dtype=F64)
    slope = torch.tensor([-1e-3, -1.0], dtype=F64)
    step, side = box_step(model, point, slope, lower, upper, side)
    assert side.tolist() == [-1.0, 0.0]
    step, side = box_step(model, point, slope, lower, upper, side)
    torch.testing.assert_close(step, torch.tensor([0.0, 0.01], dtype=F64))
    assert side.tolist() == [-1.0, 0.0]
    away = torch.tensor([-1.0, -1.0], dtype=F64)
    step, side = box_step(model, point, away, lower, upper, side)
    assert side.tolist() == [0.0, 0.0]
    torch.testing.assert_close(
        box_step(model, point, away, lower, upper, side).step, -torch.linalg.solve(model.matrix, away)
    )


def test_a_matrix_is_kept_up_to_twice_the_memory():
    assert isinstance(bx.lbfgsb(memory=3).init(torch.zeros(6)).model, DenseModel)
    assert isinstance(bx.lbfgsb(memory=3).init(torch.zeros(7)).model, PairModel)


@pytest.mark.parametrize(
    ("lower", "upper", "length"), [(None, None, 1.0), ([-99.0, -INF], 99.0, 1.0), (-99.0, 99.0, 50.0)]
)
def test_the_first_trial_is_of_unit_length_unless_bounds_tell_the_scale(lower, upper, length):
    """The gradient is (30, 40): Newton's step, with the unit matrix, is of length 50."""
    lower = torch.tensor(lower, dtype=F64) if isinstance(lower, list) else lower
    solver, params, slope = (
        bx.lbfgsb(bx.Box(lower, upper)),
        torch.zeros(2, dtype=F64),
        torch.tensor([30.0, 40.0], dtype=F64),
    )
    _, state = solver.update(slope, solver.init(params), params, value=torch.tensor(0.0, dtype=F64))
    torch.testing.assert_close(state.trial, -slope * length / 50)


def test_each_problem_of_a_batch_has_a_first_step_of_its_own():
    """One without a bound, one with two."""
    slope = torch.tensor([30.0, 40.0], dtype=F64)
    solver = bx.lbfgsb(bx.Box(-99.0, torch.tensor([[INF], [99.0]], dtype=F64)))
    start = torch.zeros(2, 2, dtype=F64)
    result = bx.minimize(lambda x: slope @ x, start, solver, batch_dims=1, max_steps=1)
    torch.testing.assert_close(result.state.trial, torch.stack([-slope / 50, -slope]))


def test_leaves_of_several_dtypes_in_a_batch():
    """What is tried are numbers of their dtypes, also where the problems are columns."""
    centers = torch.linspace(-1.0, 1.0, 12, dtype=torch.float64).reshape(4, 3)
    start = {"wide": torch.zeros(4, 2, dtype=torch.float64), "narrow": torch.zeros(4, 1)}
    tried = []

    def loss(x, center):
        tried.append(x["narrow"].dtype)
        return (x["wide"] - center[:2]).square().sum() + (x["narrow"].double() - center[2:]).square().sum()

    result = bx.minimize(loss, start, bx.lbfgsb(bx.Box(-0.6, 0.5)), args=(centers,), batch_dims=1, tol=1e-6)
    assert set(tried) == {torch.float32}
    assert result.params["narrow"].dtype == torch.float32
    expected = centers.clamp(-0.6, 0.5)
    torch.testing.assert_close(result.params["wide"], expected[:, :2], rtol=0, atol=1e-6)
    torch.testing.assert_close(result.params["narrow"], expected[:, 2:].float(), rtol=0, atol=1e-6)
    assert (result.params["narrow"].double() >= -0.6).all()


@pytest.mark.parametrize("dtype", [torch.float32, F64])
def test_a_search_is_stuck_where_it_began_or_where_little_of_its_step_is_left(dtype):
    eps = torch.finfo(dtype).eps
    point, whole = torch.tensor([1.0, 2.0], dtype=dtype), torch.ones((), dtype=dtype)
    assert is_stuck(point, point, whole)
    assert is_stuck(point * (1 + eps), point, whole)
    assert not is_stuck(point + torch.tensor([0.0, 3 * eps], dtype=dtype), point, whole)
    assert not is_stuck(point + 1, point, 2e-4 * eps * whole)
    assert is_stuck(point + 1, point, 0.5e-4 * eps * whole)


def test_after_a_step_that_failed_the_least_point_of_a_parabola_is_tried():
    """Within a tenth and nine tenths of the step; else half of it, or a tenth where the loss was not finite."""
    fraction, promised = 0.8, -1.0  # the parabola is −t + (rise + 1)·t²
    for rise, share in ((1.0, 0.25), (-0.4, 5 / 6), (3.0, 0.125), (9.0, 0.5), (-0.9, 0.5), (-1.5, 0.5)):
        tried = shorter(torch.tensor(fraction), torch.tensor(promised), torch.tensor(rise))
        assert float(tried) == pytest.approx(share * fraction, rel=1e-5)
    assert float(shorter(torch.tensor(0.8), torch.tensor(-1.0), torch.tensor(torch.inf))) == pytest.approx(0.08)
    assert float(shorter(torch.tensor(0.8), torch.tensor(-1.0), torch.tensor(torch.nan))) == pytest.approx(0.08)


@pytest.mark.parametrize(("size", "by_columns"), [(6, True), (7, False)])
def test_short_problems_of_a_batch_are_columns(size, by_columns, monkeypatch):
    calls = []
    advance = ColumnStep.advance_all
    monkeypatch.setattr(ColumnStep, "advance_all", lambda *args: calls.append(args) or advance(*args))
    start = torch.zeros(3, size, dtype=F64)
    result = bx.minimize(lambda x: (x - 1).square().sum(), start, bx.lbfgsb(memory=3), batch_dims=1)
    assert result.converged.all()
    assert bool(calls) is by_columns


def at(function, step):
    slope, value = torch.func.grad_and_value(function)(torch.tensor(step, dtype=F64))
    return Point(torch.tensor(step, dtype=F64), value, slope)


def search_with(limit=INF, width=INF):
    start = start_search(*(torch.tensor(x, dtype=F64) for x in (0.0, -1.0, 1.0, limit)))
    return start._replace(width=torch.tensor(width, dtype=F64))


@pytest.mark.parametrize(("low", "high"), [(0.5, 2.0), (1.25, 0.0), (-0.5, 4.0)])
def test_inside_an_interval_the_line_search_goes_to_the_minimum_of_the_cubic(low, high):
    cubic = lambda a: a**3 - 3 * a  # noqa: E731 - least at 1
    ends = at(cubic, low), at(cubic, high)
    assert float(next_step(ends[0], *ends, search_with())) == pytest.approx(1.0)
    slow = search_with(width=abs(high - low))
    assert float(next_step(ends[0], *ends, slow)) == pytest.approx((low + high) / 2)  # the cubic has not helped enough
    infinite = ends[1]._replace(value=torch.tensor(INF, dtype=F64))
    assert float(next_step(ends[0], ends[0], infinite, search_with())) == pytest.approx(low + (high - low) / 10)


@pytest.mark.parametrize(
    ("least", "limit", "expected"),
    [(1.5, INF, 1.5), (0.6, INF, 1.05), (9.0, INF, 2.5), (-2.0, INF, 2.5), (1.5, 1.25, 1.25)],
)
def test_the_line_search_goes_on_to_the_minimum_of_the_cubic(least, limit, expected):
    """From 0 through 0.5: 1.1 to 4 times as far again. A cubic that falls for ever is least at the far end."""
    cubic = lambda a: a**3 / 3 - least * abs(least) * a  # noqa: E731
    last, low = at(cubic, 0.0), at(cubic, 0.5)
    if least < 0:
        last, low = (point._replace(slope=torch.tensor(-1.0, dtype=F64), value=-point.step) for point in (last, low))
    high = Point(*(torch.tensor(x, dtype=F64) for x in (INF, INF, 0.0)))
    assert float(next_step(last, low, high, search_with(limit))) == pytest.approx(expected)


def sigma_mix(a, low, high):
    """Moré and Thuente's fourth to sixth function (after Yanai, Ozawa and Kaneko)."""
    gamma = lambda beta: np.sqrt(1 + beta**2) - beta  # noqa: E731
    return gamma(low) * torch.sqrt((1 - a) ** 2 + high**2) + gamma(high) * torch.sqrt(a**2 + low**2)


MORE_THUENTE = {  # J. J. Moré and D. J. Thuente, "Line search algorithms with guaranteed sufficient decrease", 1994
    "1": lambda a: -a / (a**2 + 2),
    "2": lambda a: (a + 0.004) ** 5 - 2 * (a + 0.004) ** 4,
    "4": lambda a: sigma_mix(a, 0.001, 0.001),
    "5": lambda a: sigma_mix(a, 0.01, 0.001),
    "6": lambda a: sigma_mix(a, 0.001, 0.01),
    "not finite": lambda a: torch.where(a > 2, torch.inf, (a - 1.5) ** 2),
}


@pytest.mark.parametrize("name", MORE_THUENTE)
@pytest.mark.parametrize("first", [1e-3, 1e-1, 1e1, 1e3])
def test_the_line_search_finds_what_wolfe_asks_for(name, first):
    line = torch.func.grad_and_value(MORE_THUENTE[name])
    zero = torch.zeros((), dtype=F64)
    slope, value = line(zero)
    search = start_search(value, slope, zero + first, zero + INF)
    for _ in range(PATIENCE + 1):
        step = search.step
        here, at = line(step)
        here = torch.where(at.isfinite(), here, 0.0)
        search, accepted, failed = advance_search(search, at, here)
        if accepted:
            break
        assert not failed
    assert accepted
    assert at <= value + DECREASE * step * slope
    assert here.abs() <= CURVATURE * slope.abs() or search.trials > PATIENCE  # which the second function needs


ROUNDING = torch.finfo(F64).eps


@pytest.mark.parametrize(
    ("value", "slope", "trials", "ends", "expected"),
    [
        (0.999, 0.0, 0, False, True),  # a thousandth of what the slope promises is enough
        (0.9991, 0.0, 0, False, False),
        (1 + 50 * ROUNDING, 0.5, 0, False, True),  # where rounding hides that, the slope tells
        (1 + 150 * ROUNDING, 0.5, 0, False, False),
        (1 + 50 * ROUNDING, 0.9975, PATIENCE, False, True),
        (1 + 50 * ROUNDING, 0.9985, PATIENCE, False, False),
        (0.5, -0.9, 0, False, True),  # as flat as nine tenths
        (0.5, 0.9, 0, False, True),
        (0.5, -0.91, 0, False, False),
        (0.5, 0.91, 0, False, False),
        (0.5, -0.91, 0, True, True),  # the segment ends, and the loss goes on falling
        (0.5, 0.91, 0, True, False),
        (0.5, -0.91, PATIENCE - 1, False, False),
        (0.5, -0.91, PATIENCE, False, True),
    ],
)
def test_which_steps_a_line_search_accepts(value, slope, trials, ends, expected):
    """From a loss of 1 with slope −1."""
    one = torch.ones((), dtype=F64)
    search = start_search(one, -one, one, one if ends else INF * one)._replace(trials=trials * one)
    _, accepted, failed = advance_search(search, value * one, slope * one)
    assert (bool(accepted), bool(failed)) == (expected, False)


def test_a_line_search_fails_after_so_many_trials_or_where_its_interval_is_a_rounding():
    one = torch.ones((), dtype=F64)
    for trials, expected in ((TRIALS - 2, False), (TRIALS - 1, True)):
        search = start_search(one, -one, one, INF * one)._replace(trials=trials * one)
        assert bool(advance_search(search, 2 * one, one)[2]) == expected
    search = start_search(one, -one, one, INF * one)
    low = Point(one, one, -one)
    for far, expected in ((64 * ROUNDING, False), (ROUNDING, True)):
        search = search._replace(step=one + far, low=low, high=Point(one + far, 2 * one, one))
        assert bool(advance_search(search, 3 * one, one)[2]) == expected


@pytest.mark.parametrize("value", [INF, -INF, float("nan")])
def test_a_start_without_a_finite_loss_is_where_it_ends(value):
    solver, start = bx.lbfgsb(), torch.tensor([1.0, 2.0])
    updates, state = solver.update(torch.ones(2), solver.init(start), start, value=torch.tensor(value))
    assert not updates.any()
    assert bool(state.stalled)


def test_steps_of_problems_side_by_side():
    """As of each alone; of one the model is not finite, which takes a gradient step, as far as it knows."""
    generator = torch.Generator().manual_seed(5)
    draw = lambda *shape: torch.randn(shape, dtype=F64, generator=generator)  # noqa: E731
    count, size = 40, 4
    root = draw(size, size, count) * 10 ** torch.linspace(-2, 1, size, dtype=F64)[:, None]
    matrix = torch.einsum("kic,kjc->ijc", root, root)
    matrix[..., 0] = torch.nan
    slope, point = draw(size, count), torch.zeros(size, count, dtype=F64)
    lower, upper, side = -torch.rand(size, count, dtype=F64, generator=generator), draw(size, count).exp(), point
    fresh, held = torch.zeros(count, dtype=torch.bool), torch.zeros(count, dtype=torch.bool)
    for _ in range(3):
        step, following = box_step(DenseModel(matrix, fresh), point, slope, lower, upper, side)
        for i in range(count):
            parts = (part[..., i] for part in (point, slope, lower, upper, side))
            alone = box_step(DenseModel(matrix[..., i], fresh[i]), *parts)
            torch.testing.assert_close(step[:, i], alone.step, rtol=1e-7, atol=1e-9)
            assert torch.equal(following[:, i], alone.side)
        side, held = following, held | following.any(0)
    assert 0 < held.sum() < count
    torch.testing.assert_close(step[:, 0], (step[0, 0] / slope[0, 0] * slope[:, 0]).clamp(lower[:, 0], upper[:, 0]))
    assert step[:, 0].any()


@pytest.mark.parametrize(("gradient", "value"), [(INF, 1.0), (float("nan"), 1.0), (1.0, INF), (1.0, float("nan"))])
def test_what_is_not_finite_is_told_to_solvers_as_an_infinite_loss(gradient, value):
    slope, loss = finite(torch.tensor([gradient, 2.0]), torch.tensor(value))
    assert (slope.tolist(), float(loss)) == ([0.0, 0.0], INF)
    slope, loss = finite(torch.tensor([1.0, 2.0]), torch.tensor(3.0))
    assert (slope.tolist(), float(loss)) == ([1.0, 2.0], 3.0)


@pytest.mark.parametrize(("least", "expected"), [(0.01, 0.1), (1.99, 1.9), (1.5, 1.5)])
def test_the_line_search_keeps_away_from_the_ends_of_its_interval(least, expected):
    parabola = lambda a: (a - least) ** 2  # noqa: E731
    low, high = at(parabola, 0.0), at(parabola, 2.0)
    assert float(next_step(low, low, high, search_with())) == pytest.approx(expected)


def test_nothing_is_learned_from_a_trial_that_is_refused():
    solver, point = bx.lbfgsb(), torch.tensor([1.0, 2.0], dtype=F64)
    learned, slope = [], torch.tensor([1.0, 4.0], dtype=F64)
    state, value = solver.init(point), (slope @ point**2) / 2
    for rise in (0.0, 100.0, 0.0, 0.0, 0.0):  # the second trial is much worse than it should be
        updates, state = solver.update(slope * point, state, point, value=value + rise)
        point = point + updates
        value = (slope @ point**2) / 2
        learned.append(state.model)
    assert torch.equal(learned[1].matrix, learned[0].matrix)
    assert bool(learned[1].fresh)
    assert not bool(learned[-1].fresh)


def test_line_searches_side_by_side_end_at_their_own_bounds():
    model = DenseModel(torch.eye(2, dtype=F64).unsqueeze(-1).expand(2, 2, 2), torch.tensor([True, True]))
    point, direction = torch.zeros(2, 2, dtype=F64), torch.tensor([[1.0, 1.0], [0.0, 2.0]], dtype=F64)
    upper = torch.tensor([[8.0, 30.0], [5.0, 10.0]], dtype=F64)
    first, limit = _first_step(model, direction, point, -upper, upper)
    assert (first.tolist(), limit.tolist()) == ([1.0, 1.0], [8.0, 5.0])


@pytest.mark.parametrize(("upper", "limit"), [(None, 1e10), (30.0, 15.0), (0.5, 1.0)])
def test_a_line_search_ends_at_the_first_bound(upper, limit):
    """Which is so many of the first steps away; without one it ends somewhere too."""
    solver, start = bx.lbfgsb(bx.Box(-100.0, upper)), torch.zeros(2, dtype=F64)
    slope = torch.tensor([-2.0, 0.0], dtype=F64)
    _, state = solver.update(slope, solver.init(start), start, value=torch.zeros((), dtype=F64))
    assert float(state.search.limit) == limit


def test_line_searches_side_by_side():
    starts = torch.logspace(-3, 3, 7, dtype=F64)
    line = torch.func.grad_and_value(MORE_THUENTE["1"])

    def run(first):
        zero = torch.zeros_like(first)
        slope, value = line(zero)
        search = start_search(value, slope, first, zero + INF)
        steps = []
        for _ in range(3):
            here, at = line(search.step)
            search, accepted, _ = advance_search(search, at, here)
            steps.append(torch.stack([search.step, accepted.to(F64)]))
        return torch.stack(steps)

    torch.testing.assert_close(vmap(run)(starts), torch.stack([run(first) for first in starts]))
