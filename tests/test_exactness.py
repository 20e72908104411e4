"""Law 2 at full strength: 10⁷ drawn coordinates for each dtype and mode, and beside them the naive formula."""

import functools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.func import vmap

import boxopt as bx

COUNT = 10_000_000
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]
each_dtype = pytest.mark.parametrize("dtype", DTYPES, ids=str)


def log_uniform(generator, low, high, count=COUNT):
    exponent = torch.rand(count, generator=generator, dtype=torch.float64) * (high - low) + low
    sign = torch.where(torch.rand(count, generator=generator) < 0.5, -1.0, 1.0)
    return sign * 10**exponent


@functools.cache
def draw(dtype):
    """Bounds of every scale in float64, feasible parameters, and updates from tiny to huge."""
    g = torch.Generator().manual_seed(0)
    top = 4 if dtype == torch.float16 else 12
    low = log_uniform(g, -top / 2, top / 2)
    low[::5] = 0.0
    low[1::5] = 1e-6
    high = low + log_uniform(g, -top / 2, top / 2).abs()
    high[1::5] = 1.0 + low[1::5]
    box = bx.Box(low, high)
    params = low + (high - low) * torch.rand(COUNT, generator=g, dtype=torch.float64)
    params[2::7] = low[2::7]
    params[3::7] = high[3::7]
    params = box.project(params.to(dtype))
    updates = (log_uniform(g, -4, 4) * (high - low)).to(dtype)
    return low, high, params, updates


def outside(params, low, high):
    return int(((params.double() < low) | (params.double() > high)).sum())


def float64(*values):
    return (torch.tensor(value, dtype=torch.float64) for value in values)


def modes(build, within=False):
    """The step of a stateless transformation in each execution mode, on flat tensors; or where it ends, projected."""

    def eager(updates, params, low, high):
        step, _ = build(low, high).update(updates, bx.EmptyState(), params)
        return bx.apply_updates(params, step, within=bx.Box(low, high)) if within else step

    def vmapped(function):
        def run(*tensors):
            folded = (t.reshape(100, -1) for t in tensors)
            return vmap(function)(*folded).reshape(-1)

        return run

    def compiled(function):
        return torch.compile(function, fullgraph=True, options={"realize_opcount_threshold": 5})

    return {
        "eager": eager,
        "vmap": vmapped(eager),
        "compiled": compiled(eager),
        "compiled vmap": compiled(vmapped(eager)),
    }


def project(low, high):
    return bx.project(bx.Box(low, high))


def keep_representable(low, high, params, updates):
    """Leave out the boxes that hold no number of the dtype, and a few more, so that the rest folds for vmap."""
    inside = (params.double() >= low) & (params.double() <= high)
    count = int(inside.sum()) // 100 * 100
    return tuple(x[inside][:count] for x in (low, high, params, updates))


@each_dtype
@pytest.mark.parametrize("mode", ["eager", "vmap", "compiled", "compiled vmap"])
def test_no_violation_in_ten_million(dtype, mode):
    torch._dynamo.reset()
    low, high, params, updates = draw(dtype)
    low, high, params, updates = keep_representable(low, high, params, updates)
    assert len(params) > COUNT // 2
    function = modes(project)[mode]
    step = function(updates, params, low, high)
    assert step.dtype == dtype
    assert outside(bx.apply_updates(params, step), low, high) == 0
    # The update reaches its target to the rounding of the sum: it is not feasible by staying where it is.
    target = bx.Box(low, high).project(params + updates).double()
    reached = bx.apply_updates(params, step).double()
    scale = torch.maximum(params.double().abs(), target.abs())
    assert ((reached - target).abs() <= 2 * torch.finfo(dtype).eps * scale + torch.finfo(dtype).tiny).all()


@each_dtype
def test_update_and_apply_in_one_compiled_graph(dtype):
    torch._dynamo.reset()
    g = torch.Generator().manual_seed(1)
    params = torch.rand(1_000_000, generator=g, dtype=torch.float64).to(dtype)
    updates = torch.randn(1_000_000, generator=g, dtype=torch.float64).to(dtype)
    box = bx.Box(1e-6, 1.0)
    params = box.project(params)
    tx = bx.project(box)

    @torch.compile(fullgraph=True)
    def step(params, updates):
        return bx.apply_updates(params, tx.update(updates, bx.EmptyState(), params)[0])

    assert outside(step(params, updates), *float64(1e-6, 1.0)) == 0


@each_dtype
def test_the_naive_formula_leaves_the_box(dtype):
    """The counter-example that the algorithm exists for; if this fails, the test above shows nothing."""
    g = torch.Generator().manual_seed(0)
    low, high = torch.tensor(1e-6, dtype=dtype), torch.tensor(1.0, dtype=dtype)
    params = torch.rand(COUNT, generator=g, dtype=torch.float64).to(dtype).clamp(low, high)
    updates = torch.randn(COUNT, generator=g, dtype=torch.float64).to(dtype)
    naive = (params + updates).clamp(low, high) - params
    count = outside(params + naive, low.double(), high.double())
    print(f"{dtype}: the naive formula leaves the box in {count} of {COUNT} cases, {count / COUNT:.1%}")
    assert count > COUNT // 100


