"""Packed trees: their layout, what becomes of prefixes and masks, and that the numbers stay the same."""

import pickle
from typing import NamedTuple

import pytest
import torch
import torch.utils._pytree as pytree
from torch.func import functional_call, grad, vmap

import boxopt as bx
from boxopt.core import tree
from boxopt.core.donation import consume
from tests.registry import ENTRIES, Hyper
from tests.test_laws import assert_trees_equal, example_params, random_like, run, skip_exempt


class Layer(NamedTuple):
    weight: torch.Tensor
    bias: torch.Tensor


TREE = {
    "layer": Layer(torch.arange(6.0).reshape(2, 3), torch.ones(2)),
    "nothing": None,
    "list": [torch.tensor(7.0), torch.zeros(0, 3), torch.full((2,), 0.5, dtype=torch.float64)],
}


def test_round_trip_and_views():
    packed, unpack = bx.pack(TREE)
    assert {name: tuple(b.shape) for name, b in packed.buffers.items()} == {"float32": (9,), "float64": (2,)}
    assert_trees_equal(unpack(packed), TREE)
    assert_trees_equal(packed.unpack(), TREE)
    view = unpack(packed)["layer"].weight
    assert view.data_ptr() == packed.buffers["float32"].data_ptr()
    assert TREE["layer"].weight.data_ptr() != packed.buffers["float32"].data_ptr()


@pytest.mark.parametrize(
    "leaf",
    [torch.arange(6.0).reshape(2, 3).T, torch.arange(12.0)[::3], torch.tensor(2.0).expand(3, 2), torch.zeros(2, 0)],
    ids=["transposed", "strided", "expanded", "zero size"],
)
def test_leaves_of_any_stride(leaf):
    packed, unpack = bx.pack({"a": leaf, "b": torch.ones(2)})
    assert_trees_equal(unpack(packed), {"a": leaf, "b": torch.ones(2)})


@pytest.mark.parametrize("empty", [{}, None, [], {"a": None}])
def test_empty_trees(empty):
    packed, unpack = bx.pack(empty)
    assert packed.buffers == {}
    assert unpack(packed) == empty
    tx = bx.adam(0.1)
    assert tx.update(packed, tx.init(packed), packed)[0].buffers == {}


def test_tied_leaves_are_refused():
    shared = torch.zeros(3)
    with pytest.raises(ValueError, match=r"leaf 'b' and leaf 'a' are the same tensor"):
        bx.pack({"a": shared, "b": shared})
    with pytest.raises(ValueError, match="the same tensor"):
        bx.pack({"a": shared, "b": shared.view(3)})
    matrix = torch.zeros(2, 3)
    with pytest.raises(ValueError, match="or views of one"):
        bx.pack({"encoder": matrix, "decoder": matrix.T})
    vector = torch.zeros(6)
    with pytest.raises(ValueError, match=r"leaf 'b' and leaf 'a' are .* that have numbers in common"):
        bx.pack({"a": vector[2:], "b": vector[:4]})
    with pytest.raises(ValueError, match=r"leaf 'c' and leaf 'a' are"):
        bx.pack({"a": vector[::2], "b": vector[1:2], "c": vector[3:].view(torch.int32)[1:2].view(torch.float32)})
    with pytest.raises(ValueError, match="numbers in common"):
        bx.pack({"a": vector[::2], "b": vector.double().view(torch.float32)[::2], "c": vector[::3]})
    bx.pack({"even": vector[::2], "odd": vector[1::2]})
    bx.pack({"a": matrix[:, :1], "b": matrix[:, 1:]})
    bx.pack({"a": torch.zeros(0), "b": torch.zeros(0)})


