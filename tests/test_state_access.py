"""Reading, writing and mapping over states, against optax's functions where it has them."""

import jax
import optax
import pytest
import torch
import torch.utils._pytree as pytree
from torch.func import vmap

import boxopt as bx

PARAMS = {"layer": {"weight": torch.ones(3, 2), "bias": torch.ones(2)}, "scale": torch.tensor(1.0)}


def build(*_):
    return bx.chain(
        bx.named_chain(("adam", bx.scale_by_adam()), ("momentum", bx.trace(0.9))),
        bx.masked(bx.trace(0.5), "*.bias"),
        bx.inject_hyperparams(bx.scale_by_learning_rate)(0.1),
        bx.project(bx.Box(0.0, 1.0)),
    )


def test_get_by_name_and_by_path():
    state = build().init(PARAMS)
    assert bx.tree_get(state, "mu") is state[0]["adam"].mu
    assert bx.tree_get(state, "0.adam.mu.layer") is state[0]["adam"].mu["layer"]
    assert bx.tree_get(state, "adam") is state[0]["adam"]
    assert bx.tree_get(state, "ScaleByAdamState") is state[0]["adam"]
    assert bx.tree_get(state, "learning_rate") == 0.1
    assert bx.tree_get(state, "nothing", default=7) == 7
    assert [path for path, _ in bx.tree_get_all(state, "trace")] == ["0.momentum.trace", "1.inner.trace"]
    assert [path for path, _ in bx.tree_get_all(state, "bias")][:2] == ["0.adam.mu.layer.bias", "0.adam.nu.layer.bias"]
    larger = bx.tree_get(state, "trace", filtering=lambda path, value: isinstance(value["scale"], torch.Tensor))
    assert larger is state[0]["momentum"].trace
    inner = bx.tree_get(state, "trace", filtering=lambda path, value: "inner" in path)
    assert inner is state[1].inner.trace
    with pytest.raises(KeyError, match=r"'trace' stands at '0.momentum.trace', '1.inner.trace'"):
        bx.tree_get(state, "trace")


def test_set_by_name_and_by_path():
    state = build().init(PARAMS)
    new = bx.tree_set(state, count=7, learning_rate=torch.tensor(0.5), **{"mu.scale": 3.0})
    assert [count.item() for _, count in bx.tree_get_all(new, "count")] == [7, 7]
    assert bx.tree_get(new, "learning_rate") == 0.5
    assert bx.tree_get(new, "mu.scale") == 3
    assert bx.tree_get(new, "nu.scale") == 0
    assert bx.tree_get(state, "mu.scale") == 0  # the old one stays
    assert pytree.tree_structure(new) == pytree.tree_structure(state)
    only = bx.tree_set(state, lambda path, value: path.startswith("0"), count=7)
    assert [count.item() for _, count in bx.tree_get_all(only, "count")] == [7, 0]
    with pytest.raises(KeyError, match="nothing is called 'coutn'"):
        bx.tree_set(state, coutn=1)


def test_names_are_found_where_optax_finds_them():
    tx, peer = bx.adamw(bx.linear_schedule(0.1, 0.0, 9)), optax.adamw(optax.linear_schedule(0.1, 0.0, 9))
    ours, theirs = tx.init({"w": torch.ones(2)}), peer.init({"w": jax.numpy.ones(2)})
    for name in ("count", "mu", "nu", "w", "ScaleByAdamState"):
        found = optax.tree_utils.tree_get_all_with_path(theirs, name)
        assert len(bx.tree_get_all(ours, name)) == len(found) > 0
    ours, theirs = bx.tree_set(ours, count=5), optax.tree_utils.tree_set(theirs, count=jax.numpy.asarray(5))
    assert [int(x) for _, x in bx.tree_get_all(ours, "count")] == [5, 5]
    assert [int(x) for _, x in optax.tree_utils.tree_get_all_with_path(theirs, "count")] == [5, 5]


def test_set_in_a_vmapped_and_in_a_compiled_function():
    tx, params = bx.inject_hyperparams(bx.sgd)(0.1), torch.zeros(3)
    state = vmap(tx.init)(torch.zeros(4, 3))
    state = bx.tree_set(state, learning_rate=torch.tensor([0.1, 0.2, 0.3, 0.4]))
    updates, _ = vmap(tx.update)(torch.ones(4, 3), state, torch.zeros(4, 3))
    torch.testing.assert_close(updates[:, 0], -torch.tensor([0.1, 0.2, 0.3, 0.4]))

    def step(rate):
        return tx.update(torch.ones(3), bx.tree_set(tx.init(params), learning_rate=rate), params)[0]

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(torch.tensor(0.3)), torch.full((3,), -0.3))


