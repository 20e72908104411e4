"""Small leaves together: the same bits as leaf by leaf, and only where nothing asks for a derivative."""

import pytest
import torch
from torch.func import vmap

import boxopt as bx
from boxopt.core import foreach, tree

BITS = {torch.float64: torch.int64, torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
SPECIAL = [0.0, -0.0, 1e-40, -3e38, float("inf"), -float("inf"), float("nan")]
CHAINS = {
    "adam": lambda: bx.chain(bx.adam(0.1), bx.project(bx.Box(-0.5, 0.5))),
    "nadam": lambda: bx.chain(bx.adam(0.1, eps_root=1e-8, nesterov=True), bx.project(bx.Box(0.0))),
    "adamw": lambda: bx.chain(bx.adamw(bx.linear_schedule(0.1, 0.0, 5)), bx.project(bx.Box(None, 0.5))),
    "tensors": lambda: bx.chain(
        bx.adam(torch.tensor(0.1), b1=torch.tensor(0.8)), bx.project(bx.Box(torch.tensor(-0.5), 1))
    ),
    "sgd": lambda: bx.chain(bx.sgd(0.1, momentum=0.9, nesterov=True), bx.project(bx.Box())),
    "rmsprop": lambda: bx.rmsprop(0.1, centered=True),
    "adagrad": lambda: bx.adagrad(0.1, initial_accumulator_value=0.0),
    "lion": lambda: bx.lion(0.1),
    "strict": lambda: bx.chain(bx.adam(0.1), bx.barrier(bx.Box(-2.0, 2.0), 0.01)),
}


def many(dtype, generator):
    """Leaves of every kind: more than enough to be gathered, and some that are not."""

    def draw(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype)

    small = {f"leaf{index}": draw(index) for index in range(12)}
    return {
        **small,
        "special": torch.cat([torch.tensor(SPECIAL, dtype=dtype), draw(9)]),
        "nothing": None,
        "scalar": draw(),
        "matrix": draw(3, 5).T,
        "strided": draw(20)[::3],
        "expanded": draw(1).expand(4),
        "large": draw(foreach._SMALL + 1),
        "parameter": torch.nn.Parameter(draw(3), requires_grad=False),
        "nested": [draw(2), (draw(2, 2),)],
    }


def mixed(generator):
    dtypes = (torch.float32, torch.bfloat16, torch.float64)
    return {str(dtype): many(dtype, generator) for dtype in dtypes}


def steps(tx, make, count=3):
    """The parameters and the state after some updates."""
    generator = torch.Generator().manual_seed(0)
    params = make(generator)
    before = tree.map(torch.clone, params)
    state = tx.init(params)
    start = params
    for _ in range(count):
        updates, state = tx.update(make(generator), state, params)
        params = bx.apply_updates(params, updates)
    assert_same_bits(start, before)
    return params, state


def assert_same_bits(ours, theirs):
    assert torch.utils._pytree.tree_structure(ours) == torch.utils._pytree.tree_structure(theirs)
    for one, other in zip(tree.leaves(ours), tree.leaves(theirs), strict=True):
        assert (one.dtype, one.shape, one.device) == (other.dtype, other.shape, other.device)
        bits = BITS.get(one.dtype, one.dtype)
        assert torch.equal(one.contiguous().view(bits), other.contiguous().view(bits))


@pytest.fixture
def one_by_one(monkeypatch):
    """A context in which no leaves are gathered."""

    def run(function):
        with monkeypatch.context() as patch:
            patch.setattr(foreach, "map", tree.map)
            return function()

    return run


@pytest.fixture
def gathered(monkeypatch):
    """How many leaves went together in each call that had enough of them."""
    counts = []
    real = foreach._alike

    def counting(columns):
        together = real(columns)
        counts.append(len(together))
        return together

    monkeypatch.setattr(foreach, "_alike", counting)
    return counts


MAKES = {str(dtype): (lambda generator, dtype=dtype: many(dtype, generator)) for dtype in BITS} | {"mixed": mixed}


@pytest.mark.parametrize("make", MAKES.values(), ids=MAKES)
@pytest.mark.parametrize("build", CHAINS.values(), ids=CHAINS)
def test_the_same_bits_as_leaf_by_leaf(build, make, one_by_one, gathered):
    together = steps(build(), make)
    narrow = make in (MAKES["torch.bfloat16"], MAKES["torch.float16"])
    assert any(gathered) != narrow
    assert_same_bits(together, one_by_one(lambda: steps(build(), make)))


def test_what_goes_together(gathered):
    tx = CHAINS["adam"]()
    params = {index: torch.zeros(2) for index in range(10)}
    tx.update(params, tx.init(params), params)
    assert gathered == [10] * 5  # two moments, their quotient, the rate, the projection
    gathered.clear()
    few = {index: params[index] for index in range(foreach._FEW - 1)}
    tx.update(few, tx.init(few), few)
    vmap(tx.update)(params, vmap(tx.init)(params), params)
    torch.compile(tx.update, fullgraph=True, backend="eager")(params, tx.init(params), params)
    with torch.autograd.forward_ad.dual_level():
        tx.update(params, tx.init(params), params)
    assert gathered == []


def test_leaves_that_ask_for_a_derivative_go_one_by_one(gathered):
    tx = CHAINS["adam"]()
    params = {index: torch.zeros(2) for index in range(20)}
    gradients = {index: torch.ones(2, requires_grad=index % 2 == 0) for index in range(20)}
    updates, _ = tx.update(gradients, tx.init(params), params)
    assert set(gathered) == {10}
    assert [update.requires_grad for update in updates.values()] == [index % 2 == 0 for index in range(20)]
    (derivative,) = torch.autograd.grad(updates[0].sum(), gradients[0])
    assert derivative.isfinite().all()
    gathered.clear()
    with torch.no_grad():
        tx.update(gradients, tx.init(params), params)
    assert set(gathered) == {20}


def test_hyperparameters_that_ask_for_a_derivative(one_by_one):
    rate, decay = torch.tensor(0.1, requires_grad=True), torch.tensor(0.9, requires_grad=True)
    params = {index: torch.zeros(2) for index in range(10)}
    gradients = {index: torch.full((2,), 1.0 + index) for index in range(10)}
    tx = bx.chain(bx.adam(rate, b1=decay), bx.project(bx.Box(-0.5, 0.5)))

    def derivatives():
        state = tx.init(params)
        updates, state = tx.update(gradients, state, params)
        updates, _ = tx.update(params, state, bx.apply_updates(params, updates))
        total = sum(update.square().sum() for update in updates.values())
        first = torch.autograd.grad(total, (rate, decay), create_graph=True)
        second = torch.autograd.grad(first[0] + first[1], (rate, decay))
        return tuple(derivative.detach() for derivative in (*first, *second))

    assert_same_bits(derivatives(), one_by_one(derivatives))


def test_results_are_fresh_and_errors_name_their_leaf():
    tx = CHAINS["adam"]()
    params = {index: torch.full((2,), 0.25) for index in range(10)}
    state = tx.init(params)
    updates, after = tx.update(params, state, params)
    given = {leaf.data_ptr() for leaf in tree.leaves((params, state))}
    made = [leaf.data_ptr() for leaf in tree.leaves((updates, after))]
    assert not given & set(made)
    assert len(set(made)) == len(made)
    with pytest.raises(ValueError, match=r"leaf '3': the update has shape \(3,\), the parameter \(2,\)"):
        bx.apply_updates(params, {**params, 3: torch.zeros(3)})
    with pytest.raises(ValueError, match="it lacks leaf '9'"):
        bx.apply_updates(params, {index: params[index] for index in range(9)})


def test_a_function_that_leaves_cannot_stand_in_for():
    values = {index: torch.full((index + 1,), 2.0) for index in range(10)}

    def uneven(x):
        return x * x.ndim if x.shape[0] > 1 else -x

    def fork(x):
        return x if x.sum() > 2 else -x

    for function in (uneven, fork, lambda x: x.mean(), lambda x: torch.where(x == x, x, 0), lambda x: 1 / (2 - x**3)):
        assert_same_bits(foreach.map(function, values), tree.map(function, values))


@pytest.mark.parametrize("dim", [0, 1])
def test_clamps_and_leaves_of_which_some_are_large_take_the_quick_way(dim):
    """The function is called once for the small leaves, and once more for each of the others; not again for all."""
    calls = []
    number = torch.tensor(0.25) if dim else 0.25

    def function(x):
        calls.append(type(x))
        either = torch.where(x > number, x * torch.tensor(3.0), 0.0)
        return either + torch.clamp(x, max=number) * 2 + x.clamp(-0.5, 0.5) - x.clamp_(min=-0.25) * 0

    leaves = [torch.randn(3, generator=torch.Generator().manual_seed(i)) for i in range(40)]
    leaves.append(torch.randn(10**6))
    expected = [function(leaf.clone()) for leaf in leaves]
    calls.clear()
    result = foreach.map(function, leaves)
    assert calls == [foreach.Leaves, torch.Tensor]
    for one, other in zip(result, expected, strict=True):
        assert torch.equal(one, other)


def test_what_leaves_have_not_in_common_is_asked_of_each():
    """A function that looks at a leaf's ``ndim`` cannot take them all at once."""
    leaves = many(torch.float32, torch.Generator().manual_seed(0))
    doubled = foreach.map(lambda x: x * 2 if x.ndim == 0 else x + x, leaves)
    assert_same_bits(doubled, tree.map(lambda x: x + x, leaves))
