"""Ensembles as trees: against vmap, torch.func.stack_module_state and plain loops; and a few members at a time."""

import itertools
import math
import os

import pytest
import torch
import torch.utils._pytree as pytree
from torch import nn
from torch.func import functional_call, grad, stack_module_state, vmap

import boxopt as bx
from boxopt.core import storage
from tests.registry import Hyper
from tests.test_laws import assert_trees_equal, ensemble_hyper, every_entry, example_params, member

MEMBERS = 7


# --- members -------------------------------------------------------------------------------------------------------


@every_entry
def test_stacked_states_are_those_of_vmap(entry):
    params = example_params(members=3)
    tx = entry.build(Hyper())
    alone = [tx.init(member(params, index)) for index in range(3)]
    together = bx.stack(alone)
    assert_trees_equal(together, vmap(tx.init)(params))
    for one, other in zip(bx.unstack(together) if pytree.tree_leaves(together) else [], alone, strict=False):
        assert_trees_equal(one, other)


def test_stacked_modules_are_those_of_torch():
    modules = [nn.Linear(3, 2) for _ in range(4)]
    expected, _ = stack_module_state(modules)
    assert_trees_equal(bx.stack([dict(module.named_parameters()) for module in modules]), expected)


def test_packed_members():
    alone = [bx.pack({"w": torch.full((2, 2), float(k)), "b": torch.ones(3)})[0] for k in range(3)]
    together = bx.stack(alone)
    assert together.buffers["float32"].shape == (3, 7)
    assert_trees_equal(together.unpack()["w"], torch.arange(3.0)[:, None, None].expand(3, 2, 2))
    assert_trees_equal(bx.unstack(together)[2], alone[2])


