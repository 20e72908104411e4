"""Adversarial digits
==================

How little must a digit change to be misread? Adversarial examples in L∞, L2 and L1 balls, all images at once.

::

    python examples/adversarial_digits.py
    python examples/adversarial_digits.py --steps 100      (a stronger attack)

A perturbation δ of an image x may be anything in a ball of a given budget, as long as x + δ stays an image: its pixels
between 0 and 1. For L∞ both together are one box, with bounds of its own for each pixel. For L2 and L1 they are an
`Intersection` of the ball and the box -x ≤ δ ≤ 1 - x. Since that box has 0 in it, to project onto it shrinks
every pixel's change, and what comes out of the projection is in the ball too.

The attack is one chain for every ball: gradients scaled to the same length for each image, however sure of it the
network is; momentum; and the projection. A vector of the set is a row, so that all 450 held-out images of
scikit-learn's digits go through at once; `vmap` adds the budgets.

Two networks are attacked, one trained on the images alone, one on images that were attacked while it learned (projected
gradient in an L∞ ball of 0.1). The table has the share of images that they still read, and the same for
`torchattacks`' PGD and PGDL2 at equal budgets and steps, if it is installed (it comes with the `attacks` extra).
"""

from __future__ import annotations

import argparse
import importlib.util
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap

import boxopt as bx

Weights = dict[str, Tensor]
Rule = Callable[[Tensor, Tensor], bx.sets.ConstraintSet]

BATCH_SIZE = 128
TRAINING_BUDGET, TRAINING_ATTACK_STEPS = 0.1, 5
SHOWN = 10  # images in the picture

network = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 10))


class Data(NamedTuple):
    """The digits: pixels between 0 and 1, and what they show."""

    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Row(NamedTuple):
    """One line of the table."""

    network: str
    norm: str
    budget: float
    accuracy: float
    theirs: float | None
    violation: float


def load_data() -> Data:
    """Three quarters to train on, a quarter held out, with the same share of each digit."""
    images, labels = load_digits(return_X_y=True)
    train_images, test_images, train_labels, test_labels = train_test_split(
        images / 16, labels, test_size=0.25, stratify=labels, random_state=0
    )
    pixels = partial(torch.tensor, dtype=torch.float32)
    return Data(pixels(train_images), torch.tensor(train_labels), pixels(test_images), torch.tensor(test_labels))


# What is allowed: from budget and images to the set of their perturbations


def keeps_pixels(images: Tensor) -> bx.Box:
    return bx.Box(-images, 1 - images)


def linf(budget: Tensor, images: Tensor) -> bx.sets.ConstraintSet:
    return bx.Box(torch.maximum(-images, -budget), torch.minimum(1 - images, budget))


def l2(budget: Tensor, images: Tensor) -> bx.sets.ConstraintSet:
    return bx.sets.Intersection(bx.sets.L2Ball(budget), keeps_pixels(images), sweeps=5)


def l1(budget: Tensor, images: Tensor) -> bx.sets.ConstraintSet:
    return bx.sets.Intersection(bx.sets.L1Ball(budget), keeps_pixels(images), sweeps=5)


class Ball(NamedTuple):
    """A norm, the budgets that are tried, and how many budgets long the steps of an attack are altogether."""

    rule: Rule
    budgets: tuple[float, ...]
    norm: Callable[[Tensor], Tensor]
    pace: float


BALLS = {
    "Linf": Ball(linf, (0.02, 0.05, 0.1, 0.15, 0.2), lambda x: x.abs().amax(-1), 48.0),
    "L2": Ball(l2, (0.1, 0.25, 0.5, 0.75, 1.0), lambda x: x.norm(dim=-1), 3.0),
    "L1": Ball(l1, (0.5, 1.0, 1.5, 2.0, 3.0), lambda x: x.abs().sum(-1), 4.0),
}

# The attack


