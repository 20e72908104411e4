"""Barriers beyond the box: against cvxpy, optimality conditions and closed forms, strictly inside in every dtype."""

from typing import Any

import cvxpy as cp
import numpy as np
import pytest
import torch
from torch.func import vmap

import boxopt as bx

S = bx.sets
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
_generator = torch.Generator().manual_seed(3)


def draw(shape, seed=0, scale=1.0, dtype=torch.float64):
    generator = torch.Generator().manual_seed(seed)
    return (scale * torch.randn(shape, generator=generator, dtype=torch.float64)).to(dtype)


NORMAL = draw(5, 1)
WIDE, SOME = draw((3, 5), 2), draw((8, 5), 4)
TALL = torch.cat([SOME, -SOME.sum(0, keepdim=True)])  # bounded, for the rows span the space and add up to 0

SETS: dict[str, Any] = {
    "Halfspace": lambda h: S.Halfspace(NORMAL, h),
    "Polyhedron wide": lambda h: S.Polyhedron(WIDE, h * torch.tensor([1.0, 0.5, 2.0], dtype=torch.float64)),
    "Polyhedron tall": lambda h: S.Polyhedron(TALL, h * torch.linspace(0.5, 2, 9, dtype=torch.float64)),
    "Simplex": lambda h: S.Simplex(h),
    "L2Ball": lambda h: S.L2Ball(h),
    "LInfBall": lambda h: S.LInfBall(h),
    "SecondOrderCone": lambda h: S.SecondOrderCone(),
    "PSD": lambda h: S.PSD(),
}
SIZE = torch.tensor(1.25, dtype=torch.float64)
every_set = pytest.mark.parametrize("name", SETS)


def shape_of(name, count):
    return (count, 4, 4) if name == "PSD" else (count, 5)


def taus(name, count, seed=5, scale=0.05, spread=0.7):
    """τ that vary by coordinate, symmetric for matrices."""
    log = draw(shape_of(name, count), seed, spread)
    return scale * torch.exp(log + log.mT if name == "PSD" else log)


def variables_and_barrier(name, h):
    """cvxpy's variable, its constraints, and the barrier."""
    if name == "PSD":
        x = cp.Variable((4, 4), symmetric=True)
        return x, [], -cp.log_det(x)
    x = cp.Variable(5)
    if name == "Halfspace":
        return x, [], -cp.log(h - NORMAL.numpy() @ x)
    if name.startswith("Polyhedron"):
        members = SETS[name](torch.tensor(h, dtype=torch.float64))
        return x, [], -cp.sum(cp.log(members.offset.numpy() - members.matrix.numpy() @ x))
    if name == "Simplex":
        return x, [cp.sum(x) == h], -cp.sum(cp.log(x))
    if name == "L2Ball":
        return x, [], -cp.log(h**2 - cp.sum(cp.square(x)))
    if name == "LInfBall":
        return x, [], -cp.sum(cp.log(h - x)) - cp.sum(cp.log(h + x))
    # −log(t² − ‖x‖²) = −log t − log(t − ‖x‖²/t)
    share = cp.Variable(4)
    constraints = [cp.quad_over_lin(x[i], x[4]) <= share[i] for i in range(4)]
    return x, constraints, -cp.log(x[4]) - cp.log(x[4] - cp.sum(share))


@pytest.mark.filterwarnings("ignore:Solution may be inaccurate")  # than the tolerances asked for
@every_set
@pytest.mark.parametrize("in_metric", [False, True])
def test_agrees_with_cvxpy(name, in_metric):
    h = float(SIZE)
    y = draw(shape_of(name, 2), 6, 2.0)
    tau = taus(name, 2) if in_metric else torch.full_like(y, 0.1)
    found = SETS[name](SIZE).prox_barrier(y, tau if in_metric else 0.1)
    for index in range(2):
        x, constraints, barrier = variables_and_barrier(name, h)
        target = (y[index] + y[index].mT) / 2 if name == "PSD" else y[index]
        weight = (1 / torch.sqrt(tau[index])).numpy()
        objective = cp.sum_squares(cp.multiply(weight, x - target.numpy())) / 2 + barrier
        cp.Problem(cp.Minimize(objective), constraints).solve(
            solver="CLARABEL", tol_gap_abs=1e-12, tol_gap_rel=1e-12, tol_feas=1e-12, tol_ktratio=1e-9
        )
        np.testing.assert_allclose(
            found[index].numpy(), x.value, atol=3e-5 if "Polyhedron" in name else 3e-6, rtol=1e-6
        )
        if name != "SecondOrderCone":  # whose barrier has a variable of its own
            theirs = objective.value
            x.value = found[index].numpy()
            assert objective.value <= theirs + 1e-9