def test_members_that_do_not_fit():
    with pytest.raises(ValueError, match="at least one member"):
        bx.stack([])
    with pytest.raises(ValueError, match=r"leaf 'w': member 2 has torch\.float32 of shape \(3,\), member 0 .*\(2,\)"):
        bx.stack([{"w": torch.zeros(2)}, {"w": torch.zeros(2)}, {"w": torch.zeros(3)}])
    with pytest.raises(ValueError, match=r"member 1 has torch\.float64"):
        bx.stack([torch.zeros(2), torch.zeros(2, dtype=torch.float64)])
    with pytest.raises(ValueError, match=r"it lacks leaf 'b'|unexpected leaf 'b'"):
        bx.stack([{"w": torch.zeros(2)}, {"w": torch.zeros(2), "b": torch.zeros(2)}])
    with pytest.raises(TypeError, match=r"leaf 'lr': only tensors can be stacked, got float"):
        bx.stack([{"lr": 0.1}, {"lr": 0.2}])
    with pytest.raises(ValueError, match=r"leaf 'b' has 2 members, leaf 'a' has 3"):
        bx.unstack({"a": torch.zeros(3, 1), "b": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"leaf 'b': .* got a tensor without dimensions"):
        bx.unstack({"a": torch.zeros(3), "b": torch.zeros(())})
    with pytest.raises(ValueError, match="a tree without leaves"):
        bx.unstack({})


def test_taking_members():
    ensemble = {"w": torch.arange(8.0).reshape(4, 2), "none": None, "k": [torch.arange(4)]}
    assert_trees_equal(bx.take_members(ensemble, 2), member(ensemble, 2))
    assert_trees_equal(bx.take_members(ensemble, slice(1, 3)), member(ensemble, slice(1, 3)))
    for index in ([3, 0, 3], (3, 0, 3), torch.tensor([3, 0, 3])):
        taken = bx.take_members(ensemble, index)
        assert_trees_equal(taken["w"], ensemble["w"][[3, 0, 3]])
        assert_trees_equal(taken["k"][0], torch.tensor([3, 0, 3]))
    assert bx.take_members(ensemble, 1)["w"].data_ptr() == ensemble["w"][1].data_ptr()


def test_the_best_members():
    losses = torch.tensor([0.5, torch.nan, 0.2, torch.inf, 0.2, -torch.inf])
    ensemble = {"w": torch.arange(6.0)[:, None]}
    best, places = bx.best_members(ensemble, losses, 6)
    assert places.tolist() == [5, 2, 4, 0, 3, 1]
    assert best["w"][:, 0].tolist() == places.tolist()
    scores = torch.rand(6)
    assert bx.best_members(ensemble, -scores, 3)[1].tolist() == scores.topk(3).indices.tolist()
    with pytest.raises(ValueError, match=r"one loss for each of 6 members, got shape \(5,\)"):
        bx.best_members(ensemble, losses[:5])
    for count in (0, 7):
        with pytest.raises(ValueError, match="between 1 and the number of members, 6"):
            bx.best_members(ensemble, losses, count)


# --- a few members at a time ---------------------------------------------------------------------------------------


def start(members=MEMBERS, dtype=torch.float64):
    params, h = example_params(dtype, members), ensemble_hyper(members, dtype)
    return params, vmap(lambda h, p: transformation(h).init(p))(h, params), h


def transformation(h):
    return bx.chain(bx.adam(h.lr), bx.project(h.box), bx.barrier(h.box, h.mu))


def step(params, state, h, target):
    def loss(p):
        return sum(((x - target) ** 2).sum() for x in pytree.tree_leaves(p))

    gradients = grad(loss)(params)
    updates, state = transformation(h).update(gradients, state, params)
    return bx.apply_updates(params, updates), state, loss(params)


IN_DIMS = (0, 0, 0, None)
together = vmap(step, in_dims=IN_DIMS)


@pytest.mark.parametrize("chunk_size", [1, 3, MEMBERS, 100])
@pytest.mark.parametrize("donated", [(), (0, 1)], ids=str)
@pytest.mark.parametrize("device", [None, "cpu"])
def test_chunks_equal_the_whole(chunk_size, donated, device):
    params, state, h = start()
    target = torch.tensor(0.4, dtype=torch.float64)
    expected = together(*together(params, state, h, target)[:2], h, target)
    chunks = bx.chunked(together, chunk_size, IN_DIMS, donated, device)
    assert_trees_equal(chunks(*chunks(params, state, h, target)[:2], h, target), expected)


def test_one_in_dims_and_one_output():
    double = bx.chunked(lambda x: {"w": 2 * x["w"], "none": None}, 2)
    ensemble = {"w": torch.arange(5.0), "none": None}
    assert_trees_equal(double(ensemble), {"w": 2 * torch.arange(5.0), "none": None})
    assert_trees_equal(ensemble["w"], torch.arange(5.0))
    halve = bx.chunked(lambda x: (x / 2).requires_grad_(), 2, donate_argnums=0)
    halved = halve(ensemble["w"])
    assert_trees_equal(halved, torch.arange(5.0) / 2)
    assert not halved.requires_grad


def test_donated_members_are_overwritten_where_they_are():
    params, state, h = start()
    target = torch.tensor(0.4, dtype=torch.float64)
    expected = together(params, state, h, target)
    weights = params["layer"]["weight"]
    place = weights.data_ptr()
    chunks = bx.chunked(together, 3, IN_DIMS, (0, 1))
    params, state, losses = chunks(params, state, h, target)
    assert_trees_equal((params, state, losses), expected)
    assert params["layer"]["weight"].data_ptr() == place
    with pytest.raises(bx.ConsumedError, match="a leaf of argument 0"):
        chunks({"layer": {"weight": weights}}, state, h, target)


def test_a_compiled_step_writes_over_the_ensemble_itself():
    def descend(weights, rate):
        tx = bx.chain(bx.sgd(rate), bx.project(bx.Box(0.1, 1.0)))
        return bx.apply_updates(weights, tx.update(weights, tx.init(weights), weights)[0])

    weights, rates = torch.rand(6, 5), torch.rand(6)
    expected = vmap(descend)(vmap(descend)(weights, rates), rates)
    place = weights.data_ptr()
    compiled = bx.compile(vmap(descend), donate_argnums=0, backend="aot_eager")
    chunks = bx.chunked(compiled, 2, donate_argnums=0)
    weights = chunks(weights, rates)
    with torch._dynamo.config.patch(error_on_recompile=True):
        weights = chunks(weights, rates)
    assert_trees_equal(weights, expected, rtol=1e-6, atol=1e-6)
    assert weights.data_ptr() == place


@pytest.mark.skipif(not os.path.exists("/proc/self/status"), reason="asks Linux for the memory in use")
def test_an_ensemble_in_files_takes_the_memory_of_a_chunk(tmp_path):
    """Made, stepped and measured chunk by chunk: 96 MB in files, and in memory what 64 of 4096 members take."""
    numbers = itertools.count()

    def in_file(shape, dtype):
        size = math.prod(shape)
        return torch.from_file(f"{tmp_path}/{next(numbers)}", shared=True, size=size, dtype=dtype).view(shape)

    def init(seed):
        weights = torch.sin(seed + torch.arange(2000.0))
        return weights, bx.adam(0.1).init(weights)

    def descend(weights, state):
        updates, state = bx.chain(bx.adam(0.1), bx.project(bx.Box(-0.5, 0.5))).update(weights, (state, ()), weights)
        return bx.apply_updates(weights, updates), state[0]

    def in_use():
        with open("/proc/self/status") as status:
            return next(int(line.split()[1]) for line in status if line.startswith("RssAnon")) / 1024

    seeds = torch.arange(4096)
    small = vmap(descend)(*vmap(init)(seeds[:64]))
    before = in_use()
    weights, state = bx.chunked(vmap(init), 64, empty=in_file)(seeds)
    weights, state = bx.chunked(vmap(descend), 64, donate_argnums=(0, 1))(weights, state)
    assert in_use() - before < 24
    assert_trees_equal(weights[:64], small[0])
    assert float(bx.violation(bx.Box(-0.5, 0.5), weights)) == 0
    again = torch.from_file(f"{tmp_path}/0", shared=True, size=weights.numel()).view(weights.shape)
    assert_trees_equal(again[-64:], weights[-64:])  # in the file


def test_real_networks_in_chunks():
    networks = [nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 1)) for _ in range(6)]
    weights = {name: leaf.detach() for name, leaf in stack_module_state(networks)[0].items()}
    x, y = torch.rand(16, 4), torch.rand(16, 1)

    def slopes(weights, x, y):
        return grad(lambda w: ((functional_call(networks[0], w, (x,)) - y) ** 2).mean())(weights)

    dims = (0, None, None)
    whole, parts = vmap(slopes, in_dims=dims), bx.chunked(vmap(slopes, in_dims=dims), 4, dims)
    assert_trees_equal(parts(weights, x, y), whole(weights, x, y), rtol=1e-5, atol=1e-7)


