"""The laws of docs/design.md, each over every entry of the registry."""

import pickle
from typing import NamedTuple

import optree
import pytest
import torch
import torch.utils._pytree as pytree
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.func import vmap

import boxopt as bx
from tests.registry import ENTRIES, OTHERS, SCHEDULES, Hyper

every_entry = pytest.mark.parametrize("entry", ENTRIES, ids=str)
MEMBERS = 5


class Layer(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor


def skip_exempt(entry, law):
    if law in entry.exempt:
        pytest.skip(entry.exempt[law])


def random_like(tree, scale=1.0, seed=0):
    generator = torch.Generator().manual_seed(seed)

    def draw(x):
        return (scale * torch.randn(x.shape, generator=generator, dtype=torch.float64)).to(x.dtype)

    return optree.tree_map(draw, tree, namespace="torch")


def example_params(dtype=torch.float64, members=None):
    lead = () if members is None else (members,)
    shapes = {"layer": {"weight": (3, 2), "bias": (2,)}, "scale": ()}
    zeros = pytree.tree_map(
        lambda shape: torch.zeros(lead + shape, dtype=dtype), shapes, is_leaf=lambda x: isinstance(x, tuple)
    )
    return pytree.tree_map(lambda x: x.clamp(-0.9, 0.7), random_like(zeros, 0.5))


def run(tx, params, steps=4, state=None, start=0):
    """Some updates with gradients that depend on the parameters."""
    state = tx.init(params) if state is None else state
    updates = None
    for step in range(start, start + steps):
        noise = random_like(params, 1.0, seed=step)
        gradients = optree.tree_map(lambda p, n: 2 * p + n, params, noise, namespace="torch")
        updates, state = tx.update(gradients, state, params)
        params = bx.apply_updates(params, updates)
    return params, updates, state


def assert_trees_equal(one, other, rtol=0.0, atol=0.0):
    leaves, structure = pytree.tree_flatten(one)
    others, other_structure = pytree.tree_flatten(other)
    assert structure == other_structure
    for x, y in zip(leaves, others, strict=True):
        if x is None:
            assert y is None
        else:
            torch.testing.assert_close(x, y, rtol=rtol, atol=atol, equal_nan=True)


def ensemble_hyper(members=MEMBERS, dtype=torch.float64):
    grid = torch.linspace(0, 1, members, dtype=dtype)
    return Hyper(
        lr=0.01 + 0.2 * grid,
        mu=10 ** (-4 + 3 * grid),
        weight=0.1 + 0.5 * grid,
        lower=-1.0 - grid,
        upper=0.75 + grid,
    )


def member(tree, index):
    return pytree.tree_map(lambda x: None if x is None else x[index], tree)


# --- 0. the registry is complete -----------------------------------------------------------------------------------


def test_every_public_name_is_registered():
    covered = {name for entry in ENTRIES for name in entry.names} | set(SCHEDULES) | set(OTHERS)
    states = {name for name in bx.__all__ if name.endswith("State")}
    assert set(bx.__all__) - covered - states == set()


# --- 1. pure -------------------------------------------------------------------------------------------------------


@every_entry
def test_pure(entry):
    tx = entry.build(Hyper())
    params = example_params()
    _, _, state = run(tx, params, 2)
    gradients = random_like(params, 1.0, 9)
    arguments = (gradients, state, params)
    before = pytree.tree_map(torch.clone, arguments)
    versions = [leaf._version for leaf in pytree.tree_leaves(arguments)]
    first = tx.update(*arguments)
    second = tx.update(*arguments)
    assert_trees_equal(arguments, before)
    assert [leaf._version for leaf in pytree.tree_leaves(arguments)] == versions
    assert_trees_equal(first, second)


@every_entry
def test_resumes_bit_identically(entry, tmp_path):
    params = example_params()
    whole, _, final = run(entry.build(Hyper()), params, 6)
    half, _, state = run(entry.build(Hyper()), params, 3)
    torch.save(pytree.tree_leaves((half, state)), tmp_path / "checkpoint")
    fresh = entry.build(Hyper())
    structure = pytree.tree_structure((params, fresh.init(params)))
    half, state = structure.unflatten(torch.load(tmp_path / "checkpoint", weights_only=True))
    resumed, _, resumed_state = run(fresh, half, 3, state, start=3)
    assert_trees_equal((resumed, resumed_state), (whole, final))


# --- 2. feasible (10⁷ draws are in test_exactness.py) ----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("entry", [e for e in ENTRIES if e.lands], ids=str)
def test_feasible(entry, dtype):
    h = Hyper(lower=-1.01, upper=0.0703)
    params = pytree.tree_map(lambda x: x.clamp(-1.0, 0.07), example_params(dtype))
    tx = entry.build(h)
    state = tx.init(params)
    low, high = (torch.tensor(v, dtype=torch.float64) for v in (h.lower, h.upper))
    for step in range(30):
        gradients = random_like(params, 10.0 ** (step % 7 - 3), seed=step)
        updates, state = tx.update(gradients, state, params)
        params = bx.apply_updates(params, updates)
        for leaf in pytree.tree_leaves(params):
            assert leaf.dtype == dtype
            if entry.lands == "strictly":
                assert ((leaf.double() > low) & (leaf.double() < high)).all()
            else:
                assert ((leaf.double() >= low) & (leaf.double() <= high)).all()


# --- 3. vmappable --------------------------------------------------------------------------------------------------


@every_entry
def test_vmap_equals_loop(entry):
    params, h = example_params(members=MEMBERS), ensemble_hyper()
    gradients = random_like(params, 1.0, 1)

    def two_steps(params, gradients, h):
        tx = entry.build(h)
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(gradients, state, params)
            params = bx.apply_updates(params, updates)
        return params, state

    together = vmap(two_steps)(params, gradients, h)
    for index in range(MEMBERS):
        alone = two_steps(member(params, index), member(gradients, index), Hyper(*(x[index] for x in h)))
        assert_trees_equal(member(together, index), alone, rtol=1e-14, atol=1e-14)


def test_sixty_four_members_of_the_main_job():
    """chain(adam → project → barrier), each member with its own rate, strength and bounds, over ten steps."""
    params, h = example_params(members=64), ensemble_hyper(64)

    def train(params, h):
        tx = bx.chain(bx.adam(h.lr), bx.project(h.box), bx.barrier(h.box, h.mu))
        return run(tx, params, 10)[0]

    together = vmap(train, randomness="same")(params, h)
    for index in range(64):
        alone = train(member(params, index), Hyper(*(x[index] for x in h)))
        assert_trees_equal(member(together, index), alone, rtol=1e-12, atol=1e-12)
        assert float(bx.violation(bx.Box(h.lower[index], h.upper[index]), alone)) == 0


@every_entry
def test_nested_vmap(entry):
    params, h = example_params(members=4), ensemble_hyper(4)
    fold = lambda x: x.reshape(2, 2, *x.shape[1:])  # noqa: E731

    def step(params, h):
        tx = entry.build(h)
        return tx.update(params, tx.init(params), params)

    nested = vmap(vmap(step))(pytree.tree_map(fold, params), Hyper(*(fold(x) for x in h)))
    flat = vmap(step)(params, h)
    assert_trees_equal(nested, pytree.tree_map(fold, flat), rtol=1e-14, atol=1e-14)


@every_entry
def test_vmapped_init_and_update_of_one_transform(entry):
    params = example_params(members=MEMBERS)
    tx = entry.build(Hyper())
    states = vmap(tx.init)(params)
    updates, _ = vmap(tx.update)(params, states, params)
    for index in range(MEMBERS):
        p = member(params, index)
        assert_trees_equal(member(updates, index), tx.update(p, tx.init(p), p)[0], rtol=1e-14, atol=1e-14)


@every_entry
def test_stacked_without_vmap(entry):
    """What is elementwise needs no vmap for stacked parameters."""
    skip_exempt(entry, "stacked")
    params = example_params(members=MEMBERS)
    tx = entry.build(Hyper())
    stacked, _ = tx.update(params, tx.init(params), params)
    together, _ = vmap(tx.update)(params, vmap(tx.init)(params), params)
    assert_trees_equal(stacked, together, rtol=1e-14, atol=1e-14)


# --- 4. differentiable ---------------------------------------------------------------------------------------------


def _as_function(entry, params, gradients, state, numbers=None):
    """The update as a function of grads, params, state and hyperparameters, all flat tensors in float64."""
    tensors, structure = pytree.tree_flatten((gradients, params, state, numbers or Hyper()))
    varied = [
        i
        for i, x in enumerate(tensors)
        if isinstance(x, float) or (isinstance(x, torch.Tensor) and x.is_floating_point())
    ]
    inputs = [torch.as_tensor(tensors[i], dtype=torch.float64).clone().requires_grad_() for i in varied]

    def function(*values):
        full = list(tensors)
        for i, value in zip(varied, values, strict=True):
            full[i] = value
        gradients, params, state, h = structure.unflatten(full)
        outputs = entry.build(h).update(gradients, state, params)
        return tuple(x for x in pytree.tree_leaves(outputs) if x.is_floating_point() and x.requires_grad)

    return function, inputs


@every_entry
def test_gradcheck_and_gradgradcheck(entry):
    skip_exempt(entry, "derivative")
    params = {"a": torch.tensor([0.3, -0.4, 0.6], dtype=torch.float64)}
    gradients = {"a": torch.tensor([0.5, -0.7, 2.5], dtype=torch.float64)}
    tx = entry.build(Hyper())
    elsewhere = {"a": params["a"] + torch.tensor([0.02, 0.05, -0.03], dtype=torch.float64)}  # no ties with the start
    state = tx.init(elsewhere)
    _, state = tx.update({"a": torch.tensor([0.4, 0.2, -0.3], dtype=torch.float64)}, state, elsewhere)
    function, inputs = _as_function(entry, params, gradients, state)
    if not function(*inputs):
        return  # nothing depends on anything: the update is constant
    assert torch.autograd.gradcheck(function, inputs, atol=1e-5, rtol=1e-4)
    assert torch.autograd.gradgradcheck(function, inputs, atol=1e-4, rtol=1e-3)


@every_entry
@pytest.mark.parametrize("place", ["zero gradient", "lower bound", "upper bound", "outside"])
def test_derivatives_are_finite_everywhere(entry, place):
    value = {"zero gradient": 0.0, "lower bound": -1.0, "upper bound": 0.75, "outside": 3.0}[place]
    params = {"a": torch.full((3,), value, dtype=torch.float64)}
    slope = 0.0 if place == "zero gradient" else 1.0
    gradients = {"a": torch.tensor([slope, -slope, 0.0], dtype=torch.float64)}
    state = entry.build(Hyper()).init(params)
    function, inputs = _as_function(entry, params, gradients, state)
    _check_derivatives_are_finite(function, inputs)


@every_entry
@pytest.mark.parametrize("name", ["lr", "weight"])
def test_derivatives_are_finite_where_numbers_are_zero(entry, name):
    """As a limit may be, or the strength of a regularizer; or it is refused."""
    skip_exempt(entry, f"zero {name}")
    params = {"a": torch.tensor([0.3, -0.4, 0.6], dtype=torch.float64)}
    gradients = {"a": torch.tensor([0.5, 0.0, 2.5], dtype=torch.float64)}
    numbers = Hyper()._replace(**{name: 0.0})
    try:
        state = entry.build(numbers).init(params)
    except ValueError as error:
        pytest.skip(str(error))
    _check_derivatives_are_finite(*_as_function(entry, params, gradients, state, numbers))


def _check_derivatives_are_finite(function, inputs):
    outputs = function(*inputs)
    if not outputs:
        return
    first = torch.autograd.grad(
        sum(x.sum() for x in outputs), inputs, create_graph=True, allow_unused=True, materialize_grads=True
    )
    assert all(torch.isfinite(x).all() for x in first)
    total = sum((x * x).sum() for x in first)
    if total.requires_grad:
        second = torch.autograd.grad(total, inputs, allow_unused=True, materialize_grads=True)
        assert all(torch.isfinite(x).all() for x in second)


@every_entry
def test_grad_through_vmap_and_vmap_of_grad(entry):
    params, h = example_params(members=3), ensemble_hyper(3)

    def loss(lr, h, params):
        after, _, _ = step_twice(entry.build(h._replace(lr=lr)), params)
        return sum((x * x).sum() for x in pytree.tree_leaves(after))

    def step_twice(tx, params):
        state = tx.init(params)
        for _ in range(2):
            updates, state = tx.update(pytree.tree_map(lambda p: 2 * p, params), state, params)
            params = bx.apply_updates(params, updates)
        return params, updates, state

    each = vmap(torch.func.grad(loss))(h.lr, h, params)
    whole = torch.func.grad(lambda lr: vmap(loss)(lr, h, params).sum())(h.lr)
    torch.testing.assert_close(each, whole)
    assert torch.isfinite(each).all()


# --- 5. compilable -------------------------------------------------------------------------------------------------


@pytest.fixture(autouse=True)
def _fresh_compiler():
    torch._dynamo.reset()


# The inductor repeats an intermediate result at each use until it has 30 operations; with 5, long formulas such as the
# barrier's compile in a sixth of the time.
QUICK = {"realize_opcount_threshold": 5}


@every_entry
def test_compiles_whole_without_recompiling(entry, request):
    params = {"a": random_like(torch.zeros(3), 0.3), "b": torch.tensor(0.25)}
    tx = entry.build(Hyper())
    backend = {"options": QUICK}
    if entry.quick and not request.config.getoption("--inductor"):
        backend = {"backend": "aot_eager"}
    compiled = torch.compile(tx.update, fullgraph=True, **backend)
    state, reference = tx.init(params), tx.init(params)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for step in range(4):
            gradients = random_like(params, 1.0, step)
            expected, reference = tx.update(gradients, reference, params)
            updates, state = compiled(gradients, state, params)
            assert_trees_equal((updates, state), (expected, reference), rtol=1e-5, atol=1e-6)
            params = bx.apply_updates(params, expected)


# All at once where an entry is quick.
MODES = [
    pytest.param(entry, mode, id=f"{mode}-{entry}")
    for entry in ENTRIES
    for mode in (["all at once"] if entry.quick else ["vmap of grad", "unrolled"])
]


@pytest.mark.parametrize(("entry", "mode"), MODES)
def test_compiles_around_torch_func(entry, mode):
    """Built inside the compiled function from tensors; without the generation of code, which is tried above."""
    params, h = random_like({"a": torch.zeros(3, 2), "b": torch.zeros(3)}, 0.3), ensemble_hyper(3, torch.float32)

    def step(params, h):
        tx = entry.build(h)
        state = tx.init(params)
        for _ in range(2 if mode in ("unrolled", "all at once") else 1):
            updates, state = tx.update(pytree.tree_map(lambda p: 2 * p, params), state, params)
            params = bx.apply_updates(params, updates)
        return params

    def total(params, h):
        after = step(params, h)
        return sum(x.sum() for x in pytree.tree_leaves(after)), after

    function, arguments = vmap(torch.func.grad(total, has_aux=True)), (params, h)
    if mode == "unrolled":
        function, arguments = step, (member(params, 0), Hyper(*(x[0] for x in h)))
    backend = "aot_eager" if mode == "vmap of grad" else "eager"
    compiled = torch.compile(function, fullgraph=True, backend=backend)
    assert_trees_equal(compiled(*arguments), function(*arguments), rtol=1e-5, atol=1e-6)


# --- 6. tree-agnostic ----------------------------------------------------------------------------------------------


TREES = {
    "dict": lambda: {"b": torch.tensor([0.5, 0.1]), "a": torch.tensor([[0.2]])},
    "namedtuple": lambda: Layer(torch.tensor([[0.5]]), torch.tensor([0.1])),
    "list": lambda: [torch.tensor([0.5]), torch.tensor([0.1, 0.2])],
    "nested": lambda: {"x": [Layer(torch.tensor([[0.5]]), torch.tensor([0.1])), (torch.tensor(0.3),)]},
    "tensor": lambda: torch.tensor([0.5, -0.5]),
    "none leaf": lambda: {"a": torch.tensor([0.5]), "b": None, "c": [None, torch.tensor([0.1])]},
    "empty": lambda: {},
    "empty tensor": lambda: {"a": torch.zeros(0), "b": torch.tensor([0.5])},
    "mixed dtypes": lambda: {
        "a": torch.tensor([0.5], dtype=torch.float64),
        "b": torch.tensor([0.5], dtype=torch.bfloat16),
        "c": torch.tensor(0.25),
    },
}


@every_entry
def test_fake_tensors(entry):
    """Without values, as donated steps are traced first, results are of the same kinds."""
    params = example_params()
    expected = run(entry.build(Hyper()), params, 1)
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        got = run(entry.build(Hyper()), pytree.tree_map(mode.from_tensor, params), 1)
    for x, y in zip(pytree.tree_leaves(got), pytree.tree_leaves(expected), strict=True):
        assert (x.shape, x.dtype) == (y.shape, y.dtype)


@every_entry
@pytest.mark.parametrize("kind", TREES)
def test_any_tree(entry, kind):
    skip_exempt(entry, kind)
    params = TREES[kind]()
    after, updates, state = run(entry.build(Hyper()), params, 2)
    for result in (after, updates):
        assert pytree.tree_structure(result) == pytree.tree_structure(params)
        for x, y in zip(pytree.tree_leaves(result), pytree.tree_leaves(params), strict=True):
            assert (x is None) == (y is None)
            assert x is None or (x.dtype == y.dtype and x.shape == y.shape and x.device == y.device)
    initial = entry.build(Hyper()).init(params)
    assert pytree.tree_structure(state) == pytree.tree_structure(initial)
    for x, y in zip(pytree.tree_leaves(state), pytree.tree_leaves(initial), strict=True):
        assert (x is None) == (y is None)
        assert x is None or (x.dtype == y.dtype and x.shape == y.shape)


# --- 7. portable ---------------------------------------------------------------------------------------------------


@every_entry
def test_state_is_a_tree_of_tensors_with_few_counters(entry):
    tx = entry.build(Hyper())
    leaves = pytree.tree_leaves(tx.init(example_params()))
    assert all(isinstance(leaf, torch.Tensor) for leaf in leaves)
    skip_exempt(entry, "counters")
    count = lambda leaves: sum(not x.is_floating_point() and x.dtype != torch.bool for x in leaves)  # noqa: E731
    alone = pytree.tree_leaves(tx.init({"a": torch.zeros(3)}))
    # At most one a member with a counter, or as many for one leaf as for many.
    assert count(leaves) <= 2 or count(leaves) == count(alone)


@every_entry
def test_pickles(entry):
    tx = entry.build(Hyper())
    copy = pickle.loads(pickle.dumps(tx))
    params = example_params()
    assert_trees_equal(run(copy, params, 2), run(tx, params, 2))


@every_entry
def test_float64_stays_float64(entry):
    """Float32 hyperparameters and counters must not coarsen float64: compare with numbers perturbed below float32."""
    params = example_params(torch.float64)
    gradients = random_like(params, 1.0, 3)
    tx = entry.build(Hyper())
    updates, state = tx.update(gradients, tx.init(params), params)
    for leaf in pytree.tree_leaves((updates, [x for x in pytree.tree_leaves(state) if x.is_floating_point()])):
        assert leaf.dtype == torch.float64
        whole = (leaf == leaf.round()).all()  # a unit matrix, say, which float32 holds too
        if not whole and leaf.numel() > 1 and not ((leaf.abs() == leaf.abs().flatten()[0]).all()):
            assert (leaf != leaf.float().double()).any()


@every_entry
def test_tensors_say_what_numbers_say(entry):
    """Float64 tensors without dimensions: what is worked out of them, such as 1 − β, is so in float64."""
    params, h = example_params(torch.float32), Hyper(weight=0.999)
    gradients = random_like(params, 1.0, 3)
    tensors = entry.build(pytree.tree_map(lambda x: torch.tensor(x, dtype=torch.float64), h))
    numbers = entry.build(h)
    state = numbers.init(params)
    _, state = numbers.update(random_like(params, 1.0, 4), state, params)
    got, expected = tensors.update(gradients, state, params), numbers.update(gradients, state, params)
    assert_trees_equal(tensors.init(params), numbers.init(params), rtol=1e-7)
    assert_trees_equal(got, expected, rtol=2e-6, atol=2e-7)


# --- 8. clear about bad input: what concerns every entry (the rest is in test_bad_input.py) --------------------------


@every_entry
@pytest.mark.parametrize(
    ("leaf", "message"),
    [
        (torch.tensor([1, 2]), "torch.int64"),
        (torch.tensor([1j]), "torch.complex64"),
        (torch.tensor([True]), "torch.bool"),
        (3.0, "float"),
    ],
)
def test_names_a_leaf_that_is_not_a_parameter(entry, leaf, message):
    if isinstance(leaf, torch.Tensor) and leaf.is_complex():
        skip_exempt(entry, "real parameters")
    with pytest.raises(TypeError, match=rf"leaf 'layer\.0\.bias'.*{message}"):
        entry.build(Hyper()).init({"layer": [{"bias": leaf, "weight": torch.zeros(2)}]})


# --- schedules -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", SCHEDULES)
def test_schedules_obey_the_laws(name):
    build = SCHEDULES[name]
    counts = torch.arange(15)
    values = torch.stack([build(Hyper())(count) for count in counts])
    assert values.dtype == torch.float64
    torch.testing.assert_close(build(Hyper())(counts), values)  # elementwise
    torch.testing.assert_close(pickle.loads(pickle.dumps(build(Hyper())))(counts), values)
    rates = torch.tensor([0.1, 0.2, 0.3], dtype=torch.float64)
    together = vmap(lambda lr: build(Hyper(lr=lr))(torch.tensor(4)))(rates)
    alone = torch.stack([build(Hyper(lr=lr))(torch.tensor(4)) for lr in rates])
    torch.testing.assert_close(together, alone)
    lr = torch.tensor(0.1, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda lr: build(Hyper(lr=lr))(counts), lr)
    compiled = torch.compile(build(Hyper()), fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for count in counts:
            torch.testing.assert_close(compiled(count), values[count])
