"""The examples, on less than their usual work, and what they claim."""

import importlib.util
from pathlib import Path

import pytest
import torch
from torch.func import vmap

import boxopt as bx

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def three_ways(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pictures")
    runs = load("three_ways").main(["--steps", "1300", "--output", str(folder)])
    assert (folder / "three_ways.png").stat().st_size > 20_000
    return {(run.group, run.name): run for run in runs}


def test_right_ways_reach_their_references(three_ways):
    limits = {"projection": 1e-6, "projection, L1": 1e-6, "projection, L2": 1e-9}
    for (group, name), run in three_ways.items():
        if group in limits:
            assert run.distances[-1] < limits[group], name
    assert three_ways["barrier", "mu from 1e-2 to 0"].distances[-1] < 1e-4
    assert three_ways["penalty", "exact, weight 1"].distances[-1] < 1e-9


def test_feasible_ways_are_exactly_feasible_and_the_wrong_ones_are_not(three_ways):
    for (group, name), run in three_ways.items():
        violation = float(bx.violation(run.box, run.params))
        if group.startswith(("projection", "barrier")):
            assert violation == 0, name
        if group == "wrong":
            assert violation > 1e-2, name
            assert run.distances[-1] > 1e-2, name


def test_bounded_ensemble(tmp_path, capsys):
    module = load("bounded_ensemble")
    result = module.main(["--members", "8", "--steps", "150", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    assert "largest violation over all 8 members: 0\n" in printed
    assert (result.report.violation == 0).all()
    assert (result.report.largest < result.settings.bound).all()
    assert result.report.accuracy.max() > 0.8
    assert result.picture.stat().st_size > 20_000


def test_a_member_of_the_ensemble_is_what_it_would_be_alone():
    module = load("bounded_ensemble")
    device = torch.device("cpu")
    data, settings = module.load_data(device), module.make_settings(4, device)
    networks = [module.make_network() for _ in range(4)]
    weights = {name: leaf.detach() for name, leaf in torch.func.stack_module_state(networks)[0].items()}
    batches = module.make_batches(len(data.train_labels), 10, 0, device)

    def step(*arguments):
        return module.step_member(*arguments, network=networks[0])

    together = module.train(
        vmap(step, in_dims=(0, 0, 0, None, None)), *vmap(module.init_member)(weights, settings), settings, data, batches
    )[0]
    for k in range(4):
        own = module.Settings(*(x[k] for x in settings))
        start = module.init_member({name: leaf[k] for name, leaf in weights.items()}, own)
        alone = module.train(step, *start, own, data, batches)[0]
        for name, leaf in alone.items():
            torch.testing.assert_close(together[name][k], leaf, rtol=1e-4, atol=1e-5)


def test_adversarial_digits(tmp_path):
    module = load("adversarial_digits")
    rows = module.main(["--steps", "10", "--train-steps", "60", "--images", "60", "--output", str(tmp_path)])
    assert (tmp_path / "adversarial_digits.png").stat().st_size > 20_000
    for network in ("plain", "robust"):
        for norm in ("Linf", "L2", "L1"):
            found = [row for row in rows if (row.network, row.norm) == (network, norm)]
            assert all(row.violation == 0 for row in found)
            assert found[0].accuracy > 0.5 > found[-1].accuracy
            assert all(row.theirs is None or row.accuracy <= row.theirs + 0.1 for row in found)


def test_monotone_network(tmp_path):
    module = load("monotone_network")
    rows, free, monotone = module.main(["--steps", "150", "--splits", "2", "--output", str(tmp_path)])
    assert (tmp_path / "monotone_network.png").stat().st_size > 20_000
    assert free < 0 <= monotone
    by_name = {row.name: row for row in rows}
    assert by_name["free network, decay 2"].falling > 0.05
    for name, row in by_name.items():
        if name.startswith("monotone"):
            assert row.falling == 0, name
            assert row.explained > 0.25, name


def test_gp_hyperparameters():
    pytest.importorskip("botorch", reason="the extra interop is not installed")
    rows = load("gp_hyperparameters").main(["--restarts", "4", "--points", "25"])
    assert len(rows) == 4
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert ours.likelihood >= theirs.likelihood - 1e-5, ours.model
