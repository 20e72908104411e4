"""Chains, masks and groups: what they compute, what they pass on, and what they refuse."""

import functools

import pytest
import torch

import boxopt as bx
from boxopt.core import tree
from boxopt.core.pack import on_leaves

BOX = bx.Box(0.0, 1.0)


def spy_update(updates, state, params, *, step_size=1.0):
    return step_size, state


def spy():
    """A step-space transformation that returns the step size it was given."""
    return bx.GradientTransformation(lambda params: bx.EmptyState(), spy_update, bx.finished)


def value_update(updates, state, params, *, value):
    return value * updates, state


def by_value():
    return bx.GradientTransformation(lambda params: bx.EmptyState(), value_update)


def seen_step_size(tx, params, gradients, updates=1):
    tx = bx.chain(tx, spy())
    state = tx.init(params)
    for _ in range(updates):
        size, state = tx.update(gradients, state, params)
    return size


# --- the step size travels down --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "tx",
    [
        bx.scale(-0.3),
        bx.sgd(0.3),
        bx.chain(bx.chain(bx.scale(0.5)), bx.scale(0.6)),
        bx.scale_by_schedule(bx.linear_schedule(0.6, 0.0, 2)),
        bx.masked(bx.sgd(0.3), True),
        bx.partition({"*": bx.sgd(0.3)}),
    ],
)
def test_step_size_of_a_number(tx):
    params = torch.ones(3)
    size = seen_step_size(tx, params, torch.ones(3))
    if isinstance(tx.init(params), bx.CountState):
        assert float(size) == 0.6  # that of the update just made, not of the next
    else:
        assert float(size) == pytest.approx(0.3)


@pytest.mark.parametrize(
    "scaler",
    [
        bx.scale_by_adam(b1=0.0),
        bx.scale_by_adam(b1=0.0, eps_root=1e-3),
        bx.scale_by_rms(),
        bx.scale_by_rms(eps_in_sqrt=False),
        bx.scale_by_stddev(),
        bx.scale_by_rss(),
        bx.scale_by_rss(0.0, eps_in_sqrt=False),
        bx.scale_by_sm3(b1=0.0),
        bx.scale_by_sm3(b1=torch.tensor(0.0), b2=torch.tensor(1.0)),
        bx.apply_every(1),
        bx.chain(bx.scale_by_rms(), bx.apply_every(1)),
        bx.contrib.split_real_and_imaginary(bx.scale_by_rms()),
    ],
)
def test_step_size_is_the_factor_of_the_gradient(scaler):
    params, gradients = torch.zeros(4), torch.tensor([0.3, -2.0, 1e-3, 7.0])
    tx = bx.chain(scaler, bx.scale(-0.1))
    updates, _ = tx.update(gradients, tx.init(params), params)
    torch.testing.assert_close(updates, -seen_step_size(tx, params, gradients) * gradients)


def test_lookahead_has_the_step_size_of_what_it_wraps():
    tx, params, gradients = bx.adam(0.1), torch.zeros(2), torch.tensor([1.0, -3.0])
    around = bx.lookahead(tx, 5, 0.5)
    _, state = tx.update(gradients, tx.init(params), params)
    _, outer = around.update(gradients, around.init(params), params)
    torch.testing.assert_close(around.step_size(outer, 2.0), tx.step_size(state, 2.0))


def test_an_accumulated_gradient_is_followed_when_it_is_applied():
    params = torch.zeros(2)
    for updates, size in ((1, 0.0), (2, 1.0), (3, 0.0)):
        assert float(seen_step_size(bx.apply_every(2), params, torch.ones(2), updates)) == size


def test_the_step_size_of_a_complex_number_is_the_mean_of_its_parts():
    params, gradient = torch.zeros(2, dtype=torch.complex64), torch.tensor([3 + 4j, 2j])
    tx = bx.contrib.split_real_and_imaginary(bx.scale_by_rms(0.0, eps=1.0))
    _, state = tx.update(gradient, tx.init(params), params)
    expected = (1 / (gradient.real.square() + 1).sqrt() + 1 / (gradient.imag.square() + 1).sqrt()) / 2
    torch.testing.assert_close(tx.step_size(state, 1.0), expected)


def test_sm3_needs_no_entries():
    params = {"matrix": torch.zeros(0, 3), "vector": torch.zeros(2)}
    tx = bx.scale_by_sm3()
    updates, state = tx.update(params, tx.init(params), params)
    assert updates["matrix"].shape == (0, 3)
    assert tx.update(params, state, params)[0]["matrix"].shape == (0, 3)