def test_packing_copies_and_is_differentiable():
    for leaves in (torch.ones(3), {"a": torch.ones(2, 3)}, {"a": torch.ones(3, 2).T, "b": torch.tensor(2.0)}):
        packed, unpack = bx.pack(leaves)
        packed.buffers["float32"].zero_()
        assert all(leaf.all() for leaf in pytree.tree_leaves(leaves))
        inputs = pytree.tree_map(lambda leaf: leaf.clone().requires_grad_(), leaves)
        (unpack.pack(inputs).buffers["float32"] ** 3).sum().backward()
        assert_trees_equal(pytree.tree_map(lambda leaf: leaf.grad, inputs), pytree.tree_map(lambda x: 3 * x**2, leaves))
        assert_trees_equal(
            grad(lambda x, unpack=unpack: (unpack.pack(x).buffers["float32"] ** 3).sum())(leaves),
            pytree.tree_map(lambda x: 3 * x**2, leaves),
        )


def test_what_is_not_a_dense_tensor_is_refused():
    with pytest.raises(TypeError, match=r"leaf 'a\.0': only dense tensors.*float"):
        bx.pack({"a": [1.0]})
    with pytest.raises(TypeError, match=r"leaf 'a'.*torch\.sparse_coo tensor"):
        bx.pack({"a": torch.eye(2).to_sparse()})


def test_another_tree_is_refused():
    _, unpack = bx.pack({"a": torch.zeros(2), "b": torch.zeros(3)})
    with pytest.raises(ValueError, match=r"leaf 'b' has shape \(2,\), it was packed with shape \(3,\)"):
        unpack.pack({"a": torch.zeros(2), "b": torch.zeros(2)})
    for value in (None, 3.0):
        with pytest.raises(TypeError, match=r"leaf 'b': only tensors can be packed"):
            unpack.pack({"a": torch.zeros(2), "b": value})
    with pytest.raises(ValueError, match="it lacks leaf 'b'"):
        unpack.pack({"a": torch.zeros(2)})
    other, _ = bx.pack({"a": torch.zeros(2), "b": torch.zeros(4)})
    with pytest.raises(ValueError, match="has 6 numbers, the leaves 5"):
        unpack(other)
    with pytest.raises(ValueError, match="expected a packed tree"):
        unpack({"a": torch.zeros(2)})
    tx = bx.adam(0.1)
    with pytest.raises(ValueError, match="do not match"):
        tx.update(other, tx.init(unpack.pack({"a": torch.zeros(2), "b": torch.zeros(3)})), other)


def test_gradients_arrive_packed_by_one_gather():
    packed, unpack = bx.pack({f"w{i}": torch.randn(3, 4) for i in range(5)})

    def loss(p):
        return sum((leaf**3).sum() for leaf in unpack(p).values())

    gradient = grad(loss)(packed)
    assert_trees_equal(
        gradient, bx.Packed({"float32": 3 * packed.buffers["float32"] ** 2}, unpack), rtol=1e-6, atol=1e-6
    )
    leaf = packed.buffers["float32"].clone().requires_grad_()
    total = loss(bx.Packed({"float32": leaf}, unpack))
    kinds = set()
    stack = [total.grad_fn]
    while stack:
        node = stack.pop()
        kinds.add(type(node).__name__)
        stack += [parent for parent, _ in node.next_functions if parent is not None]
    assert "SplitWithSizesBackward0" in kinds
    assert not kinds & {"SliceBackward0", "NarrowBackward0", "SelectBackward0"}  # each would fill a buffer of zeros


def test_ensembles_pack_with_vmap_or_batch_dims():
    params = {"w": torch.randn(4, 2, 3), "b": torch.randn(4, 3)}
    packed, unpack = bx.pack(params, batch_dims=1)
    assert packed.buffers["float32"].shape == (4, 9)
    assert_trees_equal(unpack(packed), params)
    inside = vmap(lambda p: bx.pack(p)[0])(params)
    assert_trees_equal(inside.buffers, packed.buffers)
    assert_trees_equal(vmap(lambda p: bx.pack(p)[1](bx.pack(p)[0]))(params), params)
    assert_trees_equal(vmap(unpack)(packed), params)
    with pytest.raises(ValueError, match=r"leaf 'b' has shape \(3,\).*begin with \(4,\)"):
        bx.pack({"w": torch.zeros(4, 2), "b": torch.zeros(3)}, batch_dims=1)


