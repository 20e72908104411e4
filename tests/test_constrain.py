"""The six ways, the regularizers and the diagnostics, against closed forms, SciPy and scikit-learn."""

import numpy as np
import pytest
import scipy.optimize
import torch
from sklearn.linear_model import ElasticNet, Lasso
from torch.func import grad

import boxopt as bx

DOUBLE = torch.float64
KINDS = ["quadratic", "exact", "huber"]


def problem(seed=0, samples=40, size=6):
    g = torch.Generator().manual_seed(seed)
    matrix = torch.randn(samples, size, generator=g, dtype=DOUBLE)
    target = matrix @ torch.linspace(-1.5, 1.5, size, dtype=DOUBLE) + 0.1 * torch.randn(
        samples, generator=g, dtype=DOUBLE
    )
    return matrix, target


def least_squares(matrix, target):
    return lambda x: ((matrix @ x - target) ** 2).sum() / (2 * len(target))


def descend(tx, loss, params, steps=600, **kwargs):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(grad(loss)(params), state, params)
        params = bx.apply_updates(params, updates, **kwargs)
    return params


# --- the box itself ------------------------------------------------------------------------------------------------


def test_corners_of_a_box():
    """Where the coefficient is 0: the middle, or what is nearest to 0 where there is none."""
    inf = torch.inf
    box = bx.Box(torch.tensor([-1.0, 2.0, -inf, -inf]), torch.tensor([4.0, inf, 5.0, -3.0]))
    assert box.linear_minimizer(torch.zeros(4)).tolist() == [1.5, 2.0, 0.0, -3.0]
    assert box.linear_minimizer(torch.full((4,), 0.5)).tolist() == [-1.0, 2.0, -inf, -inf]
    assert box.linear_minimizer(torch.full((4,), -0.5)).tolist() == [4.0, inf, 5.0, -3.0]


def test_leaves_without_numbers_are_feasible():
    box, params = bx.Box({"a": 0.0, "b": None}, 1.0), {"a": torch.zeros(0, 3), "b": torch.tensor([1.5, -9.0])}
    assert float(box.violation(params)) == 0.5
    assert float(box.violation({"a": params["a"], "b": params["b"][:0]})) == 0
    assert float(box.barrier(params | {"b": torch.zeros(2)})) == 0


def test_violations_are_distances():
    for box, x, expected in (
        (bx.Box(-1.0, 1.0), [-3.0, 2.5], 2.0),
        (bx.Box(-1.0, 1.0), [-1.5, 2.5], 1.5),
        (bx.Box(0.5, 1.0), [-1.0, 0.75], 1.5),
        (bx.Box(None, -0.5), [-1.0, 0.75], 1.25),
        (bx.Box(-0.5), [-2.0, 9.0], 1.5),
        (bx.Box(-1.0, 1.0), [-1.0, 1.0], 0.0),
    ):
        assert float(box.violation(torch.tensor(x))) == expected


def test_landing_is_on_the_bound_itself():
    start = torch.tensor([0.3])
    assert float(start + bx.Box(0.0, 1.0).land(start, torch.tensor([1.0]))) == 1.0


@pytest.mark.parametrize("sign", [-1.0, 1.0])
def test_landing_beyond_the_largest_number_is_finite(sign):
    far = torch.tensor([sign * 3e38])
    for start in (-far, (-far).requires_grad_()):
        update = bx.Box(-3e38, 3e38).land(start, far)
        assert update.tolist() == [sign * torch.finfo(torch.float32).max]


def test_the_relaxation_of_a_barrier_may_be_of_another_dtype():
    x = torch.tensor([0.25, 2.0])
    relax = torch.tensor(0.125, dtype=torch.float64)
    box = bx.Box(0.0, 1.0)
    slopes, value = box.barrier_gradient(x, relax), box.barrier(x, relax)
    assert (slopes.dtype, value.dtype) == (torch.float32, torch.float32)
    # Inside 1/(1 − x) − 1/x; outside −log(slack) is continued by its parabola at δ, of the slope (2 − slack/δ)/δ.
    torch.testing.assert_close(slopes, torch.tensor([1 / 0.75 - 1 / 0.25, -1 / 2 + (2 + 1 / 0.125) / 0.125]))


