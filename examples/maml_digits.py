"""Digits from one example each
============================

MAML with inner weights in a box, on classes that it has never seen.

::

    python examples/maml_digits.py                         (about a minute on two cores)
    python examples/maml_digits.py --shots 5

scikit-learn has ten digits, so the usual five-way tasks with unseen classes are not possible. Here six digits are for
meta-training and the other four for testing, and a task is three-way: three of the classes in a random order, one
image of each to learn from and 15 of each to judge by. Which six makes a large difference, so the whole experiment is
repeated for ten random splits at once, by `vmap`, and the spread over the splits is given.

The inner loop is five steps of `chain(sgd, project(box))` from a learned start, with learned step sizes, one for each
layer's weights and biases. Both are bounded: the start by the same box, the step sizes between 0.001 and 1, by the
projection at the end of the outer chain.

What to expect: a lesson in what MAML needs. It learns to read new images of the six digits that it has seen, from one
example and in five steps, 96 % of them right. On unseen digits the same start is only somewhat better than a random one
after as many steps (69 % to 64 %), and worse than a random one after a hundred (77 %), or scikit-learn's nearest
centroid and logistic regression on the pixels (82 %): six classes seem too few to learn from. The number of iterations
was chosen by looking at unseen digits, which favours meta-learning; it loses all the same.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import NearestCentroid
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

import boxopt as bx

Weights = list[Tensor]
Meta = dict[str, Weights]

SIZES = (64, 40, 40, 3)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
WAYS, QUERIES = 3, 15
SEEN = 6  # classes for meta-training
TASKS = 16  # in a meta-batch
INNER_STEPS = 5
SCRATCH_RATE, SCRATCH_STEPS = 0.1, 100
ROWS = {  # in the order of the table
    "seen": f"MAML on digits seen, {INNER_STEPS} bounded steps",
    "MAML": f"MAML, {INNER_STEPS} bounded steps",
    "short": f"random start, {INNER_STEPS} bounded steps",
    "scratch": f"random start, {SCRATCH_STEPS} bounded steps",
    "centroid": "scikit-learn's NearestCentroid",
    "logistic": "scikit-learn's LogisticRegression",
}


class Tasks(NamedTuple):
    """Images to learn from and images to judge by, with their labels 0 to 2: [split, task, image, ...]."""

    images: Tensor
    labels: Tensor
    new_images: Tensor
    new_labels: Tensor


class Result(NamedTuple):
    """What came of it.

    Attributes:
        accuracies: By the keys of `ROWS`, of each split and task: [split, task].
        curves: Mean accuracy before each inner step and after the last: "MAML" and "scratch".
        violation: By how much any adapted weight is out of the box.
        held: The share of the adapted weights of MAML at a bound.
        picture: Where it is.
    """

    accuracies: dict[str, Tensor]
    curves: dict[str, Tensor]
    violation: float
    held: float
    picture: Path


def load_classes() -> Tensor:
    """The images by class, as many of each: [10, 174, 64], pixels between 0 and 1."""
    images, labels = load_digits(return_X_y=True)
    fewest = np.bincount(labels).min()
    return torch.tensor(np.stack([images[labels == digit][:fewest] for digit in range(10)]) / 16, dtype=torch.float32)


def sample(images: Tensor, classes: Tensor, tasks: int, shots: int, generator: torch.Generator) -> Tasks:
    """Tasks of each split, from its classes: [split, class]."""
    splits, count = classes.shape
    order = torch.rand(splits, tasks, count, generator=generator).argsort(-1)[..., :WAYS]
    chosen = classes[torch.arange(splits)[:, None, None], order]
    places = torch.rand(splits, tasks, WAYS, images.shape[1], generator=generator).topk(shots + QUERIES).indices
    points = images[chosen[..., None], places]
    labels = torch.arange(WAYS)[:, None].expand(splits, tasks, WAYS, shots + QUERIES)
    halves = ((x[..., :shots, :], x[..., shots:, :]) for x in (points, labels[..., None]))
    (old, new), (old_labels, new_labels) = ((half.flatten(2, 3) for half in pair) for pair in halves)
    return Tasks(old, old_labels.squeeze(-1), new, new_labels.squeeze(-1))


def draw_start(splits: int, bound: float, generator: torch.Generator) -> Weights:
    """He's initialization for each split, in the box."""
    weights = []
    for inputs, outputs in pairwise(SIZES):
        weights.append(torch.randn(splits, inputs, outputs, generator=generator) * (2 / inputs) ** 0.5)
        weights.append(torch.zeros(splits, outputs))
    return [leaf.clamp(-bound, bound) for leaf in weights]


def predict(weights: Weights, images: Tensor) -> Tensor:
    w1, b1, w2, b2, w3, b3 = weights
    return torch.relu(torch.relu(images @ w1 + b1) @ w2 + b2) @ w3 + b3


