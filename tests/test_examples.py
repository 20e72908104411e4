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


def test_population(tmp_path, capsys):
    module = load("population")
    result = module.main(["--members", "8", "--steps", "150", "--output", str(tmp_path)])
    assert "violation" in capsys.readouterr().out
    assert result.picture.stat().st_size > 20_000
    kept, replaced = result.histories["not replacing"], result.histories["replacing"]
    assert kept.violation == replaced.violation == 0
    assert replaced.losses[-1].median() < kept.losses[-1].median()
    assert result.accuracies["replacing"][0] > 0.7
    identity = torch.arange(8)
    assert (kept.parents == identity).all()
    assert ((replaced.parents != identity).sum(dim=1) == torch.tensor([0, *[2] * 5, 0])).all()
    line = module.lineage(replaced)
    assert line[-1] == replaced.losses[-1].argmin()
    for row, place in enumerate(line[1:], 1):  # each is its ancestor's copy, or the ancestor itself
        assert replaced.parents[row - 1][place] == line[row - 1]


def test_six_ways(tmp_path):
    runs = {run.name.split("(")[0]: run for run in load("six_ways").main(["--output", str(tmp_path)])}
    assert (tmp_path / "six_ways.png").stat().st_size > 20_000
    for name in ("project", "barrier"):
        assert runs[name].written["violation"].max() == 0
    assert (runs["project"].end - torch.tensor([0.4, 1.0])).abs().max() < 1e-5
    # 1/weight of the gradient at the wall, in gradient space and in step space alike
    for name in ("add_penalty", "penalize"):
        assert float(runs[name].end[1] - 1) == pytest.approx(0.6 / 11, rel=1e-3)
    slack = 1 - runs["barrier"].end[1]
    assert float(0.02 / slack - 0.02 / (1 - slack)) == pytest.approx(float(0.6 + slack), rel=1e-2)


def test_decay_maps(tmp_path):
    maps = load("decay_maps").main(["--side", "40", "--eager", "--sample", "20", "--output", str(tmp_path)])
    assert (tmp_path / "decay_maps.png").stat().st_size > 20_000
    fit, lifetime = maps.fit, maps.fit.params["lifetime"]
    assert ((lifetime >= 1) & (lifetime <= 8)).all()
    assert (fit.status == bx.Status.GRADIENT).double().mean() > 0.99
    assert 0.2 < (fit.active["lifetime"] > 0).double().mean() < 0.4
    assert 0.1 < (fit.active["background"] < 0).double().mean() < 0.4
    assert load("decay_maps").compare_with_scipy(maps, 20) < 1e-5


def test_gp_hyperparameters(tmp_path):
    pytest.importorskip("botorch", reason="the extra interop is not installed")
    rows = load("gp_hyperparameters").main(["--restarts", "4", "--points", "25", "--output", str(tmp_path)])
    assert (tmp_path / "gp_hyperparameters.png").stat().st_size > 20_000
    assert len(rows) == 4
    for theirs, ours in zip(rows[::2], rows[1::2], strict=True):
        assert ours.likelihood >= theirs.likelihood - 1e-5, ours.model


def test_maml_sinusoid(tmp_path):
    module = load("maml_sinusoid")
    results = module.main(["--steps", "120", "--eager", "--test-tasks", "50", "--output", str(tmp_path)])
    assert (tmp_path / "maml_sinusoid.png").stat().st_size > 20_000
    for result in results.values():
        assert result.violation == 0
        assert result.errors.shape == (50, 11)
        assert result.errors.isfinite().all()
    mean = results["MAML"].errors.mean(0)
    assert mean[1] < mean[0]
    assert mean[1] < results["pre-trained"].errors.mean(0)[1]


def test_maml_digits(tmp_path):
    module = load("maml_digits")
    options = ["--steps", "40", "--splits", "2", "--test-tasks", "8", "--output", str(tmp_path)]
    result = module.main(options)
    assert result.picture.stat().st_size > 20_000
    assert result.violation == 0
    assert set(result.accuracies) == set(module.ROWS)
    means = {name: float(found.mean()) for name, found in result.accuracies.items()}
    assert means["seen"] > means["short"]
    assert means["logistic"] > 0.6


