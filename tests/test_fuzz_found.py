"""What the fuzzer has found and what has no better place: each program failed in the mode that is named."""

import operator

import pytest
import torch

import boxopt as bx
from boxopt.core import tree
from tests.fuzz.check import check
from tests.fuzz.programs import Program

FOUND = [
    ("dtensor", Program("bx.chain(bx.scale_by_adam(), C.galore(0.1, 1), bx.prox(R.L1(0.1)))", "leaf((3,), 'f64', 2)")),
    ("dtensor", Program("bx.packed(bx.project(S.ByPath({'a': bx.Box(0.0, 1.0)})))", "{'a': leaf(()), 'b': leaf(())}")),
    (
        "wrapped",  # a step size with None where the parameters have none
        Program(
            "bx.chain(bx.masked(entry('scale_by_backtracking_linesearch', h[0]), True), bx.prox(R.L1(0.1)))",
            "{'a': leaf(()), 'z': None}",
        ),
    ),
    (
        "tensors",  # the step size of the low-rank gradients has not the shape of the leaf's
        Program("bx.chain(bx.scale_by_adam(), C.galore(0.1, 1), bx.barrier(bx.Box(0.0, 1.0), 0.1))", "leaf((0, 3))"),
    ),
]


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("decreasing", [False, True])
def test_order_after_large_updates(decreasing, dtype):
    """Where an update is larger than the sum, not every number is one: an equal neighbour has to be passed."""
    random = torch.Generator().manual_seed(0)
    set_ = bx.sets.Monotone(decreasing)
    start = set_.project((5 * torch.randn(2000, 4, generator=random)).to(dtype))
    updates = set_.step(start, (30 * torch.randn(2000, 4, generator=random)).to(dtype))
    gaps = (start + updates).diff()
    assert bool((gaps <= 0 if decreasing else gaps >= 0).all())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
def test_halfspaces_from_far_away(dtype):
    """Along the normal, where what is left is small and its roundings are those of what is not."""
    random = torch.Generator().manual_seed(0)
    halfspace = bx.sets.Halfspace(-2.0, 0.5)
    far = (1e4 * torch.randn(2000, 1, generator=random, dtype=torch.float64)).expand(-1, 40).to(dtype)
    inside = halfspace.project(far)
    assert float(halfspace.violation(inside.double())) == 0
    moved = far[:, 0] < -1
    assert bool(((inside[moved].double().sum(-1) * -2 - 0.5).abs() < 1e6 * torch.finfo(dtype).eps).all())


def test_step_sizes_leave_packed_in_float64():
    """A ball's barrier has a step size for each leaf here, of which 0.1 is no number of float32."""
    params = {name: torch.tensor(value, dtype=torch.float64) for name, value in (("a", 0.3), ("b", 0.2), ("c", 0.1))}
    ball = bx.chain(bx.sgd(0.1), bx.barrier(bx.sets.L2Ball(1.0), 0.01))
    tx = bx.partition({"in": ball, "out": bx.sgd(0.1)}, {"a": "in", "b": "out", "c": "in"})
    plain, packed = (each.update(params, each.init(params), params)[0] for each in (tx, bx.packed(tx)))
    for name, update in plain.items():
        torch.testing.assert_close(packed[name], update, rtol=1e-15, atol=0)


def test_values_of_leaves_beside_one_number_for_a_packed_buffer():
    packed, _ = bx.pack({"a": torch.zeros(1), "b": torch.zeros(2)})
    half = tree.expand({"a": 0.5, "b": 0.5}, packed)
    made = tree.combine(operator.mul, {"a": torch.tensor(2.0), "b": torch.tensor([4.0, 6.0])}, half)
    assert tree.leaves(made)[0].tolist() == [1, 2, 3]


def test_updates_of_leaves_in_no_set_are_left_alone():
    """They are not the difference of two parameters, which has fewer digits."""
    params = {"a": torch.full((3,), 1e6), "b": torch.zeros(3)}
    updates = {"a": torch.tensor([0.1, 0.2, 0.3]), "b": torch.tensor([-2.0, 0.5, 2.0])}
    tx = bx.project(bx.sets.ByPath({"b": bx.Box(-1.0, 1.0)}))
    changed, _ = tx.update(updates, tx.init(params), params)
    assert torch.equal(changed["a"], updates["a"])
    assert changed["b"].tolist() == [-1, 0.5, 1]


def test_derivatives_where_blocks_are_clipped_to_nothing():
    """A limit of 0 is by what the root mean square was divided."""
    update = lambda g, limit: bx.clip_by_block_rms(limit).update(g, (), g)[0]  # noqa: E731
    gradient, limit = torch.tensor([3.0, -4.0]), torch.tensor(0.0)
    by_gradient, by_limit = torch.func.jacrev(update, (0, 1))(gradient, limit)
    assert torch.equal(by_gradient, torch.zeros(2, 2))
    torch.testing.assert_close(by_limit, gradient / 12.5**0.5)
    for limit in (0.0, 1.0):
        by_gradient = torch.func.jacrev(update)(torch.zeros(2), torch.tensor(limit))
        assert torch.equal(by_gradient, torch.eye(2))


def test_a_small_step_beside_a_large_extrapolation():
    """α·g + β·(g − last), of which the second part is 0 at first, and would hide the first in other orders."""
    tx, gradient = bx.scale_by_optimistic_gradient(1e-8, 0.05), torch.tensor([-43232.0])
    updates, _ = tx.update(gradient, tx.init(gradient), gradient)
    torch.testing.assert_close(updates, 1e-8 * gradient, rtol=1e-6, atol=0)


@pytest.mark.parametrize(("mode", "program"), FOUND)
def test_found(mode, program):
    assert check(program, mode) == {mode: "ok"}
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