def stationarity(name, members, x, y, tau):
    """The gradient of the objective at x, in x's units and relative to its terms."""
    slope = members.barrier_gradient(x, 0.0)
    terms = (x - y).abs() + tau * slope.abs()
    rest = x - y + tau * slope
    if name == "Simplex":
        multiplier = (rest / tau).sum(-1, keepdim=True) / (slope.abs() > 0).sum(-1, keepdim=True)
        rest, terms = rest - multiplier * tau, terms + multiplier.abs() * tau
    return float((rest.abs() / (terms + 1e-3)).max())


@every_set
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_optimality_condition(name, dtype):
    members = SETS[name](SIZE.to(dtype))
    y = draw(shape_of(name, 300), 7, 3.0, dtype)
    y = (y + y.mT) / 2 if name == "PSD" else y
    for scale in (1e-2, 1.0, 100.0):
        tau = torch.full((), scale, dtype=dtype) if name == "PSD" else taus(name, 300, 8, scale).to(dtype)
        x = members.prox_barrier(y, tau)
        # Where x is near a wall, rounding x to float32 changes the gradient by more than the tolerance.
        if dtype == torch.float32:
            exact = members.prox_barrier(y.double(), tau.double())
            torch.testing.assert_close(x.double(), exact, rtol=1e-5, atol=1e-5)
        else:
            assert stationarity(name, members, x, y, tau) < (1e-8 if name == "Polyhedron tall" else 1e-9)


def strictly_inside(name, members, x):
    x = x.double()
    if name == "PSD":
        return (torch.linalg.eigvalsh(x) > 0).all(-1)
    if name == "Simplex":
        return (x > 0).all(-1)
    if name == "L2Ball":
        return (x * x).sum(-1).sqrt() < SIZE
    if name == "LInfBall":
        return x.abs().amax(-1) < SIZE
    if name == "SecondOrderCone":
        return (x[..., :-1] ** 2).sum(-1).sqrt() < x[..., -1]
    if name == "Halfspace":
        return (NORMAL * x).sum(-1) < SIZE
    return (members.offset - (x.unsqueeze(-2) * members.matrix).sum(-1) > 0).all(-1)


@every_set
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_strictly_inside(name, dtype):
    """From candidates of every size, with τ that may vanish; the result itself, and the sum with an update."""
    members = SETS[name](SIZE)
    count = {"PSD": 500, "Polyhedron wide": 3000, "Polyhedron tall": 3000}.get(name, 25_000)
    largest = 3e3 if dtype == torch.float16 else 1e8  # so that what comes out is a number of the dtype
    shape = shape_of(name, count)
    size = 10 ** (torch.rand((count,) + (1,) * (len(shape) - 1), generator=_generator, dtype=torch.float64) * 16 - 8)
    y = (draw(shape, 9) * size).clamp(-largest, largest).to(dtype)
    y[0] = 0.0
    params = members.prox_barrier(draw(shape, 10, 2.0, dtype), 1e-3)
    assert strictly_inside(name, members, params).all()
    for tau in (0.0, 1e-30, 1e-6, 1.0):
        x = members.prox_barrier(y, tau)
        assert x.dtype == dtype
        assert torch.isfinite(x).all()
        assert strictly_inside(name, members, x).all()
        params = params + members.land(params, x, strictly=True)
        assert strictly_inside(name, members, params).all()
        if name == "Simplex":
            error = (params.double().sum(-1) - SIZE).abs().max()
            assert error <= 4 * 5 * torch.finfo(dtype).eps * SIZE


@every_set
def test_gradcheck_and_gradgradcheck(name):
    y = draw(shape_of(name, 2), 11, 1.5).requires_grad_()
    tau = taus(name, 2, 12, 0.1, 0.3) if name != "PSD" else torch.tensor(0.1, dtype=torch.float64)
    tau, h = tau.requires_grad_(), SIZE.clone().requires_grad_()

    def solve(y, tau, h):
        return SETS[name](h).prox_barrier(y, tau)

    assert torch.autograd.gradcheck(solve, (y, tau, h), atol=1e-6, rtol=1e-4)
    assert torch.autograd.gradgradcheck(solve, (y, tau, h), atol=1e-5, rtol=1e-3)


