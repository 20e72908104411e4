"""Unrolled inner loops: the same numbers and derivatives however they are computed."""

from functools import partial

import pytest
import torch
from torch.func import grad, jvp, vmap
from torch.utils._pytree import tree_map

import boxopt as bx

CURVATURE = torch.tensor([[2.0, 0.5, 0.0], [0.5, 1.0, 0.2], [0.0, 0.2, 1.5]], dtype=torch.float64)
META = {
    "start": torch.tensor([0.3, -0.1, 0.9], dtype=torch.float64),
    "lr": torch.tensor(0.2, dtype=torch.float64),
    "lower": torch.tensor(-0.15, dtype=torch.float64),
    "pull": torch.tensor([[0.3, 0.0, -0.2]], dtype=torch.float64).repeat(7, 1),
}
DATA = torch.tensor([1.0, -2.0, 0.7], dtype=torch.float64)


def outer(meta, data, optimizer=bx.sgd, **options):
    """A loss after seven bounded steps, of which every number of the inner problem is an argument."""
    tx = bx.chain(optimizer(meta["lr"]), bx.project(bx.Box(meta["lower"], 1.0)))

    def inner(x):
        return x @ CURVATURE @ x / 2 - data @ x + (x**3).sum() / 10

    def step(carry, pull):
        x, state = carry
        updates, state = tx.update(tree_map(torch.add, grad(inner)(x), pull), state, x)
        x = bx.apply_updates(x, updates)
        return (x, state), {"loss": inner(x)}

    start = (meta["start"], tx.init(meta["start"]))
    (x, _), ys = bx.unroll(step, start, meta["pull"], **options)
    assert ys["loss"].shape == (7,)
    return (x**2).sum() + ys["loss"].mean()


def close(one, other):
    tree_map(lambda x, y: torch.testing.assert_close(x, y, rtol=1e-10, atol=1e-12), one, other)


@pytest.mark.parametrize("optimizer", [bx.sgd, bx.adam])
@pytest.mark.parametrize("checkpoint", [True, 1, 3, 20])
def test_checkpoints_change_no_number(checkpoint, optimizer):
    def both(transform):
        close(*(transform(partial(outer, optimizer=optimizer, checkpoint=every)) for every in (None, checkpoint)))

    several = DATA + torch.arange(4.0, dtype=torch.float64)[:, None] / 10
    ones = tree_map(torch.ones_like, META)
    both(lambda f: f(META, DATA))
    both(lambda f: grad(f)(META, DATA))
    both(lambda f: vmap(grad(f), (None, 0))(META, several))
    both(lambda f: grad(lambda meta: vmap(f, (None, 0))(meta, several).sum())(META))
    both(lambda f: jvp(lambda meta: f(meta, DATA), (META,), (ones,))[1])


def test_length_zero_keeps_the_carry():
    carry, ys = bx.unroll(lambda x, y: (x + y, {"y": x}), torch.ones(2), torch.ones(0, 2))
    assert torch.equal(carry, torch.ones(2))
    assert ys["y"].shape == (0, 2)
