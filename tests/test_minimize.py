"""The driver: each problem of a batch to its own end, whatever the others do, and what it says of it."""

import math
from functools import partial
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
import scipy.optimize
import torch
from torch import Tensor

import boxopt as bx
from boxopt.core import tree
from boxopt.solve import pool
from boxopt.solve.solver import Iterate, first_iterate, make_solver, next_iterate, zero_like
from boxopt.solve.step import Limits, status_of

DTYPE = torch.float64


class DescentState(NamedTuple):
    iterate: Iterate
    trial: Tensor
    stalled: Tensor
    rate: Tensor


def _start(flat, constraint, point, *, rate):
    rate = torch.as_tensor(rate, dtype=point.dtype)
    return DescentState(first_iterate(point), point, zero_like(point, torch.bool), rate)


def _advance(flat, constraint, state, gradient, value, *, rate):
    """Projected gradient descent that halves its rate until the loss falls."""
    accept = value < state.iterate.value
    iterate = next_iterate(flat, constraint, state.iterate, accept, state.trial, gradient, value)
    rate = torch.where(accept, 1.5 * state.rate, 0.5 * state.rate)
    trial = flat.project(constraint, iterate.params - rate * iterate.gradient)
    return DescentState(iterate, trial, (trial == iterate.params).all() & ~accept, rate)


def descent(constraint=None, rate=0.1):
    """A solver as others are written: one evaluation an update."""
    return make_solver(_start, _advance, bx.Box() if constraint is None else constraint, rate=rate)


def adam(box, rate=0.05):
    return bx.chain(bx.adam(rate), bx.project(box))


def rosenbrock(x):
    return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def quadratic(x, center, weight):
    return (weight * (x - center) ** 2).sum()


def quadratics(count=12, size=3):
    generator = torch.Generator().manual_seed(1)
    center, weight = (torch.rand(count, size, dtype=DTYPE, generator=generator) for _ in range(2))
    upper = torch.rand(count, size, dtype=DTYPE, generator=generator)
    return center * 2 - 0.5, weight + 0.2, bx.Box(0.0, upper)


def assert_same(one, other, exactly=False):
    for x, y in zip(tree.leaves(one), tree.leaves(other), strict=True):
        if exactly:
            assert torch.equal(x, y)
        else:
            torch.testing.assert_close(x, y, equal_nan=True)


SOLVERS = {"solver": descent, "transformation": adam}


@pytest.fixture(params=list(SOLVERS))
def solver(request):
    return SOLVERS[request.param]


# ---- what is found


def test_a_batch_of_bounded_quadratics(solver):
    center, weight, box = quadratics()
    result = bx.minimize(quadratic, torch.zeros_like(center), solver(box), args=(center, weight), batch_dims=1)
    torch.testing.assert_close(result.params, box.project(center), atol=1e-5, rtol=0)
    assert (result.status == bx.Status.GRADIENT).all()
    assert (result.optimality <= 1e-6).all()
    torch.testing.assert_close(result.value, torch.func.vmap(quadratic)(result.params, center, weight))


def test_what_is_reported_is_true(solver):
    center, weight, box = quadratics()
    result = bx.minimize(quadratic, torch.ones_like(center), solver(box), args=(center, weight), batch_dims=1)
    for k in range(3):
        x, upper = result.params[k], box.upper[k]
        gradient = 2 * weight[k] * (x - center[k])
        torch.testing.assert_close(result.optimality[k], bx.optimality(bx.Box(0.0, upper), x, gradient))


def test_a_problem_is_what_it_is_alone(solver):
    center, weight, box = quadratics()
    together = bx.minimize(quadratic, torch.zeros_like(center), solver(box), args=(center, weight), batch_dims=1)
    assert len(set(together.steps.tolist())) > 1
    for k in range(len(center)):
        own = bx.Box(0.0, box.upper[k])
        alone = bx.minimize(quadratic, torch.zeros(3, dtype=DTYPE), solver(own), args=(center[k], weight[k]))
        assert_same(alone, tree.map(lambda leaf, k=k: leaf[k], together))


@pytest.mark.parametrize("sync_every", [2, 7, 1000])
def test_it_does_not_matter_how_often_the_host_looks(solver, sync_every):
    center, weight, box = quadratics()
    run = partial(bx.minimize, quadratic, torch.zeros_like(center), solver(box), args=(center, weight), batch_dims=1)
    assert_same(run(), run(sync_every=sync_every), exactly=True)