def confidence(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    """Minus the cross-entropy, summed: each image has a gradient of its own."""
    return -nn.functional.cross_entropy(functional_call(network, weights, (images,)), labels, reduction="sum")


def unit_rows(gradients: Tensor, change: Tensor) -> Tensor:
    return nn.functional.normalize(gradients, dim=-1)


def attack(budget: Tensor, weights: Weights, images: Tensor, labels: Tensor, ball: Ball, steps: int) -> Tensor:
    """The perturbation of each image that makes the network least confident."""
    rate = ball.pace * budget / steps
    tx = bx.chain(bx.stateless(unit_rows), bx.sgd(rate, momentum=0.75), bx.project(ball.rule(budget, images)))
    change = torch.zeros_like(images)
    state = tx.init(change)
    for _ in range(steps):
        gradients = grad(lambda change: confidence(weights, images + change, labels))(change)
        updates, state = tx.update(gradients, state, change)
        change = bx.apply_updates(change, updates)
    return change


def attack_budgets(ball: Ball, weights: Weights, images: Tensor, labels: Tensor, steps: int) -> Tensor:
    """Every image within every budget at once: [budget, image, pixel]."""
    return vmap(partial(attack, ball=ball, steps=steps), in_dims=(0, None, None, None))(
        torch.tensor(ball.budgets), weights, images, labels
    )


# The networks


def train(data: Data, steps: int, robust: bool, seed: int) -> Weights:
    """Weights by Adam; with ``robust``, each mini-batch is attacked before the network sees it."""
    torch.manual_seed(seed)
    for layer in network:
        if isinstance(layer, nn.Linear):
            layer.reset_parameters()
    weights: Weights = {name: leaf.detach().clone() for name, leaf in network.named_parameters()}
    tx = bx.adam(bx.cosine_decay_schedule(1e-2, steps))
    state, budget = tx.init(weights), torch.tensor(TRAINING_BUDGET)
    for _ in range(steps):
        batch = torch.randint(len(data.train_labels), (BATCH_SIZE,))
        images, labels = data.train_images[batch], data.train_labels[batch]
        if robust:
            images = images + attack(budget, weights, images, labels, BALLS["Linf"], TRAINING_ATTACK_STEPS)
        gradients = grad(confidence)(weights, images, labels)
        gradients = {name: -leaf / BATCH_SIZE for name, leaf in gradients.items()}
        updates, state = tx.update(gradients, state, weights)
        weights = bx.apply_updates(weights, updates)
    return weights


def reads(weights: Weights, images: Tensor) -> Tensor:
    """What the network takes images for."""
    return functional_call(network, weights, (images,)).argmax(-1)


# The same by torchattacks


class Reader(nn.Module):
    """The network as torchattacks wants it: a module of images with channel, height and width."""

    def __init__(self, weights: Weights) -> None:
        super().__init__()
        self.weights = nn.ParameterDict({name.replace(".", "_"): leaf for name, leaf in weights.items()})

    def forward(self, images: Tensor) -> Tensor:
        weights = {name: self.weights[name.replace(".", "_")] for name, _ in network.named_parameters()}
        return functional_call(network, weights, (images.flatten(1),))


def their_accuracy(norm: str, budget: float, weights: Weights, data: Data, steps: int) -> float | None:
    """The share of images read after the attack of torchattacks; None where it has none."""
    if norm == "L1" or importlib.util.find_spec("torchattacks") is None:
        return None
    import torchattacks

    kind = torchattacks.PGD if norm == "Linf" else torchattacks.PGDL2
    method = kind(Reader(weights).eval(), eps=budget, alpha=2.5 / steps * budget, steps=steps, random_start=False)
    attacked = method(data.test_images.unflatten(1, (1, 8, 8)), data.test_labels).flatten(1)
    return float((reads(weights, attacked) == data.test_labels).float().mean())


# What is shown


def print_table(rows: Sequence[Row], clean: dict[str, float], seconds: float, theirs: float | None) -> None:
    print(f"{'network':12}{'ball':6}{'budget':>8}{'boxopt':>10}{'torchattacks':>15}{'violation':>12}")
    for row in rows:
        other = "-" if row.theirs is None else f"{row.theirs:.1%}"
        print(f"{row.network:12}{row.norm:6}{row.budget:>8g}{row.accuracy:>10.1%}{other:>15}{row.violation:>12g}")
    print(
        "\nshare of the held-out digits that are read right; without an attack: "
        + ", ".join(f"{name} {share:.1%}" for name, share in clean.items())
    )
    print(f"boxopt's attacks took {seconds:.1f} s, five budgets at once", end="")
    print(
        "; torchattacks is not installed"
        if theirs is None
        else f"; those of torchattacks, which has no L1, {theirs:.1f} s"
    )


def save_picture(
    path: Path, rows: Sequence[Row], clean: dict[str, float], shown: dict[str, tuple[Tensor, Tensor]]
) -> None:
    """Left, accuracy against the budget; right, images before and after."""
    figure = Figure(figsize=(14, 6), layout="constrained")
    left, right = figure.subfigures(1, 2, width_ratios=(1, 1.5))
    for axes, (norm, ball) in zip(left.subplots(3, 1), BALLS.items(), strict=True):
        for name, color in zip(clean, ("#d55e00", "#0072b2"), strict=True):
            mine = [row for row in rows if (row.network, row.norm) == (name, norm)]
            budgets = [0.0, *ball.budgets]
            axes.plot(
                budgets, [clean[name], *(row.accuracy for row in mine)], "o-", color=color, label=f"{name} network"
            )
            if mine[0].theirs is not None:
                found = [row.theirs for row in mine]
                axes.plot(ball.budgets, found, "x", color=color, markersize=9, label=f"{name}, torchattacks")
        axes.set(xlabel=f"{norm.replace('inf', '∞')} budget", ylabel="accuracy", ylim=(-0.03, 1.03))
        axes.grid(alpha=0.3)
        axes.legend(fontsize=9)
    left.suptitle("Trained against L∞: it helps against L2 too, not against L1")
    right.suptitle("Digits before and after; above each, what the plain network reads")
    grid = right.subplots(len(shown), SHOWN)
    for line, (title, (images, labels)) in zip(grid, shown.items(), strict=True):
        for column, (axes, image, label) in enumerate(zip(line, images, labels, strict=True)):
            axes.imshow(image.view(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
            changed = int(label) != int(shown["before"][1][column])
            axes.set_title(str(int(label)), fontsize=12, color="#d55e00" if changed else "black")
            axes.set(xticks=[], yticks=[])
        line[0].set_ylabel(title.replace("inf", "∞"), fontsize=11)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> list[Row]:
    """Train, attack, print, draw; returns the rows, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=20, help="steps of each attack")
    parser.add_argument("--train-steps", type=int, default=600)
    parser.add_argument("--images", type=int, default=450, help="how many held-out images are attacked")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)

    data = load_data()
    data = data._replace(test_images=data.test_images[: options.images], test_labels=data.test_labels[: options.images])
    networks = {name: train(data, options.train_steps, name == "robust", options.seed) for name in ("plain", "robust")}
    clean, rows, seconds, theirs = {}, [], 0.0, 0.0
    shown: dict[str, tuple[Tensor, Any]] = {}
    for name, weights in networks.items():
        right = reads(weights, data.test_images) == data.test_labels
        clean[name] = float(right.float().mean())
        for norm, ball in BALLS.items():
            start = time.perf_counter()
            changes = attack_budgets(ball, weights, data.test_images, data.test_labels, options.steps)
            seconds += time.perf_counter() - start
            for budget, change in zip(ball.budgets, changes, strict=True):
                attacked = data.test_images + change
                pixels = bx.violation(bx.Box(0.0, 1.0), attacked)
                violation = max(float((ball.norm(change.double()) - torch.tensor(budget)).amax()), float(pixels), 0.0)
                accuracy = float((reads(weights, attacked) == data.test_labels).float().mean())
                start = time.perf_counter()
                other = their_accuracy(norm, budget, weights, data, options.steps)
                theirs += time.perf_counter() - start
                rows.append(Row(name, norm, budget, accuracy, other, violation))
            if name == "plain":
                images = data.test_images[:SHOWN]
                shown.setdefault("before", (images, reads(weights, images)))
                attacked = images + changes[len(ball.budgets) // 2, :SHOWN]
                shown[f"{norm} {ball.budgets[len(ball.budgets) // 2]:g}"] = attacked, reads(weights, attacked)
    installed = any(row.theirs is not None for row in rows)
    print_table(rows, clean, seconds, theirs if installed else None)
    path = options.output / "adversarial_digits.png"
    save_picture(path, rows, clean, shown)
    print(f"picture: {path}")
    return rows


if __name__ == "__main__":
    main()
