"""Compiled steps that overwrite what was donated to them: the same numbers, in the same memory, or a clear error."""

import gc
import os
import re
import weakref
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.utils._pytree as pytree
from torch._inductor.utils import run_and_get_code
from torch.func import grad, vmap

import boxopt as bx
from boxopt.solve.quadratic import solve
from tests.test_laws import assert_trees_equal, random_like

CHAIN = bx.chain(bx.adam(0.1), bx.project(bx.Box(-1.0, 0.75)), bx.barrier(bx.Box(-1.0, 0.75), 1e-3))
LIGHT = bx.chain(bx.adam(0.1), bx.project(bx.Box(-1.0, 0.75)))  # whose code is generated in a third of the time


def step(params, state, gradients, tx=CHAIN):
    updates, state = tx.update(gradients, state, params)
    return bx.apply_updates(params, updates), state


def light_step(params, state, gradients):
    return step(params, state, gradients, LIGHT)


def example():
    return {"w": random_like(torch.zeros(3, 2), 0.3), "b": torch.tensor([0.2, -0.1])}


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


def pointers(tree):
    return [leaf.data_ptr() for leaf in pytree.tree_leaves(tree)]


@pytest.mark.parametrize("layout", ["packed", "leaves"])
def test_donated_steps_equal_pure_ones_and_stay_in_place(layout):
    params = example()
    if layout == "packed":
        params, _ = bx.pack(params)
    state = CHAIN.init(params)
    expected, expected_state = params, state
    fast = bx.compile(step, donate_argnums=(0, 1))
    params, state = pytree.tree_map(torch.clone, (params, state))
    places = pointers((params, state))
    with torch._dynamo.config.patch(error_on_recompile=True):
        for seed in range(5):
            gradients = random_like(expected, 1.0, seed)
            expected, expected_state = step(expected, expected_state, gradients)
            params, state = fast(params, state, gradients)
            assert_trees_equal((params, state), (expected, expected_state), rtol=1e-5, atol=1e-6)
    assert pointers((params, state)) == places


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.int64])
def test_numbers_without_dimensions_are_written_too(dtype):
    """torch 2.13 drops ``copy_`` to a float64 tensor without dimensions: see `boxopt.run.compile._write_over`."""

    def step(state):
        one, two = state
        return [torch.where(two > 0, one + 1, two * 2), two + one]

    compiled = bx.compile(step, donate_argnums=0, backend="aot_eager")
    state, expected = ([torch.tensor(1, dtype=dtype), torch.tensor(5, dtype=dtype)] for _ in range(2))
    for _ in range(3):
        expected, state = step(expected), compiled(state)
        assert_trees_equal(state, expected)


def test_without_donation_it_is_torch_compile_of_the_whole():
    params = example()
    gradients, state = random_like(params, 1.0), CHAIN.init(params)
    compiled = bx.compile(step, backend="aot_eager")
    assert_trees_equal(compiled(params, state, gradients), step(params, state, gradients), rtol=1e-5, atol=1e-6)
    assert_trees_equal(params, example())
    leaf = params["b"].clone().requires_grad_()
    total = bx.compile(lambda p: (p * p).sum())(leaf)
    total.backward()
    torch.testing.assert_close(leaf.grad, 2 * params["b"])


def test_vmapped_steps_whose_states_are_expanded():
    """vmap(tx.init) returns counters with stride 0, which cannot be written to."""
    params = {"w": random_like(torch.zeros(5, 3), 0.3)}
    state = vmap(LIGHT.init)(params)
    assert state[0][0].count.stride() == (0,)
    gradients = random_like(params, 1.0)
    expected = vmap(light_step)(params, state, gradients)
    fast = bx.compile(vmap(light_step), donate_argnums=(0, 1))
    with torch._dynamo.config.patch(error_on_recompile=True):
        found = fast(params, state, gradients)
        assert_trees_equal(found, expected, rtol=1e-5, atol=1e-6)
        for _ in range(2):
            found = fast(*found, gradients)