def test_masked_step_size_is_per_leaf():
    params = {"a": torch.zeros(2), "b": {"c": torch.zeros(1), "d": torch.zeros(1)}}
    ones = torch.utils._pytree.tree_map(torch.ones_like, params)
    tx = bx.chain(bx.masked(bx.scale(0.5), {"a": True, "b": False}), bx.masked(bx.scale_by_rms(0.75), "b.c"))
    size = seen_step_size(tx, params, ones)
    assert size["a"] == 0.5
    assert float(size["b"]["c"]) == pytest.approx(2.0)
    assert size["b"]["d"] == 1.0


def test_masked_step_sizes_of_packed_parameters():
    """They are along the buffers, or numbers, and the numbers of each leaf are those without packing."""
    params = {"a": torch.ones(2), "b": {"c": torch.full((3,), 2.0), "d": torch.ones(1)}}
    ones = torch.utils._pytree.tree_map(torch.ones_like, params)
    packed, unpack = bx.pack(params)
    for tx in (
        bx.masked(bx.scale(0.5), {"a": True, "b": False}),
        bx.masked(bx.scale_by_rms(0.75), "b.c"),
        bx.chain(bx.scale({"a": 2.0, "b": 3.0}), bx.masked(bx.scale_by_rss(), "b.c")),
        bx.chain(bx.scale_by_rms(0.75), bx.masked(bx.scale({"a": 2.0, "b": 3.0}), True)),
    ):
        ball = bx.penalize(bx.sets.L2Ball(0.1), 1.0)
        expected = bx.chain(tx, ball).update(ones, bx.chain(tx, ball).init(params), params)[0]
        found = bx.chain(tx, ball).update(unpack.pack(ones), bx.chain(tx, ball).init(packed), packed)[0]
        for one, other in zip(*map(torch.utils._pytree.tree_leaves, (unpack(found), expected)), strict=True):
            torch.testing.assert_close(one, other)


def test_step_sizes_of_prefixes_of_different_depth():
    params = {"a": torch.zeros(2), "b": {"c": torch.zeros(1), "d": torch.zeros(1)}, "e": None}
    ones = torch.utils._pytree.tree_map(lambda x: None if x is None else torch.ones_like(x), params)
    shallow, deep = {"a": 2.0, "b": 3.0, "e": 1.0}, {"a": 5.0, "b": {"c": 7.0, "d": 11.0}, "e": 1.0}
    for first, second in ((shallow, deep), (deep, shallow)):
        size = seen_step_size(bx.chain(bx.scale(first), bx.scale(second)), params, ones)
        assert size == {"a": 10.0, "b": {"c": 21.0, "d": 33.0}, "e": 1.0}


def test_a_step_size_is_not_computed_for_nobody():
    def never(state, step_size):
        raise AssertionError("computed")

    scaler = bx.GradientTransformation(lambda params: bx.EmptyState(), lambda u, s, p: (u, s), never)
    params = torch.zeros(1)
    tx = bx.chain(bx.chain(scaler, bx.scale(-1.0)), bx.project(BOX))
    tx.update(params, tx.init(params), params)
    with pytest.raises(AssertionError, match="computed"):
        seen_step_size(scaler, params, params)


# --- extra arguments -------------------------------------------------------------------------------------------------


def test_extra_arguments_reach_whoever_names_them():
    params = torch.zeros(1)
    tx = bx.chain(bx.sgd(1.0), bx.partition({"*": bx.chain(bx.masked(by_value(), True))}), bx.project(bx.Box(-9, 9)))
    updates, _ = tx.update(torch.ones(1), tx.init(params), params, value=3.0)
    assert updates == -3


def test_a_misspelt_argument_raises():
    params = torch.zeros(1)
    tx = bx.chain(by_value(), bx.sgd(1.0))
    with pytest.raises(TypeError, match=r"'vlaue'; they take 'value'"):
        tx.update(params, tx.init(params), params, vlaue=3.0)
    with pytest.raises(TypeError, match=r"takes the argument 'value'; they take no extra argument"):
        bx.chain(bx.sgd(1.0)).update(params, bx.chain(bx.sgd(1.0)).init(params), params, value=3.0)
    asks_for_step_sizes = bx.chain(bx.sgd(1.0), bx.project(bx.sets.L2Ball(1.0)))
    with pytest.raises(TypeError, match=r"'value'; they take no extra argument"):
        asks_for_step_sizes.update(params, asks_for_step_sizes.init(params), params, value=3.0)
    with pytest.raises(TypeError, match="value"):
        bx.scale(1.0).update(params, bx.EmptyState(), params, value=3.0)


