"""Meta-learning through bounded steps: what can be learned, and which derivative there is at a bound."""

import functools

import pytest
import torch
from torch.func import grad, grad_and_value, vmap
from torch.utils._pytree import tree_map

import boxopt as bx

F64 = {"dtype": torch.float64}
META = {
    "start": torch.tensor([0.3, -0.1, 0.9, 0.45], **F64),
    "lr": torch.tensor([0.1, 0.2, 0.15, 0.12], **F64),
    "lower": torch.tensor(-0.15, **F64),
    "upper": torch.tensor(0.5, **F64),
    "target": torch.tensor([1.0, -2.0, 0.2, 0.1], **F64),
    "mu": torch.tensor(0.01, **F64),
    "weight": torch.tensor(0.3, **F64),
}
ENDS = {
    "project": lambda box, meta: bx.project(box),
    "barrier": lambda box, meta: bx.barrier(box, mu=meta["mu"]),
    "penalize": lambda box, meta: bx.penalize(box, meta["weight"]),
    "straight_through": lambda box, meta: bx.project(box, straight_through=True),
}
UNUSED = {"project": {"mu", "weight"}, "barrier": {"weight"}, "penalize": {"mu"}}


def inner(x, target):
    return ((x - target) ** 2).sum() / 2 + (x[1:] * x[:-1]).sum() / 4 + (x**4).sum() / 5


def trained(meta, end="project", optimizer=bx.sgd, steps=12, **options):
    """Where some steps of bounded optimization end."""
    tx = bx.chain(optimizer(meta["lr"]), ENDS[end](bx.Box(meta["lower"], meta["upper"]), meta))

    def step(carry, _):
        x, state = carry
        updates, state = tx.update(grad(inner)(x, meta["target"]), state, x)
        return (bx.apply_updates(x, updates), state), None

    return bx.unroll(step, (meta["start"], tx.init(meta["start"])), length=steps, **options)[0][0]


def outer(meta, *args, **options):
    x = trained(meta, *args, **options)
    return ((x - 0.3) ** 2 * torch.arange(1, 5)).sum()


@pytest.mark.parametrize("optimizer", [bx.sgd, bx.adam])
@pytest.mark.parametrize("end", ["project", "barrier", "penalize"])
def test_hypergradients_are_finite_differences(end, optimizer):
    loss = functools.partial(outer, end=end, optimizer=optimizer, checkpoint=True)
    slopes = grad(loss)(META)
    for name, value in META.items():
        moves = torch.eye(value.numel(), **F64).reshape(-1, *value.shape) * 1e-6
        ahead, behind = (vmap(lambda v, name=name: loss({**META, name: v}))(value + sign * moves) for sign in (1, -1))
        torch.testing.assert_close(slopes[name].flatten(), (ahead - behind) / 2e-6, rtol=1e-6, atol=1e-7)
        assert slopes[name].any() == (name not in UNUSED[end])