def test_what_does_not_fit_in_chunks():
    with pytest.raises(ValueError, match="chunk_size is at least 1"):
        bx.chunked(together, 0)
    with pytest.raises(ValueError, match="in_dims are 0 or None"):
        bx.chunked(together, 1, in_dims=(0, 1))
    with pytest.raises(ValueError, match="different positions"):
        bx.chunked(together, 1, donate_argnums=(0, 0))
    with pytest.raises(ValueError, match=r"1 arguments do not fit in_dims=\(0, None\)"):
        bx.chunked(together, 1, in_dims=(0, None))(torch.zeros(2))
    with pytest.raises(ValueError, match="do not fit"):
        bx.chunked(together, 1, in_dims=(0, None), donate_argnums=1)(torch.zeros(2), torch.zeros(2))
    with pytest.raises(ValueError, match=r"leaf '1' has 3 members, leaf '0' has 2"):
        bx.chunked(torch.add, 1)(torch.zeros(2), torch.zeros(3))
    with pytest.raises(ValueError, match=r"one entry for each, got shape \(\)"):
        bx.chunked(torch.sum, 1)(torch.zeros(2))
    with pytest.raises(ValueError, match=r"argument 0 .* output 0 does not fit it: leaf 'a': .* torch\.float64"):
        bx.chunked(lambda x: {"a": x["a"].double()}, 1, donate_argnums=0)({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match=r"output 0 does not fit it: .*leaf 'b'"):
        bx.chunked(lambda x: {**x, "b": x["a"]}, 1, donate_argnums=0)({"a": torch.zeros(2)})
    with pytest.raises(ValueError, match="only 1 outputs"):
        bx.chunked(torch.add, 1, donate_argnums=(0, 1))(torch.zeros(2), torch.zeros(2))


def test_shared_memory_is_refused_where_it_would_be_overwritten():
    x = torch.zeros(4, 2)
    both = bx.chunked(lambda x, y: (x + 1, y + 1), 2, donate_argnums=(0, 1))
    with pytest.raises(ValueError, match="arguments 0 and 1 share memory"):
        both(x, x)
    with pytest.raises(ValueError, match="arguments 0 and 1 share memory"):
        bx.chunked(torch.add, 2, donate_argnums=0)(x, x[:, :1])
    assert_trees_equal(bx.chunked(torch.add, 2)(x, x), x)
    assert (x == 0).all()


@pytest.mark.gpu
def test_an_ensemble_on_the_cpu_is_stepped_on_the_gpu():
    params, state, h = start(dtype=torch.float32)
    target = torch.tensor(0.4)
    expected = together(*together(params, state, h, target)[:2], h, target)
    chunks = bx.chunked(together, 3, IN_DIMS, (0, 1), device="cuda")
    for _ in range(2):
        params, state, losses = chunks(params, state, h, target)
    assert params["scale"].device.type == losses.device.type == "cpu"
    assert_trees_equal((params, state, losses), expected, rtol=1e-5, atol=1e-6)


def test_what_is_no_tensor_and_what_has_no_memory_shares_none():
    train = bx.chunked(lambda p, rate: p - rate, 2, in_dims=(0, None), donate_argnums=0)
    assert train(torch.tensor([1.0, 2.0, 3.0]), 0.5).tolist() == [0.5, 1.5, 2.5]
    assert not storage.share(torch.zeros(3, device="meta"), torch.zeros(3, device="meta"))