def test_gradcheck_of_definite_matrices_in_a_metric():
    y, tau = draw((3, 3), 13).requires_grad_(), torch.exp(draw((3, 3), 14, 0.2)).requires_grad_()
    assert torch.autograd.gradcheck(S.PSD().prox_barrier, (y, tau), atol=1e-6, rtol=1e-4)


@every_set
@pytest.mark.parametrize("place", ["zero", "ties", "far", "tiny tau", "zero tau"])
def test_derivatives_are_finite_everywhere(name, place):
    y = {"zero": torch.zeros(shape_of(name, 2)), "far": draw(shape_of(name, 2), 15, 1e8)}.get(
        place, torch.ones(shape_of(name, 2))
    )
    y = y.double().requires_grad_()
    tau = torch.tensor({"tiny tau": 1e-20, "zero tau": 0.0}.get(place, 0.1), dtype=torch.float64, requires_grad=True)
    h = SIZE.clone().requires_grad_()
    result = SETS[name](h).prox_barrier(y, tau)
    assert torch.isfinite(result).all()
    weight = draw(result.shape, 16)
    options = {"allow_unused": True, "materialize_grads": True}
    first = torch.autograd.grad((weight * result).sum(), (y, tau, h), create_graph=True, **options)
    assert all(torch.isfinite(slope).all() for slope in first)
    total = sum((slope * slope).sum() for slope in first)
    if total.requires_grad and place in ("zero", "ties"):
        assert all(torch.isfinite(slope).all() for slope in torch.autograd.grad(total, (y, tau, h), **options))


@every_set
def test_vmap_equals_loop(name):
    y, tau = draw(shape_of(name, 3), 17, 2.0), taus(name, 3, 18)
    h, mu = torch.tensor([0.75, 1.0, 2.0], dtype=torch.float64), torch.tensor([1e-3, 0.1, 2.0], dtype=torch.float64)

    def solve(y, tau, h, mu):
        members = SETS[name](h)
        x = members.prox_barrier(y, mu * tau)
        y = members.prox_barrier(-y, mu)
        return x, y, members.land(y, x, strictly=True), members.barrier(x), members.barrier_gradient(y)

    together = vmap(solve)(y, tau, h, mu)
    for index in range(3):
        alone = solve(y[index], tau[index], h[index], mu[index])
        for one, other in zip(together, alone, strict=True):
            torch.testing.assert_close(one[index], other, rtol=1e-8, atol=1e-9)


@every_set
def test_compiles(name):
    torch._dynamo.reset()
    y, tau = draw(shape_of(name, 2), 19, 2.0), taus(name, 2, 20)
    if name == "PSD":
        tau = torch.tensor(0.1, dtype=torch.float64)

    start = SETS[name](SIZE).prox_barrier(-y, tau)

    def solve(y, tau, h):
        members = SETS[name](h)
        x = members.prox_barrier(y, tau)
        return x, members.land(start, x, strictly=True)

    compiled = torch.compile(solve, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(y, tau, SIZE), solve(y, tau, SIZE), rtol=1e-8, atol=1e-9)


@every_set
def test_tends_to_the_projection(name):
    members = SETS[name](SIZE)
    y = draw(shape_of(name, 20), 21, 2.0)
    metric = torch.ones_like(y) if name == "PSD" else taus(name, 20, 22, 1.0)
    nearest = members.project(y, metric if name != "PSD" else 1.0)
    steps = [metric * mu if name != "PSD" else mu for mu in (1e-4, 1e-8, 1e-12)]
    gaps = [float((members.prox_barrier(y, step) - nearest).abs().max()) for step in steps]
    assert gaps[0] > gaps[1] > gaps[2]
    assert gaps[2] < 1e-5