@each_dtype
@pytest.mark.parametrize("mode", ["eager", "vmap", "compiled", "compiled vmap"])
def test_within_from_far_outside(dtype, mode):
    """From 10⁴ times the box's size away, in one step."""
    torch._dynamo.reset()
    low, high, params, updates = draw(dtype)
    low, high, params, updates = keep_representable(low, high, params, updates)
    largest = torch.finfo(dtype).max
    start = (high + 1e4 * (high - low)).clamp(-largest, largest).to(dtype)
    after = modes(project, within=True)[mode](updates, start, low, high)
    assert after.dtype == dtype
    assert outside(after, low, high) == 0


@each_dtype
def test_infeasible_starts_are_inside_after_a_few_steps(dtype):
    g = torch.Generator().manual_seed(2)
    params = (torch.randn(100_000, generator=g, dtype=torch.float64) * 1e3).to(dtype)
    box = bx.Box(0.1, 0.4)
    tx = bx.project(box)
    for _ in range(4):
        step, _ = tx.update(torch.zeros_like(params), bx.EmptyState(), params)
        params = bx.apply_updates(params, step)
    assert outside(params, *float64(0.1, 0.4)) == 0


@each_dtype
@pytest.mark.parametrize("mode", ["eager", "vmap", "compiled"])
def test_barrier_is_strictly_inside(dtype, mode):
    torch._dynamo.reset()
    count = 1_000_000
    low, high, params, updates = (t[:count] for t in draw(dtype))
    box = bx.Box(low, high)
    interior = box.prox_barrier(params, 0.0)
    inside = (interior.double() > low) & (interior.double() < high)
    keep = inside.nonzero()[:, 0]
    keep = keep[: len(keep) // 100 * 100]
    assert len(keep) > count // 2
    low, high, params, updates = low[keep], high[keep], interior[keep], updates[keep]
    mu = log_uniform(torch.Generator().manual_seed(1), -30, 10, count).abs()[keep]
    for underflow in (False, True):
        strength = torch.zeros_like(mu) if underflow else mu
        build = lambda low, high: bx.barrier(bx.Box(low, high), strength if mode != "vmap" else 1e-8)  # noqa: B023, E731
        step = modes(build)[mode](updates, params, low, high)
        after = bx.apply_updates(params, step).double()
        assert int(((after <= low) | (after >= high)).sum()) == 0


def test_barrier_from_a_wall_steps_inside():
    for dtype in DTYPES:
        params = torch.tensor([0.0, 1.0, 0.0, 1.0], dtype=dtype)
        tx = bx.barrier(bx.Box(0.0, 1.0), 1e-30)
        step, _ = tx.update(torch.tensor([-1.0, 1.0, 1.0, -1.0], dtype=dtype), bx.EmptyState(), params)
        after = bx.apply_updates(params, step)
        assert ((after > 0) & (after < 1)).all()


def test_bounds_round_inward():
    low, high = 1.0000001, 1.1
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for bounds in ((low, high), tuple(torch.tensor(b, dtype=torch.float64) for b in (low, high))):
            box = bx.Box(*bounds)
            ends = box.project(torch.tensor([-5.0, 5.0], dtype=dtype)).double()
            assert ends[0] >= low
            assert ends[1] <= high
            assert ends[0] - low <= torch.finfo(dtype).eps
            assert high - ends[1] <= torch.finfo(dtype).eps


@given(
    value=st.floats(allow_nan=False, allow_infinity=True),
    dtype=st.sampled_from([torch.float32, torch.bfloat16, torch.float16]),
    up=st.booleans(),
)
@settings(deadline=None, max_examples=500, derandomize=True)
def test_numbers_and_tensors_round_alike(value, dtype, up):
    from boxopt.core.exact import inward

    x = torch.zeros((), dtype=dtype)
    number = torch.tensor(inward(value, x, up=up), dtype=torch.float64)
    tensor = inward(torch.tensor(value, dtype=torch.float64), x, up=up)
    assert tensor.dtype == dtype
    assert number == tensor.double()
    assert number >= value if up else number <= value


@given(
    data=st.data(),
    dtype=st.sampled_from(DTYPES),
)
@settings(deadline=None, max_examples=500, derandomize=True)
def test_any_single_case(data, dtype):
    """Hypothesis looks for corners: bounds an ulp apart, subnormals, the largest numbers, infinite updates."""
    largest = torch.finfo(dtype).max
    number = st.floats(min_value=-largest, max_value=largest)
    low, high = sorted(data.draw(st.tuples(number, number)))
    x, u = data.draw(number), data.draw(st.floats(allow_nan=False))
    box = bx.Box(low, high)
    params = box.project(torch.tensor([x], dtype=dtype))
    if outside(params, *float64(low, high)):
        return  # no number of the dtype in the box
    step, _ = bx.project(box).update(torch.tensor([u], dtype=dtype), bx.EmptyState(), params)
    after = bx.apply_updates(params, step).double()
    assert low <= float(after) <= high


@pytest.mark.gpu
@each_dtype
def test_no_violation_on_a_gpu(dtype):
    low, high, params, updates = draw(dtype)
    low, high, params, updates = (t.cuda() for t in keep_representable(low, high, params, updates))
    for function in modes(project).values():
        step = function(updates, params, low, high)
        assert outside(bx.apply_updates(params, step), low, high) == 0