def test_the_batch_gets_smaller():
    center, weight, box = quadratics(32)
    sizes = []
    bx.minimize(
        quadratic,
        torch.zeros_like(center),
        descent(box),
        args=(center, weight),
        batch_dims=1,
        callback=lambda info: sizes.append((len(info.iterate.value), info.running, info.problems, int(info.steps))),
    )
    assert sizes[0] == (32, 32, 32, 0)
    assert sizes[-1][1] == 0
    assert 0 < min(size for size, *_ in sizes) <= 4
    assert all(size <= 2 * running or size == 1 for (size, *_), (_, running, *_) in zip(sizes[1:], sizes, strict=False))


def bad_neighbour(x, c):
    """A quadratic, an unbounded term, a constant, and what is added away from the start."""
    return c[0] * ((x - 0.3) ** 2).sum() - c[1] * x.exp().sum() + c[2] + torch.where((x.abs() < 0.01).all(), 0.0, c[3])


def test_bad_problems_do_not_touch_others(solver):
    nan, inf = torch.nan, torch.inf
    kinds = torch.tensor(
        [
            [1, 0, 0, 0],  # good
            [1, 0, nan, 0],  # no number
            [1, 0, 0, nan],  # no number but at the start
            [0, 0, 0, 0],  # flat
            [0, 1, 0, 0],  # unbounded
            [1, 0, -inf, 0],  # infinite
            [1, 0, 0, 0],  # good
        ],
        dtype=DTYPE,
    )
    run = partial(bx.minimize, bad_neighbour, solver=solver(bx.Box()), max_steps=300)
    result = run(torch.zeros(7, 2, dtype=DTYPE), args=(kinds,), batch_dims=1)
    good = run(torch.zeros(2, dtype=DTYPE), args=(kinds[0],))
    for k in (0, 6):
        assert_same(tree.map(lambda leaf, k=k: leaf[k], result), good, exactly=True)
    status = [bx.Status(code) for code in result.status.tolist()]
    assert status[0] == status[6] == bx.Status.GRADIENT
    assert status[1] == status[5] == bx.Status.NONFINITE
    assert status[3] == bx.Status.GRADIENT
    assert (result.steps[[1, 3, 5]] == 1).all()
    for k in (2, 4):  # the best that was seen
        assert not status[k].converged
        torch.testing.assert_close(result.value[k], bad_neighbour(result.params[k], kinds[k]))
    assert result.value[4] < -2.1


def test_the_best_point_is_kept():
    """Of Adam with a large rate, which overshoots, and of a start that is a solution."""
    seen = []

    def loss(x):
        return ((x - 1) ** 2 * torch.tensor([1.0, 30.0])).sum()

    result = bx.minimize(
        loss,
        torch.zeros(2),
        adam(bx.Box(-2.0, 2.0), 0.9),
        max_steps=6,
        callback=lambda i: seen.append(float(i.iterate.value)),
    )
    assert result.status == bx.Status.LIMIT
    assert float(result.value) == min(seen) < seen[-1]
    assert float(loss(result.params)) == pytest.approx(float(result.value))


def test_an_infeasible_start(solver):
    result = bx.minimize(lambda x: ((x + 1) ** 2).sum(), torch.full((3,), 9.0), solver(bx.Box(0.0, 1.0)))
    assert torch.equal(result.params, torch.zeros(3))
    assert result.status == bx.Status.GRADIENT


def test_other_sets_and_transformations():
    target = torch.tensor([0.7, 0.9, -1.0])

    def loss(x):
        return ((x - target) ** 2).sum()

    expected = bx.sets.Simplex().project(target)
    outside, inside = torch.tensor([5.0, -3.0, 2.0]), torch.full((3,), 1 / 3)
    for tx, start in (
        (bx.frank_wolfe(bx.sets.Simplex(), lipschitz=2.0), outside),
        (bx.chain(bx.sgd(0.2), bx.project(bx.sets.Simplex())), outside),
        (bx.exponentiated_gradient(0.5), inside),
        (descent(bx.sets.Simplex()), outside),
    ):
        result = bx.minimize(loss, start, tx, tol=1e-3)
        torch.testing.assert_close(result.params, expected, atol=2e-3, rtol=0)
        assert result.status == bx.Status.GRADIENT


def test_line_searches_get_the_loss():
    starts = torch.tensor([[-1.2, 1.0], [0.5, -1.0]], dtype=DTYPE)
    result = bx.minimize(rosenbrock, starts, bx.lbfgs(), batch_dims=1, tol=1e-8)
    torch.testing.assert_close(result.params, torch.ones(2, 2, dtype=DTYPE))


