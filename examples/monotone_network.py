"""A monotone network
==================

A network that cannot say that more is less: monotone in chosen features, because its weights are in a box.

::

    python examples/monotone_network.py
    python examples/monotone_network.py --train 100      (learn from fewer people)

The data are scikit-learn's 442 people with diabetes: ten measurements, and how the disease went on over a year. Few
people, noisy outcomes: a flexible model learns that a higher blood pressure is good for some. We know better, and
require that the prediction does not fall with the body mass index, the blood pressure, the logarithm of triglycerides
and the blood sugar, nor rise with HDL, the good cholesterol.

A network with monotone activations is monotone in a feature if every weight on the way from it is not negative. So the
set is a `bx.Box`: lower bounds of 0 for the columns of the first layer that belong to such a feature (whose sign is
turned if the prediction is not to rise), and for all later weights; none for the other columns and the biases.
`bx.project` keeps the weights there exactly, and products of numbers that are not negative are not negative, in
floating point too: the smallest slope that is measured is no less than 0, not just about 0.

The free and the monotone network differ in these bounds alone, which are tensors: both kinds, with several weight
decays, on every split of the data into people to learn from and people to predict, are trained in one `vmap`. Beside
them: scikit-learn's gradient boosting with and without `monotonic_cst`, isotonic regression on the body mass index,
and the linear model.
"""

from __future__ import annotations

import argparse
import itertools
import math
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.ensemble import HistGradientBoostingRegressor
from sklearn.isotonic import IsotonicRegression
from sklearn.linear_model import LinearRegression
from torch import Tensor
from torch.func import grad, vmap

import boxopt as bx

Weights = dict[str, Tensor]
Model = Callable[[np.ndarray], np.ndarray]

NAMES = [
    "age",
    "sex",
    "body mass index",
    "blood pressure",
    "cholesterol",
    "LDL",
    "HDL",
    "ratio",
    "log triglycerides",
    "sugar",
]
SIGNS = torch.tensor([0.0, 0, 1, 1, 0, 0, -1, 0, 1, 1])  # 1: may not fall; -1: may not rise; 0: free
HIDDEN = (24, 12)
DECAYS = (2.0, 5.0, 10.0)
RANGE = torch.linspace(-2.0, 2.0, 41)  # standard deviations from the mean, in which predictions are compared


class Row(NamedTuple):
    """One line of the table: the mean over the splits, and the least slope anywhere in a monotone feature."""

    name: str
    error: float
    spread: float
    explained: float
    falling: float


# The network


def init_weights(key: Tensor) -> Weights:
    """Glorot's initial weights from uniform numbers."""
    sizes = (len(SIGNS), *HIDDEN, 1)
    weights, used = {}, 0
    for number, (inner, outer) in enumerate(itertools.pairwise(sizes)):
        flat = key[used : used + inner * outer]
        weights[f"{number}.weight"] = flat.view(outer, inner) * math.sqrt(6 / (inner + outer))
        weights[f"{number}.bias"] = torch.zeros(outer)
        used += inner * outer
    return weights


def predict(weights: Weights, features: Tensor) -> Tensor:
    """Outcomes in standard deviations, [people]."""
    signs = torch.where(SIGNS == 0, 1.0, SIGNS)
    hidden = features * signs
    for number in range(len(HIDDEN)):
        hidden = torch.tanh(hidden @ weights[f"{number}.weight"].mT + weights[f"{number}.bias"])
    last = len(HIDDEN)
    return (hidden @ weights[f"{last}.weight"].mT + weights[f"{last}.bias"]).squeeze(-1)


def allowed(monotone: Tensor) -> bx.Box:
    """The weights of a monotone network; where ``monotone`` is 0, all weights."""
    floor = torch.where(monotone > 0, 0.0, -torch.inf)
    lower: dict[str, Any] = {"0.weight": torch.where(SIGNS != 0, floor, -torch.inf), "0.bias": None}
    for number in range(1, len(HIDDEN) + 1):
        lower |= {f"{number}.weight": floor, f"{number}.bias": None}
    return bx.Box(lower=lower)