def test_gradients_inside_and_other_outputs():
    data = torch.linspace(-1, 1, 20)

    def train(params, state, target):
        def loss(p):
            return ((p["w"].sum() * data + p["b"].sum() - target) ** 2).mean()

        gradients = grad(loss)(params)
        return (*light_step(params, state, gradients), loss(params), {"norm": gradients["w"].norm()})

    params, target = example(), 0.3 * data
    state = LIGHT.init(params)
    expected = train(params, state, target)
    fast = bx.compile(train, donate_argnums=(0, 1))
    found = fast(params, state, target=target)
    assert_trees_equal(found, expected, rtol=1e-5, atol=1e-6)


def swapped(a, b):
    return b, a


def remembering(params, state):
    return params * 2, {"previous": params, "count": state["count"] + 1}


def viewed(a, b):
    return b.T, a.detach()


def cloned(a, b):
    return b.clone().T, a * 1.0


def pieced(a, b):
    return torch.cat(b.split(1)), torch.cat([a[:1], a[1:]]).T


def crossed(a, b):
    return a + b.T, b + a.flip(0), (a.T @ b).sum()


@pytest.mark.parametrize("function", [swapped, viewed, cloned, pieced, crossed], ids=lambda f: f.__name__)
def test_outputs_that_are_other_arguments(function):
    """The compiler alone gets this wrong: it reads an argument after it has written over it."""
    a, b = torch.arange(9.0).reshape(3, 3), torch.arange(9.0).reshape(3, 3) ** 2
    expected = pytree.tree_map(torch.clone, function(a, b))
    assert_trees_equal(bx.compile(function, donate_argnums=(0, 1))(a, b), expected)


def test_a_state_that_remembers_the_parameters():
    params, state = torch.arange(3.0), {"previous": torch.zeros(3), "count": torch.zeros((), dtype=torch.int64)}
    fast = bx.compile(remembering, donate_argnums=(0, 1))
    expected = params, state
    params, state = pytree.tree_map(torch.clone, expected)
    for _ in range(3):
        expected = remembering(*expected)
        params, state = fast(params, state)
        assert_trees_equal((params, state), expected)


def test_a_donated_argument_is_used_up():
    params = example()
    kept = params["w"]
    state = CHAIN.init(params)
    fast = bx.compile(step, donate_argnums=(0, 1))
    gradients = random_like(params, 1.0)
    new, state = fast(params, state, gradients)
    for use in (
        lambda: fast(params, state, gradients),
        lambda: fast(new, state, params),
        lambda: bx.apply_updates(params, gradients),
        lambda: CHAIN.init(params),
        lambda: bx.pack({"w": kept}),
    ):
        with pytest.raises(bx.ConsumedError, match="donated to the compiled step 'step'"):
            use()
    fast(new, state, gradients)


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (lambda p, s: ({"w": p["w"], "b": p["b"][:1]}, s), r"leaf 'b': its shape is \(2,\), the output has \(1,\)"),
        (lambda p, s: ({"w": p["w"].double(), "b": p["b"]}, s), r"leaf 'w': its dtype is torch.float32"),
        (lambda p, s: ({"w": p["w"]}, s), r"it lacks leaf 'b'"),
        (lambda p, s: ({**p, "c": p["b"]}, s), r"leaf 'c'"),
        (lambda p, s: p, "there is no output 1"),
        (lambda p, s: (p, (s, s)), "argument 1 of '<lambda>' is donated, and output 1 does not fit"),
        (lambda p, s: (p, 3.0), "does not fit"),
    ],
)
def test_outputs_that_do_not_fit_name_the_leaf_and_overwrite_nothing(function, message):
    params, state = example(), torch.zeros(3)
    before = pytree.tree_map(torch.clone, (params, state))
    with pytest.raises(ValueError, match=message):
        bx.compile(function, donate_argnums=(0, 1))(params, state)
    assert_trees_equal((params, state), before)


