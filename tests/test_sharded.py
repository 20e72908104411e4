"""One process in the place of the second of two: its part of every result is that part of what whole tensors give.

What is elementwise communicates nothing, so nobody has to answer. `test_distributed.py` has processes that do.
"""

import pytest
import torch
import torch.utils._pytree as pytree

import boxopt as bx

pytestmark = pytest.mark.skipif(not torch.distributed.is_available(), reason="torch was built without distributed")

WHOLE = {
    "weight": torch.linspace(-0.9, 0.9, 24, dtype=torch.float64).reshape(4, 3, 2),
    "bias": torch.tensor([0.3, -0.2]),
    "row": torch.tensor([[0.1, 0.2, 0.3, -0.4]]),
    "scale": torch.tensor(0.5),
}
CUT = {"weight": 0, "bias": 0, "row": 1}  # along which dimension; the scale is the same on both


@pytest.fixture
def mesh():
    from torch.testing._internal.distributed.fake_pg import FakeStore

    torch.distributed.init_process_group("fake", store=FakeStore(), rank=1, world_size=2)
    yield torch.distributed.init_device_mesh("cpu", (2,))
    torch.distributed.destroy_process_group()


def part(values):
    """What the second process has."""
    return {name: x.chunk(2, CUT[name])[1] if name in CUT else x for name, x in values.items()}


def sharded(values, mesh):
    from torch.distributed.tensor import DTensor, Replicate, Shard

    def put(name, x):
        place = Shard(CUT[name]) if name in CUT else Replicate()
        return DTensor.from_local(x, mesh, [place], run_check=False)

    return {name: put(name, x) for name, x in part(values).items()}


def local(values):
    return pytree.tree_map(lambda x: x.to_local() if hasattr(x, "to_local") else x, values)


def assert_equal(one, other):
    assert one.keys() == other.keys()
    for name, x in one.items():
        torch.testing.assert_close(x, other[name], rtol=0, atol=0)


ROWS = torch.linspace(-0.5, 0.1, 6).reshape(3, 2)
LOWER = {"weight": ROWS, "bias": torch.tensor([0.2, -0.1]), "row": -0.3, "scale": None}
TRANSFORMATIONS = {
    "adam in a box": lambda: bx.chain(bx.adam(0.1), bx.project(bx.Box(LOWER, 0.6))),
    "barrier": lambda: bx.chain(bx.sgd(0.1), bx.barrier(bx.Box(-2.0, 2.0), 1e-3)),
    "rates by leaf": lambda: bx.scale_by_learning_rate(
        {"weight": torch.linspace(0.1, 0.4, 4).reshape(4, 1, 1), "bias": 0.2, "row": torch.tensor(0.3), "scale": 0.1}
    ),
    "masked": lambda: bx.masked(bx.sgd(0.5, momentum=0.9), "*w*"),
    "partition": lambda: bx.partition({"*e*": bx.chain(bx.adam(0.1), bx.project(bx.Box(-0.5, 0.6))), "*": bx.sgd(1.0)}),
    "noise": lambda: bx.add_noise(1.0, 0.5, key=3),
}


@pytest.mark.parametrize("packed", [False, True], ids=["leaf by leaf", "packed"])
@pytest.mark.parametrize("name", TRANSFORMATIONS)
def test_steps_of_one_process(name, packed, mesh):
    if packed and name == "noise":
        pytest.skip("it gathers whole leaves")
    wrap = bx.packed if packed else lambda tx: tx
    tx = TRANSFORMATIONS[name]()
    whole, cut = WHOLE, sharded(WHOLE, mesh)
    state, cut_state = tx.init(whole), wrap(tx).init(cut)
    for factor in (1.0, -3.0):
        gradients = {key: factor * (x + 0.2) for key, x in whole.items()}
        updates, state = tx.update(gradients, state, whole)
        with bx.count_communication() as communication:
            cut_updates, cut_state = wrap(tx).update(sharded(gradients, mesh), cut_state, cut)
            cut = bx.apply_updates(cut, cut_updates)
        assert communication.calls.total() == 0
        whole = bx.apply_updates(whole, updates)
        assert_equal(local(cut_updates), part(updates))
        assert_equal(local(cut), part(whole))
        assert {key: x.placements for key, x in cut.items()} == {
            key: x.placements for key, x in sharded(WHOLE, mesh).items()
        }


def test_buffers_hold_this_processs_parts(mesh):
    cut, parts = sharded(WHOLE, mesh), part(WHOLE)
    packed, unpack = bx.pack(cut)
    whole = {"float64_shard": 24, "float32_shard": 6, "float32_same": 1}
    assert {name: len(buffer) for name, buffer in packed.buffers.items()} == whole
    assert {name: unpack.length(name) for name in whole} == whole
    assert {name: unpack.local_length(name) for name in whole} == {
        name: (size + 1) // 2 for name, size in whole.items()
    }
    assert {name: len(buffer) for name, buffer in local(packed.buffers).items()} == {
        name: unpack.local_length(name) for name in whole
    }
    assert packed.buffers["float32_shard"].to_local().tolist() == [*parts["bias"], *parts["row"].flatten()]
    assert_equal(local(unpack(packed)), parts)
    changed = packed.replaced([x * 2 for x in cut.values()])
    assert_equal(local(unpack(changed)), {name: 2 * x for name, x in parts.items()})
    only = packed.select([False, True, True, True])
    assert only.layout.local_length("float32_shard") == 3
    assert_equal(local(unpack(packed.merge([False, True, True, True], only))), parts)
    along = unpack.expand(WHOLE | {"row": 0.5}, packed).buffers
    assert torch.equal(along["float64_shard"].to_local(), parts["weight"].flatten())
    assert along["float32_shard"].to_local().tolist() == [*parts["bias"], 0.5, 0.5]


def test_what_cannot_be_packed_together(mesh):
    from torch.distributed.tensor import DTensor, Shard

    cut = sharded(WHOLE, mesh)
    assert bx.pack({"row": cut["row"]})[0].buffers.keys() == {"float32_shard"}
    with pytest.raises(ValueError, match="leaf 'plain' is not sharded, other leaves are"):
        bx.pack({**cut, "plain": torch.zeros(2)})
    odd = DTensor.from_local(torch.zeros(1), mesh, [Shard(0)], run_check=False, shape=(3,), stride=(1,))
    with pytest.raises(
        ValueError, match=r"leaf 'odd' of shape \(3,\) is not divided evenly by the mesh of shape \(2,\)"
    ):
        bx.pack({**cut, "odd": odd})
    other = torch.distributed.init_device_mesh("cpu", (2, 1))
    elsewhere = DTensor.from_local(torch.zeros(2), other, [Shard(0), Shard(0)], run_check=False)
    with pytest.raises(ValueError, match="leaf 'elsewhere' is sharded over other processes"):
        bx.pack({**cut, "elsewhere": elsewhere})