def loss(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(predict(weights, images), labels)


def accuracy(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    return (predict(weights, images).argmax(-1) == labels).float().mean()


def adapt(meta: Meta, task: Tasks, box: bx.Box, steps: int) -> tuple[Weights, Tensor]:
    """The weights after bounded steps on one task, and the accuracy on its other images before each."""
    start = meta["start"]

    def step(weights: Weights, _: None) -> tuple[Weights, Tensor]:
        slopes = grad(loss)(weights, task.images, task.labels)
        updates = [-rate * slope for rate, slope in zip(meta["rates"], slopes, strict=True)]
        updates, _ = wall.update(updates, state, weights)
        return bx.apply_updates(weights, updates), accuracy(weights, task.new_images, task.new_labels)

    wall = bx.project(box)
    state = wall.init(start)
    return bx.unroll(step, start, length=steps)


def meta_loss(meta: Meta, tasks: Tasks, box: bx.Box) -> Tensor:
    """The loss after adaptation over a batch of tasks of one split."""

    def of_task(task: Tasks) -> Tensor:
        weights, _ = adapt(meta, task, box, INNER_STEPS)
        return loss(weights, task.new_images, task.new_labels)

    return vmap(of_task)(tasks).mean()


def train(meta: Meta, images: Tensor, classes: Tensor, box: bx.Box, options: argparse.Namespace) -> Meta:
    """Learned starts and step sizes of all splits."""
    allowed = bx.Box(
        {"start": box.lower, "rates": torch.tensor(1e-3)}, {"start": box.upper, "rates": torch.tensor(1.0)}
    )
    tx = bx.chain(bx.adam(bx.cosine_decay_schedule(2e-3, options.steps)), bx.project(allowed))
    generator = torch.Generator().manual_seed(options.seed + 1)

    def outer_step(meta: Meta, state: tuple, tasks: Tasks) -> tuple[Meta, tuple]:
        updates, state = tx.update(grad(meta_loss)(meta, tasks, box), state, meta)
        return bx.apply_updates(meta, updates), state

    step: Callable = bx.compile(vmap(outer_step), donate_argnums=(0, 1)) if options.compile else vmap(outer_step)
    state = vmap(tx.init)(meta)
    for _ in range(options.steps):
        meta, state = step(meta, state, sample(images, classes, TASKS, options.shots, generator))
    return meta


def evaluate(meta: Meta, tasks: Tasks, box: bx.Box, steps: int) -> tuple[Weights, Tensor]:
    """The adapted weights of every task, and accuracies before each step and after the last: [split, task, step]."""

    def of_task(meta: Meta, task: Tasks) -> tuple[Weights, Tensor]:
        weights, before = adapt(meta, task, box, steps)
        return weights, torch.cat([before, accuracy(weights, task.new_images, task.new_labels)[None]])

    return vmap(vmap(of_task, in_dims=(None, 0)))(meta, tasks)


def theirs(make: Callable, tasks: Tasks) -> Tensor:
    """The accuracies of a classifier of scikit-learn: [split, task]."""
    with np.errstate(invalid="ignore"):  # of one image, NearestCentroid divides by n - 1
        rows = [
            [make().fit(old, labels).score(new, asked) for old, labels, new, asked in zip(*split, strict=True)]
            for split in zip(*(leaf.numpy() for leaf in tasks), strict=True)
        ]
    return torch.tensor(rows)


# What is shown


def print_table(accuracies: dict[str, Tensor], held: float, violation: float, shots: int) -> None:
    splits = len(accuracies["MAML"])
    print(f"{WAYS}-way, {shots}-shot, unseen classes{'':16}accuracy   over {splits} splits   lowest   ahead of MAML in")
    mine = accuracies["MAML"].mean(1)
    for name, found in accuracies.items():
        each = found.mean(1)
        ahead = "" if name in ("seen", "MAML") else f"{int((each > mine).sum())} of {splits}"
        spread = float(each.std()) if splits > 1 else 0.0
        print(f"{ROWS[name]:46}{each.mean():>10.1%}{f'± {spread:.1%}':>16}{each.min():>9.1%}{ahead:>19}")
    print(f"\nweights of MAML at a bound: {held:.1%}; largest violation: {violation:g}")


def save_picture(path: Path, result: Result, tasks: Tasks, answers: Tensor, shots: int) -> None:
    """Left, accuracy over the steps; middle, all splits; right, two tasks of the first split."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    parts: Any = figure.subfigures(1, 2, width_ratios=(1.35, 1))
    plots, shown = parts
    left, middle = plots.subplots(1, 2)
    for name, label, color in (("MAML", "MAML", COLORS[0]), ("scratch", "random start", COLORS[1])):
        left.plot(result.curves[name].numpy(), "o-" if name == "MAML" else "-", markersize=4, color=color, label=label)
    for number, name in enumerate(("centroid", "logistic"), 2):
        left.axhline(
            float(result.accuracies[name].mean()),
            color=COLORS[number],
            linestyle="--" if number == 2 else ":",
            label=ROWS[name],
        )
    left.axhline(1 / WAYS, color="0.6", linewidth=1, label="guessing")
    left.set(
        xscale="symlog",
        xlabel="inner step",
        ylabel="accuracy",
        title=f"Unseen digits: three classes, {shots} image{'s' * (shots > 1)} of each",
    )
    left.set_xticks([0, 1, 2, 5, 10, 100], ["0", "1", "2", "5", "10", "100"])
    left.set_xlim(left=-0.2)
    left.legend(fontsize=9, loc="lower right")
    left.grid(alpha=0.3)
    each = torch.stack([found.mean(1) for found in result.accuracies.values()])
    middle.plot(each.numpy(), "o-", color="0.6", markersize=4, linewidth=0.8)
    middle.plot(each.mean(1).numpy(), "D", color=COLORS[0], markersize=8, label="mean")
    middle.set_xticks(
        range(len(each)),
        ["MAML,\nseen", "MAML", "random\n5 steps", "random\n100 steps", "nearest\ncentroid", "logistic\nreg."],
    )
    middle.tick_params("x", labelsize=8)
    middle.set(title="Each split of the classes is a line")
    middle.legend(fontsize=8)
    middle.grid(alpha=0.3)
    shown.suptitle("Given (left), new, and MAML's answer: green right, orange wrong")
    per_class = 5
    grid = shown.subplots(2 * WAYS, 1 + per_class)
    for number in range(2):
        for way in range(WAYS):
            line = grid[number * WAYS + way]
            places = [way * QUERIES + place for place in range(per_class)]
            pictures = [tasks.images[0, number, way * shots], *tasks.new_images[0, number, places]]
            for axes, picture in zip(line, pictures, strict=True):
                axes.imshow(picture.view(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
                axes.set(xticks=[], yticks=[])
            line[0].set_ylabel(f"class {way}", fontsize=7)
            for axes, place in zip(line[1:], places, strict=True):
                answer = int(answers[0, number, place])
                axes.set_xlabel(
                    f"class {answer}", color=COLORS[2] if answer == way else COLORS[1], fontsize=7, labelpad=1
                )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> Result:
    """Train, test, print, draw; returns the result, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=300, help="meta-iterations")
    parser.add_argument("--shots", type=int, default=1, help="images of each class to learn from")
    parser.add_argument("--splits", type=int, default=10, help="into seen and unseen classes, all at once")
    parser.add_argument("--test-tasks", type=int, default=50, help="of each split")
    parser.add_argument("--bound", type=float, default=0.5, help="the largest allowed size of a weight")
    parser.add_argument("--compile", action="store_true", help="worth its time from some thousand steps on")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)

    images, generator = load_classes(), torch.Generator().manual_seed(options.seed)
    classes = torch.stack([torch.randperm(10, generator=generator) for _ in range(options.splits)])
    box = bx.Box(torch.tensor(-options.bound), torch.tensor(options.bound))

    def beginning(rate: float) -> Meta:
        start = draw_start(options.splits, options.bound, torch.Generator().manual_seed(options.seed))
        return {"start": start, "rates": [torch.full((options.splits,), rate) for _ in start]}

    meta = train(beginning(0.1), images, classes[:, :SEEN], box, options)
    tasks = sample(images, classes[:, SEEN:], options.test_tasks, options.shots, generator)
    adapted, learned = evaluate(meta, tasks, box, INNER_STEPS)
    scratch, scratched = evaluate(beginning(SCRATCH_RATE), tasks, box, SCRATCH_STEPS)
    known = sample(images, classes[:, :SEEN], options.test_tasks, options.shots, generator)
    accuracies = {
        "seen": evaluate(meta, known, box, INNER_STEPS)[1][..., -1],
        "MAML": learned[..., -1],
        "short": scratched[..., INNER_STEPS],
        "scratch": scratched[..., -1],
        "centroid": theirs(NearestCentroid, tasks),
        "logistic": theirs(partial(LogisticRegression, max_iter=500), tasks),
    }
    numbers = torch.cat([leaf.flatten() for leaf in adapted])
    held = float((numbers.abs() == box.upper).float().mean())
    violation = max(float(bx.violation(box, weights)) for weights in (adapted, scratch))
    curves = {"MAML": learned.mean((0, 1)), "scratch": scratched.mean((0, 1))}
    result = Result(accuracies, curves, violation, held, options.output / "maml_digits.png")
    print_table(accuracies, held, violation, options.shots)
    save_picture(
        result.picture, result, tasks, vmap(vmap(predict))(adapted, tasks.new_images).argmax(-1), options.shots
    )
    print(f"picture: {result.picture}")
    return result


if __name__ == "__main__":
    main()