def train(key: Tensor, monotone: Tensor, features: Tensor, outcome: Tensor, decay: Tensor, steps: int) -> Weights:
    """One network on one split: nothing here knows that there are others."""
    box = allowed(monotone)
    weights = box.project(init_weights(key))
    tx = bx.chain(bx.adamw(bx.cosine_decay_schedule(1e-2, steps), weight_decay=decay, mask="*.weight"), bx.project(box))
    state = tx.init(weights)
    slope = grad(lambda weights: ((predict(weights, features) - outcome) ** 2).mean())
    for _ in range(steps):
        updates, state = tx.update(slope(weights), state, weights)
        weights = bx.apply_updates(weights, updates)
    return weights


# What is measured


def make_curves(model: Model, people: np.ndarray) -> np.ndarray:
    """Predictions for each person with one monotone feature moved through RANGE: [feature, person, place]."""
    curves = []
    for feature in np.flatnonzero(SIGNS.numpy()):
        moved = np.repeat(people[:, None, :], len(RANGE), axis=1)
        moved[:, :, feature] = RANGE.numpy()
        curves.append(model(moved.reshape(-1, people.shape[1])).reshape(len(people), len(RANGE)))
    return np.stack(curves)


def wrong_way(curves: np.ndarray) -> float:
    """The share of steps along the curves that go the wrong way, by more than predictions are rounded."""
    signs = SIGNS.numpy()[SIGNS.numpy() != 0]
    return float((np.diff(curves, axis=-1) * signs[:, None, None] < -1e-6).mean())


def least_slope(weights: Weights, seed: int = 0) -> float:
    """The least derivative in a monotone feature, in its direction, over a cloud wider than the data."""
    cloud = 3 * torch.randn(2000, len(SIGNS), generator=torch.Generator().manual_seed(seed))
    slopes = vmap(grad(lambda person: predict(weights, person[None])[0]))(cloud) * SIGNS
    return float(slopes[:, SIGNS != 0].amin())


def network_model(weights: Weights) -> Model:
    return lambda people: predict(weights, torch.tensor(people, dtype=torch.float32)).numpy()


def fit_peers(features: np.ndarray, outcome: np.ndarray) -> dict[str, Model]:
    boosting = {"max_iter": 60, "learning_rate": 0.05, "min_samples_leaf": 10, "random_state": 0}
    free = HistGradientBoostingRegressor(**boosting).fit(features, outcome)
    signs = SIGNS.numpy().astype(int)
    monotone = HistGradientBoostingRegressor(**boosting, monotonic_cst=signs).fit(features, outcome)
    isotonic = IsotonicRegression(out_of_bounds="clip").fit(features[:, 2], outcome)
    linear = LinearRegression().fit(features, outcome)
    return {
        "free boosting": free.predict,
        "monotone boosting": monotone.predict,
        "isotonic, one feature": lambda people: isotonic.predict(people[:, 2]),
        "linear": linear.predict,
    }


# What is shown


def print_table(rows: Sequence[Row], people: int, splits: int) -> None:
    print(f"learned from {people} people, mean over {splits} splits (standard error)\n")
    print(f"{'':28}{'error':>16}{'explained':>12}{'wrong way':>12}")
    for row in rows:
        error = f"{row.error:.3f} ({row.spread:.3f})"
        print(f"{row.name:28}{error:>16}{row.explained:>12.1%}{row.falling:>12.2%}")
    print("\nerror: root mean square on the people left out, in standard deviations of the outcome")
    print(
        "wrong way: share of steps in a monotone feature, all else equal, for which the prediction goes the wrong way"
    )