def test_penalties_by_default_and_by_a_schedule():
    box, x = bx.Box(0.0, 1.0), torch.tensor([3.0, 0.5, -1.0])
    assert float(bx.penalty(box, x)) == 2.5
    tx = bx.add_penalty(box, bx.linear_schedule(1.0, 3.0, 1))
    state = tx.init(x)
    for weight in (1.0, 3.0):
        updates, state = tx.update(torch.zeros(3), state, x)
        assert updates.tolist() == [2 * weight, 0.0, -weight]


def test_what_strengths_are_by_default():
    """δ of the Huber penalty is 1, and a barrier is continued below 1e-3 of the width."""
    box, x, zero = bx.Box(0.0, 1.0), torch.tensor([4.0, 1.5, -0.5, -3.0]), torch.zeros(4)
    assert bx.penalty(box, x, "huber").item() == 2.5 + 0.125 + 0.125 + 2.5
    add, move = bx.add_penalty(box, 2.0, "huber"), bx.penalize(box, 1.0, "huber")
    assert add.update(zero, add.init(x), x)[0].tolist() == [2.0, 1.0, -1.0, -2.0]
    assert move.update(zero, move.init(x), x)[0].tolist() == [-1.0, -0.25, 0.25, 1.0]
    add = bx.add_barrier(box, 0.5)
    assert add.update(zero[:1], add.init(zero[:1]), zero[:1])[0].item() == pytest.approx(0.5 * (1 - 2 / 1e-3))
    for value in (lambda x: bx.log_barrier(box, x), box.barrier):
        assert grad(value)(zero[:1]).item() == pytest.approx(1 - 2 / 1e-3)
    assert box.barrier_gradient(zero[:1]).item() == pytest.approx(1 - 2 / 1e-3)


SIMPLEX = bx.sets.Simplex()
STEPS = {
    "project": bx.project(bx.Box(0.0, 1.0)),
    "simplex": bx.project(SIMPLEX),
    "straight through": bx.project(SIMPLEX, straight_through=True),
    "projected": bx.projected(bx.sgd(0.1), SIMPLEX),
    "noisy": bx.projected(bx.sgd(0.1), SIMPLEX, deterministic=False),
    "barrier": bx.barrier(bx.Box(0.0, 1.0), 0.1),
    "penalize": bx.penalize(bx.Box(0.0, 1.0), 0.1),
    "prox": bx.prox(bx.L1(0.1)),
    "mirror": bx.mirror(SIMPLEX),
    "exponentiated": bx.exponentiated_gradient(0.1),
    "frank-wolfe": bx.frank_wolfe(SIMPLEX),
    "short": bx.frank_wolfe(SIMPLEX, lipschitz=1.0),
}
ADDED = [bx.tangent(SIMPLEX), bx.add_penalty(SIMPLEX, 1.0), bx.add_barrier(bx.Box(0.0), 1.0)]


@pytest.mark.parametrize("name", STEPS)
def test_only_steps_follow_a_step(name):
    for after in (bx.scale(0.5), bx.trace(0.9), *ADDED):
        with pytest.raises(ValueError, match="a finished step into a set"):
            bx.chain(STEPS[name], after)
        bx.chain(after, STEPS[name])
    bx.chain(STEPS[name], bx.project(SIMPLEX))


@pytest.mark.parametrize("constraint", [SIMPLEX, bx.sets.L2Ball(0.5), bx.Box(-0.1, 0.6)], ids=str)
@pytest.mark.parametrize("step_size", [0.5, torch.tensor([0.1, 2.0, 0.7])], ids=["number", "metric"])
def test_projections_are_in_the_metric_of_the_step_size(constraint, step_size):
    """The derivative straight through is that of the update alone; without it, that of the projection."""
    params = constraint.project(torch.tensor([0.5, 0.3, 0.2]))
    updates = torch.tensor([0.7, -0.4, 0.1])
    extra = {} if isinstance(constraint, bx.Box) else {"step_size": step_size}  # in a box the metric is of no matter

    def land(updates, tx, **extra):
        return tx.update(updates, tx.init(params), params, **extra)[0]

    plain, through = bx.project(constraint), bx.project(constraint, straight_through=True)
    expected = constraint.project(params + updates, step_size) - params
    for landed in (land(updates, plain, **extra), land(updates, through, step_size=step_size)):
        torch.testing.assert_close(landed, expected, rtol=1e-5, atol=1e-6)
    slopes = torch.func.jacrev(lambda u: land(u, through, step_size=step_size))(updates)
    torch.testing.assert_close(slopes, torch.eye(3))
    slopes = torch.func.jacrev(lambda u: land(u, plain, **extra))(updates)
    expected = torch.func.jacrev(lambda u: constraint.project(params + u, step_size))(updates)
    torch.testing.assert_close(slopes, expected, rtol=1e-5, atol=1e-5)