def test_tasks_of_digits_do_not_share_images():
    module = load("maml_digits")
    images, generator = module.load_classes(), torch.Generator().manual_seed(0)
    classes = torch.tensor([[0, 1, 2, 3], [4, 5, 6, 7]])
    tasks = module.sample(images, classes, 5, 2, generator)
    assert tasks.images.shape == (2, 5, 6, 64)
    assert tasks.new_images.shape == (2, 5, 45, 64)
    distances = torch.cdist(tasks.images, tasks.new_images)
    assert (distances > 0).all()
    for split in range(2):  # an image has the label of its place among the chosen classes
        own = images[classes[split]]
        for task in range(5):
            places = [int((own == image).all(-1).any(-1).nonzero()) for image in tasks.images[split, task]]
            assert places[0::2] == places[1::2]
            assert len(set(places)) == 3
            assert tasks.labels[split, task].tolist() == [0, 0, 1, 1, 2, 2]


def test_tune_ridge(tmp_path):
    from sklearn.linear_model import ElasticNet

    module = load("tune_ridge")
    rows = {row.name: row for row in module.main(["--steps", "3", "--points", "2", "--output", str(tmp_path)])}
    assert (tmp_path / "tune_ridge.png").stat().st_size > 20_000
    for name, row in rows.items():
        if "boxopt" in name:
            assert row.errors[-1] < row.errors[0], name
            assert row.optimality < 1e-5
    assert rows["ridge, boxopt"].error == pytest.approx(rows["ridge, grid of 25"].error, abs=0.03)
    # the fit is that of scikit-learn
    whole = module.prepared([module.load()])
    l1, l2 = torch.tensor(0.05), torch.tensor(0.02)
    start = torch.zeros(1, 2, whole.x.shape[-1], dtype=torch.float64)
    signs = module.fit(start, *module.statistics(whole), (l1, l2))[0]
    net = ElasticNet(float(l1 + l2), l1_ratio=float(l1 / (l1 + l2)), tol=1e-8, fit_intercept=False)
    theirs = net.fit(whole.x[0], whole.y[0]).coef_
    torch.testing.assert_close(signs[0] - signs[1], torch.tensor(theirs), rtol=0, atol=1e-4)


def test_learn_bound(tmp_path):
    module = load("learn_bound")
    result = module.main(["--steps", "8", "--train-steps", "150", "--networks", "2", "--output", str(tmp_path)])
    assert result.picture.stat().st_size > 20_000
    assert result.violation == 0
    assert result.unquantized.min() > 0.85
    two_bits = {name: float(found[0].mean()) for name, found in result.accuracies.items()}
    assert two_bits["learned"] > two_bits["largest weight"]
    assert two_bits["learned through fine-tuning"] > two_bits["largest weight"] + 0.1
    assert (result.ranges["largest weight"] == 1).all()
    assert result.ranges["learned through fine-tuning"].max() < 1


def test_the_derivative_of_a_quantized_weight_with_respect_to_its_range():
    module = load("learn_bound")
    weights = {"matrices": [torch.tensor([-2.0, -0.9, 0.1, 0.4, 3.0])[:, None]], "biases": []}

    def values(ranges):
        return module.quantize(weights, ranges, torch.tensor(3.0))["matrices"][0].flatten()

    reach = torch.tensor([1.2])
    slopes = torch.func.jacrev(values)(reach).flatten()
    torch.testing.assert_close(values(reach), torch.tensor([-1.2, -0.8, 0.0, 0.4, 1.2]))
    places = torch.tensor([-2.25, 0.25, 1.0])  # of the three within reach, which are rounded to -2, 0 and 1
    inside = (torch.tensor([-2.0, 0.0, 1.0]) - places) / 3
    torch.testing.assert_close(slopes, torch.cat([torch.tensor([-1.0]), inside, torch.tensor([1.0])]))


def test_nmf_digits(tmp_path):
    from scipy.optimize import lsq_linear

    module = load("nmf_digits")
    fits, peers = module.main(["--images", "300", "--steps", "300", "--starts", "2", "--output", str(tmp_path)])
    assert (tmp_path / "nmf_digits.png").stat().st_size > 20_000
    assert fits["free"].error == pytest.approx(peers["free: singular values"], rel=1e-3)
    assert fits["nonnegative"].error < peers["nonnegative: scikit-learn, mu"]
    assert fits["nonnegative"].error < 1.03 * peers["nonnegative: scikit-learn, cd"]
    for kind, fit in fits.items():
        assert bx.violation(bx.Box(*module.KINDS[kind]), fit.factors) == 0
    # given the parts, the codes in [0, 1] are SciPy's bounded least squares
    codes, parts = (x.double() for x in fits["in [0, 1]"].factors.values())
    pixels = module.load_digits().data[:40] / 16
    best = sum(lsq_linear(parts.T.numpy(), image, (0, 1)).cost for image in pixels)
    assert float(((codes[:40] @ parts - torch.tensor(pixels)) ** 2).sum() / 2) == pytest.approx(best, rel=5e-3)