def test_masked_and_grouped_sets_are_found():
    params = {"a": torch.full((2,), 3.0), "b": torch.full((2,), 3.0), "c": torch.full((2,), 3.0)}
    tx = bx.chain(
        bx.sgd(0.25),
        bx.partition({"a": bx.project(bx.Box(0.0, 0.5)), "b": bx.project(bx.sets.Simplex()), "*": bx.identity()}),
    )
    result = bx.minimize(lambda p: sum(((leaf - 1) ** 2).sum() for leaf in p.values()), params, tx, tol=1e-4)
    assert result.status == bx.Status.GRADIENT
    expected = {"a": torch.full((2,), 0.5), "b": torch.full((2,), 0.5), "c": torch.ones(2)}
    torch.testing.assert_close(result.params, expected, atol=1e-4, rtol=0)


# ---- when it stops


def test_other_tolerances():
    def loss(x):
        return ((x - 1) ** 4).sum()

    run = partial(bx.minimize, loss, torch.zeros(2, dtype=DTYPE), descent(), tol=0.0)
    by_step, by_value = run(step_tol=1e-2), run(value_tol=1e-6)
    assert by_step.status == bx.Status.STEP
    assert by_value.status == bx.Status.VALUE
    assert by_step.steps < by_value.steps
    assert run(max_steps=4).status == bx.Status.LIMIT
    assert run(max_steps=4).steps == 4


@pytest.mark.parametrize("size", [0.25, 1.0, -3.0, 100.0])
@pytest.mark.parametrize("kind", ["step", "value"])
def test_tolerances_are_relative_above_one(size, kind):
    limits = Limits(0.0, 0.0, 0.0, 9)._replace(**{f"{kind}_tol": 2.0**-10})

    def status(share, accepted=(1, 2)):
        shorter = size - math.copysign(share * 2.0**-10 * max(1.0, abs(size)), size)
        old, new = first_iterate(torch.tensor([shorter], dtype=DTYPE)), first_iterate(torch.tensor([size], dtype=DTYPE))
        old.accepted.fill_(accepted[0]), new.accepted.fill_(accepted[1])
        old.value.fill_(shorter), new.value.fill_(size)
        state = SimpleNamespace(iterate=new, stalled=torch.tensor(False))
        return bx.Status(int(status_of(old, state, torch.tensor(3), limits)))

    assert status(0.99) is bx.Status[kind.upper()]
    assert status(1.01) is bx.Status.RUNNING
    assert status(0.0, accepted=(2, 2)) is bx.Status.RUNNING  # nothing new was accepted
    assert status(0.0, accepted=(0, 1)) is bx.Status.RUNNING  # there was nothing before it


def test_stalled_and_limits_of_each_problem():
    center = torch.tensor([[0.1], [0.2], [0.3]], dtype=DTYPE)
    result = bx.minimize(
        lambda x, c: ((x - c) ** 2).sum() + 1e8,
        torch.zeros_like(center),
        descent(),
        args=(center,),
        batch_dims=1,
        tol=torch.tensor([1e-1, 1e-13, 1e-13]),
        max_steps=torch.tensor([1000, 1000, 3]),
    )
    assert [bx.Status(code).name for code in result.status.tolist()] == ["GRADIENT", "STALLED", "LIMIT"]


def test_status_reads_well():
    assert bx.Status.GRADIENT.converged
    assert not bx.Status.LIMIT.converged
    assert "limit" in str(bx.Status(6))


# ---- batches


def test_two_batch_dimensions():
    center, weight, box = quadratics()
    flat = bx.minimize(quadratic, torch.zeros_like(center), descent(box), args=(center, weight), batch_dims=1)

    def shape(leaf):
        return leaf.reshape(3, 4, *leaf.shape[1:])

    nested = bx.minimize(
        quadratic,
        torch.zeros(3, 4, 3, dtype=DTYPE),
        descent(bx.Box(0.0, shape(box.upper))),
        args=(shape(center), shape(weight)),
        batch_dims=2,
    )
    assert_same(nested, tree.map(shape, flat), exactly=True)


def test_numbers_of_the_solver_for_each_problem_and_shared():
    center, weight, box = quadratics()
    rates = torch.linspace(0.01, 0.5, 12, dtype=DTYPE)
    run = partial(bx.minimize, quadratic, batch_dims=1, args=(center, weight), max_steps=6)
    result = run(torch.zeros_like(center), adam(bx.Box(0.0, box.upper[:1]), rates))
    for k in (0, 7):
        alone = bx.minimize(
            quadratic,
            torch.zeros(3, dtype=DTYPE),
            adam(bx.Box(0.0, box.upper[0]), rates[k]),
            args=(center[k], weight[k]),
            max_steps=6,
        )
        assert_same(alone.params, result.params[k])


