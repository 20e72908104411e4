"""A critic for Wasserstein distances
==================================

A critic whose slope cannot exceed 1: Wasserstein distances of digits, beside clamped weights and the exact distance.

::

    python examples/wasserstein_critic.py

The Wasserstein distance between two sets of images, by how much those of the one have to be changed at least, on
average, to become those of the other, is also the most by which the mean of a function on the one can exceed its mean
on the other, among the functions f with ``|f(x) − f(y)| ≤ ‖x − y‖``. A Wasserstein GAN learns such an f, the critic.
The first ones kept its slope in bounds by clamping all weights to [−0.01, 0.01]; but the bound on the slope that
follows is a number that depends on the sizes of the layers, and so is what the critic says.

A layer has no slope above 1 if no singular value of its matrix is above 1: `bx.sets.SpectralBall(1.0)`. With an
activation that has none either, the critic is one of the functions above, by construction, at every step, and its
value never more than the distance. How near it comes depends on the activation too: ReLU has the slope 0 where its
input is negative; sorting pairs of numbers loses no slope at all.

For five pairs of digits in scikit-learn's set, 170 images of each, the distance is computed exactly, as an assignment
by SciPy. The critics of all pairs are trained in one `vmap`, those with clamped weights for three bounds at once.

What to expect, as shares of the exact distance: weights in ±0.01 give 0.1 to 0.2 %, in ±0.1 1.4 to 2.1 times the
distance and in ±0.3 29 to 50 times. Divided by the product of their layers' largest singular values, they are at
39 to 53 %. In the spectral ball ReLU comes to 74 to 86 %, and sorting to 78 to 91 %.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from matplotlib.figure import Figure
from scipy.optimize import linear_sum_assignment
from sklearn.datasets import load_digits
from torch import Tensor
from torch.func import grad, grad_and_value, vmap

import boxopt as bx

PAIRS = ((0, 1), (1, 7), (3, 8), (4, 9), (5, 6))
CLAMPS = (0.01, 0.1, 0.3)
WIDTHS = (64, 32, 32, 1)
SHOWN = 2  # the pair that is drawn
SPECTRAL = bx.sets.ByPath({"*.weight": bx.sets.SpectralBall(1.0)})
COLORS = {
    "weights in ±0.01": "#e69f00",
    "weights in ±0.1": "#d55e00",
    "weights in ±0.3": "#cc79a7",
    "spectral ball, ReLU": "#56b4e9",
    "spectral ball, sorting": "#0072b2",
}
Weights = dict[str, Tensor]
Activation = Callable[[Tensor], Tensor]


class Critics(NamedTuple):
    """One kind of critic, for each pair: weights, and the values that they gave to the distance, (pairs, steps)."""

    weights: Weights
    values: Tensor
    activation: Activation


# The distance and the critic


def load(images: int) -> tuple[Tensor, Tensor]:
    """The images of the first digit of each pair, and of the second, (pairs, images, pixels)."""
    pixels, labels = load_digits(return_X_y=True)
    chosen = [torch.tensor(pixels[labels == digit][:images] / 16, dtype=torch.float32) for digit in range(10)]
    return torch.stack([chosen[a] for a, _ in PAIRS]), torch.stack([chosen[b] for _, b in PAIRS])


def exact_distance(first: Tensor, second: Tensor) -> float:
    """The least mean distance between images that are assigned to each other."""
    costs = torch.cdist(first.double(), second.double()).numpy()
    return float(costs[linear_sum_assignment(costs)].mean())


def sort_pairs(x: Tensor) -> Tensor:
    """Of each two numbers the larger and the smaller."""
    one, other = x.chunk(2, dim=-1)
    return torch.cat([torch.where(one > other, one, other), torch.where(one > other, other, one)], dim=-1)


def init_weights() -> Weights:
    """Orthogonal matrices and zeros."""
    generator = torch.Generator().manual_seed(0)
    weights: Weights = {}
    for layer, (inner, outer) in enumerate(itertools.pairwise(WIDTHS)):
        weights[f"{layer}.weight"] = torch.nn.init.orthogonal_(torch.empty(outer, inner), generator=generator)
        weights[f"{layer}.bias"] = torch.zeros(outer)
    return weights


def criticize(weights: Weights, images: Tensor, activation: Activation) -> Tensor:
    last = len(WIDTHS) - 2
    for layer in range(last):
        images = activation(images @ weights[f"{layer}.weight"].mT + weights[f"{layer}.bias"])
    return (images @ weights[f"{last}.weight"].mT + weights[f"{last}.bias"]).squeeze(-1)


def train(
    weights: Weights,
    first: Tensor,
    second: Tensor,
    tx: bx.GradientTransformation,
    activation: Activation,
    steps: int,
) -> tuple[Weights, Tensor]:
    """One critic: nothing here knows that there are others."""

    def loss(weights: Weights) -> Tensor:
        return criticize(weights, second, activation).mean() - criticize(weights, first, activation).mean()

    values, state = [], tx.init(weights)
    for _ in range(steps):
        gradients, value = grad_and_value(loss)(weights)
        values.append(-value)
        updates, state = tx.update(gradients, state, weights)
        weights = bx.apply_updates(weights, updates)
    return weights, torch.stack([*values[1:], -loss(weights)])


def train_all(first: Tensor, second: Tensor, steps: int) -> dict[str, Critics]:
    """Every kind of critic on every pair."""
    start, rate = init_weights(), bx.cosine_decay_schedule(0.3, steps)
    within = bx.chain(bx.sgd(rate, momentum=0.9), bx.project(SPECTRAL))

    def clamped(clamp: Tensor, first: Tensor, second: Tensor) -> tuple[Weights, Tensor]:
        tx = bx.chain(bx.adam(0.1 * clamp), bx.project(bx.Box(-clamp, clamp)))
        return train(start, first, second, tx, torch.relu, steps)

    on_pairs = vmap(clamped, in_dims=(None, 0, 0))
    weights, values = vmap(on_pairs, in_dims=(0, None, None))(torch.tensor(CLAMPS), first, second)
    found = {
        f"weights in ±{clamp:g}": Critics({name: leaf[i] for name, leaf in weights.items()}, values[i], torch.relu)
        for i, clamp in enumerate(CLAMPS)
    }
    for name, activation in (("ReLU", torch.relu), ("sorting", sort_pairs)):
        run = vmap(lambda one, other, activation=activation: train(start, one, other, within, activation, steps))
        found[f"spectral ball, {name}"] = Critics(*run(first, second), activation)
    return found


def slope_bound(weights: Weights) -> Tensor:
    """The product of the largest singular values, which no slope exceeds."""
    norms = [torch.linalg.matrix_norm(weights[f"{layer}.weight"], 2) for layer in range(len(WIDTHS) - 1)]
    return torch.stack(norms).prod(0)


def slopes(critics: Critics, images: Tensor) -> Tensor:
    """The gradient of each pair's critic at images, (pairs, images, pixels)."""

    def slope(weights: Weights, image: Tensor) -> Tensor:
        return grad(lambda image: criticize(weights, image, critics.activation))(image)

    return vmap(vmap(slope, in_dims=(None, 0)))(critics.weights, images)


