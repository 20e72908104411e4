"""What `torch.compile` traces, run without a compiler: code that is taken in its place gives the bits of eager code.

Whether it compiles is a law of its own, which takes longer.
"""

import pytest
import torch

import boxopt as bx
from tests.registry import ENTRIES, Hyper
from tests.test_laws import assert_trees_equal, ensemble_hyper, example_params, member, run

NAMES = {
    "chain", "masked", "partition", "packed", "project", "projected", "barrier", "penalize", "tangent", "add_barrier",
    "add_penalty", "prox", "scale_by_adam", "add_noise",
}  # fmt: skip
CHOSEN = [
    entry for entry in ENTRIES if NAMES & set(entry.names) and "Nuclear" not in entry.names
]  # it rounds otherwise


@pytest.fixture
def traced(monkeypatch):
    """Calls a function as if it were being compiled."""

    def call(function, *arguments, **named):
        with monkeypatch.context() as patch:
            patch.setattr(torch.compiler, "is_compiling", lambda: True)
            return function(*arguments, **named)

    return call


@pytest.mark.parametrize("h", [Hyper(), Hyper(*member(ensemble_hyper(), 1))], ids=["numbers", "tensors"])
@pytest.mark.parametrize("entry", CHOSEN, ids=str)
def test_steps(entry, h, traced):
    params = {"wide": example_params(), "narrow": example_params(torch.bfloat16)}
    for wrap in [lambda tx: tx] + [bx.packed] * ("packed" not in entry.exempt):
        assert_trees_equal(traced(run, wrap(entry.build(h)), params, 2), run(wrap(entry.build(h)), params, 2))


def test_prefixes(traced):
    """Bounds, rates and masks that differ from leaf to leaf, some of them left out."""
    params = example_params()
    bounds = bx.Box({"layer": -0.5, "scale": None}, {"layer": {"weight": None, "bias": torch.zeros(2)}, "scale": 0.1})
    rates = {"layer": 0.3, "scale": 0.1}
    for tx in (
        bx.chain(bx.masked(bx.scale_by_adam(), "*weight"), bx.scale(rates), bx.prox(bx.L1(0.1)), bx.project(bounds)),
        bx.partition({"*bias": bx.sgd(0.1), "*": bx.chain(bx.adam(0.1), bx.barrier(bx.Box(-2.0, 2.0), 0.01))}),
        bx.chain(bx.scale(rates), bx.masked(bx.adam(0.1), "layer*"), bx.penalize(bx.sets.L2Ball(0.1), 1.0)),
    ):
        for wrap in (lambda tx: tx, bx.packed):
            assert_trees_equal(traced(run, wrap(tx), params, 2), run(wrap(tx), params, 2))


def test_landing_next_to_a_bound(traced):
    """Sums that round out of the box are repaired, in 16 bits too."""
    random = torch.Generator().manual_seed(0)
    for dtype in (torch.bfloat16, torch.float16, torch.float32):
        params, updates = (torch.randn(4000, generator=random).to(dtype).clamp(-0.3, 0.7) for _ in range(2))
        box = bx.Box(-0.3, 0.7)
        params, updates = box.project(params), 3 * updates
        eager, other = box.step(params, updates), traced(box.step, params, updates)
        assert torch.equal(eager, other)
        assert float(box.violation(params + other)) == 0


@pytest.mark.parametrize("leaves", [3, 40])
def test_masks_along_buffers(leaves, traced):
    """A few pieces are told by their indices, many are laid out."""
    packed, unpack = bx.pack({str(index): torch.full((index % 3 + 1,), float(index)) for index in range(leaves)})
    for keep in ([index % 2 == 0 for index in range(leaves)], [index > 1 for index in range(leaves)], [True] * leaves):
        expected = [keep[int(number)] for number in packed.buffers["float32"]]
        for mask in (unpack.mask(keep, packed), traced(unpack.mask, keep, packed)):
            assert mask.buffers["float32"].tolist() == expected