def test_functional_call_and_compile():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))
    params = {name: p.detach() for name, p in model.named_parameters()}
    packed, unpack = bx.pack(params)
    x = torch.randn(5, 3)

    def loss(p):
        return functional_call(model, unpack(p), (x,)).square().mean()

    compiled = torch.compile(grad(loss), fullgraph=True)
    assert_trees_equal(compiled(packed), grad(loss)(packed), rtol=1e-5, atol=1e-6)
    leafwise = grad(lambda p: functional_call(model, p, (x,)).square().mean())(params)
    assert_trees_equal(unpack(grad(loss)(packed)), leafwise, rtol=1e-6, atol=1e-7)
    round_trip = torch.compile(lambda p: bx.pack(p)[1](bx.pack(p)[0]), fullgraph=True, backend="aot_eager")
    assert_trees_equal(round_trip(params), params)


def test_prefixes_are_laid_out():
    packed, unpack = bx.pack({"w": torch.zeros(2, 2), "b": torch.zeros(3)})
    rows = unpack.expand({"w": torch.tensor([[1.0], [2.0]]), "b": 3.0}, packed)
    assert rows.buffers["float32"].tolist() == [1, 1, 2, 2, 3, 3, 3]
    assert unpack.expand({"w": 2.0, "b": 2.0}, packed).buffers == {"float32": 2.0}
    assert unpack.expand(None, packed).buffers == {"float32": None}
    rate = torch.tensor(0.1)
    assert unpack.expand({"w": rate, "b": rate}, packed).buffers["float32"] is rate
    assert unpack.expand({"w": rate, "b": rate + 1}, packed).buffers["float32"].tolist() == [rate] * 4 + [rate + 1] * 3
    for value, dtype in ((0.5, torch.float32), (0.1, torch.float64)):  # which float32 does not hold
        along = unpack.expand({"w": value, "b": 0.25}, packed).buffers["float32"]
        assert along.dtype == dtype
        assert along.tolist() == [value] * 4 + [0.25] * 3
    with pytest.raises(ValueError, match=r"leaf 'w': a value of shape \(3,\) does not broadcast"):
        unpack.expand({"w": torch.zeros(3), "b": 0.0}, packed)


def test_a_bound_without_a_float32_number_is_still_rounded_into_the_box():
    params = {"a": torch.full((3,), 0.05), "b": torch.full((3,), 0.05)}
    packed, unpack = bx.pack(params)
    box = bx.Box(lower={"a": 0.1, "b": None}, upper={"a": None, "b": 0.7})
    projected = unpack(box.project(packed))
    assert_trees_equal(projected, box.project(params))
    assert (projected["a"].double() >= 0.1).all()
    assert unpack(box.project(unpack.pack({"a": torch.full((3,), 9.0), "b": torch.full((3,), 9.0)})))["a"][0] == 9.0
    prepared = bx.Box(unpack.expand({"a": 0.1, "b": 0.2}, packed))
    assert_trees_equal(unpack(prepared.project(packed)), bx.Box({"a": 0.1, "b": 0.2}).project(params))


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
@pytest.mark.parametrize("how", ["packed", "pack", "pack, stacked"])
def test_packed_equals_leafwise(entry, how):
    skip_exempt(entry, "packed")
    if "stacked" in how:
        skip_exempt(entry, "stacked")
    members = 3 if "stacked" in how else None
    params, tx = example_params(members=members), entry.build(Hyper())
    expected, _, _ = run(tx, params)
    if how == "packed":
        found, _, _ = run(bx.packed(tx), params)
    else:
        values, unpack = bx.pack(params, batch_dims=0 if members is None else 1)
        tx = bx.on_leaves(tx)  # as chains do
        state, found = tx.init(values), params
        for step in range(4):
            gradients = pytree.tree_map(lambda p, n: 2 * p + n, found, random_like(found, 1.0, seed=step))
            updates, state = tx.update(unpack.pack(gradients), state, values)
            values = bx.apply_updates(values, updates)
            found = unpack(values)
    assert_trees_equal(found, expected, rtol=1e-14, atol=1e-14)


