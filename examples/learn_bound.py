"""Learning a bound
================

How far may the weights of a layer reach, if they are to have two, three or four bits?

::

    python examples/learn_bound.py                         (about half a minute on two quiet cores)

A quantized layer has weights r · k / K, k = -K, …, K: three values with two bits, fifteen with four. The range r is
usually the largest weight, so that none is clipped. With few values that wastes them: a smaller range clips some
weights and has the others finer. Here r is learned, one for each layer, for the loss on images that the weights were
not trained on:

- **learned**: by the derivative of the quantized network with respect to r. For a clipped weight it is that of the box
  [-r, r], ±1. Rounding is passed straight through, as usual: its derivative is 0 nearly everywhere, and useless;
- **learned through fine-tuning**: the quantized weights take some bounded steps, `chain(sgd, project(box))` in the box
  [-r, r], and r is learned for the loss after these. The bound of the inner problem is the parameter of the outer one;
  `bx.unroll` takes the derivative through all steps, the projections included.

The outer chain bounds the ranges themselves: between a twentieth of the largest weight and all of it. All networks
and all numbers of bits are one `vmap`.

What to expect: with four bits little is to be gained. With two, the largest weight ruins the network (16 % of the
digits right), and a learned range gives most of it back without touching a weight (76 %; unquantized 96 %). That of
least squared error, which needs no data, comes nearly as far (72 %), and with fine-tuning the two are alike (89 % and
87 %, the networks differing by 5): against these the gain is within the noise.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor
from torch.func import grad, vmap
from torch.nn.functional import cross_entropy

import boxopt as bx

Weights = dict[str, list[Tensor]]

SIZES = (64, 32, 32, 10)
BITS = (2, 3, 4)
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
INNER_STEPS, INNER_RATE = 10, 0.03
OUTER_RATE = 0.03
NARROWEST = 0.05  # of the largest weight
WAYS = {  # name: is the range learned, are the weights fine-tuned
    "largest weight": (False, False),
    "least squared error": (False, False),
    "learned": (True, False),
    "largest weight, fine-tuned": (False, True),
    "least squared error, fine-tuned": (False, True),
    "learned through fine-tuning": (True, True),
}


class Data(NamedTuple):
    """Images for the weights, for the ranges, and held out."""

    images: Tensor
    labels: Tensor
    range_images: Tensor
    range_labels: Tensor
    test_images: Tensor
    test_labels: Tensor


class Result(NamedTuple):
    """What came of it.

    Attributes:
        unquantized: Accuracy of each network on the images held out.
        accuracies: By way: [bits, network].
        ranges: By way, over the largest weight of the layer: [bits, network, layer].
        violation: By how much any range or fine-tuned weight is out of bounds.
        picture: Where it is.
    """

    unquantized: Tensor
    accuracies: dict[str, Tensor]
    ranges: dict[str, Tensor]
    violation: float
    picture: Path


def load_data() -> Data:
    images, labels = load_digits(return_X_y=True)
    split = partial(train_test_split, random_state=0)
    images, rest, labels, rest_labels = split(images / 16, labels, train_size=900, stratify=labels)
    mine, test, my_labels, test_labels = split(rest, rest_labels, train_size=400, stratify=rest_labels)
    pixels = partial(torch.tensor, dtype=torch.float32)
    return Data(
        pixels(images),
        torch.tensor(labels),
        pixels(mine),
        torch.tensor(my_labels),
        pixels(test),
        torch.tensor(test_labels),
    )


def predict(weights: Weights, images: Tensor) -> Tensor:
    for number, (matrix, bias) in enumerate(zip(weights["matrices"], weights["biases"], strict=True)):
        images = (torch.relu(images) if number else images) @ matrix + bias
    return images


def loss(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    return cross_entropy(predict(weights, images), labels)


def accuracy(weights: Weights, images: Tensor, labels: Tensor) -> Tensor:
    return (predict(weights, images).argmax(-1) == labels).float().mean()


def train(networks: int, steps: int, data: Data, seed: int) -> Weights:
    """Networks with ordinary weights, from starts of their own: [network, ...]."""
    generator = torch.Generator().manual_seed(seed)
    pairs = list(pairwise(SIZES))
    weights: Weights = {
        "matrices": [torch.randn(networks, *pair, generator=generator) * (2 / pair[0]) ** 0.5 for pair in pairs],
        "biases": [torch.zeros(networks, outputs) for _, outputs in pairs],
    }
    tx = bx.adamw(bx.cosine_decay_schedule(1e-2, steps), weight_decay=1e-3)
    state = vmap(tx.init)(weights)
    for _ in range(steps):
        slopes = vmap(grad(loss), in_dims=(0, None, None))(weights, data.images, data.labels)
        updates, state = vmap(tx.update)(slopes, state, weights)
        weights = bx.apply_updates(weights, updates)
    return weights


# Quantization


def quantize(weights: Weights, ranges: Tensor, levels: Tensor) -> Weights:
    """Clipped to the range of its layer, and rounded; straight through the rounding."""
    rounded = []
    for matrix, reach in zip(weights["matrices"], ranges, strict=True):
        step = reach / levels
        place = bx.Box(-reach, reach).project(matrix) / step
        rounded.append((place + (place.round() - place).detach()) * step)
    return {"matrices": rounded, "biases": weights["biases"]}


def quantized_loss(weights: Weights, ranges: Tensor, levels: Tensor, images: Tensor, labels: Tensor) -> Tensor:
    return loss(quantize(weights, ranges, levels), images, labels)


def allowed_weights(ranges: Tensor) -> bx.Box:
    reach = {"matrices": list(ranges), "biases": None}
    return bx.Box({"matrices": [-x for x in ranges], "biases": None}, reach)


def fine_tune(weights: Weights, ranges: Tensor, levels: Tensor, data: Data, steps: int) -> Weights:
    """The weights behind the quantized ones, after bounded steps."""
    box = allowed_weights(ranges)
    weights = box.project(weights)
    tx = bx.chain(bx.sgd(INNER_RATE, momentum=0.9), bx.project(box))

    def step(carry: tuple[Weights, tuple], _: None) -> tuple[tuple[Weights, tuple], None]:
        weights, state = carry
        slopes = grad(quantized_loss)(weights, ranges, levels, data.images, data.labels)
        updates, state = tx.update(slopes, state, weights)
        return (bx.apply_updates(weights, updates), state), None

    (weights, _), _ = bx.unroll(step, (weights, tx.init(weights)), length=steps)
    return weights


def largest(weights: Weights) -> Tensor:
    return torch.stack([matrix.abs().amax() for matrix in weights["matrices"]])


def least_squares(weights: Weights, levels: Tensor) -> Tensor:
    """The range of each layer that changes its weights least, of a hundred."""
    ranges = largest(weights) * torch.linspace(0.01, 1.0, 100)[:, None]
    changed = vmap(quantize, in_dims=(None, 0, None))(weights, ranges, levels)["matrices"]
    errors = [(new - old).square().sum((-2, -1)) for new, old in zip(changed, weights["matrices"], strict=True)]
    best = torch.stack(errors).argmin(-1)
    return ranges.gather(0, best[None]).squeeze(0)


def learn(weights: Weights, start: Tensor, levels: Tensor, data: Data, inner_steps: int, steps: int) -> Tensor:
    """The ranges for the least loss on images that are theirs, by bounded steps."""
    top = largest(weights)
    tx = bx.chain(bx.adam(bx.cosine_decay_schedule(OUTER_RATE, steps)), bx.project(bx.Box(NARROWEST, 1.0)))

    def outer(share: Tensor) -> Tensor:
        tuned = fine_tune(weights, share * top, levels, data, inner_steps)
        return quantized_loss(tuned, share * top, levels, data.range_images, data.range_labels)

    share = start / top
    state = tx.init(share)
    for _ in range(steps):
        updates, state = tx.update(grad(outer)(share), state, share)
        share = bx.apply_updates(share, updates)
    return share * top


def run(weights: Weights, levels: Tensor, data: Data, steps: int, way: str) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Of one network and number of bits: accuracy, ranges over the largest weight, quantized weights, violation."""
    is_learned, is_tuned = WAYS[way]
    inner_steps, top = INNER_STEPS if is_tuned else 0, largest(weights)
    ranges = top if way.startswith("largest") else least_squares(weights, levels)
    if is_learned:
        ranges = learn(weights, ranges, levels, data, inner_steps, steps)
    tuned = fine_tune(weights, ranges, levels, data, inner_steps)
    final = quantize(tuned, ranges, levels)
    out = torch.maximum(
        bx.violation(allowed_weights(ranges), tuned), bx.violation(bx.Box(NARROWEST, 1.0 + 1e-6), ranges / top)
    )
    return accuracy(final, data.test_images, data.test_labels), ranges / top, final["matrices"][0], out