def test_bounds_that_may_mean_two_things():
    start = torch.zeros(3, 3)
    with pytest.raises(ValueError, match=r"reshape it to \(3, 1\) or to \(1, 3\)"):
        bx.minimize(lambda x: (x**2).sum(), start, adam(bx.Box(torch.ones(3))), batch_dims=1)
    bounds = torch.tensor([0.0, 1.0, 2.0])

    def loss(x):
        return (x**2).sum()

    each = bx.minimize(loss, start, descent(bx.Box(bounds[:, None])), batch_dims=1)
    shared = bx.minimize(loss, start, descent(bx.Box(bounds[None])), batch_dims=1)
    assert torch.equal(each.params, shared.params.T)
    assert torch.equal(shared.params[0], bounds)


def test_a_batch_of_one_and_of_none():
    center, weight, box = quadratics(1)
    run = partial(bx.minimize, quadratic, batch_dims=1)
    one = run(torch.zeros_like(center), descent(box), args=(center, weight))
    torch.testing.assert_close(one.params, box.project(center), atol=1e-5, rtol=0)
    none = run(torch.zeros(0, 3), descent(), args=(center[:0], weight[:0]))
    assert none.params.shape == (0, 3)
    assert none.status.shape == none.value.shape == (0,)


def test_parameters_of_any_structure():
    class Pair(NamedTuple):
        shift: Tensor
        rest: list

    params = Pair(torch.zeros(4, 2), [torch.zeros(4), None, {"x": torch.zeros(4, 2, 2)}])

    def loss(p):
        return ((p.shift - 1) ** 2).sum() + (p.rest[0] - 2) ** 2 + ((p.rest[2]["x"] - 3) ** 2).sum()

    box = bx.Box(None, 2.5)
    for tx in (descent(box), bx.chain(bx.sgd(0.2), bx.project(box))):
        result = bx.minimize(loss, params, tx, batch_dims=1)
        expected = Pair(torch.ones(4, 2), [torch.full((4,), 2.0), None, {"x": torch.full((4, 2, 2), 2.5)}])
        torch.testing.assert_close(result.params, expected, atol=1e-3, rtol=0)


def test_empty_trees(solver):
    for params in ({}, {"a": None}, torch.zeros(0)):
        result = bx.minimize(lambda p: torch.tensor(2.0), params, solver(bx.Box()))
        assert result.status == bx.Status.GRADIENT
        assert result.value == 2
    result = bx.minimize(lambda p, c: c, torch.zeros(3, 0), solver(bx.Box()), args=(torch.arange(3.0),), batch_dims=1)
    assert torch.equal(result.value, torch.arange(3.0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16, torch.float16])
def test_dtypes(solver, dtype):
    box = bx.Box(0.1, 0.6)
    params = {"a": torch.zeros(5, dtype=dtype), "b": torch.ones(2, dtype=torch.float32)}

    def loss(p):
        return ((p["a"].float() - 0.4) ** 2).sum() + ((p["b"] - 0.7) ** 2).sum()

    result = bx.minimize(loss, params, solver(box), max_steps=200, tol=1e-2)
    assert result.params["a"].dtype == dtype
    assert bx.is_feasible(box, result.params)
    assert result.status == bx.Status.GRADIENT
    torch.testing.assert_close(result.params["a"].float(), torch.full((5,), 0.4), atol=2e-2, rtol=0)
    torch.testing.assert_close(loss(result.params), result.value.float())


def test_the_loop_of_a_transformation_runs_solvers_too():
    """Also with 16-bit leaves: the sums that are to reach a trial do, up to the leaf's rounding."""
    for dtype in (torch.float32, torch.bfloat16):
        tx, params = descent(bx.Box(0.1, 0.6)), torch.zeros(3, dtype=dtype)
        state = tx.init(params)
        for _ in range(40):
            gradient, value = torch.func.grad_and_value(lambda x: ((x.float() - 0.4) ** 2).sum())(params)
            updates, state = tx.update(gradient, state, params, value=value)
            params = bx.apply_updates(params, updates)
        assert (state.iterate.params - 0.4).abs().max() < torch.finfo(dtype).eps


def test_aux():
    center, weight, box = quadratics()

    def loss(x, c, w):
        return (quadratic(x, c, w), {"residual": x - c})

    result = bx.minimize(
        loss, torch.zeros_like(center), descent(box), args=(center, weight), batch_dims=1, has_aux=True
    )
    torch.testing.assert_close(result.aux["residual"], result.params - center)