def save_picture(path: Path, curves: dict[str, np.ndarray]) -> None:
    """Partial dependence: a column a feature, a row a model, a line a person; the mean in black."""
    figure = Figure(figsize=(14, 9), layout="constrained")
    features = [NAMES[index] for index in np.flatnonzero(SIGNS.numpy())]
    grid = figure.subplots(len(curves), len(features), sharex=True, sharey=True)
    for number, (line, (name, values)) in enumerate(zip(grid, curves.items(), strict=True)):
        color, share = ("#d55e00", "#0072b2")["monotone" in name], wrong_way(values)
        for axes, feature, each in zip(line, features, values, strict=True):
            axes.plot(RANGE.numpy(), each[:40].T, color=color, alpha=0.3, linewidth=0.8)
            axes.plot(RANGE.numpy(), each.mean(0), color="black", linewidth=2)
            axes.grid(alpha=0.3)
            if number == 0:
                axes.set_title(f"{feature} {'↓' if feature == 'HDL' else '↑'}", fontsize=13)
        line[0].set_ylabel(f"{name.split(',')[0]}\n{100 * share:.0f} % of steps wrong", fontsize=12)
    figure.supxlabel("standard deviations from the mean; each line is a person, all else equal, and black their mean")
    figure.supylabel("predicted progression, in standard deviations")
    figure.suptitle("With weights in a box, no prediction goes the wrong way", fontsize=15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> tuple[list[Row], float, float]:
    """Train, compare, print, draw; returns the rows and the two networks' least slopes, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--splits", type=int, default=10)
    parser.add_argument("--train", type=int, default=250, help="how many people to learn from")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)

    raw, target = load_diabetes(return_X_y=True)
    features = ((raw - raw.mean(0)) / raw.std(0)).astype(np.float32)
    outcome = ((target - target.mean()) / target.std()).astype(np.float32)
    generator = torch.Generator().manual_seed(options.seed)
    orders = torch.stack([torch.randperm(len(outcome), generator=generator) for _ in range(options.splits)])
    learn, rest = orders[:, : options.train], orders[:, options.train :]

    numbers = sum(inner * outer for inner, outer in zip((len(SIGNS), *HIDDEN), (*HIDDEN, 1), strict=True))
    keys = 2 * torch.rand(options.splits, numbers, generator=generator) - 1
    run = partial(train, steps=options.steps)
    on_splits = vmap(run, in_dims=(0, None, 0, 0, None))
    on_decays = vmap(on_splits, in_dims=(None, None, None, None, 0))
    on_kinds = vmap(on_decays, in_dims=(None, 0, None, None, None))
    x, y = torch.tensor(features), torch.tensor(outcome)
    networks = on_kinds(keys, torch.tensor([0.0, 1.0]), x[learn], y[learn], torch.tensor(DECAYS))

    errors: dict[str, list[float]] = {}
    wrong: dict[str, list[float]] = {}
    shown: dict[str, np.ndarray] = {}
    for split in range(options.splits):
        models = {
            f"{kind}, decay {decay:g}": network_model({key: leaf[i, k, split] for key, leaf in networks.items()})
            for i, kind in enumerate(("free network", "monotone network"))
            for k, decay in enumerate(DECAYS)
        }
        models |= fit_peers(features[learn[split]], outcome[learn[split]])
        people, truth = features[rest[split]], outcome[rest[split]]
        for name, model in models.items():
            errors.setdefault(name, []).append(float(((model(people) - truth) ** 2).mean() ** 0.5))
            curves = make_curves(model, people[:60])
            wrong.setdefault(name, []).append(wrong_way(curves))
            if split == 0 and name.endswith((f"decay {DECAYS[0]:g}", "boosting")):
                shown[name] = curves
    rows = [
        Row(
            name,
            float(np.mean(values)),
            float(np.std(values) / options.splits**0.5),
            float(1 - np.mean(np.square(values))),
            float(np.mean(wrong[name])),
        )
        for name, values in errors.items()
    ]
    print_table(rows, options.train, options.splits)
    slopes = [
        min(
            least_slope({key: leaf[kind, decay, split] for key, leaf in networks.items()})
            for decay in range(len(DECAYS))
            for split in range(options.splits)
        )
        for kind in range(2)
    ]
    violation = float(bx.violation(allowed(torch.tensor(1.0)), {key: leaf[1] for key, leaf in networks.items()}))
    print(f"least slope in a monotone feature, over 2,000 points: free {slopes[0]:.3g}, monotone {slopes[1]:.3g}")
    print(f"largest violation of a bound: {violation:g}")
    path = options.output / "monotone_network.png"
    save_picture(path, shown)
    print(f"picture: {path}")
    return rows, slopes[0], slopes[1]


if __name__ == "__main__":
    main()