def test_a_step_of_unknown_size_counts_as_one_of_size_1():
    params = torch.tensor([0.5, 0.3, 0.2])
    updates = torch.tensor([0.7, -0.4, 0.1])
    for tx in (STEPS[name] for name in ("simplex", "straight through", "barrier", "penalize", "prox", "mirror")):
        alone = tx.update(updates, tx.init(params), params)[0]
        torch.testing.assert_close(alone, tx.update(updates, tx.init(params), params, step_size=1.0)[0], rtol=0, atol=0)


def test_adam_reaches_a_vertex_of_the_simplex():
    """With the nearest point in Adam's metric; the nearest in the plain one would never leave the centre."""
    costs = torch.tensor([1.0, 2.0, 3.0])
    for straight in (False, True):
        tx = bx.chain(bx.adam(0.05), bx.project(SIMPLEX, straight_through=straight))
        found = descend(tx, lambda x: costs @ x, torch.full((3,), 1 / 3), 60)
        torch.testing.assert_close(found, torch.tensor([1.0, 0.0, 0.0]), atol=1e-5, rtol=0)


def test_a_quadratic_penalty_on_the_distance_from_a_ball():
    """Half of the way to (0.6, 0.8), since ρη = 1. The other penalties are of coordinates."""
    ball, start, params = bx.sets.L2Ball(1.0), torch.tensor([3.0, 4.0]), torch.zeros(2)
    tx = bx.penalize(ball, 0.5)
    updates, _ = tx.update(start, tx.init(params), params, step_size=2.0)
    torch.testing.assert_close(updates, torch.tensor([1.8, 2.4]))
    steps = torch.tensor([1.0, 4.0])  # in a metric: ρ(x − P(x)) + (x − y)/η = 0
    x = tx.update(start, tx.init(params), params, step_size=steps)[0]
    torch.testing.assert_close(0.5 * (x - ball.project(x)), (start - x) / steps, atol=1e-5, rtol=1e-5)
    tx = bx.penalize(ball, 0.0)
    torch.testing.assert_close(tx.update(start, tx.init(params), params)[0], start)
    for make in (lambda: bx.penalize(ball, 1.0, "exact"), lambda: bx.add_penalty(ball, 1.0, "huber")):
        with pytest.raises(ValueError, match="is made coordinate by coordinate, which L2Ball is not"):
            make()


# --- fixed points: each chain ends at the solution of the problem that it stands for -------------------------------


@pytest.mark.parametrize(
    "optimizer",
    [bx.sgd(0.5), bx.adam(bx.exponential_decay(0.1, 50, 0.7)), bx.adagrad(0.5)],
    ids=["sgd", "adam", "adagrad"],
)
@pytest.mark.parametrize("start", [0.0, 3.0])
def test_projected_descent_against_scipy(optimizer, start):
    matrix, target = problem()
    reference = scipy.optimize.lsq_linear(matrix.numpy(), target.numpy(), (-1.0, 0.5), tol=1e-14).x
    box = bx.Box(-1.0, 0.5)
    tx = bx.chain(optimizer, bx.project(box))
    params = descend(tx, least_squares(matrix, target), torch.full((6,), start, dtype=DOUBLE), 1500, within=box)
    np.testing.assert_allclose(params.numpy(), reference, atol=1e-6)
    assert float(bx.violation(box, params)) == 0
    assert float(bx.optimality(box, params, grad(least_squares(matrix, target))(params))) < 1e-6


