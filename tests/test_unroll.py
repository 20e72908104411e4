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


def test_carries_and_outputs_like_the_loop_written_out():
    carry, ys = bx.unroll(lambda c, x: ({"n": c["n"] + 1, "s": c["s"] * x}, c), CARRY, torch.tensor([2.0, 3.0, 4.0]))
    assert carry["n"] == 3
    assert carry["s"] == 24.0
    assert torch.equal(ys["s"], torch.tensor([1.0, 2.0, 6.0]))
    assert torch.equal(ys["n"], torch.tensor([0, 1, 2]))


CARRY = {"n": torch.tensor(0), "s": torch.tensor(1.0)}


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_truncation_stops_derivatives_at_every_kth_step(checkpoint):
    def loss(x, k):
        x, ys = bx.unroll(lambda c, _: (c * c, c), x, length=5, truncate=k, checkpoint=checkpoint)
        return x + ys.sum()

    x = torch.tensor(1.1, dtype=torch.float64)
    expected = x.clone().requires_grad_()
    values = [expected]
    for number in range(5):
        values.append(values[-1] ** 2 if number % 2 or number == 0 else values[-1].detach() ** 2)
    # The carry is detached before steps 2 and 4, and with it the y that such a step returns.
    ys = [value.detach() if number in (2, 4) else value for number, value in enumerate(values[:5])]
    (values[5] + sum(ys)).backward()
    torch.testing.assert_close(grad(loss)(x, 2), expected.grad)
    torch.testing.assert_close(loss(x, 2), loss(x, None))
    assert grad(loss)(x, 2) < grad(loss)(x, None)
    torch.testing.assert_close(grad(loss)(x, 5), grad(loss)(x, None))


GLOBAL = torch.tensor(0.5, requires_grad=True)


class Scaler:
    def __init__(self, factor):
        self.factors = {"x": [factor]}

    def step(self, carry, x):
        return carry * self.factors["x"][0], None


def test_whatever_a_step_closes_over_is_differentiated():
    def scaled(factor, carry, x):
        return carry * factor, None

    def by_default(factor):
        def step(carry, x, factor=factor):
            return carry * factor, None

        return step

    def recursive(factor):
        def power(carry, count):
            return carry if count == 0 else factor * power(carry, count - 1)

        return lambda carry, x: (power(carry, 1), None)

    makers = [lambda f: partial(scaled, f), lambda f: Scaler(f).step, by_default, recursive]
    for make in makers:
        slope = grad(lambda f, make=make: bx.unroll(make(f), torch.tensor(2.0), length=4, checkpoint=2)[0])
        torch.testing.assert_close(slope(torch.tensor(0.5)), torch.tensor(2 * 4 * 0.5**3))
    bx.unroll(lambda carry, x: (carry * GLOBAL, None), torch.tensor(2.0), length=4, checkpoint=2)[0].backward()
    torch.testing.assert_close(GLOBAL.grad, torch.tensor(1.0))


def test_a_model_keeps_its_own_parameters():
    model = torch.nn.Linear(2, 1)
    params = {name: leaf.detach().clone() for name, leaf in model.named_parameters()}

    def loss(params):
        def step(params, x):
            slopes = grad(lambda p: torch.func.functional_call(model, p, x).square().sum())(params)
            return tree_map(lambda p, g: p - 0.1 * g, params, slopes), None

        return bx.unroll(step, params, torch.ones(4, 2), checkpoint=2)[0]["weight"].sum()

    assert not grad(loss)(params)["weight"].requires_grad


def step_on_task(carry, pull, meta, data):
    """The step of `outer`, with what it closes over as arguments."""
    tx = bx.chain(bx.sgd(meta["lr"]), bx.project(bx.Box(meta["lower"], 1.0)))
    x, state = carry

    def inner(x):
        return x @ CURVATURE @ x / 2 - data @ x + (x**3).sum() / 10

    updates, state = tx.update(grad(inner)(x) + pull, state, x)
    x = bx.apply_updates(x, updates)
    return (x, state), {"loss": inner(x)}


def test_compiled_steps():
    compiled = bx.compile(step_on_task)

    def loss(meta, data, step, length=7, **options):
        start = (meta["start"], bx.chain(bx.sgd(0.1), bx.project(bx.Box())).init(meta["start"]))
        constants = {name: meta[name] for name in ("lr", "lower")}
        (x, _), ys = bx.unroll(step, start, meta["pull"][:length], args=(constants, data), **options)
        return (x**2).sum() + ys["loss"].mean()

    several = DATA + torch.arange(4.0, dtype=torch.float64)[:, None] / 10
    for options in ({}, {"checkpoint": True}, {"length": 5}):
        plain, fast = (
            grad(lambda meta, s=s, o=options: vmap(lambda data: loss(meta, data, s, **o))(several).sum())(META)
            for s in (step_on_task, compiled)
        )
        close(plain, fast)
    (steps,) = (single for _, single in compiled.made.values())
    assert count_compiled(steps) == 2  # batched, and that backwards; whatever the length and the checkpoints


def count_compiled(step):
    return (step._shortcut is not None) + sum(map(count_compiled, step._made.values()))


def test_compiled_steps_close_over_nothing_that_is_followed():
    with pytest.raises(ValueError, match="pass it in args"):
        grad(lambda s: bx.unroll(bx.compile(lambda c, _: (c * s, None)), torch.ones(()), length=2)[0])(torch.ones(()))


def test_part_of_a_compiled_function():
    def loss(x, factor):
        carry, ys = bx.unroll(lambda c, x: (c * factor + x, c.sum()), x[0], x, checkpoint=True)
        return carry.sum() + ys.sum()

    compiled = torch.compile(grad(loss, (0, 1)), fullgraph=True)
    arguments = torch.ones(3, 2), torch.tensor(0.5)
    close(compiled(*arguments), grad(loss, (0, 1))(*arguments))


BAD = {
    "length is the number of steps": {"length": None},
    "leading dimensions": {"xs": torch.zeros(3), "length": 4},
    "checkpoint is a positive": {"length": 3, "checkpoint": -1},
    "truncate is a positive": {"length": 3, "truncate": 0},
}


@pytest.mark.parametrize("message", BAD)
def test_bad_loops(message):
    with pytest.raises(ValueError, match=message):
        bx.unroll(lambda c, _: (c, None), torch.zeros(2), **BAD[message])


@pytest.mark.parametrize("checkpoint", [None, 2])
def test_bad_steps(checkpoint):
    def run(step):
        bx.unroll(step, {"x": torch.zeros(2)}, length=4, checkpoint=checkpoint)

    with pytest.raises(ValueError, match="leaf 'x': a step makes shape"):
        run(lambda c, _: ({"x": c["x"][:1]}, None))
    with pytest.raises(ValueError, match="lacks leaf 'x'"):
        run(lambda c, _: ({}, None))
    with pytest.raises(ValueError, match="unexpected leaf 'y'"):
        run(lambda c, _: ({**c, "y": c["x"]}, None))
    with pytest.raises(TypeError, match="expected a tensor"):
        run(lambda c, _: (c, 1.0))


def test_a_step_that_names_what_is_defined_later_or_never():
    """An empty cell is nothing to differentiate; the function that is rebuilt around it runs as before."""

    def make(rate, other=False):
        def step(carry, x):
            return (offset + carry if other else carry * rate), None

        if other:
            offset = torch.ones(())
        return step

    slope = grad(lambda rate: bx.unroll(make(rate), torch.tensor(2.0), length=3, checkpoint=2)[0])(torch.tensor(0.5))
    assert float(slope) == 2 * 3 * 0.25