def test_extra_arguments_reach_a_condition():
    """Which a wrapper takes besides what its member does."""
    sometimes = bx.conditionally_transform(by_value(), lambda step, good: good, forward_extra_args=True)
    tx, params = bx.chain(sometimes, bx.sgd(1.0)), torch.zeros(1)
    for good, expected in ((True, -3.0), (False, -1.0)):
        updates, _ = tx.update(torch.ones(1), tx.init(params), params, value=3.0, good=torch.tensor(good))
        assert updates == expected
    with pytest.raises(TypeError, match=r"'goood'; they take 'good', 'value'"):
        tx.update(torch.ones(1), tx.init(params), params, value=3.0, goood=True)


def test_a_users_function_with_any_arguments_gets_them_all():
    def update(updates, state, params, **extra):
        return updates * extra["value"], state

    tx = bx.chain(bx.GradientTransformation(lambda params: bx.EmptyState(), update))
    assert tx.update(torch.ones(1), tx.init(torch.ones(1)), torch.ones(1), value=2.0)[0] == 2


def test_what_is_no_plain_function_names_its_arguments_too():
    class Update:
        def __call__(self, updates, state, params, *, value):
            return updates * value, state

    class Greedy:
        def __call__(self, updates, state, params, *, value, **extra):
            return updates * value * extra["more"], state

    params = torch.ones(1)
    init = bx.identity().init
    for update in (Update(), functools.wraps(value_update)(lambda *args, **named: value_update(*args, **named))):
        tx = bx.chain(bx.GradientTransformation(init, update), bx.project(bx.Box(-9.0, 9.0)))
        assert tx.update(params, tx.init(params), params, value=3.0)[0] == 3
        with pytest.raises(TypeError, match=r"'more'; they take 'value'"):
            tx.update(params, tx.init(params), params, value=3.0, more=2.0)
    tx = bx.chain(bx.GradientTransformation(init, Greedy()))
    assert tx.update(params, tx.init(params), params, value=3.0, more=2.0)[0] == 6


# --- what may follow a finished step ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "members",
    [
        (bx.project(BOX), bx.scale(0.5)),
        (bx.project(BOX), bx.add_decayed_weights(0.1)),
        (bx.barrier(BOX, 1.0), bx.trace(0.9)),
        (bx.chain(bx.sgd(0.1), bx.project(BOX)), bx.chain(bx.scale(0.5))),
        (bx.masked(bx.project(BOX), True), bx.scale(0.5)),
        (bx.project(BOX), bx.masked(bx.scale(0.5), True)),
        (bx.partition({"*": bx.project(BOX)}), bx.stateless(lambda u, p: u)),
    ],
)
def test_refuses_to_move_a_finished_step(members):
    with pytest.raises(ValueError, match=r"finished step into a set: it could carry the parameters out again"):
        bx.chain(*members)


def test_refusals_name_the_members():
    after = r"member 2 of the chain \(scale\) comes after member 1 \(project\), a finished step"
    with pytest.raises(ValueError, match=after):
        bx.chain(bx.sgd(0.1), bx.project(BOX), bx.scale(0.5))
    named = r"member last of the chain \(trace\) comes after member first \(barrier\)"
    wrapped = r"comes after member 0 \(project"
    with pytest.raises(ValueError, match=wrapped):
        bx.chain(bx.on_leaves(bx.project(bx.sets.L2Ball(1.0))), bx.scale(0.5))
    with pytest.raises(ValueError, match=named):
        bx.named_chain(("first", bx.barrier(bx.sets.L2Ball(1.0), 1.0)), ("last", bx.trace(0.9)))
    counts = r"member 1 of the chain \(spy\) comes after member 0 \(ema_params\), which counts"
    with pytest.raises(ValueError, match=counts):
        bx.chain(bx.ema_params(0.9), spy())


@pytest.mark.parametrize(
    "members",
    [
        (bx.project(BOX), bx.barrier(BOX, 1.0)),
        (bx.prox(bx.L1(1.0)), bx.project(BOX)),
        (bx.project(BOX), bx.identity()),
        (bx.sgd(0.1), bx.chain(bx.project(BOX), bx.chain(bx.penalize(BOX, 1.0)))),
        (bx.partition({"a": bx.chain(bx.sgd(1.0), bx.project(BOX)), "*": bx.sgd(1.0)}),),
        (bx.project(BOX), bx.ema_params(0.9)),
        (bx.ema_params(0.9), bx.ema_params(0.5)),
        (bx.ema_params(0.9), bx.identity()),
    ],
)
def test_allows_what_keeps_it_finished(members):
    bx.chain(*members)


# --- chains, masks, groups -------------------------------------------------------------------------------------------