def test_aliasing_is_refused():
    params, state = example(), torch.zeros(3)
    fast = bx.compile(lambda p, s, g=None: (p, s + 1), donate_argnums=(0, 1))
    with pytest.raises(ValueError, match="argument 0 and argument 1 share memory"):
        fast(params, params["b"])
    with pytest.raises(ValueError, match="argument 0 and argument 2 share memory"):
        fast(params, state, {"view": params["w"][1:]})
    with pytest.raises(ValueError, match="argument 0 and argument 'g' share memory"):
        fast(params, state, g=params["w"])
    with pytest.raises(ValueError, match="two leaves of argument 0 share memory"):
        fast({"w": params["w"], "again": params["w"].view(-1)}, state)
    packed, unpack = bx.pack(params)
    views = unpack(packed)  # side by side in one buffer, and apart
    fast(views, state)
    with pytest.raises(ValueError, match="returns a donated argument, or a view of one"):
        bx.compile(lambda p: (p + 1, p[1:]), donate_argnums=0)(torch.zeros(3))


def test_bad_positions():
    for positions in ((0, 0), (-1,)):
        with pytest.raises(ValueError, match="donate_argnums"):
            bx.compile(step, donate_argnums=positions)
    with pytest.raises(TypeError, match="argument 2 is donated, but there are only 1"):
        bx.compile(step, donate_argnums=2)(torch.zeros(1))


def test_parameters_that_require_gradients_are_data():
    model = torch.nn.Linear(2, 2)
    params = dict(model.named_parameters())
    fast = bx.compile(step, donate_argnums=(0, 1), backend="aot_eager")
    state = CHAIN.init({name: p.detach() for name, p in params.items()})
    new, _ = fast(params, state, {name: torch.ones_like(p) for name, p in params.items()})
    assert not new["weight"].requires_grad
    assert new["weight"].data_ptr() == model.weight.data_ptr()


@pytest.mark.parametrize("donated", [0, ()])
def test_a_changed_setting_is_noticed(donated):
    """The guards that are dropped concern the library's insides, not what the step reads."""
    settings = {"rate": 1.0}
    fast = bx.compile(lambda p: p - settings["rate"], donate_argnums=donated)
    p = fast(torch.zeros(2))
    settings["rate"] = 5.0
    assert fast(p).tolist() == [-6.0, -6.0]


RATE = 1.0


@pytest.mark.parametrize("donated", [0, ()])
def test_a_changed_global_is_noticed_and_the_old_value_remembered(donated):
    global RATE
    # Guards are filtered for the inductor alone.
    fast = bx.compile(lambda p: p - RATE, donate_argnums=donated)
    p = torch.zeros(1)
    for RATE in (1.0, 1.0, 5.0, 5.0, 1.0, 1.0):  # noqa: B007
        p = fast(p)
    assert p.item() == -14
    with torch.compiler.set_stance("force_eager"):
        p = fast(p)
    torch._dynamo.reset()
    assert fast(fast(p)).item() == -17


def test_the_tree_that_came_back_may_be_changed():
    fast = bx.compile(lambda p: {name: leaf + 1 for name, leaf in p.items()}, donate_argnums=0, backend="aot_eager")
    params = fast({"a": torch.zeros(2), "b": torch.zeros(2)})
    params["a"] = torch.full((2,), 10.0)
    params = fast(params)
    assert {name: leaf.tolist() for name, leaf in params.items()} == {"a": [11, 11], "b": [2, 2]}
    params["c"] = torch.zeros(1)
    params = fast(params)
    assert params["c"].tolist() == [1]
    params["a"] = params["b"] = torch.zeros(2)
    with pytest.raises(ValueError, match="two leaves of argument 0 share memory"):
        fast(params)


def test_any_strides():
    fast = bx.compile(lambda p: p + 1, donate_argnums=0, backend="aot_eager")
    matrix = torch.arange(12.0).reshape(3, 4)
    for given in (matrix[:, ::2], matrix.T, matrix[:0], torch.arange(4.0).unfold(0, 2, 1), torch.ones(1).expand(3)):
        expected = given + 1
        assert torch.equal(fast(given), expected)


def test_what_is_returned_is_not_kept_alive():
    fast = bx.compile(lambda p: p + 1, donate_argnums=0, backend="aot_eager")
    params = fast(torch.zeros(2))
    reference = weakref.ref(params)
    del params
    gc.collect()
    assert reference() is None


