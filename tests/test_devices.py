"""Results are where the parameters are. The meta device, whose tensors have no numbers, stands for another one."""

import pytest
import torch
import torch.utils._pytree as pytree

import boxopt as bx
from tests.registry import ENTRIES, Hyper
from tests.test_laws import example_params


def devices(values):
    return {leaf.device.type for leaf in pytree.tree_leaves(values) if isinstance(leaf, torch.Tensor)}


@pytest.mark.parametrize("entry", ENTRIES, ids=str)
def test_steps(entry):
    tx, params = entry.build(Hyper()), pytree.tree_map(lambda x: x.to("meta"), example_params())
    state = tx.init(params)
    updates, new = tx.update(params, state, params)
    assert devices((state, updates, new, bx.apply_updates(params, updates))) == {"meta"}


@pytest.mark.parametrize(
    "build",
    [
        bx.scale_by_learning_rate,
        bx.add_decayed_weights,
        lambda schedule: bx.barrier(bx.Box(0.0, 1.0), schedule),
        lambda schedule: bx.add_barrier(bx.Box(0.0, 1.0), schedule),
        lambda schedule: bx.penalize(bx.Box(0.0, 1.0), schedule),
        lambda schedule: bx.add_penalty(bx.Box(0.0, 1.0), schedule),
        lambda schedule: bx.frank_wolfe(bx.Box(0.0, 1.0), schedule),
        lambda schedule: bx.exponentiated_gradient(schedule),
    ],
)
def test_schedules_count_there(build):
    params = {"w": torch.zeros(3, device="meta")}
    tx = build(bx.linear_schedule(1.0, 0.1, 9))
    state = tx.init(params)
    assert devices(state) == {"meta"}
    assert devices(tx.update(params, state, params)) == {"meta"}


def test_leaves_on_several_devices():
    params = {"a": torch.ones(2), "b": torch.ones(3, device="meta"), "c": torch.zeros(1)}
    packed, unpack = bx.pack(params)
    assert {name: len(buffer) for name, buffer in packed.buffers.items()} == {"float32_cpu": 3, "float32_meta": 3}
    tx = bx.chain(bx.adam(torch.tensor(0.1)), bx.project(bx.Box({"a": torch.zeros(2), "b": torch.zeros(3), "c": None})))
    updates, _ = tx.update(packed, tx.init(packed), packed)
    assert {name: leaf.device.type for name, leaf in unpack(updates).items()} == {"a": "cpu", "b": "meta", "c": "cpu"}
    plain, _ = tx.update(params, tx.init(params), params)
    assert torch.equal(unpack(updates)["a"], plain["a"])