def test_refuses_what_is_no_transformation():
    with pytest.raises(TypeError, match=r"member 1 of the chain is not a GradientTransformation: 0.5"):
        bx.chain(bx.identity(), 0.5)
    with pytest.raises(ValueError, match=r"names of a chain's members differ"):
        bx.named_chain(("a", bx.identity()), ("a", bx.identity()))


def test_named_states():
    tx = bx.named_chain(("adam", bx.scale_by_adam()), ("lr", bx.scale(-0.1)))
    params = torch.zeros(2)
    _, state = tx.update(torch.ones(2), tx.init(params), params)
    assert int(state["adam"].count) == 1
    assert state["lr"] == bx.EmptyState()


def test_a_state_of_another_chain_is_refused():
    params = torch.zeros(1)
    with pytest.raises(ValueError, match=r"the state is of a chain of 1 members, this one has 2"):
        bx.chain(bx.scale(1.0), bx.scale(1.0)).update(params, bx.chain(bx.scale(1.0)).init(params), params)


@pytest.mark.parametrize(
    "mask",
    [
        {"layer": {"weight": False, "bias": True}, "bias": True},
        "*.bias",
        lambda params: {"layer": {"weight": False, "bias": True}, "bias": True},
    ],
    ids=["tree", "pattern", "function"],
)
def test_masks(mask):
    params = {"layer": {"weight": torch.zeros(1), "bias": torch.zeros(1)}, "bias": torch.zeros(1)}
    ones = torch.utils._pytree.tree_map(torch.ones_like, params)
    tx = bx.masked(bx.adam(1.0), mask)
    state = tx.init(params)
    assert len(torch.utils._pytree.tree_leaves(state)) == 1 + 2 * 2  # no moments for what is left out
    updates, _ = tx.update(ones, state, params)
    assert float(updates["layer"]["weight"]) == 1.0
    assert float(updates["layer"]["bias"]) == float(updates["bias"]) == pytest.approx(-1.0)


def test_a_left_out_leaf_may_be_anything():
    params = {"w": torch.zeros(2), "steps": torch.tensor(3)}
    tx = bx.masked(bx.sgd(1.0), "w")
    updates, _ = tx.update({"w": torch.ones(2), "steps": torch.tensor(0)}, tx.init(params), params)
    assert bx.apply_updates(params, updates)["steps"] == 3


def test_updates_of_other_leaves_than_the_masks():
    tx = bx.masked(bx.sgd(1.0), {"a": True, "b": {"c": False, "d": True}})
    params = {"a": torch.zeros(1), "b": {"c": torch.zeros(1), "d": torch.zeros(1)}}
    with pytest.raises(ValueError, match=r"it lacks leaf 'b\.d'$"):
        tx.update({"a": torch.ones(1), "b": {"c": torch.ones(1)}}, tx.init(params), params)
    with pytest.raises(ValueError, match=r"it has an unexpected leaf 'e'$"):
        tx.update(params | {"e": torch.ones(1)}, tx.init(params), params)


def test_a_mask_holds_booleans():
    with pytest.raises(ValueError, match=r"leaf 'a': a mask holds booleans, got 1"):
        bx.masked(bx.sgd(1.0), {"a": 1}).init({"a": torch.zeros(1)})
    with pytest.raises(ValueError, match="not a pytree prefix"):
        bx.masked(bx.sgd(1.0), {"z": True}).init({"a": torch.zeros(1)})


@pytest.mark.parametrize(
    "labels", [{"a": "x", "b": "y"}, lambda params: {"a": "x", "b": "y"}], ids=["tree", "function"]
)
def test_partition_by_labels(labels):
    params = {"a": torch.zeros(1), "b": [torch.zeros(1), torch.zeros(1)]}
    ones = torch.utils._pytree.tree_map(torch.ones_like, params)
    tx = bx.partition({"x": bx.sgd(1.0), "y": bx.sgd(2.0)}, labels)
    updates, _ = tx.update(ones, tx.init(params), params)
    assert updates == {"a": -1, "b": [-2, -2]}


def test_partition_by_the_first_pattern_that_matches():
    params = {"in.bias": torch.zeros(1), "in.weight": torch.zeros(1), "bias": torch.zeros(1)}
    ones = torch.utils._pytree.tree_map(torch.ones_like, params)
    tx = bx.partition({"in.*": bx.sgd(1.0), "*.bias": bx.sgd(2.0)})
    updates, _ = tx.update(ones, tx.init(params), params)
    assert updates == {"in.bias": -1, "in.weight": -1, "bias": -2}


