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


def test_before_a_solver_it_has_its_evaluations():
    seen = []
    start = torch.tensor([0.5, 0.9, 0.1])
    result = bx.minimize(loss, start, bx.chain(bx.record(BOX), bx.lbfgsb(BOX)))
    same = bx.minimize(loss, start, bx.lbfgsb(BOX), callback=lambda progress: seen.append(progress.iterate.value))
    assert torch.equal(result.params, same.params)
    written = bx.history(result.state)["value"]
    assert len(written) == result.steps == same.steps
    assert seen[1] == written[0]


def quartic(x, scale):
    return (scale * (x - TARGET) ** 4).sum()


def test_problems_that_stop_early_have_shorter_records():
    """Each as if it were alone, also where one has dropped every second measurement and another has not."""
    scales, start = torch.tensor([0.5, 3.0]), torch.full((2, 3), 0.5)
    solver = bx.chain(bx.record(BOX, 8), bx.sgd(0.001), bx.project(BOX))
    together = bx.minimize(quartic, start, solver, args=(scales,), batch_dims=1, max_steps=torch.tensor([10, 7]))
    alone = [
        bx.minimize(lambda x, s=scale: quartic(x, s), start[0], solver, max_steps=steps)
        for scale, steps in zip(scales, (10, 7), strict=True)
    ]
    lengths = [int(result.state.inner[0].filled) for result in alone]
    assert lengths == [5, 7]
    written = bx.history(together.state)
    for member, result in enumerate(alone):
        for name, values in bx.history(result.state).items():
            torch.testing.assert_close(written[name][member, : lengths[member]], values)
            rest = written[name][member, lengths[member] :]
            assert (rest == -1).all() if name == "step" else rest.isnan().all()
    last = [bx.scalars(result.state) for result in alone]
    assert bx.scalars(together.state)["value"] == pytest.approx(sum(each["value"] for each in last) / 2)


def test_boxes_by_path_have_sides():
    """A coordinate counts as in its own box; what is in no box is at no bound."""
    allowed = bx.sets.ByPath({"a": BOX, "b": bx.sets.Simplex()})
    x = {"a": torch.tensor([0.0, 0.5, 1.0]), "b": torch.tensor([0.0, 1.0]), "c": torch.zeros(1)}
    tx = bx.record(allowed, 4, sides=True)
    written = bx.history(tx.update(x, tx.init(x), x)[1])
    assert written["sides"].tolist() == [[-1, 0, 1, 0, 0, 0]]
    assert written["active"].item() == pytest.approx(2 / 6)
    packed, _ = bx.pack({"a": x["a"], "c": x["c"]})
    by_path = bx.sets.ByPath({"a": BOX})
    sides = bx.active(by_path, packed).unpack()
    assert {name: side.tolist() for name, side in sides.items()} == {"a": [-1, 0, 1], "c": [0]}
    with pytest.raises(ValueError, match="sides are of a box, or of boxes by path, got Simplex"):
        bx.record(bx.sets.Simplex(), sides=True)


def test_no_scalars_before_the_first_update():
    assert bx.scalars(bx.record(BOX, 4).init(torch.zeros(2))) == {}


def test_progress_shows_the_record_of_a_loop(capsys):
    tx, x = bx.chain(bx.record(BOX), bx.sgd(0.1), bx.project(BOX)), torch.tensor([0.5, 0.9, 0.1])
    state = tx.init(x)
    steps = []
    for step in bx.progress(7, lambda: state, seconds=0.0, desc="fit", ncols=200):  # noqa: B023  (the state as it is then)
        steps.append(step)
        gradients, value = torch.func.grad_and_value(loss)(x)
        updates, state = tx.update(gradients, state, x, value=value)
        x = bx.apply_updates(x, updates)
    shown = capsys.readouterr().err
    assert steps == list(range(7))
    assert "fit: 100%" in shown
    assert f"value={bx.scalars(state)['value']:.3g}" in shown
    assert "violation=0" in shown


def test_progress_goes_through_batches_and_stops_with_the_loop(capsys):
    seen = []
    for batch in bx.progress(["a", "b", "c"], lambda: {"loss": torch.tensor(len(seen))}, seconds=99.0):
        seen.append(batch)
        if batch == "b":
            break
    assert seen == ["a", "b"]
    assert "loss=2" in capsys.readouterr().err  # at the end, however soon it came
    assert list(bx.progress(3, lambda: 1 / 0, disable=True)) == [0, 1, 2]
    assert capsys.readouterr().err == ""


def test_progress_around_segments_of_an_unrolled_loop():
    """The same end and derivative as of one loop."""

    def trained(rate, segments):
        tx = bx.chain(bx.sgd(rate), bx.project(BOX))

        def step(carry, _):
            x, state = carry
            updates, state = tx.update(torch.func.grad(loss)(x), state, x)
            return (bx.apply_updates(x, updates), state), None

        carry = torch.tensor([0.5, 0.9, 0.1]), tx.init(torch.zeros(3))
        for _ in bx.progress(segments, disable=True):
            carry, _ = bx.unroll(step, carry, length=6 // segments)
        return carry[0].sum()

    one, three = (torch.func.grad_and_value(trained)(torch.tensor(0.05), segments) for segments in (1, 3))
    assert one == three


def test_lengths_that_cannot_be_halved():
    with pytest.raises(ValueError, match="even number, 2 at least, got 5"):
        bx.record(BOX, 5)


def test_a_state_without_a_record():
    with pytest.raises(ValueError, match="one record in it, got none"):
        bx.history(bx.sgd(0.1).init(torch.zeros(2)))