def test_within_other_transformations():
    fast = bx.compile(lambda p: p + 1, donate_argnums=0, backend="aot_eager")
    for outer in (vmap(fast), grad(lambda p: fast(p).sum())):
        with pytest.raises(RuntimeError, match="compile the transformed step"):
            outer(torch.zeros(2))
    params = torch.zeros(2)
    assert torch.compile(lambda p: 2 * fast(p), backend="aot_eager", fullgraph=True)(params).tolist() == [2, 2]
    assert params.tolist() == [0, 0]
    outer = bx.compile(lambda p: 2 * fast(p), donate_argnums=0, backend="aot_eager")
    assert outer(outer(params)).tolist() == [6, 6]


def test_threads_with_arguments_of_their_own():
    fast = bx.compile(lambda p, s: (p + 1, s + p), donate_argnums=(0, 1), backend="aot_eager")
    fast(torch.zeros(3), torch.zeros(3))

    def work(_):
        held = torch.zeros(3), torch.zeros(3)
        for _ in range(100):
            held = fast(*held)
        return held

    with ThreadPoolExecutor(4) as pool:
        for params, state in pool.map(work, range(4)):
            assert params.tolist() == [100] * 3
            assert state.tolist() == [4950] * 3


def test_many_steps_have_caches_of_their_own():
    """Closures share their code, and torch keeps eight compiled versions of a code."""
    with torch._dynamo.config.patch(error_on_recompile=True, fail_on_recompile_limit_hit=True):
        for rate in range(12):
            fast = bx.compile(lambda p, rate=rate: p - rate, donate_argnums=0, backend="eager")
            assert fast(torch.zeros(1)).item() == -rate


def resident_bytes():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")