# What is shown


def print_table(result: Result) -> None:
    print(f"{'range of a layer':36}" + "".join(f"{f'{bits} bits':>20}" for bits in BITS) + "   of the largest weight")
    for name, found in result.accuracies.items():
        cells = "".join(f"{f'{row.mean():.1%} ± {row.std():.1%}':>20}" for row in found)
        shares = ", ".join(f"{row.mean():.0%}" for row in result.ranges[name])
        print(f"{name:36}{cells}   {shares}")
    exact = result.unquantized
    print(f"\nnot quantized: {exact.mean():.1%} ± {exact.std():.1%}; largest violation: {result.violation:g}")


def save_picture(path: Path, result: Result, weights: Tensor, quantized: dict[str, Tensor]) -> None:
    """Left, accuracies; middle, ranges; right, the weights of a layer and their values with two bits."""
    figure = Figure(figsize=(14, 5), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    place = np.arange(len(BITS))
    for number, (name, found) in enumerate(result.accuracies.items()):
        colour, hatch = COLORS[number % 3], "//" if WAYS[name][1] else None
        offset = (number - (len(WAYS) - 1) / 2) * 0.14
        mean, spread = found.mean(1).numpy(), found.std(1, correction=0).numpy()
        left.bar(place + offset, mean, 0.13, yerr=spread, color=colour, hatch=hatch, edgecolor="white", label=name)
        middle.bar(
            place + offset, result.ranges[name].mean((1, 2)).numpy(), 0.13, color=colour, hatch=hatch, edgecolor="white"
        )
    left.axhline(float(result.unquantized.mean()), color="k", linewidth=1, label="not quantized")
    left.set(ylabel="accuracy", title="With few bits the range decides (digits held out)", ylim=(0, 1.02))
    middle.set(
        ylabel="range over the largest weight", title="Learned ranges are tight (mean of all layers)", ylim=(0, 1.05)
    )
    for axes in (left, middle):
        axes.set_xticks(place.tolist(), [f"{bits} bits" for bits in BITS])
    figure.legend(*left.get_legend_handles_labels(), ncols=4, loc="outside lower center", frameon=False)
    right.hist(weights.flatten().numpy(), bins=80, color="0.8", label="weights")
    for number, (name, found) in enumerate(quantized.items()):
        for value in found.unique():
            label = name if value == found.unique()[0] else None
            right.axvline(float(value), color=COLORS[number], linewidth=2.5, label=label)
    right.set(title="First layer: its three values with 2 bits", xlabel="value", ylabel="weights", yscale="log")
    right.legend(fontsize=9, loc="lower center", framealpha=0.95)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> Result:
    """Train, quantize in all ways, print, draw; returns the result, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=30, help="outer steps")
    parser.add_argument("--train-steps", type=int, default=300, help="of the networks before they are quantized")
    parser.add_argument("--networks", type=int, default=5)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)

    data = load_data()
    weights = train(options.networks, options.train_steps, data, options.seed)
    unquantized = vmap(accuracy, in_dims=(0, None, None))(weights, data.test_images, data.test_labels)
    levels = torch.tensor([2.0 ** (bits - 1) - 1 for bits in BITS])
    accuracies, ranges, first, violation = {}, {}, {}, 0.0
    for way in WAYS:
        one = partial(run, data=data, steps=options.steps, way=way)
        accuracies[way], ranges[way], quantized, out = vmap(vmap(one, in_dims=(0, None)), in_dims=(None, 0))(
            weights, levels
        )
        violation = max(violation, float(out.max()))
        if not WAYS[way][1]:
            first[way] = quantized[0, 0]
    result = Result(unquantized, accuracies, ranges, violation, options.output / "learn_bound.png")
    print_table(result)
    save_picture(result.picture, result, weights["matrices"][0][0], first)
    print(f"picture: {result.picture}")
    return result


if __name__ == "__main__":
    main()
