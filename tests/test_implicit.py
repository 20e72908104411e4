"""Implicit derivatives: against closed forms, finite differences, and the unrolled solver."""

import pytest
import scipy.optimize
import torch
from torch.func import grad, hessian, jacfwd, jacrev, vmap

import boxopt as bx

SIZE = 6
START = torch.zeros(SIZE, dtype=torch.float64)


def numbers(*shape, seed=0):
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


ROOT = numbers(SIZE, SIZE)
CURVATURE = ROOT @ ROOT.T / SIZE + torch.eye(SIZE, dtype=torch.float64)
TARGET, WIDTH = 2 * numbers(SIZE, seed=1), torch.tensor(0.3, dtype=torch.float64)


def quadratic(x, target, width):
    return x @ CURVATURE @ x / 2 - target @ x


def quartic(x, target, width):
    """Its curvature depends on the bounds too."""
    return quadratic(x, target, width) + width * (x**4).sum() + (target**2 * x**3).sum() / 10


def bounds(target, width):
    return bx.Box(-width, width + torch.arange(SIZE, dtype=torch.float64) / 20)


def descent(objective, constraint=bounds, steps=100):
    """Projected gradient descent, as a solver."""

    def solver(x, *args):
        tx = bx.chain(bx.sgd(0.2), bx.project(constraint(*args)))

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(grad(objective)(x, *args), state, x)
            return (bx.apply_updates(x, updates), state), None

        return bx.unroll(step, (x, tx.init(x)), length=steps)[0][0]

    return solver


def by_scipy(objective):
    """A solver that torch knows nothing of."""

    def solver(x, *args):
        def value_and_slope(point):
            slope, value = torch.func.grad_and_value(objective)(torch.as_tensor(point), *args)
            return value.item(), slope.numpy()

        box = bounds(*args)
        limits = scipy.optimize.Bounds(box.lower.expand(SIZE).numpy(), box.upper.numpy())
        options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 1000}
        result = scipy.optimize.minimize(
            value_and_slope, x.numpy(), jac=True, bounds=limits, method="L-BFGS-B", options=options
        )
        return torch.as_tensor(result.x)

    return solver


METHODS = {"cg": {}, "dense": {}, "neumann": {"step_size": 0.2, "max_steps": 100}}


@pytest.mark.parametrize("jacobian", [jacrev, jacfwd])
@pytest.mark.parametrize("method", METHODS)
def test_bounded_quadratic_in_closed_form(method, jacobian):
    minimizer = bx.implicit_minimizer(descent(quadratic), quadratic, bounds, linear_solver=method, **METHODS[method])
    solution = minimizer(START, TARGET, WIDTH)
    assert solution.optimality < 1e-9
    side = bounds(TARGET, WIDTH).active(solution.params, 1e-9).double()
    free = side == 0
    assert 0 < free.sum() < SIZE
    of_target, of_width = jacobian(lambda *args: minimizer(START, *args).params, (0, 1))(TARGET, WIDTH)
    inverse = torch.linalg.inv(CURVATURE[free][:, free])
    expected = torch.zeros(SIZE, SIZE, dtype=torch.float64)
    expected[free.nonzero(), free.nonzero().T] = inverse
    torch.testing.assert_close(of_target, expected, rtol=1e-7, atol=1e-7)
    expected = side.clone()  # d lower = −1, d upper = 1
    expected[free] = -inverse @ CURVATURE[free][:, ~free] @ side[~free]
    torch.testing.assert_close(of_width, expected, rtol=1e-7, atol=1e-7)