@pytest.mark.skipif(not os.path.exists("/proc/self/statm"), reason="reads /proc")
def test_a_donated_step_allocates_nothing_of_the_models_size():
    size = 4_000_000
    tx = bx.chain(bx.adam(1e-3), bx.project(bx.Box(-1.0, 1.0)))

    def small(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state

    params, gradients = torch.zeros(size), torch.ones(size)
    state = pytree.tree_map(torch.clone, tx.init(params))
    fast = bx.compile(small, donate_argnums=(0, 1))
    params, state = fast(params, state, gradients)
    gc.collect()
    before = resident_bytes()
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        for _ in range(3):
            params, state = fast(params, state, gradients)
    allocated = sum(max(event.cpu_memory_usage, 0) for event in profile.function_events)
    assert allocated < 0.05 * 4 * size
    assert resident_bytes() - before < 0.5 * 4 * size
    # The pure step does allocate, so that the count is not blind.
    with torch.autograd.profiler.profile(profile_memory=True) as profile:
        small(params, state, gradients)
    assert sum(max(event.cpu_memory_usage, 0) for event in profile.function_events) > 3 * 4 * size


def test_a_chain_of_six_is_one_pass_over_memory():
    """Four model sizes are read and three written, in one loop, without a buffer in between."""
    size, box = 100_000, bx.Box(-0.5, 0.5)
    tx = bx.chain(
        bx.clip(1.0),
        bx.scale_by_adam(),
        bx.add_decayed_weights(1e-4),
        bx.scale_by_learning_rate(1e-3),
        bx.project(box),
        bx.barrier(box, 1e-6),
    )

    def whole(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state

    params, gradients = torch.rand(size) - 0.5, torch.randn(size)
    fast = bx.compile(whole, donate_argnums=(0, 1))
    _, codes = run_and_get_code(fast, params, tx.init(params), gradients)
    code = "\n".join(codes)
    assert code.count("for(int64_t") == 1
    assert f"empty_strided_cpu(({size}" not in code
    read, written = set(re.findall(r"loadu\((\w+) \+", code)), set(re.findall(r"\.store\((\w+) \+", code))
    assert len(read) == 4
    assert len(written) == 3
    assert written < read


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("mode", ["default", "reduce-overhead"])
def test_cuda_and_cuda_graphs(mode):
    params = pytree.tree_map(lambda x: x.cuda(), example())
    packed, _ = bx.pack(params)
    state = CHAIN.init(packed)
    expected = packed, state
    packed, state = pytree.tree_map(torch.clone, expected)
    places = pointers((packed, state))
    fast = bx.compile(step, donate_argnums=(0, 1), mode=mode)
    for seed in range(6):
        gradients = pytree.tree_map(lambda x: x.cuda(), random_like(packed, 1.0, seed))
        expected = step(*expected, gradients)
        packed, state = fast(packed, state, gradients)
        assert_trees_equal((packed, state), expected, rtol=1e-5, atol=1e-6)
    assert pointers((packed, state)) == places


def test_another_step_does_not_make_the_sizes_variable():
    """torch remembers by name and line which sizes have changed, and all steps are made at one line."""
    found = []
    for shapes in ([(3, 2), (4,)], [(5,), (2, 3), (2,)]):
        params, unpack = bx.pack([torch.zeros(shape) for shape in shapes])

        def keep(graph, inputs):
            found.append([size for x in inputs for size in (x.shape if isinstance(x, torch.Tensor) else [x])])
            return graph

        def shift(params, unpack=unpack):
            return unpack.pack([leaf + leaf.sum() for leaf in unpack(params)])

        bx.compile(shift, donate_argnums=0, backend=keep)(params)
    assert len(found) == 2
    assert all(type(size) is int for sizes in found for size in sizes)


# --- formulas that only the compiler is given ------------------------------------------------------------------------


@pytest.fixture
def as_if_compiling(monkeypatch):
    """Calls a function as it is traced, but in eager mode, where its numbers show what the formulas say."""

    def call(function, *arguments):
        with monkeypatch.context() as patched:
            patched.setattr(torch.compiler, "is_compiling", lambda: True)
            return function(*arguments)

    return call


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("layout", ["leaves", "packed"])
def test_the_formulas_for_the_compiler_give_the_same_bits(as_if_compiling, layout, dtype):
    """They round where the compiler would not, and compare where it would store: in eager mode that changes nothing."""
    params = pytree.tree_map(lambda x: x.to(dtype), {**example(), "far": torch.tensor([-1.0, 0.75, 3.0, -1e-6])})
    low = {"w": torch.linspace(-1, 0, 6, dtype=torch.float64).reshape(3, 2), "b": -0.3, "far": 1e-7}
    box = bx.Box(low, torch.tensor(0.7000001, dtype=torch.float64))
    tx = bx.chain(bx.adam(0.1), bx.masked(bx.scale(0.5), {"w": False, "b": True, "far": True}), bx.project(box))
    if layout == "packed":
        packed, form = as_if_compiling(bx.pack, params)
        assert_trees_equal(packed.buffers, bx.pack(params)[0].buffers)
        assert_trees_equal(as_if_compiling(form, packed), params)
        keep = [True, False, True]
        assert_trees_equal(as_if_compiling(form.mask, keep, packed), form.mask(keep, packed))
        params = packed
    state = tx.init(params)
    for seed in range(3):
        gradients = random_like(params, 3.0, seed)
        expected = tx.update(gradients, state, params)
        assert_trees_equal(as_if_compiling(tx.update, gradients, state, params), expected)
        params, state = bx.apply_updates(params, expected[0]), expected[1]


def test_small_systems_for_the_compiler_have_the_same_solutions(as_if_compiling):
    factor = torch.randn(5, 4, 4, dtype=torch.float64)
    matrix, right = factor @ factor.mT + torch.eye(4), torch.randn(5, 4, dtype=torch.float64)
    solution = vmap(solve)(matrix, right)
    torch.testing.assert_close(as_if_compiling(vmap(solve), matrix, right), solution, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close((matrix @ solution[..., None])[..., 0], right)


def test_checks_are_silent_in_what_is_compiled(as_if_compiling):
    """Values cannot be read there. The upper bound decides, as in a batch."""
    box = as_if_compiling(bx.Box, torch.tensor(1.0), torch.tensor(0.0))
    tx = bx.project(box)
    params = torch.zeros(2)
    updates, _ = as_if_compiling(lambda: tx.update(torch.tensor([3.0, -3.0]), tx.init(params), params))
    assert updates.tolist() == [0, 0]