# What is shown


def print_table(found: dict[str, Critics], exact: Tensor, first: Tensor) -> None:
    columns = "".join(f"{f'{a} and {b}':>10}" for a, b in PAIRS)
    print(f"{'':26}{columns}{'slope at most':>16}{'mean':>9}")
    print(f"{'exact distance':26}" + "".join(f"{value:10.3f}" for value in exact.tolist()))
    for name, critics in found.items():
        values = "".join(f"{value:10.3f}" for value in critics.values[:, -1].tolist())
        largest, mean = float(slope_bound(critics.weights).max()), float(slopes(critics, first).norm(dim=-1).mean())
        print(f"{name:26}{values}{largest:16.6f}{mean:9.3f}")
    print("\nas shares of the exact distance; in brackets, divided by what the slope is at most")
    for name, critics in found.items():
        share = critics.values[:, -1] / exact
        sound = share / slope_bound(critics.weights)
        print(f"{name:26}{share.min():9.1%} to {share.max():.1%} ({sound.min():.1%} to {sound.max():.1%})")


def draw_shares(axes: Any, found: dict[str, Critics], exact: Tensor) -> None:
    """A line for each kind of critic, a point for each pair, and how much of the distance on average."""
    names = {}
    for row, (name, critics) in enumerate(found.items()):
        share = critics.values[:, -1] / exact
        axes.plot([share.min(), share.max()], [row, row], color=COLORS[name], linewidth=3, alpha=0.4)
        axes.plot(share, [row] * len(PAIRS), "o", color=COLORS[name], markersize=10)
        mean = float(share.mean())
        label = f"{100 * mean:.2g} %" if mean < 1 else f"{mean:.2g} times"
        style = {"ha": "center", "color": COLORS[name], "weight": "bold", "backgroundcolor": "white"}
        axes.annotate(label, (mean, row), (0, 13), textcoords="offset points", **style)
        names[row] = name
    axes.axvline(1, color="black", linestyle="--", linewidth=1.2, zorder=0)
    axes.set_yticks(list(names), list(names.values()))
    axes.set(xscale="log", xlim=(3e-4, 300), ylim=(len(found) - 0.5, -0.7), xlabel="value / exact distance")
    axes.text(1, len(found) - 0.56, " exact", ha="left", va="bottom")
    axes.grid(alpha=0.25, axis="x")