@pytest.mark.parametrize(
    "optimizer", [bx.sgd(0.5), bx.rmsprop(bx.exponential_decay(0.05, 100, 0.5))], ids=["sgd", "rmsprop"]
)
def test_barrier_ends_at_the_minimum_of_the_barrier_function(optimizer):
    """Also after an adaptive scaler: the proximal step is taken in its metric."""
    matrix, target = problem()
    mu, box, loss = 0.02, bx.Box(-1.0, 0.5), least_squares(matrix, target)
    params = descend(bx.chain(optimizer, bx.barrier(box, mu)), loss, torch.zeros(6, dtype=DOUBLE), 3000)
    total = grad(lambda x: loss(x) + mu * bx.log_barrier(box, x, relax=0.0))(params)
    assert float(total.abs().max()) < 1e-5


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("way", ["step", "gradient"])
def test_penalties_end_at_the_minimum_of_the_penalized_function(kind, way):
    matrix, target = problem()
    weight, box, loss = 0.4, bx.Box(-1.0, 0.5), least_squares(matrix, target)
    options = {"kind": kind, "delta": 0.2}
    step = bx.penalize(box, weight, **options)
    tx = bx.chain(bx.sgd(0.3), step) if way == "step" else bx.chain(bx.add_penalty(box, weight, **options), bx.sgd(0.1))
    params = descend(tx, loss, torch.zeros(6, dtype=DOUBLE), 2000)
    slope = grad(lambda x: loss(x) + weight * bx.penalty(box, x, **options))(params)
    # Where the exact penalty's minimum is on the wall, its slope is a subgradient: between 0 and the weight.
    smooth = (params != 0.5) & (params != -1.0)
    if way == "gradient" and kind == "exact":  # hops around the wall, as subgradient descent does
        smooth &= ((params - 0.5).abs() > 0.1) & ((params + 1).abs() > 0.1)
    assert float(slope[smooth].abs().max()) < 1e-6
    assert float(slope.abs().max()) <= weight + 0.5


def test_an_exact_penalty_is_exact_above_the_multiplier():
    matrix, target = problem()
    box = bx.Box(-1.0, 0.5)
    reference = scipy.optimize.lsq_linear(matrix.numpy(), target.numpy(), (-1.0, 0.5), tol=1e-14).x
    params = descend(
        bx.chain(bx.sgd(0.3), bx.penalize(box, 10.0, "exact")),
        least_squares(matrix, target),
        torch.zeros(6, dtype=DOUBLE),
        1500,
    )
    np.testing.assert_allclose(params.numpy(), reference, atol=1e-8)


def test_lasso_with_nonnegative_coefficients_against_scikit_learn():
    matrix, target = problem()
    reference = (
        Lasso(alpha=0.1, positive=True, fit_intercept=False, tol=1e-12, max_iter=100_000)
        .fit(matrix.numpy(), target.numpy())
        .coef_
    )
    tx = bx.chain(bx.sgd(0.3), bx.prox(bx.L1(0.1)), bx.project(bx.sets.NonNegative()))
    params = descend(tx, least_squares(matrix, target), torch.zeros(6, dtype=DOUBLE), 2000)
    np.testing.assert_allclose(params.numpy(), reference, atol=1e-8)
    assert ((params.numpy() == 0) == (reference == 0)).all()