def test_finite_differences():
    solver = descent(quartic, steps=150)
    minimizer = bx.implicit_minimizer(solver, quartic, bounds)
    by_others = bx.implicit_minimizer(by_scipy(quartic), quartic, bounds, sequential=True)

    def outer(solve):
        return lambda target, width: (solve(START, target, width) * torch.arange(SIZE)).sum()

    slopes = grad(outer(lambda *args: minimizer(*args).params), (0, 1))(TARGET, WIDTH)
    moves = torch.eye(SIZE + 1, dtype=torch.float64) * 1e-5
    ahead, behind = (vmap(outer(solver))(TARGET + s * moves[:, :-1], WIDTH + s * moves[:, -1]) for s in (1, -1))
    torch.testing.assert_close(torch.cat([slopes[0], slopes[1][None]]), (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6)
    theirs = grad(outer(lambda *args: by_others(*args).params), (0, 1))(TARGET, WIDTH)
    torch.testing.assert_close(slopes, theirs, rtol=1e-5, atol=1e-5)


def test_envelope_theorem():
    def f(x, lower, upper):
        return x @ CURVATURE @ x / 2 - TARGET @ x

    def box(lower, upper):
        return bx.Box(lower, upper)

    minimizer = bx.implicit_minimizer(descent(f, box, steps=150), f, box)
    walls = torch.full_like(START, -0.3), torch.full_like(START, 0.4)
    slopes = grad(lambda *walls: f(minimizer(START, *walls).params, *walls), (0, 1))(*walls)
    x = minimizer(START, *walls).params
    multiplier, side = grad(f)(x, *walls), box(*walls).active(x, 1e-9)
    for slope, number in zip(slopes, (-1, 1), strict=True):
        assert (side == number).any()
        torch.testing.assert_close(slope, torch.where(side == number, multiplier, 0.0), rtol=1e-8, atol=1e-8)


SETS = {
    "box": bounds,
    "simplex": lambda target, width: bx.sets.Simplex(total=1 + width),
    "l2ball": lambda target, width: bx.sets.L2Ball(width),
    "l1ball": lambda target, width: bx.sets.L1Ball(width),
    "none": lambda target, width: bx.Box(),
}


@pytest.mark.parametrize("method", ["cg", "dense"])
@pytest.mark.parametrize("name", SETS)
def test_equals_the_unrolled_solver(name, method):
    solver = descent(quartic, SETS[name])
    constraint = None if name == "none" else SETS[name]
    minimizer = bx.implicit_minimizer(solver, quartic, constraint, linear_solver=method, step_size=0.2)
    weights = numbers(SIZE, seed=2)
    outer = lambda solve: lambda target, width: (solve(target, width) * weights).sum()  # noqa: E731
    start = START + 1 / SIZE
    implicit = grad(outer(lambda *args: minimizer(start, *args).params), (0, 1))(TARGET, WIDTH)
    unrolled = grad(outer(lambda *args: solver(start, *args)), (0, 1))(TARGET, WIDTH)
    torch.testing.assert_close(implicit, unrolled, rtol=1e-6, atol=1e-6)
    forwards = jacfwd(outer(lambda *args: minimizer(start, *args).params), (0, 1))(TARGET, WIDTH)
    torch.testing.assert_close(implicit, forwards, rtol=1e-7, atol=1e-7)
    assert minimizer(start, TARGET, WIDTH).complementarity.isnan() == (name not in ("box", "none"))


def test_higher_derivatives():
    solver = descent(quartic, steps=60)
    minimizer = bx.implicit_minimizer(solver, quartic, bounds)

    def along(solve):
        return lambda t: (solve(START, t * TARGET, t * WIDTH) ** 3).sum()

    one = torch.ones((), dtype=torch.float64)
    for derivative in (hessian, lambda f: grad(grad(grad(f)))):
        implicit = derivative(along(lambda *args: minimizer(*args).params))(one)
        torch.testing.assert_close(implicit, derivative(along(solver))(one), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("sequential", [False, True])
def test_a_batch_of_tasks_is_a_loop_over_tasks(sequential):
    solver = by_scipy(quadratic) if sequential else descent(quadratic, steps=30)
    minimizer = bx.implicit_minimizer(solver, quadratic, bounds, sequential=sequential)
    targets = numbers(64, SIZE, seed=3)

    def outer(target, width):
        solution = minimizer(START, target, width)
        return (solution.params**2).sum(), solution.complementarity

    batched, margins = vmap(grad(outer, (0, 1), has_aux=True), (0, None))(targets, WIDTH)
    for number, target in enumerate(targets):
        single, margin = grad(outer, (0, 1), has_aux=True)(target, WIDTH)
        torch.testing.assert_close(tuple(x[number] for x in batched), single, rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(margins[number], margin, rtol=1e-6, atol=1e-9)
    total = grad(lambda width: vmap(outer, (0, None))(targets, width)[0].sum())(WIDTH)
    torch.testing.assert_close(total, batched[1].sum())


def test_complementarity_is_a_value():
    def f(x, target):
        return ((x - target) ** 2).sum() / 2

    minimizer = bx.implicit_minimizer(lambda x, target: target.clamp(0, 1), f, bx.Box(0.0, 1.0))
    targets = torch.tensor([[0.25, 1.5], [0.25, 1.0], [0.5, 0.9]])
    solutions = vmap(minimizer, (None, 0))(torch.zeros(2), targets)
    torch.testing.assert_close(solutions.complementarity, torch.tensor([0.25, 0.0, 0.1]))
    jacobians = vmap(jacrev(lambda target: minimizer(torch.zeros(2), target).params))(targets)
    torch.testing.assert_close(jacobians.diagonal(dim1=1, dim2=2), torch.tensor([[1.0, 0.0], [1.0, 1.0], [1.0, 1.0]]))


def test_trees_closures_and_fixed_coordinates():
    shift = torch.tensor(0.5)

    def outer(shift, fixed):
        def f(params):
            return ((params["a"] - shift) ** 2).sum() + ((params["b"] - params["a"].sum().double()) ** 2).sum()

        def solver(params):  # of a fixed b
            a = (2 * shift + 2 * fixed.float()) / 4
            return {"a": a.reshape(1), "b": fixed.reshape(1), "c": None}

        box = bx.Box({"a": None, "b": fixed, "c": None}, {"a": None, "b": fixed, "c": None})
        minimizer = bx.implicit_minimizer(solver, f, box)
        found = minimizer({"a": torch.zeros(1), "b": torch.zeros(1, dtype=torch.float64), "c": None}).params
        return found["a"].sum(), found["b"].sum()

    of_shift, of_fixed = jacrev(outer, (0, 1))(shift, torch.tensor(2.0, dtype=torch.float64))[0]
    torch.testing.assert_close(of_shift, torch.tensor(0.5))
    torch.testing.assert_close(of_fixed, torch.tensor(0.5, dtype=torch.float64))
    assert jacrev(outer, 1)(shift, torch.tensor(2.0, dtype=torch.float64))[1] == 1


def test_autograd_too():
    target = TARGET.clone().requires_grad_()
    minimizer = bx.implicit_minimizer(descent(quadratic), quadratic, bounds)
    minimizer(START, target, WIDTH).params.sum().backward()
    expected = grad(lambda target: minimizer(START, target, WIDTH).params.sum())(TARGET)
    torch.testing.assert_close(target.grad, expected)


@pytest.mark.parametrize(
    "options", [{"linear_solver": "lu"}, {"step_size": 0.0}, {"tolerance": -1.0}, {"max_steps": 0}]
)
def test_bad_options(options):
    with pytest.raises(ValueError, match=next(iter(options))):
        bx.implicit_minimizer(lambda x: x, lambda x: x.sum(), **options)


def test_through_minimize():
    """A batch of problems, each solved to its own end, with respect to data and bounds."""
    targets, upper = numbers(5, SIZE, seed=4), 0.2 + numbers(5, SIZE, seed=5).abs()

    def loss(x, target, upper):
        return quadratic(x, target, None) + (x**4).sum() / 10

    def solve(x, targets, upper):
        solver = bx.lbfgsb(bx.Box(-0.3, upper))
        return bx.minimize(loss, x, solver, args=(targets, upper), batch_dims=1, tol=1e-10).params

    def losses(x, targets, upper):
        return vmap(loss)(x, targets, upper).sum()

    minimizer = bx.implicit_minimizer(solve, losses, lambda targets, upper: bx.Box(-0.3, upper))

    def outer(targets, upper):
        return (minimizer(START.expand(5, SIZE), targets, upper).params * torch.arange(SIZE)).sum()

    slopes = grad(outer, (0, 1))(targets, upper)
    moves = [numbers(5, SIZE, seed=seed) for seed in (6, 7)]
    ahead, behind = (outer(targets + h * moves[0], upper + h * moves[1]) for h in (1e-5, -1e-5))
    along = sum((slope * move).sum() for slope, move in zip(slopes, moves, strict=True))
    assert all(slope.any() for slope in slopes)
    torch.testing.assert_close(along, (ahead - behind) / 2e-5, rtol=1e-6, atol=1e-6)


def test_what_does_not_depend_on_anything_has_derivative_0():
    """The point from which the solver starts, and tangents of nothing else."""
    minimizer = bx.implicit_minimizer(descent(quartic, steps=5), quartic, bounds)
    solution, tangent = torch.func.jvp(lambda start: minimizer(start, TARGET, WIDTH).params, (START,), (START + 1,))
    assert torch.equal(solution, minimizer(START, TARGET, WIDTH).params)
    assert not tangent.any()


def test_few_steps_of_conjugate_gradients_are_an_approximation():
    exact = bx.implicit_minimizer(descent(quartic, steps=150), quartic, bounds, linear_solver="dense")
    few = [
        bx.implicit_minimizer(descent(quartic, steps=150), quartic, bounds, max_steps=count) for count in (1, SIZE + 2)
    ]
    slope = lambda solve: grad(lambda target: solve(START, target, WIDTH).params.sum())(TARGET)  # noqa: E731
    errors = [float((slope(solve) - slope(exact)).abs().max()) for solve in few]
    assert 1e-6 < errors[0] < 1
    assert errors[1] < 1e-8