def save_picture(path: Path, found: dict[str, Critics], exact: Tensor, first: Tensor) -> None:
    """The critics in training, where they end, and digits moved down their slopes."""
    figure = Figure(figsize=(15, 8.4), layout="constrained")
    top, bottom = figure.subfigures(2, 1, height_ratios=(1.5, 1))
    training, shares = top.subplots(1, 2)
    one, other = PAIRS[SHOWN]
    for name, critics in found.items():
        training.plot(critics.values[SHOWN], color=COLORS[name], linewidth=2.5)
    training.axhline(float(exact[SHOWN]), color="black", linestyle="--", linewidth=1.2)
    training.set(yscale="log", ylim=(1e-3, 300), xlabel="step", ylabel="value of the critic")
    training.set_title(f"Training on {one} and {other} (dashed: the exact distance)")
    training.grid(alpha=0.25)
    draw_shares(shares, found, exact)
    shares.set_title("Clamped weights say nothing about the distance: five pairs of digits")
    best = found["spectral ball, sorting"]
    bottom.suptitle(f"A walk down the critic's slope, as long as the distance, moves each {one} towards an {other}")
    chosen, distance, way = first[SHOWN, :12], float(exact[SHOWN]), 20
    weights = {name: leaf[SHOWN : SHOWN + 1] for name, leaf in best.weights.items()}
    after = chosen
    for _ in range(way):
        after = after - distance / way * slopes(best._replace(weights=weights), after[None])[0]
    grid = bottom.subplots(2, len(chosen))
    for column, (image, result) in enumerate(zip(chosen, after, strict=True)):
        for axes, pixels in zip(grid[:, column], (image, result), strict=True):
            axes.imshow(pixels.view(8, 8).numpy(), cmap="gray_r", vmin=0, vmax=1)
            axes.set(xticks=[], yticks=[])
    grid[0, 0].set_ylabel("before")
    grid[1, 0].set_ylabel("after")
    figure.suptitle("A critic in the spectral ball measures the Wasserstein distance from below", fontsize=15)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> tuple[dict[str, Critics], Tensor]:
    """Train, compare, draw; returns the critics and the exact distances, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=200)
    parser.add_argument("--images", type=int, default=170, help="images of each digit, at most 170")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)
    first, second = load(options.images)
    exact = torch.tensor([exact_distance(a, b) for a, b in zip(first, second, strict=True)])
    found = train_all(first, second, options.steps)
    print_table(found, exact, first)
    path = options.output / "wasserstein_critic.png"
    save_picture(path, found, exact, first)
    print(f"picture: {path}")
    return found, exact


if __name__ == "__main__":
    main()