def test_elastic_net_against_scikit_learn():
    matrix, target = problem()
    fit = ElasticNet(alpha=0.2, l1_ratio=0.25, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(
        matrix.numpy(), target.numpy()
    )
    tx = bx.chain(bx.sgd(0.3), bx.prox(bx.ElasticNet(0.2 * 0.25, 0.2 * 0.75)))
    params = descend(tx, least_squares(matrix, target), torch.zeros(6, dtype=DOUBLE), 2000)
    np.testing.assert_allclose(params.numpy(), fit.coef_, atol=1e-8)


@pytest.mark.parametrize("tx", [bx.rmsprop(0.02), bx.adagrad(0.3)], ids=["rmsprop", "adagrad"])
def test_lasso_after_an_adaptive_scaler(tx):
    """The threshold follows the step size of each coordinate; a threshold of lr · λ would end elsewhere."""
    matrix, target = problem()
    reference = (
        Lasso(alpha=0.3, fit_intercept=False, tol=1e-12, max_iter=100_000).fit(matrix.numpy(), target.numpy()).coef_
    )
    tx = bx.adagrad(0.3)
    params = descend(
        bx.chain(tx, bx.prox(bx.L1(0.3))), least_squares(matrix, target), torch.ones(6, dtype=DOUBLE), 4000
    )
    np.testing.assert_allclose(params.numpy(), reference, atol=1e-5)


# --- single steps --------------------------------------------------------------------------------------------------


def test_the_order_of_prox_and_projection():
    """min |x| + (x − 3)²/2 over [0, 2] is at 2: prox, then project. The other order ends at 1."""
    params, box = torch.tensor([3.0]), bx.Box(0.0, 2.0)
    steps = {}
    for name, order in {
        "prox, project": (bx.prox(bx.L1(1.0)), bx.project(box)),
        "project, prox": (bx.project(box), bx.prox(bx.L1(1.0))),
    }.items():
        tx = bx.chain(*order)
        steps[name] = float(params + tx.update(torch.zeros(1), tx.init(params), params)[0])
    grid = torch.linspace(0, 2, 2001)
    assert float(grid[(grid.abs() + (grid - 3) ** 2 / 2).argmin()]) == 2.0
    assert steps == {"prox, project": 2.0, "project, prox": 1.0}


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("rho", [1e-3, 1.0, 1e3])
def test_penalty_steps_minimize_what_they_say(kind, rho):
    """Against SciPy's scalar minimization, from every side."""
    box, eta, delta = bx.Box(-1.0, 0.5), 0.7, 0.3
    for y in (-9.0, -1.2, -1.0, 0.0, 0.6, 4.0):
        tx = bx.chain(bx.scale(eta), bx.penalize(box, rho, kind, delta))
        params = torch.tensor(y, dtype=DOUBLE)
        x = float(params + tx.update(torch.zeros((), dtype=DOUBLE), tx.init(params), params)[0])

        def objective(z, y=y):
            return rho * float(bx.penalty(box, torch.tensor(z, dtype=DOUBLE), kind, delta)) + (z - y) ** 2 / (2 * eta)

        best = scipy.optimize.minimize_scalar(objective, bounds=(-10, 10), method="bounded", options={"xatol": 1e-10})
        assert objective(x) <= best.fun + 1e-12
        assert abs(x - best.x) < 1e-4


@pytest.mark.parametrize("kind", KINDS)
def test_add_penalty_adds_the_gradient_of_penalty(kind):
    box, params = bx.Box(-1.0, 0.5), torch.tensor([-3.0, -1.1, 0.2, 0.6, 5.0], dtype=DOUBLE)
    tx = bx.add_penalty(box, 1.7, kind, 0.4)
    added, _ = tx.update(torch.ones(5, dtype=DOUBLE), tx.init(params), params)
    torch.testing.assert_close(added, 1 + 1.7 * grad(lambda x: bx.penalty(box, x, kind, 0.4))(params))


def test_penalties_are_two_sided():
    params = torch.tensor([-2.0, 2.0])
    for kind in KINDS:
        step, _ = bx.penalize(bx.Box(-1.0, 1.0), 1.0, kind).update(torch.zeros(2), bx.EmptyState(), params)
        assert step[0] > 0
        assert step[1] < 0


@pytest.mark.parametrize("box", [bx.Box(-1.0, 0.5), bx.Box(lower=0.0), bx.Box(upper=1.0), bx.Box()], ids=str)
def test_add_barrier_adds_the_gradient_of_log_barrier(box):
    params = torch.tensor([-3.0, -0.999, 0.2, 0.4999, 5.0], dtype=DOUBLE)
    tx = bx.add_barrier(box, 0.3, relax=0.01)
    added, _ = tx.update(torch.ones(5, dtype=DOUBLE), tx.init(params), params)
    torch.testing.assert_close(added, 1 + 0.3 * grad(lambda x: bx.log_barrier(box, x, relax=0.01))(params))
    assert torch.isfinite(added).all()


def test_log_barrier_value():
    x = torch.tensor([0.1, 0.5, 0.9], dtype=DOUBLE)
    expected = -(torch.log(x) + torch.log(1 - x)).sum()
    torch.testing.assert_close(bx.log_barrier(bx.Box(0.0, 1.0), {"a": x[:2], "b": x[2]}), expected)
    assert bx.log_barrier(bx.Box(0.0, 1.0), torch.tensor([2.0]), relax=0.0) == torch.inf


def test_tangent():
    box = bx.Box(0.0, 1.0)
    params = torch.tensor([0.0, 0.0, -1.0, 0.5, 1.0, 1.0, 2.0])
    gradient = torch.tensor([1.0, -1.0, 1.0, 1.0, -1.0, 1.0, -1.0])
    dropped, _ = bx.tangent(box).update(gradient, bx.EmptyState(), params)
    assert dropped.tolist() == [0.0, -1.0, 0.0, 1.0, 0.0, 1.0, 0.0]


def test_schedules_advance_and_the_step_size_is_that_of_the_step_made():
    box = bx.Box(lower=0.0)
    tx = bx.chain(bx.sgd(bx.linear_schedule(1.0, 0.0, 4)), bx.barrier(box, bx.linear_schedule(2.0, 0.0, 4)))
    params, state = torch.tensor(1.0, dtype=DOUBLE), None
    state = tx.init(params)
    for step in range(5):
        lr, mu = 1 - step / 4, 2 - step / 2
        updates, state = tx.update(torch.tensor(0.5, dtype=DOUBLE), state, params)
        expected = box.prox_barrier(params - lr * 0.5, mu * lr)
        params = bx.apply_updates(params, updates)
        torch.testing.assert_close(params, expected)


# --- convention at ties, and fixed coordinates -----------------------------------------------------------------------


def test_derivative_at_a_tie_is_that_of_the_identity():
    x = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5], requires_grad=True)
    low, high = (torch.full((5,), value, requires_grad=True) for value in (0.0, 1.0))
    bx.Box(low, high).project(x).sum().backward()
    assert x.grad.tolist() == [1, 1, 0, 0, 1]
    assert low.grad.tolist() == [0, 0, 1, 0, 0]
    assert high.grad.tolist() == [0, 0, 0, 1, 0]