def test_partition_names_the_leaf_without_a_group():
    params = {"a": torch.zeros(1), "b": torch.zeros(1)}
    with pytest.raises(ValueError, match=r"leaf 'b' matches none of the patterns a; end with"):
        bx.partition({"a": bx.sgd(1.0)}).init(params)
    with pytest.raises(ValueError, match=r"leaf 'b' has the label 'z', there is none but x, y"):
        bx.partition({"x": bx.sgd(1.0), "y": bx.sgd(1.0)}, {"a": "x", "b": "z"}).init(params)


def test_extra_arguments_in_a_compiled_step():
    torch._dynamo.reset()
    params = torch.ones(2)

    def step(params, value):
        tx = bx.chain(by_value(), bx.sgd(1.0), bx.project(bx.Box(-9.0, 9.0)))
        return tx.update(torch.ones(2), tx.init(params), params, value=value)[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for value in (2.0, 3.0):
            assert compiled(params, torch.tensor(value)).tolist() == [-value, -value]


def test_the_step_size_reaches_a_member_that_others_follow():
    seen = []

    def update(updates, state, params, *, step_size):
        seen.append(step_size)
        return updates, state

    asking = bx.GradientTransformation(bx.identity().init, update)
    tx = bx.chain(bx.scale(0.5), asking, bx.scale(3.0), bx.scale(2.0))
    params = torch.zeros(2)
    tx.update(params, tx.init(params), params)
    assert seen == [0.5]


@pytest.mark.parametrize(
    "make",
    [
        lambda rate: bx.sgd({"a": rate, "b": 0.5}),
        lambda rate: bx.chain(bx.add_decayed_weights({"a": rate, "b": 0.5}), bx.scale(-1.0)),
        lambda rate: bx.masked(bx.scale(rate), {"a": True, "b": False}),
        lambda rate: bx.partition({"x": bx.sgd(rate), "y": bx.adam(0.1)}, {"a": "x", "b": "y"}),
        lambda rate: bx.lamb({"a": rate, "b": 0.5}),
        lambda rate: bx.contrib.muon(rate, muon_weight_dimension_numbers={"a": None, "b": None}),
    ],
)
def test_trees_of_hyperparameters_within_compiled_code(make):
    """The compiler cannot be asked whether a dict is a function."""

    def step(rate, params):
        tx = make(rate)
        return tx.update(params, tx.init(params), params)[0]

    params = {"a": torch.tensor([1.0, 2.0]), "b": torch.tensor([3.0])}
    compiled = torch.compile(step, fullgraph=True, backend="eager")
    got, expected = compiled(torch.tensor(0.1), params), step(torch.tensor(0.1), params)
    for name in params:
        torch.testing.assert_close(got[name], expected[name], rtol=0, atol=0)


def test_what_is_refused_has_the_name_of_what_was_wrapped():
    with pytest.raises(ValueError, match=r"member 1 of the chain \(centralize\) comes after member 0 \(project\)"):
        bx.chain(bx.project(BOX), on_leaves(bx.centralize()))


def _decorated(function):
    @functools.wraps(function)
    def call(*args, **kwargs):
        return function(*args, **kwargs)

    return call


class _Doubling:
    """An update that is no function, and says nothing of its arguments but that it takes any."""

    def __call__(self, updates, state, params, **extra):
        return 2 * updates, state

    def __repr__(self):
        return "doubling"


def test_updates_that_are_decorated_or_no_functions():
    params = torch.ones(2)
    decorated = bx.chain(bx.GradientTransformation(by_value().init, _decorated(value_update)), bx.scale(2.0))
    updates, _ = decorated.update(params, decorated.init(params), params, value=3.0)
    assert updates.tolist() == [6, 6]
    with pytest.raises(TypeError, match=r"no member of the chain takes the argument 'vlaue'; they take 'value'"):
        decorated.update(params, decorated.init(params), params, vlaue=3.0)
    anything = bx.GradientTransformation(lambda params: bx.EmptyState(), _Doubling())
    chain = bx.chain(anything, bx.scale(2.0))
    assert chain.update(params, chain.init(params), params, whatever=1)[0].tolist() == [4, 4]
    assert "doubling" in repr(chain)


def test_an_error_keeps_the_name_of_its_leaf_and_one_that_does_not_come_again_is_itself():
    def inner(x):
        raise ValueError("too long")

    with pytest.raises(ValueError, match=r"^leaf 'b': too long$"):
        tree.map(lambda x: tree.map(inner, {"b": x}), {"a": torch.zeros(1)})
    calls = iter([ValueError("once")])
    with pytest.raises(ValueError, match=r"^once$"):
        tree.map(lambda x: (_ for _ in ()).throw(error) if (error := next(calls, None)) else x, {"a": torch.zeros(1)})