def test_map_params():
    """The moments, masked ones and packed ones included; not counters, nor hyperparameters of a shape of their own."""
    for wrap in (lambda tx: tx, bx.packed):
        state = wrap(build()).init(PARAMS)
        names = {"layer": {"weight": 1.0, "bias": 2.0}, "scale": 3.0}
        new = bx.tree_map_params(PARAMS, lambda leaf, name: leaf + name, state, names)
        for name in ("mu", "nu"):
            moment = bx.tree_get(new, name)
            moment = moment.unpack() if isinstance(moment, bx.Packed) else moment
            assert (moment["layer"]["weight"] == 1).all()
            assert (moment["layer"]["bias"] == 2).all()
            assert moment["scale"] == 3
        assert bx.tree_get(new, "0.adam.count") == 0
        assert bx.tree_get(new, "learning_rate") == 0.1
        assert pytree.tree_structure(new) == pytree.tree_structure(state)
    state = build().init(PARAMS)
    new = bx.tree_map_params(PARAMS, lambda leaf, name: name, state, names, transform_non_params=lambda leaf: "other")
    assert bx.tree_get(new, "mu") == names
    assert bx.tree_get(new, "learning_rate") == "other"
    assert bx.tree_get(new, "1.inner.trace")["layer"]["bias"] == 2.0
    members = {name: torch.zeros(5, 3) for name in "ab"}
    stacked = bx.tree_map_params(members, lambda leaf: leaf[0], vmap(build().init)(members))
    assert bx.tree_get(stacked, "mu")["a"].shape == (3,)
    assert bx.tree_get(stacked, "0.adam.count").shape == (5,)


def test_map_the_other_numbers_of_a_state():
    state = bx.chain(bx.scale_by_adam(), bx.trace(0.9)).init({"w": torch.ones(2)})
    new = bx.tree_map_params({"w": torch.ones(2)}, lambda leaf: leaf, state, transform_non_params=lambda leaf: leaf + 7)
    assert new[0].count == 7
    assert bx.tree_get(new, "mu")["w"].tolist() == [0, 0]


def test_map_params_passes_over_what_is_missing():
    params = {"a": torch.ones(2), "b": None, "c": [torch.ones(3)]}
    state = bx.chain(bx.scale_by_adam(), bx.trace(0.9)).init(params)
    new = bx.tree_map_params(params, lambda leaf: leaf + 1, state)
    for name in ("mu", "nu", "trace"):
        moment = bx.tree_get(new, name)
        assert moment["a"].tolist() == [1, 1]
        assert moment["b"] is None
        assert moment["c"][0].tolist() == [1, 1, 1]
    for other in (
        params | {"b": torch.ones(1)},
        params | {"c": (torch.ones(3),)},
        params | {"c": [torch.ones(4)]},
        {"a": params["a"], "c": params["c"]},
    ):
        assert bx.tree_map_params(other, lambda leaf: leaf + 1, state)[0].mu["a"].tolist() == [0, 0]


def test_transformations_read_as_they_are_written():
    box = bx.Box(0.0, 1.0)
    for tx, text in {
        bx.chain(bx.scale_by_lion(), bx.project(box)): (
            "chain(scale_by_lion(b1=0.9, b2=0.99, mode='hard', smooth_beta=1.0), "
            "project(constraint=Box(lower=0.0, upper=1.0)))"
        ),
        bx.named_chain(("momentum", bx.trace(0.9)), ("rate", bx.scale(torch.ones(3)))): (
            "named_chain(('momentum', trace(decay=0.9)), ('rate', scale(factor=Tensor[3], sign=1)))"
        ),
        bx.masked(bx.scale_by_schedule(bx.linear_schedule(1.0, 0.0, 9)), "*.bias"): (
            "masked(scale(factor=linear_schedule(init_value=1.0, end_value=0.0, "
            "transition_steps=9, transition_begin=0), sign=1), mask='*.bias')"
        ),
        bx.multi_steps(bx.project(bx.sets.Simplex()), 4): (
            "multi_steps(project(constraint=Simplex(total=1.0, dim=-1)), every=4, mean=True)"
        ),
        bx.chain(bx.zero_nans(), bx.add_decayed_weights(0.1), bx.set_to_zero()): (
            "chain(zero_nans(), add_decayed_weights(weight_decay=0.1), set_to_zero())"
        ),
        bx.conditionally_mask(bx.identity(), build): "conditionally_mask(identity(), condition=build)",
        bx.conditionally_transform(bx.identity(), build): "conditionally_transform(identity(), condition=build)",
        bx.monitor({"loss": build}): "monitor(measures={'loss': build})",
        bx.stochastic_rounding(bx.identity(), seed=3): "stochastic_rounding(identity(), seed=3)",
        bx.scale_by_learning_rate(lambda count: count): "scale(factor=<lambda>, sign=-1)",
        bx.GradientTransformation(bx.identity().init, build): "build",
    }.items():
        assert repr(tx) == text
    assert repr(bx.inject_hyperparams(bx.scale)(0.5)) == (
        "inject_hyperparams(scale(factor=tensor(0.5000, dtype=torch.float64), sign=1), factory=scale)"
    )
