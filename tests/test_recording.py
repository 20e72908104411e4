"""`record` writes what happened, evenly over the whole run, in fixed memory."""

import pytest
import torch

import boxopt as bx

BOX = bx.Box(0.0, 1.0)
TARGET = torch.tensor([2.0, 0.5, -1.0])


def loss(x):
    return ((x - TARGET) ** 2).sum()


def descend(tx, x, steps):
    state = tx.init(x)
    trace = []
    for _ in range(steps):
        gradients, value = torch.func.grad_and_value(loss)(x)
        trace.append((x, gradients, value))
        updates, state = tx.update(gradients, state, x, value=value)
        x = bx.apply_updates(x, updates)
    return trace, state


@pytest.mark.parametrize("steps", [1, 7, 8, 9, 100])
def test_it_is_what_a_loop_would_have_written(steps):
    tx = bx.chain(bx.record(BOX, 8, params=True, measures={"norm": norm}), bx.sgd(0.01), bx.project(BOX))
    trace, state = descend(tx, torch.tensor([0.5, 0.9, 0.1]), steps)
    written = bx.history(state)
    stride = int(state[0].stride)
    assert written["step"].tolist() == list(range(0, steps, stride))
    assert 4 <= len(written["step"]) < 8 or steps < 8
    for place, step in enumerate(written["step"].tolist()):
        x, gradients, value = trace[step]
        torch.testing.assert_close(written["value"][place], value)
        torch.testing.assert_close(written["optimality"][place], bx.optimality(BOX, x, gradients))
        torch.testing.assert_close(written["violation"][place], bx.violation(BOX, x))
        torch.testing.assert_close(written["active"][place], (bx.active(BOX, x) != 0).float().mean())
        torch.testing.assert_close(written["params"][place], x)
        torch.testing.assert_close(written["norm"][place], torch.linalg.vector_norm(gradients))


def norm(gradients, params, value):
    return torch.linalg.vector_norm(gradients)


def test_the_parameters_are_those_without_it():
    plain = bx.chain(bx.scale_by_polyak(), bx.project(BOX))
    recorded = bx.chain(bx.record(BOX, 4), plain)
    one, _ = descend(plain, torch.tensor([0.5, 0.9, 0.1]), 5)
    two, _ = descend(recorded, torch.tensor([0.5, 0.9, 0.1]), 5)
    assert torch.equal(one[-1][0], two[-1][0])


def test_without_a_set_and_without_a_value():
    tx, x = bx.record(length=4), torch.tensor([1.0, -3.0])
    _, state = tx.update(torch.tensor([0.5, -2.0]), tx.init(x), x)
    written = bx.history(state)
    assert set(written) == {"step", "value", "optimality"}
    assert written["optimality"].tolist() == [2.0]
    assert written["value"].isnan().all()


def test_an_ensemble_has_its_records_side_by_side():
    tx = bx.chain(bx.record(BOX, 4), bx.sgd(0.1), bx.project(BOX))
    x = torch.rand(5, 3)
    state = torch.func.vmap(tx.init)(x)

    def step(x, state):
        gradients, value = torch.func.grad_and_value(loss)(x)
        updates, state = tx.update(gradients, state, x, value=value)
        return bx.apply_updates(x, updates), state

    for _ in range(3):
        x, state = torch.func.vmap(step)(x, state)
    written = bx.history(state)
    assert written["value"].shape == (5, 3)
    assert (written["value"].diff(dim=1) < 0).all()
    assert bx.scalars(state)["value"] == pytest.approx(float(written["value"][:, -1].mean()))


def test_lengths_that_cannot_be_halved():
    with pytest.raises(ValueError, match="even number, 2 at least, got 5"):
        bx.record(BOX, 5)


def test_a_state_without_a_record():
    with pytest.raises(ValueError, match="one record in it, got none"):
        bx.history(bx.sgd(0.1).init(torch.zeros(2)))