@pytest.mark.parametrize("backend", ["eager", "inductor"])
@pytest.mark.parametrize("kind", ["numbers", "tensors", "one of each"])
def test_derivative_at_a_tie_is_that_of_the_identity_in_every_mode(kind, backend):
    """torch's own ``clamp`` has 1 there until torch 2.13, and from 2.14 on 0 for numbers and 1/2 for tensors."""
    x = torch.tensor([0.0, 1.0, -1.0, 2.0, 0.5])
    low, high = (torch.full((5,), value) for value in (0.0, 1.0))
    box = {"numbers": bx.Box(0.0, 1.0), "tensors": bx.Box(low, high), "one of each": bx.Box(0.0, high)}[kind]
    tx, clip = bx.project(box), bx.clip({"numbers": 1.0}.get(kind, torch.tensor(1.0)))

    def projected(x):
        return box.project(x).sum()

    def after(x):
        return (x + tx.update(torch.zeros(5), bx.EmptyState(), x)[0]).sum()

    def clipped(x):
        return clip.update(2 * x - 1, bx.EmptyState(), x)[0].sum() / 2

    for function in (projected, after, clipped):
        torch._dynamo.reset()
        derivative = torch.compile(torch.func.grad(function), fullgraph=True, backend=backend)
        assert derivative(x).tolist() == [1, 1, 0, 0, 1]


def test_fixed_coordinates_stay():
    box = bx.Box(torch.tensor([0.3, -1.0]), torch.tensor([0.3, 1.0]))
    params = torch.tensor([0.3, 0.0])
    tx = bx.chain(bx.adam(0.1), bx.project(box), bx.barrier(box, 1e-3))
    after = descend(tx, lambda x: ((x - 5) ** 2).sum(), params, 50)
    assert after[0] == params[0]
    assert 0.5 < after[1] < 1


def test_bounds_as_prefixes_of_any_depth():
    params = {
        "a": {"w": torch.tensor([2.0]), "b": torch.tensor([-2.0])},
        "c": [torch.tensor([9.0]), torch.tensor([-9.0])],
    }
    box = bx.Box(lower={"a": 0.0, "c": [None, -1.0]}, upper={"a": {"w": 1.0, "b": None}, "c": 3.0})
    box.check(params)
    projected = box.project(params)
    assert projected["a"]["w"] == 1
    assert projected["a"]["b"] == 0
    assert projected["c"][0] == 3
    assert projected["c"][1] == -1


def test_numpy_bounds():
    box = bx.Box(np.array([0.0, 1.0]), np.float32(2.0))
    assert box.project(torch.tensor([-1.0, 5.0])).tolist() == [0.0, 2.0]


def test_box_is_a_pytree_and_immutable():
    box = bx.Box(torch.zeros(3), torch.ones(3))
    doubled = torch.utils._pytree.tree_map(lambda x: x * 2, box)
    assert isinstance(doubled, bx.Box)
    assert doubled.upper.tolist() == [2.0, 2.0, 2.0]
    batched = torch.func.vmap(lambda box, x: box.project(x))(box, torch.tensor([-1.0, 0.5, 2.0]))
    assert batched.tolist() == [0.0, 0.5, 1.0]
    with pytest.raises(AttributeError):
        box.lower = 0.0