# ---- what is raised, and what is not


def test_errors_of_the_loss_pass_through():
    calls = []

    def loss(x):
        calls.append(x)
        if len(calls) > 3:
            raise ZeroDivisionError("mine")
        return (x**2).sum()

    with pytest.raises(ZeroDivisionError, match="mine"):
        bx.minimize(loss, torch.ones(2), descent())

    def interrupt(info):
        raise KeyboardInterrupt

    start = torch.ones(4, 2)
    with pytest.raises(KeyboardInterrupt):
        bx.minimize(lambda x: (x**2).sum(), start, descent(), batch_dims=1, callback=interrupt)
    assert torch.equal(start, torch.ones(4, 2))


def test_bad_input_is_explained():
    def loss(x):
        return (x**2).sum()

    with pytest.raises(ValueError, match="scalar tensor, fun returned a tensor of shape"):
        bx.minimize(lambda x: x**2, torch.ones(2), descent())
    with pytest.raises(ValueError, match="lacks batch dimensions"):
        bx.minimize(loss, torch.ones(2), descent(), batch_dims=2)
    with pytest.raises(ValueError, match="leaf 'b' is of a batch"):
        bx.minimize(loss, {"a": torch.ones(2, 1), "b": torch.ones(3, 1)}, descent(), batch_dims=1)
    with pytest.raises(ValueError, match="does not start with the batch's"):
        bx.minimize(lambda x, c: loss(x), torch.ones(3, 2), descent(), args=(torch.ones(2),), batch_dims=1)
    with pytest.raises(TypeError, match="floating-point"):
        bx.minimize(loss, torch.ones(2, dtype=torch.int64), descent())
    with pytest.raises(ValueError, match="does not broadcast"):
        bx.minimize(loss, torch.ones(3, 2), descent(bx.Box(torch.zeros(5))), batch_dims=1)


def test_progress(capsys):
    center, weight, box = quadratics()
    bx.minimize(quadratic, torch.zeros_like(center), descent(box), args=(center, weight), batch_dims=1, progress=True)
    assert "12/12" in capsys.readouterr().err


def test_progress_of_one_problem_shows_its_numbers(capsys):
    result = bx.minimize(lambda x: ((x - 2) ** 2).sum() + 1, torch.ones(2), descent(), progress=True)
    shown = capsys.readouterr().err
    assert f"evaluations={int(result.steps)}" in shown
    assert "value=1," in shown


def test_progress_without_tqdm(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "tqdm.auto", None)
    with pytest.raises(ImportError, match="pip install tqdm"):
        bx.minimize(lambda x: (x**2).sum(), torch.ones(2), descent(), progress=True)


def test_nothing_is_kept_of_graphs():
    """Also if the loss closes over tensors that require derivatives."""
    scale = torch.ones(2, requires_grad=True)
    result = bx.minimize(lambda x: (scale * x**2).sum(), torch.ones(2, requires_grad=True), descent())
    assert not any(leaf.requires_grad for leaf in tree.leaves(result))


def test_a_callback_may_stop_it():
    result = bx.minimize(lambda x: (x**2).sum(), torch.ones(2), descent(), callback=lambda info: bool(info.steps >= 2))
    assert result.steps == 2
    assert result.status == bx.Status.RUNNING


# ---- places for some of the problems


@pytest.mark.parametrize(("chunk_size", "sync_every"), [(3, 2), (5, 1), (11, 4)])
def test_problems_take_turns(solver, chunk_size, sync_every):
    center, weight, box = quadratics()
    run = partial(bx.minimize, quadratic, torch.zeros_like(center), solver(box), args=(center, weight), batch_dims=1)
    sizes = []
    few = run(
        chunk_size=chunk_size,
        sync_every=sync_every,
        callback=lambda info: sizes.append((len(info.iterate.value), info.running)),
    )
    assert_same(run(), few)
    assert max(size for size, _ in sizes) == chunk_size
    assert sizes[0][1] == 12
    assert sizes[-1][1] == 0


def test_compiled():
    """One compiled step serves a batch that is larger than it, one that is smaller, and other numbers."""
    center, weight, box = quadratics(21)
    run = partial(bx.minimize, quadratic, batch_dims=1, max_steps=60)
    given = torch.zeros_like(center), descent(box)
    eager = run(*given, args=(center, weight))
    assert_same(run(*given, args=(center, weight), compile=True, chunk_size=8), eager)
    with torch._dynamo.config.patch(error_on_recompile=True):
        assert_same(run(*given, args=(center, weight), compile=True, chunk_size=8, tol=1e-6), eager)
        some = run(
            given[0][:7], descent(bx.Box(0.0, box.upper[:7])), args=(center[:7], weight[:7]), compile=True, chunk_size=8
        )
        assert_same(some, tree.map(lambda leaf: leaf[:7], eager))