@every_set
@pytest.mark.parametrize("relax", [1e-3, 0.3])
def test_relaxed_values_agree_with_differences(name, relax):
    members = SETS[name](SIZE)
    for scale in (0.05, 0.5, 2.0):
        x = draw(shape_of(name, 3), 23, scale)
        if name == "PSD":
            x = (x + x.mT) / 2
        x.requires_grad_()
        value = members.barrier(x, relax)
        (slope,) = torch.autograd.grad(value, x, create_graph=True)
        torch.testing.assert_close(members.barrier_gradient(x, relax), slope, rtol=1e-9, atol=1e-9)
        with torch.no_grad():
            direction = draw(x.shape, 24, 0.1)
            direction = (direction + direction.mT) / 2 if name == "PSD" else direction
            ahead, behind = (members.barrier(x + sign * 1e-6 * direction, relax) for sign in (1, -1))
        expected = (ahead - behind) / 2e-6
        torch.testing.assert_close((slope * direction).sum(), expected, rtol=1e-5, atol=1e-4)
    zero = torch.zeros(shape_of(name, 1), dtype=torch.float64, requires_grad=True)
    (slope,) = torch.autograd.grad(members.barrier(zero, relax), zero, create_graph=True)
    assert torch.isfinite(torch.autograd.grad((slope * slope).sum() + 0 * zero.sum(), zero)[0]).all()


@pytest.mark.parametrize("mu", [0.01, 0.1])
def test_central_path_of_the_simplex(mu):
    """min cᵀx − μΣlog x over the simplex: x = μ/(c + ν), with ν such that the sum is 1."""
    cost = torch.tensor([1.0, 2.0, 3.0, 1.5], dtype=torch.float64)
    low, high = -1.0, 10.0
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if float((mu / (cost + middle)).clamp_min(0).sum()) > 1 else (low, middle)
    tx = bx.chain(bx.adam(0.5), bx.barrier(S.Simplex(), mu))
    params = torch.full((4,), 0.25, dtype=torch.float64)
    state = tx.init(params)
    for _ in range(200):
        updates, state = tx.update(cost, state, params)
        params = bx.apply_updates(params, updates)
    torch.testing.assert_close(params, mu / (cost + low), rtol=1e-4, atol=1e-5)