# --- diagnostics -----------------------------------------------------------------------------------------------------


def test_violation_and_feasibility():
    box = bx.Box(0.0, {"a": 1.0, "b": None})
    params = {"a": torch.tensor([0.5, 3.0]), "b": torch.tensor([-0.25], dtype=torch.float64)}
    assert float(bx.violation(box, params)) == 2.0
    assert not bx.is_feasible(box, params)
    assert bx.is_feasible(box, box.project(params))
    assert bx.violation(box, {"a": torch.tensor([float("nan")]), "b": torch.tensor(1.0)}).isnan()
    assert float(bx.violation(bx.Box(0.0), {})) == 0.0


def test_diagnostics_under_vmap():
    params, bound = torch.tensor([[0.5, 2.0], [0.5, 1.5]]), torch.tensor([1.0, 2.0])
    vmap = torch.func.vmap
    assert vmap(lambda p, b: bx.violation(bx.Box(-b, b), p))(params, bound).tolist() == [1.0, 0.0]
    assert vmap(lambda p, b: bx.is_feasible(bx.Box(-b, b), p))(params, bound).tolist() == [False, True]
    assert vmap(lambda p, b: bx.active(bx.Box(-b, b), p, 0.5))(params, bound).tolist() == [[1, 1], [0, 1]]
    assert vmap(lambda p, b: bx.optimality(bx.Box(-b, b), p, p))(params, bound).tolist() == [1.0 + 1.0, 1.5]


def test_active():
    box = bx.Box(torch.tensor([0.0, 0.0, 0.0, 0.5]), torch.tensor([1.0, 1.0, 1.0, 0.5]))
    assert bx.active(box, torch.tensor([0.0, 0.9, 1.0, 0.5])).tolist() == [-1, 0, 1, -1]
    assert bx.active(box, torch.tensor([0.0, 0.9, 1.0, 0.5]), tolerance=0.2).tolist() == [-1, 1, 1, -1]


def test_boxes_by_path_are_made_coordinate_by_coordinate_whatever_their_bounds_are():
    """Bounds that are tensors, of an ensemble's members say, are given whole leaves, and no less separable."""
    params, gradients = (
        {"a": torch.tensor([3.0, -1.0]), "b": torch.tensor([2.0])},
        {"a": torch.ones(2), "b": torch.ones(1)},
    )
    for make in (
        lambda box: bx.chain(bx.sgd(0.1), bx.penalize(box, 0.5, "huber")),
        lambda box: bx.chain(bx.freeze_active(bx.sgd(0.1), box), bx.project(box)),
    ):
        results = []
        for number in (float, torch.tensor):
            tx = bx.packed(make(bx.sets.ByPath({"a": bx.Box(number(0.0), number(1.0))})))
            results.append(tx.update(gradients, tx.init(params), params)[0])
        torch.testing.assert_close(results[0], results[1])


def test_strengths_that_16_bits_do_not_hold():
    """They are numbers of float32, in which 16-bit leaves are computed: no 0 · inf where the barrier is flat."""
    x = torch.tensor([0.0, 0.5], dtype=torch.float16)
    for mu in (1e30, torch.tensor(1e30, dtype=torch.float64)):
        tx = bx.add_barrier(bx.Box(-100.0, 100.0), mu)
        assert tx.update(torch.zeros_like(x), tx.init(x), x)[0].tolist() == [0.0, torch.inf]


def test_an_intersection_is_coordinatewise_if_its_sets_are():
    """So a penalty that is made coordinate by coordinate takes some, and is the box's."""
    both, box = bx.sets.Intersection(bx.Box(None, 1.0), bx.sets.NonNegative()), bx.Box(0.0, 1.0)
    params, gradients = torch.tensor([-2.0, 0.5, 3.0]), torch.tensor([0.1, -0.2, 0.3])
    for kind in ("exact", "huber"):
        of_both, of_box = (bx.chain(bx.sgd(0.5), bx.penalize(each, 0.3, kind)) for each in (both, box))
        updates = [tx.update(gradients, tx.init(params), params)[0] for tx in (of_both, of_box)]
        torch.testing.assert_close(*updates)
    with pytest.raises(ValueError, match="coordinate by coordinate"):
        bx.penalize(bx.sets.Intersection(box, bx.sets.Simplex()), 0.3, "exact")