@pytest.fixture
def programs(monkeypatch):
    """What was compiled, without a compiler: each writes over what it is given, and takes the same shapes for ever."""
    made = []

    def compile(function, *, donate_argnums, options):
        assert donate_argnums == 0
        assert options
        shapes = []

        def step(run, *rest):
            shapes.append([(leaf.shape, leaf.dtype) for leaf in run])
            assert shapes[-1] == shapes[0]
            assert len({leaf.data_ptr() for leaf in run if leaf.numel()}) == sum(leaf.numel() > 0 for leaf in run)
            return [old.copy_(new) for old, new in zip(run, function(run, *rest), strict=True)]

        made.append(shapes)
        return step

    pool._compiled.cache_clear()
    monkeypatch.setattr(pool, "compile", compile)
    yield made
    pool._compiled.cache_clear()


@pytest.mark.parametrize("make", [descent, bx.lbfgsb], ids=["rows", "columns"])
def test_what_is_compiled_once_serves_all_batches(make, programs):
    """Of any size and with other numbers; what is shared by problems is another kind, as another dtype is."""
    center, weight, box = quadratics(11)
    run = partial(bx.minimize, quadratic, batch_dims=1, max_steps=40, tol=1e-6)
    given = torch.zeros_like(center), make(box)
    eager = run(*given, args=(center, weight))
    some, few = (lambda leaf: leaf[:3]), bx.Box(0.0, box.upper[:3])
    for _ in range(2):
        assert_same(run(*given, args=(center, weight), compile=True, chunk_size=4), eager)
        assert not given[0].any()
        result = run(given[0][:3], make(few), args=(center[:3], weight[:3]), compile=True, chunk_size=4)
        assert_same(result, tree.map(some, eager))
    assert len(programs) == 1
    assert len(programs[0]) >= 2 * (int(eager.steps.sum()) // 4)
    shared = given[0], make(bx.Box(0.0, box.upper[0]))
    assert_same(run(*shared, args=(center, weight), compile=True, chunk_size=4), run(*shared, args=(center, weight)))
    assert len(programs) == 2
    narrow = run(given[0].float(), make(box), args=(center, weight), compile=True, chunk_size=4)
    assert narrow.params.dtype == torch.float32
    assert len(programs) == 3
    one = run(given[0][0], make(bx.Box(0.0, 1.0)), args=(center[0], weight[0]), batch_dims=0, compile=True)
    assert_same(one, run(given[0][0], make(bx.Box(0.0, 1.0)), args=(center[0], weight[0]), batch_dims=0))
    assert len(programs) == 4


def test_a_compiled_quasi_newton_method():
    """Its operators and its loops over vectors, in generated code: `aot_eager` would not do."""

    def rosenbrock(x):
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    start = 4 * torch.rand(24, 10, dtype=DTYPE, generator=torch.Generator().manual_seed(0)) - 2
    run = partial(bx.minimize, rosenbrock, start, bx.lbfgsb(bx.Box(-2.0, 0.8)), batch_dims=1, max_steps=300)
    eager, compiled = run(), run(compile=True, chunk_size=16)
    assert (compiled.status == bx.Status.GRADIENT).all()
    torch.testing.assert_close(compiled.value, eager.value, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("compiled", [False, True])
def test_problems_side_by_side_are_what_they_are_under_vmap(compiled, monkeypatch):
    """Leaves of two dtypes, bounds of each problem for one and shared for the other, arguments, and turns."""
    generator = torch.Generator().manual_seed(3)
    center = torch.rand(9, 3, generator=generator, dtype=torch.float64) * 3
    upper = 0.5 + torch.rand(9, 3, generator=generator, dtype=torch.float64)
    start = {"wide": torch.zeros(9, 3, dtype=torch.float64), "narrow": torch.full((9, 2), 5.0)}
    solver = bx.lbfgsb(bx.Box({"wide": -1.0, "narrow": torch.tensor([[0.5, -1.0]])}, {"wide": upper, "narrow": None}))

    def loss(x, center):
        return rosenbrock(x["wide"] - center + 1) + (x["narrow"] ** 2).sum() + x["wide"].sum() * x["narrow"][0]

    def run(**options):
        return bx.minimize(loss, start, solver, args=(center,), batch_dims=1, tol=1e-4, chunk_size=4, **options)

    columns = run(compile=compiled)
    monkeypatch.setattr("boxopt.solve.driver.by_columns", lambda *same: same)
    rows = run()
    assert (columns.status == bx.Status.GRADIENT).all()
    assert (columns.params["wide"] == upper).any()
    assert type(columns.state) is type(rows.state)
    torch.testing.assert_close(columns.value, rows.value, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(columns.params, rows.params, rtol=1e-3, atol=1e-3)
    if not compiled:
        assert torch.equal(columns.steps, rows.steps)
        torch.testing.assert_close(columns.state.iterate, rows.state.iterate, rtol=1e-3, atol=1e-3)


def test_a_compiled_single_problem():
    def loss(x):
        return ((x - torch.arange(3.0)) ** 2).sum()

    run = partial(bx.minimize, loss, torch.zeros(3), adam(bx.Box(0.0, 1.5), 0.1), max_steps=50)
    assert_same(run(compile=True), run())


# ---- several starts


def rastrigin(x, center):
    return ((x - center) ** 2 - 10 * torch.cos(2 * torch.pi * (x - center)) + 10).sum()


def test_multistart_finds_the_best():
    centers = torch.tensor([[0.3], [-1.2], [2.1]], dtype=DTYPE)
    box = bx.Box(-3.0, torch.tensor([[2.0], [2.0], [1.5]]))
    start = torch.full((3, 1), -2.9, dtype=DTYPE)
    alone = bx.minimize(rastrigin, start, bx.lbfgsb(box), args=(centers,), batch_dims=1)
    best = bx.multistart(rastrigin, start, bx.lbfgsb(box), 30, args=(centers,), batch_dims=1)
    assert best.params.shape == (3, 1)
    torch.testing.assert_close(best.params[:2], centers[:2])
    assert best.params[2] == 1.5 or best.value[2] < 1.6
    assert (best.value <= alone.value).all()
    assert (best.steps > alone.steps).all()
    one = bx.multistart(rastrigin, start, bx.lbfgsb(box), 1, args=(centers,), batch_dims=1)
    assert_same(one, alone)


def test_multistart_of_one_problem_with_samples_of_ones_own():
    drawn = []

    def sample(key, x):
        drawn.append(key.shape)
        return x + bx.core.random.normal(key, x.shape, x.dtype)

    run = partial(bx.multistart, lambda x: rastrigin(x, 0.5), torch.full((2,), 3.0, dtype=DTYPE), sample=sample)
    for bounds in (3.0, torch.tensor([3.0, 2.0])):  # a bound for each coordinate, of as many as there are starts
        result = run(bx.lbfgsb(bx.Box(-bounds, bounds)), 2)
        assert result.params.shape == (2,)
        assert result.value.shape == ()
    assert drawn == [(2,), (2,)]
    with pytest.raises(ValueError, match="at least one start"):
        run(bx.lbfgsb(), 0)


def test_the_starts_of_a_box_are_in_it_and_differ():
    seen = []
    bx.multistart(
        lambda x: (x * 0).sum(),
        torch.zeros(3, dtype=DTYPE),
        bx.lbfgsb(bx.Box(torch.tensor([-1.0, 5.0, -torch.inf]), torch.tensor([1.0, 6.0, torch.inf]))),
        200,
        callback=lambda info: seen.append(info.iterate.params),
    )
    starts = seen[0][1:]
    assert (starts[:, 0].abs() <= 1).all()
    assert ((starts[:, 1] >= 5) & (starts[:, 1] <= 6)).all()
    assert abs(starts[:, 0].mean()) < 0.15
    assert 0.5 < starts[:, 2].std() < 1.5


# ---- SciPy's interface

THEIRS = {
    "pairs": [(0.0, 0.8), (None, 0.5), (-1.0, None), (None, None)],
    "Bounds": scipy.optimize.Bounds([0.0, -np.inf, -1.0, -np.inf], [0.8, 0.5, np.inf, np.inf]),
    "none": None,
}


def numpy_rosenbrock(x, scale=100.0):
    return (scale * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()


def numpy_slope(x, scale=100.0):
    inner, slope = x[1:] - x[:-1] ** 2, np.zeros_like(x)
    slope[1:] = 2 * scale * inner
    slope[:-1] -= 4 * scale * x[:-1] * inner + 2 * (1 - x[:-1])
    return slope


@pytest.mark.parametrize("bounds", list(THEIRS))
@pytest.mark.parametrize("kind", ["jac", "both", "2-point", "torch"])
def test_scipy_minimize(kind, bounds):
    start, args = np.array([-1.2, 0.3, 0.7, 1.0]), (20.0,)
    fun, jac = {
        "jac": (numpy_rosenbrock, numpy_slope),
        "both": (lambda x, s: (numpy_rosenbrock(x, s), numpy_slope(x, s)), True),
        "2-point": (lambda x, s: float(np.sum(numpy_rosenbrock(np.asarray(x), s))), None),
        "torch": (lambda x, s: (s * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum(), None),
    }[kind]
    bounds = THEIRS[bounds]
    theirs = scipy.optimize.minimize(
        numpy_rosenbrock, start, args, "L-BFGS-B", jac=numpy_slope, bounds=bounds, tol=1e-9
    )
    ours = bx.scipy_minimize(fun, start, args, jac=jac, bounds=bounds, tol=1e-9 if kind != "2-point" else None)
    assert isinstance(ours, scipy.optimize.OptimizeResult)
    tolerance = 1e-3 if kind == "2-point" else 1e-5
    np.testing.assert_allclose(ours.x, theirs.x, atol=tolerance)
    assert ours.fun == pytest.approx(theirs.fun, abs=tolerance)
    assert ours.success
    assert ours.status == 0
    assert set(ours) <= set(theirs)
    assert ours.nfev >= ours.nit >= 1
    np.testing.assert_allclose(ours.jac, numpy_slope(ours.x, 20.0), atol=1e-4)


def test_scipy_minimize_limits_and_callbacks():
    start, points = np.array([-1.2, 1.0]), []
    run = partial(bx.scipy_minimize, numpy_rosenbrock, start, jac=numpy_slope)
    full = run(callback=points.append)
    assert len(points) == full.nit
    assert full.nfev == full.njev
    np.testing.assert_array_equal(points[-1], full.x)
    for options in ({"maxiter": 3}, {"maxfun": 5}):
        assert run(options=options).status == 1
        assert not run(options=options).success

    def stop(intermediate_result):
        if intermediate_result.fun < 3:
            raise StopIteration

    assert run(callback=stop).status == 99
    with pytest.raises(ValueError, match="method"):
        run(method="CG")
    with pytest.raises(ValueError, match="unknown options"):
        run(options={"maxitre": 3})
    with pytest.raises(ValueError, match="pairs of bounds"):
        run(bounds=[(0, 1)])


def test_a_constant_and_nothing_to_change():
    start = {"x": torch.zeros(0, 3)}
    fit = bx.minimize(lambda p: (p["x"] ** 2).sum(), start, bx.lbfgsb(bx.Box(0.0, 1.0)), batch_dims=1)
    assert fit.value.shape == (0,)


def test_bounds_that_leave_out_a_masked_leaf_are_explained():
    loss = lambda p: (p["a"] ** 2).sum() + p["b"] ** 2  # noqa: E731
    start = {"a": torch.zeros(2, 2), "b": torch.zeros(2)}
    bounded = lambda bounds: bx.chain(bx.sgd(0.1), bx.masked(bx.project(bx.Box(bounds)), "a"))  # noqa: E731
    with pytest.raises(ValueError, match=r"not a pytree prefix of the parameters: .*extra key\(s\): \['b'\]"):
        bx.minimize(loss, start, bounded({"a": 0.5}), batch_dims=1)
    fit = bx.minimize(loss, start, bounded({"a": 0.5, "b": None}), batch_dims=1, max_steps=20)
    assert (fit.params["a"] == 0.5).all()


def test_starts_of_sets_that_are_no_boxes_are_around_the_first():
    """The least of a concave loss is at one of the vertices, each of which is a place to stay."""
    simplex, weights = bx.sets.Simplex(), torch.tensor([1.0, 2.0, 3.0], dtype=DTYPE)
    loss = lambda x: -(weights * x * x).sum()  # noqa: E731
    start = torch.tensor([1.0, 0.0, 0.0], dtype=DTYPE)
    assert float(bx.minimize(loss, start, bx.spg(simplex)).value) == -1
    assert bx.multistart(loss, start, bx.spg(simplex), 12).params.tolist() == [0, 0, 1]


def test_scipy_minimize_of_what_torch_does_not_follow():
    """A loss that computes with torch, but hands out what has no derivative, is differentiated by differences."""
    found = bx.scipy_minimize(
        lambda x: torch.as_tensor(x).detach().square().sum() + 1, [1.0, -2.0], bounds=[(0.5, 2)] * 2
    )
    np.testing.assert_allclose(found.x, 0.5)