@pytest.mark.parametrize("checkpoint", [None, 5])
def test_third_derivatives(checkpoint):
    def along(t):
        return outer(tree_map(lambda x: x * t, META), "barrier", steps=6, checkpoint=checkpoint)

    def third(t):
        return grad(grad(grad(along)))(t)

    t, h = torch.ones((), **F64), 1e-5
    difference = (grad(grad(along))(t + h) - grad(grad(along))(t - h)) / (2 * h)
    torch.testing.assert_close(third(t), difference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("checkpoint", [None, True])
def test_a_batch_of_64_tasks_is_a_loop_over_tasks(checkpoint):
    targets = torch.randn(64, 4, generator=torch.Generator().manual_seed(0), **F64)

    def of_task(target):
        return grad(lambda meta: outer({**meta, "target": target}, steps=5, checkpoint=checkpoint))(META)

    batched = vmap(of_task)(targets)
    for number, target in enumerate(targets):
        tree_map(
            functools.partial(torch.testing.assert_close, rtol=1e-10, atol=1e-12),
            of_task(target),
            tree_map(lambda x, number=number: x[number], batched),
        )


@pytest.mark.parametrize("optimizer", [bx.sgd, bx.adam])
def test_finite_in_float32_after_a_thousand_steps_at_bounds(optimizer):
    meta = tree_map(lambda x: x.float(), META)
    x = trained(meta, optimizer=optimizer, steps=1000)
    assert bx.Box(meta["lower"], meta["upper"]).active(x, 1e-6).any()
    slopes, value = grad_and_value(functools.partial(outer, optimizer=optimizer, steps=1000, checkpoint=True))(meta)
    assert value.isfinite()
    for slope in slopes.values():
        assert slope.isfinite().all()
    assert slopes["upper"] != 0


def test_through_adam_at_a_zero_gradient():
    start = META["start"].clone()
    start[0] = 0.0

    def loss(start, lr):
        tx = bx.chain(bx.adam(lr), bx.project(bx.Box(-1.0, 1.0)))

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(2 * x, state, x)
            return (bx.apply_updates(x, updates), state), None

        return (bx.unroll(step, (start, tx.init(start)), length=3)[0][0] - 1).square().sum()

    for slope in grad(loss, (0, 1))(start, META["lr"]):
        assert slope.isfinite().all()


@pytest.mark.filterwarnings("ignore")  # TorchOpt's own
def test_there_torchopt_answers_nan():
    torchopt = pytest.importorskip("torchopt")

    def loss(x):
        tx = torchopt.adam(0.1)
        state = tx.init((x,))
        for _ in range(3):
            updates, state = tx.update((2 * x,), state, params=(x,), inplace=False)
            (x,) = torchopt.apply_updates((x,), updates, inplace=False)
        return (x - 1).square().sum()

    assert grad(loss)(torch.tensor([0.0, 0.5])).isnan().any()


def test_a_wall_lets_no_derivative_through_but_a_barrier_and_the_biased_option_do():
    """One coordinate, pushed against its upper bound: how the end moves with what pushes it."""
    meta = {**META, "start": torch.full((1,), 0.2, **F64), "target": torch.full((1,), 2.0, **F64), "lr": META["lr"][0]}

    def slopes(end):
        return grad(
            lambda target, upper: trained({**meta, "target": target, "upper": upper}, end, steps=60).sum(), (0, 1)
        )(meta["target"], meta["upper"])

    of_target, of_upper = slopes("project")
    assert of_target == 0
    assert of_upper == 1
    smooth, of_upper = slopes("barrier")
    x = trained(meta, "barrier", steps=60)
    walls = [meta["mu"] / (x - meta[wall]) ** 2 for wall in ("lower", "upper")]
    curvature = 1 + 12 * x**2 / 5 + sum(walls)  # of the inner loss and the barrier, at their minimizer
    torch.testing.assert_close(smooth, 1 / curvature, rtol=1e-6, atol=0)
    torch.testing.assert_close(of_upper, (walls[1] / curvature).squeeze(), rtol=1e-6, atol=0)
    biased, of_upper = slopes("straight_through")
    assert biased > 0.5
    assert of_upper == 0


def test_straight_through_changes_no_number():
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        x, u = torch.linspace(0, 1, 101).to(dtype), torch.linspace(2, -3, 101)
        for constraint in (bx.Box(0.0, 1.0), bx.sets.Simplex()):
            x = constraint.project(x)
            one, other = (bx.project(constraint, straight_through=flag) for flag in (False, True))
            expected, found = (tx.update(u, tx.init(x), x)[0] for tx in (one, other))
            assert torch.equal(found, expected)
            assert found.dtype == expected.dtype
            slope = grad(lambda u, tx=other, x=x: tx.update(u, tx.init(x), x)[0].float().sum())(u)
            assert torch.equal(slope, torch.ones_like(u))


def test_a_bounded_step_keeps_conditions_and_no_numbers():
    """What it would cost to keep more: see "What the way back keeps" in docs/design.md."""
    tx, x = bx.chain(bx.sgd(0.1), bx.project(bx.Box(-1.0, 1.0))), torch.linspace(-1, 1, 1000, requires_grad=True)
    gradients, kept = torch.linspace(5, -5, 1000, requires_grad=True), []
    with torch.autograd.graph.saved_tensors_hooks(lambda y: kept.append(y) or y, lambda y: y):
        updates, _ = tx.update(gradients, tx.init(x), x)
    assert sum(y.element_size() * y.numel() for y in kept if y.numel() > 1) == 2 * 1000
    of_x, of_gradients = torch.autograd.grad(updates.sum(), (x, gradients))
    held = (x - 0.1 * gradients).abs() > 1
    assert held.any()
    torch.testing.assert_close(of_x, torch.where(held, -1.0, 0.0))
    torch.testing.assert_close(of_gradients, torch.where(held, 0.0, -0.1))


LEARNED = {
    "start": (bx.Box(-1.0, 1.0), "project"),
    "lr": (bx.Box(0.01, 0.5), "project"),
    "upper": (bx.Box(0.2, 0.8), "project"),
    "mu": (bx.Box(1e-4, 1.0), "barrier"),
    "weight": (bx.Box(0.0, 10.0), "penalize"),
}


@pytest.mark.parametrize("name", LEARNED)
def test_learned_within_bounds_of_its_own(name):
    """Learning rates of coordinates (Meta-SGD), starts, bounds, strengths: bounded parameters of an outer problem."""
    box, end = LEARNED[name]
    tx, value = bx.chain(bx.adam(0.05), bx.project(box)), META[name]
    state, losses = tx.init(value), []
    for _ in range(25):
        slope, loss = grad_and_value(lambda value: outer({**META, name: value}, end, steps=5))(value)
        losses.append(loss)
        updates, state = tx.update(slope, state, value)
        value = bx.apply_updates(value, updates)
        assert bx.is_feasible(box, value)
    assert losses[-1] < losses[0]
