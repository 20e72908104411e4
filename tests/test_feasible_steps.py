"""`projected`, `frank_wolfe` and `mirror`: what they promise beyond the laws, against closed forms, SciPy and optax."""

import itertools
import math

import pytest
import scipy.optimize
import torch
from torch.func import vmap

import boxopt as bx

S = bx.sets
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def descend(tx, gradient, params, steps):
    state = tx.init(params)
    for _ in range(steps):
        updates, state = tx.update(gradient(params), state, params)
        params = bx.apply_updates(params, updates)
    return params


def draw(shape, seed, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


# --- projected -----------------------------------------------------------------------------------------------------


def test_projected_has_the_tangent_that_the_set_has():
    adam, simplex, both = bx.adam(0.1), S.Simplex(), S.Intersection(S.L2Ball(1.0), bx.Box(0.0, 1.0))
    assert len(bx.projected(adam, simplex).init(torch.ones(3))) == 3
    assert len(bx.projected(adam, simplex, deterministic=False).init(torch.ones(3))) == 2
    assert len(bx.projected(adam, both).init(torch.ones(3))) == 2
    assert len(bx.projected(adam, S.ByPath({"*": simplex})).init({"a": torch.ones(3)})) == 3
    assert len(bx.projected(adam, S.ByPath({"*": both})).init({"a": torch.ones(3)})) == 2


def test_the_tangent_keeps_moments_from_winding_up():
    """After a thousand steps against a wall, the loss changes: with the tangent, Adam leaves the wall at once."""
    box, steps = bx.Box(0.0, 1.0), {}
    for deterministic in (True, False):
        tx, x = bx.projected(bx.adam(0.01), box, deterministic=deterministic), torch.tensor(0.0)
        state = tx.init(x)
        for step in range(1300):
            updates, state = tx.update(x + 100 if step < 1000 else x - 0.5, state, x)
            x = bx.apply_updates(x, updates)
            if step == 1199:
                steps[deterministic] = float(x)
    assert steps[True] > 0.4
    assert steps[False] < 0.1


def test_with_noise_the_tangent_is_biased():
    """The minimum of (x + 0.05)²/2 over [0, 1] is at 0; unit noise keeps Adam off it, and the tangent farther."""
    box, ends = bx.Box(0.0, 1.0), {}
    for deterministic in (True, False):
        noise = torch.Generator().manual_seed(0)
        tx, x = bx.projected(bx.adam(0.01), box, deterministic=deterministic), torch.full((2000,), 0.1)
        state, total = tx.init(x), 0.0
        for step in range(600):
            updates, state = tx.update(x + 0.05 + torch.randn(2000, generator=noise), state, x)
            x = bx.apply_updates(x, updates)
            total += float(x.mean()) / 300 if step >= 300 else 0.0
        ends[deterministic] = total
    assert ends[True] > 1.1 * ends[False]


# --- Frank–Wolfe ---------------------------------------------------------------------------------------------------

FEASIBLE = {
    "simplex": (S.Simplex(1.5), (4, 6)),
    "box": (bx.Box(-0.3, 0.7), (4, 6)),
    "L1": (S.L1Ball(1.25), (4, 6)),
    "L2": (S.L2Ball(1.25), (4, 6)),
    "LInf": (S.LInfBall(0.3), (4, 6)),
    "spectral": (S.SpectralBall(1.25), (4, 6)),
    "nuclear": (S.NuclearBall(1.25), (4, 6)),
    "by path": (S.ByPath({"*": S.Simplex(1.5)}), (4, 6)),
}


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("name", FEASIBLE)
@pytest.mark.parametrize("lipschitz", [None, 1.0])
def test_frank_wolfe_stays_in_the_set(name, dtype, lipschitz):
    constraint, shape = FEASIBLE[name]
    tx, target = bx.frank_wolfe(constraint, lipschitz=lipschitz), draw(shape, 0, dtype)
    params = constraint.project(draw(shape, 1, dtype))
    tolerance = 2 * shape[-1] * torch.finfo(dtype).eps * 1.5 if name in {"simplex", "by path"} else 0.0
    state = tx.init(params)
    for _ in range(60):
        updates, state = tx.update(params - target, state, params)
        params = bx.apply_updates(params, updates)
        assert params.dtype == dtype
        assert float(constraint.violation(params.double())) <= tolerance


def test_frank_wolfe_converges_as_promised_and_its_gap_bounds_the_loss():
    """‖x − a‖²/2 over the simplex: gap ≥ loss − least, which is ≤ 2LD²/(t + 2); the least is at a projection."""
    simplex, target = S.Simplex(), draw((20,), 3) / 3
    loss = lambda x: ((x - target) ** 2).sum() / 2  # noqa: E731
    least = float(loss(simplex.project(target)))
    for lipschitz in (None, 1.0):
        tx, x = bx.frank_wolfe(simplex, lipschitz=lipschitz), torch.eye(20, dtype=torch.float64)[0]
        state, losses = tx.init(x), []
        for step in range(300):
            gradients = x - target
            excess, gap = float(loss(x)) - least, float(bx.frank_wolfe_gap(simplex, x, gradients))
            assert gap >= excess - 1e-15
            assert step == 0 or excess <= 2 * 2 / (step + 2)
            assert int((x > 0).sum()) <= step + 1  # as sparse as the number of steps
            losses.append(float(loss(x)))
            updates, state = tx.update(gradients, state, x)
            x = bx.apply_updates(x, updates)
        if lipschitz:
            assert all(after <= before + 1e-15 for before, after in itertools.pairwise(losses))
        assert losses[-1] - least < 1e-2


def test_short_step_ends_at_the_solution_of_a_quadratic_inside():
    """With the minimizer inside the set, short steps converge linearly."""
    target = torch.tensor([0.3, -0.2, 0.1], dtype=torch.float64)
    ball = S.L2Ball(1.0)
    x = descend(bx.frank_wolfe(ball, lipschitz=1.0), lambda x: x - target, torch.zeros(3, dtype=torch.float64), 100)
    torch.testing.assert_close(x, target, atol=1e-7, rtol=0)
    assert float(bx.frank_wolfe_gap(ball, target, torch.zeros_like(target))) == 0


def test_frank_wolfe_step_sizes():
    ball, x, gradient = S.LInfBall(1.0), torch.zeros(2), torch.tensor([1.0, -2.0])
    first = bx.frank_wolfe(ball, 0.25)
    torch.testing.assert_close(first.update(gradient, first.init(x), x)[0], torch.tensor([-0.25, 0.25]))
    falling = bx.frank_wolfe(ball, bx.linear_schedule(0.5, 0.0, 2))
    updates, state = falling.update(gradient, falling.init(x), x)
    torch.testing.assert_close(updates, torch.tensor([-0.5, 0.5]))
    torch.testing.assert_close(falling.update(gradient, state, x)[0], torch.tensor([-0.25, 0.25]))


@pytest.mark.parametrize("shape", [(4, 3), (3, 4), (2, 3, 3)])
@pytest.mark.parametrize("ball", [S.SpectralBall(1.25), S.NuclearBall(1.25)], ids=["spectral", "nuclear"])
def test_linear_minimizers_of_matrix_balls(ball, shape):
    """Least by von Neumann's inequality, with derivatives to the second order, finite where singular values tie."""
    gradient = draw(shape, 5).requires_grad_()
    values = torch.linalg.svdvals(gradient)
    least = -1.25 * (values.sum(-1) if isinstance(ball, S.SpectralBall) else values[..., 0])
    for minimizer in (ball.linear_minimizer(gradient), ball.linear_minimizer(gradient.detach())):
        torch.testing.assert_close((gradient * minimizer).sum((-2, -1)), least)
        assert float(ball.violation(minimizer.detach())) < 1e-14
    assert torch.autograd.gradcheck(ball.linear_minimizer, gradient)
    assert torch.autograd.gradgradcheck(ball.linear_minimizer, gradient)
    for tied in (torch.zeros(shape), torch.eye(*shape[-2:]).expand(shape)):
        tied = tied.double().clone().requires_grad_()
        minimizer = ball.linear_minimizer(tied)
        assert torch.isfinite(torch.autograd.grad((minimizer * draw(shape, 6)).sum(), tied)[0]).all()
        torch.testing.assert_close(ball.linear_minimizer(tied.detach()), minimizer.detach())


def test_frank_wolfe_refuses_what_it_cannot_do():
    with pytest.raises(TypeError, match="offers linear_minimizer, got Affine"):
        bx.frank_wolfe(S.Affine(torch.ones(1, 3), torch.ones(1)))
    with pytest.raises(ValueError, match="got both"):
        bx.frank_wolfe(bx.Box(0.0, 1.0), 0.1, lipschitz=1.0)
    with pytest.raises(ValueError, match="lipschitz is not negative"):
        bx.frank_wolfe(bx.Box(0.0, 1.0), lipschitz=-1.0)
    with pytest.raises(ValueError, match=r"leaf 'a'.*bounded set"):
        bx.frank_wolfe(S.NonNegative()).init({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"leaf 'b'.*bounded set"):
        bx.frank_wolfe(S.ByPath({"a": S.Simplex()})).init({"a": torch.zeros(2), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match="comes after"):
        bx.chain(bx.frank_wolfe(bx.Box(0.0, 1.0)), bx.scale(0.5))


def test_frank_wolfe_leaves_zeros_at_zero():
    """Combinations of points sum to 1 up to rounding; what that leaves is not spread over what is 0."""
    x = torch.softmax(draw((500, 6), 0).float(), -1) * torch.tensor([1.0, 1, 1, 1, 0, 0])
    x = x / x.sum(-1, keepdim=True)
    gradients = draw((500, 6), 1).float() + torch.tensor([0.0, 0, 0, 0, 99, 99])
    tx = bx.frank_wolfe(S.Simplex(), 0.3)
    after = bx.apply_updates(x, tx.update(gradients, tx.init(x), x)[0])
    assert (after[:, 4:] == 0).all()
    assert float((after.sum(-1) - 1).abs().max()) < 1e-6


# --- mirror descent ------------------------------------------------------------------------------------------------


def test_exponentiated_gradient_is_its_formula():
    x, gradient = torch.tensor([[0.1, 0.2, 0.7], [0.0, 0.5, 0.5]], dtype=torch.float64), draw((2, 3), 0)
    tx = bx.exponentiated_gradient(0.3, S.Simplex(torch.tensor([1.0, 2.0])))
    after = bx.apply_updates(x, tx.update(gradient, tx.init(x), x)[0])
    expected = x * torch.exp(-0.3 * gradient)
    expected = expected / expected.sum(-1, keepdim=True) * torch.tensor([[1.0], [2.0]])
    torch.testing.assert_close(after, expected)
    assert after[1, 0] == 0


def test_mirror_in_a_metric_solves_its_problem():
    """The optimality condition log(z/x) = u − τη with one τ, and the sum; the sums of both lists of weights differ."""
    for seed in range(5):
        x = torch.softmax(draw((6,), seed), 0) * 1.5
        step, search = torch.exp(2 * draw((6,), seed + 10)), draw((6,), seed + 20)
        tx = bx.mirror(S.Simplex(1.5))
        z = bx.apply_updates(x, tx.update(-step * search, tx.init(x), x, step_size=step)[0])
        multipliers = (-step * search - torch.log(z / x)) / step
        torch.testing.assert_close(multipliers, multipliers[:1].expand(6), rtol=1e-9, atol=1e-9)
        torch.testing.assert_close(z.sum(), torch.tensor(1.5, dtype=torch.float64))


@pytest.mark.parametrize("shift", [-20.0, 20.0])
def test_mirror_does_not_depend_on_what_all_gradients_share(shift):
    x, step, search = torch.softmax(draw((6,), 0), 0), torch.exp(2 * draw((6,), 1)), draw((6,), 2)
    tx = bx.mirror(S.Simplex())
    one, other = (tx.update(-step * g, tx.init(x), x, step_size=step)[0] for g in (search, search + shift))
    torch.testing.assert_close(one, other)


def test_mirror_after_adam_reaches_the_vertex_and_its_plain_form_does_not_move():
    costs, start = torch.tensor([1.0, 2.0, 3.0]), torch.full((3,), 1 / 3)
    x = descend(bx.chain(bx.adam(0.05), bx.mirror(S.Simplex())), lambda x: costs, start, 600)
    torch.testing.assert_close(x, torch.tensor([1.0, 0.0, 0.0]), atol=1e-6, rtol=0)
    blind = bx.GradientTransformation(*bx.adam(0.05)[:2])  # Adam's update, whose metric the chain does not know
    x = descend(bx.chain(blind, bx.mirror(S.Simplex())), lambda x: costs, start, 600)
    torch.testing.assert_close(x, start, atol=1e-4, rtol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("adaptive", [False, True])
def test_mirror_keeps_the_sum_and_never_dies(dtype, adaptive):
    n, info = 8, torch.finfo(dtype)
    simplex = S.Simplex(2.0)
    optimizer = bx.adam(1.0) if adaptive else bx.sgd(1.0)
    tx = bx.chain(optimizer, bx.mirror(simplex))
    params = torch.full((3, n), 2.0 / n, dtype=dtype)
    params[0, 2] = 0.0
    params[0, 3] = 4.0 / n
    state = tx.init(params)
    for step in range(40):
        gradients = draw((3, n), step, dtype) * 10.0 ** (step % 4 - 2)
        updates, state = tx.update(gradients, state, params)
        before, params = params, bx.apply_updates(params, updates)
        assert params.dtype == dtype
        assert (params >= 0).all()
        assert params[0, 2] == 0
        assert float((params.double().sum(-1) - 2.0).abs().max()) <= 2 * n * info.eps * 2.0
        if not adaptive and float(gradients.abs().max()) < 5:  # nothing can underflow
            assert ((params > 0) == (before > 0)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_mirror_is_finite_for_extreme_gradients(dtype):
    huge = torch.finfo(dtype).max
    tx, x = bx.exponentiated_gradient(1.0), torch.full((4,), 0.25, dtype=dtype)
    for gradient in (
        [huge, -huge, 0, 0],
        [-math.inf, 0, 0, math.inf],
        [huge] * 4,
        [math.inf] * 4,
        [-huge, -huge, 0, 1],
    ):
        gradient = torch.tensor(gradient, dtype=dtype)
        after = bx.apply_updates(x, tx.update(gradient, tx.init(x), x)[0])
        torch.testing.assert_close(after.sum(), torch.tensor(1.0, dtype=dtype))
        assert (after >= 0).all()


def test_exponentiated_gradient_against_scipy():
    """Weights of a mixture by maximum likelihood, and the same in a vmapped ensemble of learning rates."""
    density = torch.exp(draw((200, 5), 4))
    loss = lambda w: -(density @ w).log().mean()  # noqa: E731
    start = torch.full((5,), 0.2, dtype=torch.float64)
    reference = scipy.optimize.minimize(
        lambda w: float(loss(torch.tensor(w))),
        start.numpy(),
        jac=lambda w: torch.func.grad(loss)(torch.tensor(w)).numpy(),
        bounds=[(0, None)] * 5,
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        tol=1e-12,
    )

    def fit(rate):
        return descend(bx.exponentiated_gradient(rate), torch.func.grad(loss), start, 400)

    rates = torch.tensor([1.0, 2.0], dtype=torch.float64)
    for weights in (*vmap(fit)(rates), fit(2.0)):
        assert float(loss(weights)) <= reference.fun + 1e-5
    torch.testing.assert_close(vmap(fit)(rates)[1], fit(2.0))


def test_a_positive_entry_stays_positive_where_its_sum_would_round_to_zero():
    params = torch.tensor([0.5, 0.5])
    for update in (-20.0, -23.0, -60.0, -80.0):  # of which 0.5 + u, u rounded, would be 0
        updates, _ = bx.mirror(S.Simplex()).update(torch.tensor([update, 0.0]), bx.EmptyState(), params)
        assert ((params + updates) > 0).all()


def test_mirror_wants_a_simplex():
    with pytest.raises(TypeError, match="got Box"):
        bx.mirror(bx.Box(0.0, 1.0))