def test_central_path_of_the_ball():
    """min cᵀx − μ·log(r² − ‖x‖²): x = −ρc/‖c‖ with 2μρ = ‖c‖(r² − ρ²)."""
    cost, radius, mu = torch.tensor([1.0, -2.0, 2.0], dtype=torch.float64), 1.5, 0.2
    rho = (-mu + (mu**2 + 9 * radius**2) ** 0.5) / 3
    tx = bx.chain(bx.adam(0.5), bx.barrier(S.L2Ball(radius), mu))
    params = torch.zeros(3, dtype=torch.float64)
    state = tx.init(params)
    for _ in range(200):
        updates, state = tx.update(cost, state, params)
        params = bx.apply_updates(params, updates)
    torch.testing.assert_close(params, -rho * cost / 3, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_small_sets_and_infinite_candidates(dtype):
    candidates = torch.tensor([[0.0, 0.0, 0.0], [1e4, -1e4, 3.0], [torch.inf, -torch.inf, 1.0]], dtype=dtype)
    least = 1e-4 if dtype == torch.float16 else 1e-30
    for tau in (0.0, 1e-3, torch.tensor([1.0, 0.0, 1e-9])):
        for members in (S.L2Ball(least), S.Simplex(least), S.LInfBall(least), S.L2Ball(2.0), S.Simplex(2.0)):
            x = members.prox_barrier(candidates, tau).double()
            assert torch.isfinite(x).all()
            assert float(members.violation(x)) <= 4 * torch.finfo(dtype).eps * 2.0
            if isinstance(members, S.Simplex):
                assert (x > 0).all()
    for members in (S.L2Ball(0.0), S.Simplex(0.0)):  # without an interior: their one point
        assert (members.prox_barrier(candidates, 0.1).double().abs() <= 1e-7).all()


def test_a_metric_that_is_a_product_is_exact():
    """X = D½ Z D½ for τ = d dᵀ; and a general metric against its optimality condition."""
    y = draw((6, 4, 4), 25)
    y = (y + y.mT) / 2
    scale = torch.exp(draw((6, 4, 1), 26, 0.5))
    tau = scale * scale.mT
    root = tau.sqrt()
    torch.testing.assert_close(S.PSD().prox_barrier(y, tau), S.PSD().prox_barrier(y / root, 1.0) * root)
    log = draw((6, 4, 4), 27, 0.5)
    tau = torch.exp(log + log.mT)
    x = S.PSD().prox_barrier(y, tau)
    assert ((x - y) / tau - torch.linalg.inv(x)).abs().max() < 1e-6


def test_polyhedra_say_what_is_wrong():
    with pytest.raises(TypeError, match="a tensor of shape"):
        S.Polyhedron([1.0], 1.0)
    with pytest.raises(ValueError, match=r"\(2, 3\) and \(3,\)"):
        S.Polyhedron(torch.ones(2, 3), torch.ones(3))
    with pytest.raises(ValueError, match="NaN"):
        S.Polyhedron(torch.ones(1, 3), torch.tensor([torch.nan]))
    with pytest.raises(ValueError, match=r"leaf 'w'.*3 columns"):
        S.Polyhedron(torch.ones(1, 3), torch.ones(1)).check({"w": torch.zeros(2)})


def test_projections_onto_polyhedra_agree_with_cvxpy():
    y, step = draw((4, 5), 28, 3.0), torch.exp(draw((4, 5), 29))
    for matrix in (WIDE, TALL):
        offset = torch.linspace(0.5, 2.0, len(matrix), dtype=torch.float64)
        found = S.Polyhedron(matrix, offset).project(y, step)
        for index in range(4):
            x = cp.Variable(5)
            weight = (1 / torch.sqrt(step[index])).numpy()
            objective = cp.sum_squares(cp.multiply(weight, x - y[index].numpy()))
            cp.Problem(cp.Minimize(objective), [matrix.numpy() @ x <= offset.numpy()]).solve(
                solver="CLARABEL", tol_gap_abs=1e-13, tol_gap_rel=1e-13, tol_feas=1e-13
            )
            np.testing.assert_allclose(found[index].numpy(), x.value, atol=1e-7)


def test_derivative_of_projections_onto_polyhedra():
    y = draw((3, 5), 30, 2.0).requires_grad_()
    step = torch.exp(draw((3, 5), 31, 0.3)).requires_grad_()
    offset = torch.linspace(0.5, 2.0, 9, dtype=torch.float64).requires_grad_()

    def project(y, step, offset):
        return S.Polyhedron(TALL, offset).project(y, step)

    assert torch.autograd.gradcheck(project, (y, step, offset), eps=1e-4, atol=1e-4, rtol=1e-3)


def test_a_leaf_without_numbers_is_no_vector():
    with pytest.raises(ValueError, match=r"needs vectors with entries, got shape \(0, 3\)"):
        bx.barrier(bx.sets.L2Ball(1.0, dim=None), 0.1).init(torch.zeros(0, 3))


@pytest.mark.parametrize("dim", [-1, None])
def test_the_gradient_of_a_halfspace_whose_normal_is_a_number(dim):
    x = torch.tensor([0.2, 0.3, 0.4], dtype=torch.float64, requires_grad=True)
    halfspace = bx.sets.Halfspace(-2.0, 0.5, dim=dim)
    (expected,) = torch.autograd.grad(halfspace.barrier(x), x)
    torch.testing.assert_close(halfspace.barrier_gradient(x.detach()), expected)


def test_a_cone_of_one_number_is_the_numbers_above_0():
    cone, y = bx.sets.SecondOrderCone(), torch.tensor([[-1.0], [0.3], [2.0]], dtype=torch.float64)
    x = cone.prox_barrier(y, 0.1)  # of −log t², twice that of −log t
    torch.testing.assert_close(x, bx.sets.NonNegative().prox_barrier(y, 0.2))


@pytest.mark.parametrize("name", ["Polyhedron wide", "Polyhedron tall"])
def test_derivative_of_projections_onto_polyhedra_is_that_on_the_active_rows(name):
    """With B of those rows: the projector I − B⁺B for the candidate, and B⁺ for their offsets."""
    polyhedron, candidates = SETS[name](SIZE), draw((20, 5), 41, 3.0)

    def project(y, offset):
        return S.Polyhedron(polyhedron.matrix, offset).project(y)

    for y in candidates:
        by_candidate, by_offset = torch.func.jacrev(project, argnums=(0, 1))(y, polyhedron.offset)
        lengths = polyhedron.matrix.norm(dim=-1)
        active = (polyhedron.offset - polyhedron.matrix @ project(y, polyhedron.offset)) / lengths < 1e-9
        inverse = torch.linalg.pinv(polyhedron.matrix[active])
        expected = torch.eye(5, dtype=torch.float64) - inverse @ polyhedron.matrix[active]
        torch.testing.assert_close(by_candidate, expected, rtol=0, atol=1e-9)
        torch.testing.assert_close(by_offset[:, active], inverse, rtol=0, atol=1e-9)
        assert not by_offset[:, ~active].abs().gt(1e-9).any()