def test_rates_and_weights_by_leaf():
    params = {"w": torch.ones(2, 2), "b": torch.ones(3)}
    rates = {"w": 0.1, "b": torch.tensor([0.2, 0.3, 0.4])}
    tx = bx.chain(
        bx.scale_by_adam(), bx.add_decayed_weights({"w": 0.1, "b": 0.0}), bx.scale_by_learning_rate(rates),
        bx.barrier(bx.Box(0.0, {"w": 2.0, "b": None}), 0.01),
    )  # fmt: skip
    assert_trees_equal(run(bx.packed(tx), params)[0], run(tx, params)[0], rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("last", [bx.prox(bx.regularizers.L1(0.1)), bx.project(bx.sets.L2Ball(0.5))])
def test_a_step_size_leaves_packed_parts(last):
    """It came out packed, and what followed had no such leaves."""
    params = {"w": torch.ones(2, 2), "b": torch.ones(3)}
    expected = run(bx.chain(bx.adam(0.1), last), params)[0]
    assert_trees_equal(run(bx.chain(bx.packed(bx.adam(0.1)), last), params)[0], expected, rtol=1e-6, atol=1e-7)


def test_what_is_not_declared_elementwise_gets_whole_leaves():
    def centred(updates, state, params):
        return pytree.tree_map(lambda u: u - u.mean(), updates), state

    mine = bx.GradientTransformation(lambda params: bx.EmptyState(), centred)
    params = {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([[2.0], [4.0]])}
    for tx in (bx.chain(mine, bx.adam(0.1)), bx.masked(mine, {"a": True, "b": False}), mine):
        plain = run(tx, params)[0]
        assert_trees_equal(run(bx.packed(tx), params)[0], plain, rtol=1e-6, atol=1e-7)
    values, _ = bx.pack(params)
    tx = bx.on_leaves(mine)
    assert tx.update(values, tx.init(values), values)[0].buffers["float32"].tolist() == [-2, 2, -1, 1]
    assert bx.on_leaves(bx.adam(0.1)).update is bx.adam(0.1).update or bx.on_leaves(bx.identity()) == bx.identity()


def test_what_is_declared_elementwise_gets_the_buffers():
    seen = []

    @bx.elementwise
    def halve(updates, state, params):
        seen.append(type(updates))
        return tree.map(lambda u: u / 2, updates), state

    tx = bx.chain(bx.GradientTransformation(lambda params: bx.EmptyState(), halve), bx.sgd(1.0))
    params = {"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([[2.0], [4.0]])}
    packed, _ = bx.pack(params)
    assert tx.update(packed, tx.init(packed), packed)[0].buffers["float32"].tolist() == [-0.5, -2.5, -1, -2]
    assert seen == [bx.Packed]


def test_two_prefixes_of_which_one_is_packed():
    packed, _ = bx.pack({"a": torch.tensor([1.0, 5.0]), "b": torch.tensor([2.0])})
    for prefix, expected in (
        (3.0, [-2, 2, -1]),
        ({"a": 3.0, "b": 1.0}, [-2, 2, 1]),
        ({"a": torch.ones(2), "b": 2.0}, [0, 4, 0]),
    ):
        assert tree.combine(torch.sub, packed, prefix).buffers["float32"].tolist() == expected
        assert tree.combine(lambda x, y: y - x, prefix, packed).buffers["float32"].tolist() == expected


def test_selected_leaves_keep_their_names():
    """A set by path, and the state of what gets whole leaves, are as without packing."""
    params = {"a": torch.tensor([3.0, 4.0]), "b": {"c": torch.tensor([3.0, 4.0])}}
    sets = bx.sets.ByPath({"b.c": bx.sets.L2Ball(2.0)})
    by_path = bx.chain(bx.trace(0.9), bx.masked(bx.project(sets), "b.*"))
    by_shape = bx.masked(bx.scale_by_sm3(), "b.*")
    twice = bx.masked(bx.masked(bx.trace(0.9), "*.c"), "b.*")
    for plain in (by_path, by_shape, twice):
        tx = bx.packed(plain)
        updates, state = tx.update(params, tx.init(params), params)
        expected, expected_state = plain.update(params, plain.init(params), params)
        assert_trees_equal(updates, expected)
        assert_trees_equal(bx.state_to_dict(state.inner), bx.state_to_dict(expected_state))
    halves = {"one": bx.packed(bx.masked(bx.scale(3.0), "a")), "two": bx.packed(bx.scale(5.0))}
    updates, _ = (tx := bx.partition(halves, {"a": "one", "b": "two"})).update(params, tx.init(params), params)
    assert_trees_equal(updates, {"a": 3 * params["a"], "b": {"c": 5 * params["b"]["c"]}})


def test_layouts_compare_and_pickle():
    _, one = bx.pack(TREE)
    _, two = bx.pack(pytree.tree_map(lambda x: None if x is None else x + 1, TREE))
    _, other = bx.pack({"a": torch.zeros(3)})
    assert one == two
    assert hash(one) == hash(two)
    assert one != other
    assert pickle.loads(pickle.dumps(one)) == one
    packed, unpack = bx.pack(TREE)
    copy = pickle.loads(pickle.dumps(packed))
    assert_trees_equal(unpack(copy), TREE)


@pytest.mark.parametrize("make", [bx.project, lambda s: bx.barrier(s, 0.1), lambda s: bx.penalize(s, 0.5), bx.tangent])
def test_a_set_alone_sees_whole_leaves_of_packed_parameters(make):
    """Outside of a chain too: the buffer is not one vector of a set of vectors."""
    params = {"a": torch.tensor([[0.5, 0.25], [0.1, 0.2]]), "b": torch.tensor([0.6, -0.3])}
    updates = {"a": torch.tensor([[1.0, 2.0], [-3.0, 1.0]]), "b": torch.tensor([2.0, 1.0])}
    packed, unpack = bx.pack(params)
    tx = make(bx.sets.L2Ball(1.0))
    expected = tx.update(updates, tx.init(params), params)[0]
    found = unpack(tx.update(unpack.pack(updates), tx.init(packed), packed)[0])
    for name, leaf in expected.items():
        assert torch.equal(found[name], leaf)


@pytest.mark.parametrize("layers", [1, 12])
def test_boxes_by_path_are_one_pass_over_packed_parameters(layers):
    """The numbers of the leaves, eager and compiled: few pieces are told by their indices, many laid out."""
    sets = bx.sets.ByPath({"*.w": bx.Box(-0.1, 0.3), "0.*": bx.sets.NonNegative()})
    assert sets.separable
    params = {f"{n}.{kind}": torch.randn(2, 3) for n in range(layers) for kind in ("w", "b", "c")}
    params = sets.project(params)
    packed, unpack = bx.pack(params)
    updates = {name: torch.randn_like(param) for name, param in params.items()}
    moves = unpack.pack(updates)
    functions = [
        lambda x, u: sets.step(x, u),
        lambda x, u: sets.project(bx.apply_updates(x, u)),
        lambda x, u: sets.land(x, sets.project(bx.apply_updates(x, u))),
        lambda x, u: sets.tangent(x, u),
        lambda x, u: sets.prox_barrier(bx.apply_updates(x, u), 0.1),
        lambda x, u: sets.barrier_gradient(x, 0.1),
        lambda x, u: sets.linear_minimizer(u),
    ]
    for function in functions:
        expected, found = function(params, updates), function(packed, moves)
        for name, leaf in unpack(found).items():
            torch.testing.assert_close(leaf, expected[name], rtol=1e-6, atol=1e-7)
    assert sets.violation(packed) == 0
    assert sets.barrier(packed, 0.1) == sets.barrier(params, 0.1)
    tx = bx.projected(bx.sgd(1.0), sets)
    stepped = torch.compile(tx.update, backend="aot_eager", fullgraph=True)(moves, tx.init(packed), packed)[0]
    for name, leaf in unpack(stepped).items():
        torch.testing.assert_close(leaf, tx.update(updates, tx.init(params), params)[0][name], rtol=1e-6, atol=1e-7)
    with pytest.raises(ValueError, match="no leaf matches 'x'"):
        bx.project(bx.sets.ByPath({"x": bx.Box(0.0)})).init(packed)
    assert not bx.sets.ByPath({"*": bx.Box(torch.zeros(2, 3))}).separable


def test_bounds_leaf_by_leaf_in_a_donated_step():
    """What is found of a step's dependences is found without numbers, which bounds must not ask for."""
    params = {"w": torch.zeros(3), "b": torch.zeros(2)}
    packed, unpack = bx.pack(params)
    tx = bx.chain(bx.sgd(1.0), bx.project(bx.Box({"w": -0.1, "b": -2.0}, 1.0)))

    def step(params, state, gradients):
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state

    gradients = unpack.pack({"w": torch.ones(3), "b": torch.ones(2)})
    new, _ = bx.compile(step, donate_argnums=(0, 1), backend="aot_eager")(packed, tx.init(packed), gradients)
    assert unpack(new)["b"].tolist() == [-1.0, -1.0]
    assert unpack(new)["w"].tolist() == pytest.approx([-0.1] * 3)


def test_bounds_of_leaves_keep_their_digits_in_double_precision():
    """A bound of a leaf is a number that float32 does not hold."""
    box = bx.Box({"a": 0.1, "b": None}, {"a": 0.7, "b": 0.3})
    params = {"a": torch.tensor([-1.0, 1.0], dtype=torch.float64), "b": torch.tensor([1.0], dtype=torch.float64)}
    packed, unpack = bx.pack(params)
    projected = unpack(box.project(packed))
    assert projected["a"].tolist() == [0.1, 0.7]
    assert projected["b"].tolist() == [0.3]


def test_bounds_of_each_member_of_stacked_parameters():
    params = {"a": torch.full((3, 2), 9.0), "b": torch.full((3,), 9.0)}
    upper = {"a": torch.arange(6.0).reshape(3, 2), "b": 0.5}
    packed, unpack = bx.pack(params, batch_dims=1)
    assert_trees_equal(unpack(bx.Box(None, upper).project(packed)), {"a": upper["a"], "b": torch.full((3,), 0.5)})


def test_rates_of_groups_reach_a_set_that_is_packed():
    """Numbers, one for each group: the set's metric has them in the places of the groups' leaves."""
    params = {"a": torch.tensor([0.5, 0.3, 0.2]), "b": torch.tensor([0.1, 0.9])}
    gradients = random_like(params, 1.0, 3)
    tx = bx.chain(bx.partition({"a": bx.scale(-0.1), "b": bx.scale(-0.7)}), bx.project(bx.sets.Simplex()))
    packed, _ = bx.pack(params)
    expected, _ = tx.update(gradients, tx.init(params), params)
    updates, _ = tx.update(bx.pack(gradients)[0], tx.init(packed), packed)
    assert_trees_equal(updates.unpack(), expected, atol=1e-7)

    params = {"a": torch.full((3, 2, 2), 99.0), "b": torch.full((3, 2), 99.0)}
    upper = {"a": torch.arange(12.0).reshape(3, 2, 2), "b": torch.arange(6.0).reshape(3, 2)}
    packed, unpack = bx.pack(params, batch_dims=2)
    assert packed.buffers["float32"].shape == (3, 2, 3)
    assert_trees_equal(unpack(bx.Box(None, upper).project(packed)), upper)


def test_donated_parameters_are_refused_everywhere():
    """Eager code would read what a compiled step has written over them."""
    params = {"w": torch.zeros(3)}
    packed, unpack = bx.pack(params)
    for leaf in (params["w"], packed.buffers["float32"]):
        consume(leaf, "step")  # as compiled steps do
    tx = bx.sgd(0.1)
    for use, name in {
        lambda: tx.init(params): "the parameter",
        lambda: bx.apply_updates(params, {"w": torch.ones(3)}): "the parameter",
        lambda: bx.pack(params): "leaf 'w'",
        lambda: tx.init(packed): "the parameter",
        lambda: unpack(packed): "buffer 'float32'",
    }.items():
        with pytest.raises(bx.ConsumedError, match=f"^{name} was donated to the compiled step 'step'"):
            use()