def test_portfolio_frontier(tmp_path):
    module = load("portfolio_frontier")
    outcome = module.main(["--points", "13", "--draws", "5", "--output", str(tmp_path)])
    assert (tmp_path / "portfolio_frontier.png").stat().st_size > 20_000
    for rule, frontier in outcome.found.items():
        cap, _ = module.RULES[rule]
        torch.testing.assert_close(frontier.values[outcome.part], outcome.peers[rule].values, rtol=0, atol=1e-7)
        torch.testing.assert_close(frontier.weights[outcome.part], outcome.peers[rule].weights, rtol=0, atol=1e-4)
        assert -1e-15 <= frontier.weights.min() <= frontier.weights.max() <= cap + 1e-15
        torch.testing.assert_close(frontier.weights.sum(-1), torch.ones(13, dtype=torch.float64), rtol=0, atol=1e-14)
    assert outcome.wrong.max() > 0.255
    assert (outcome.wrong - outcome.peers["at most 25 % each"].weights).abs().max() > 0.05
    risk, gain = outcome.draws
    assert risk.shape == gain.shape == (5, 13)
    assert (risk.diff() <= 1e-9).all()  # who minds risk more takes less of it, and earns less
    assert (gain.diff() <= 1e-9).all()


def test_epidemic(tmp_path):
    module = load("epidemic")
    outcome = module.main(["--max-steps", "30", "--output", str(tmp_path)])
    assert (tmp_path / "epidemic.png").stat().st_size > 20_000
    count = len(module.KNOWN)
    bounded = {name: leaf[count:] for name, leaf in outcome.fit.params.items()}
    for name, (low, high) in module.RANGES.items():
        assert low <= bounded[name].min() <= bounded[name].max() <= high
    torch.testing.assert_close(outcome.fit.value[count:], outcome.theirs, rtol=2e-3, atol=1e-3)
    exact = [
        torch.tensor(module.solve_exactly(*fit)) for fit in zip(*(x.tolist() for x in bounded.values()), strict=True)
    ]
    torch.testing.assert_close(outcome.forecasts[count:], torch.stack(exact), rtol=0, atol=0.1)
    free = outcome.fit.params["recovery"][:count]
    assert free[1] < -0.3  # five days
    assert outcome.forecasts[1, 6] > module.BOYS
    torch.testing.assert_close(free[2:], bounded["recovery"][2:], rtol=1e-5, atol=0)
    assert (outcome.fit.active["recovery"][count:] == torch.tensor([-1, -1, *[0] * (count - 2)])).all()


def test_wasserstein_critic(tmp_path):
    import ot

    module = load("wasserstein_critic")
    found, exact = module.main(["--images", "60", "--steps", "50", "--output", str(tmp_path)])
    assert (tmp_path / "wasserstein_critic.png").stat().st_size > 20_000
    first, second = (x.double().numpy() for x in module.load(60))
    theirs = [ot.emd2([], [], ot.dist(a, b, metric="euclidean")) for a, b in zip(first, second, strict=True)]
    torch.testing.assert_close(exact.double(), torch.tensor(theirs, dtype=torch.float64), rtol=1e-5, atol=0)
    shares = {name: critics.values[:, -1] / exact for name, critics in found.items()}
    assert shares["weights in ±0.01"].max() < 0.01
    assert shares["weights in ±0.3"].min() > 10
    for kind in ("ReLU", "sorting"):
        critics = found[f"spectral ball, {kind}"]
        assert (critics.values <= exact[:, None]).all()  # at every step
        assert shares[f"spectral ball, {kind}"].min() > 0.6
        assert bx.violation(module.SPECTRAL, critics.weights) == 0
        assert module.slopes(critics, torch.tensor(first, dtype=torch.float32)).norm(dim=-1).max() <= 1 + 1e-5
    assert (shares["spectral ball, sorting"] > shares["spectral ball, ReLU"]).all()
    for clamp in module.CLAMPS:
        critics = found[f"weights in ±{clamp:g}"]
        assert (
            shares["spectral ball, ReLU"] > critics.values[:, -1] / exact / module.slope_bound(critics.weights)
        ).all()
