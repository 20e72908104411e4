"""Learning where to start
=======================

MAML on sinusoids, with inner steps that stay in a box.

::

    python examples/maml_sinusoid.py                       (about half a minute on two quiet cores)
    python examples/maml_sinusoid.py --steps 70000         (as many meta-iterations as in the paper)

The first experiment of Finn, Abbeel and Levine. A task is a sine of random amplitude (0.1 to 5) and phase (0 to π); ten
points of it are given, x between -5 and 5, and a network with two hidden layers of 40 is to fit it in a few steps of
gradient descent. What is learned over many tasks is the network's start: Adam follows the derivative of the loss
*after* one inner step, on ten other points, with respect to the weights before it.

Here the inner steps are bounded: `chain(sgd, project(box))` holds every weight within `--bound`, and the derivative
passes through the projection. The outer chain ends in the same box, so the start is in it too. All tasks of a batch are
one `vmap`, and the whole outer step is compiled.

The baseline is the same training with no inner step: the network that is best without knowing the task, a flat wave.
Ten steps from it lead nowhere near.

What to expect: with bounds of 2 hardly a weight is held, and 15,000 meta-iterations lead to errors of 0.45 after one
step and 0.12 after ten. With 0.5, the default, one weight in fourteen is held, and after 8,000 the errors are 0.55 and
0.25: what the bounds cost, and the shorter training. They help the baseline, whose steps are too long for free weights.
The paper trains for 70,000, without bounds, and shows its errors as curves (its Figure 3), without numbers. Those given
for it here are rounded from descriptions of that figure and not verified: others read it up to five times lower.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Sequence
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad, vmap

import boxopt as bx

Weights = list[Tensor]

SIZES = (1, 40, 40, 1)
SHOTS = 10
COLORS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7")
TASKS = 25  # in a meta-batch
INNER_RATE, OUTER_RATE = 0.01, 1e-3
TEST_STEPS = 10


class Tasks(NamedTuple):
    """Points to learn from and points to judge by: [task, point, 1]."""

    x: Tensor
    y: Tensor
    new_x: Tensor
    new_y: Tensor


class Result(NamedTuple):
    """One way to find a start.

    Attributes:
        start: The weights.
        errors: Mean squared error after 0, 1, …, 10 steps, of each test task: [task, step].
        adapted: The weights of each test task after all steps.
        held: The share of them that are at a bound.
        violation: By how much any of them is out of bounds.
        seconds: That the training took, without compiling.
    """

    start: Weights
    errors: Tensor
    adapted: Weights
    held: float
    violation: float
    seconds: float


def sample(tasks: int, points: int, generator: torch.Generator) -> Tasks:
    """Sines, with ten points to learn from and so many others."""

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return low + (high - low) * torch.rand(*shape, generator=generator)

    amplitude, phase = uniform(0.1, 5.0, tasks, 1, 1), uniform(0.0, torch.pi, tasks, 1, 1)
    x, new_x = (uniform(-5.0, 5.0, tasks, count, 1) for count in (SHOTS, points))
    return Tasks(x, amplitude * torch.sin(x - phase), new_x, amplitude * torch.sin(new_x - phase))


def draw_start(bound: float, generator: torch.Generator) -> Weights:
    """He's initialization, in the box."""
    weights = []
    for inputs, outputs in pairwise(SIZES):
        weights.append(torch.randn(inputs, outputs, generator=generator) * (2 / inputs) ** 0.5)
        weights.append(torch.zeros(outputs))
    return [leaf.clamp(-bound, bound) for leaf in weights]


def predict(weights: Weights, x: Tensor) -> Tensor:
    """The network: two hidden layers with ReLU."""
    w1, b1, w2, b2, w3, b3 = weights
    return torch.relu(torch.relu(x @ w1 + b1) @ w2 + b2) @ w3 + b3


def error(weights: Weights, x: Tensor, y: Tensor) -> Tensor:
    return (predict(weights, x) - y).square().mean()


def adapt(start: Weights, task: Tasks, box: bx.Box, steps: int) -> tuple[Weights, Tensor]:
    """The weights after bounded steps on one task, and the error on its other points before each."""
    tx = bx.chain(bx.sgd(INNER_RATE), bx.project(box))

    def step(carry: tuple[Weights, tuple], _: None) -> tuple[tuple[Weights, tuple], Tensor]:
        weights, state = carry
        updates, state = tx.update(grad(error)(weights, task.x, task.y), state, weights)
        return (bx.apply_updates(weights, updates), state), error(weights, task.new_x, task.new_y)

    (weights, _), errors = bx.unroll(step, (start, tx.init(start)), length=steps)
    return weights, errors


def meta_loss(start: Weights, tasks: Tasks, box: bx.Box, inner_steps: int) -> Tensor:
    """The error after adaptation, on points not adapted to, over a batch of tasks."""

    def of_task(task: Tasks) -> Tensor:
        weights, _ = adapt(start, task, box, inner_steps)
        return error(weights, task.new_x, task.new_y)

    return vmap(of_task)(tasks).mean()


def train(
    start: Weights, box: bx.Box, inner_steps: int, steps: int, seed: int, compiled: bool
) -> tuple[Weights, float]:
    """The learned start, and the seconds that it took."""
    tx = bx.chain(bx.adam(OUTER_RATE), bx.project(box))
    generator = torch.Generator().manual_seed(seed)

    def outer_step(start: Weights, state: tuple, tasks: Tasks) -> tuple[Weights, tuple]:
        updates, state = tx.update(grad(meta_loss)(start, tasks, box, inner_steps), state, start)
        return bx.apply_updates(start, updates), state

    step: Callable = bx.compile(outer_step, donate_argnums=(0, 1)) if compiled else outer_step
    start, state = step([leaf.clone() for leaf in start], tx.init(start), sample(TASKS, SHOTS, generator))
    before = time.perf_counter()
    for _ in range(steps - 1):
        start, state = step(start, state, sample(TASKS, SHOTS, generator))
    return start, time.perf_counter() - before


def test(start: Weights, tasks: Tasks, box: bx.Box, seconds: float) -> Result:
    """Ten steps on each of many new tasks."""
    adapted, errors = vmap(partial(adapt, box=box, steps=TEST_STEPS), in_dims=(None, 0))(start, tasks)
    last = vmap(error)(adapted, tasks.new_x, tasks.new_y)
    numbers = torch.cat([leaf.flatten() for leaf in adapted])
    held = float((numbers.abs() == box.upper).float().mean())
    return Result(
        start, torch.cat([errors, last[:, None]], dim=1), adapted, held, float(bx.violation(box, adapted)), seconds
    )


# What is shown


PAPER = {"MAML": (3.0, 0.5, 0.2), "pre-trained": (2.7, 2.4, 1.8)}  # after 0, 1 and 10 steps


def print_table(results: dict[str, Result], bound: float) -> None:
    print(f"{'mean squared error after':34}{'0':>8}{'1':>8}{'10 steps':>10}{'at a bound':>12}{'violation':>11}{'s':>7}")
    for name, result in results.items():
        mean, half = result.errors.mean(0), 1.96 * result.errors.std(0) / len(result.errors) ** 0.5
        print(
            f"{f'{name}, |weights| ≤ {bound:g}':34}{mean[0]:>8.2f}{mean[1]:>8.2f}{mean[-1]:>10.2f}"
            f"{result.held:>12.1%}{result.violation:>11g}{result.seconds:>7.0f}   ± {half[1]:.2f}, {half[-1]:.2f}"
        )
    for name, (zero, one, ten) in PAPER.items():
        print(f"{f'{name}, paper (about; no bounds)':34}{zero:>8g}{one:>8g}{ten:>10g}")


def save_picture(path: Path, results: dict[str, Result], tasks: Tasks, bound: float) -> None:
    """Three test tasks fitted from both starts, and the errors over the steps."""
    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = figure.subplots(2, 4)
    line = torch.linspace(-5, 5, 200)[:, None]
    box = bx.Box(-bound, bound)
    for row, color, (name, result) in zip(panels, COLORS, results.items(), strict=False):
        for panel, number in zip(row, (0, 1, 2), strict=False):
            task = Tasks(*(leaf[number] for leaf in tasks))
            order = task.new_x[:, 0].argsort()
            panel.plot(task.new_x[order], task.new_y[order], color="0.6", linewidth=4, label="the sine")
            for steps, style in ((0, ":"), (1, "--"), (10, "-")):
                weights, _ = adapt(result.start, task, box, steps)
                panel.plot(
                    line, predict(weights, line), style, color=color, label=f"{steps} steps" if steps != 1 else "1 step"
                )
            panel.plot(task.x, task.y, "k^", markersize=5, label="given")
            panel.set(title=f"{name}: task {number + 1}", ylim=(-5.5, 5.5))
        row[0].legend(fontsize=8)
    for color, (name, result) in zip(COLORS, results.items(), strict=False):
        mean = result.errors.mean(0)
        panels[0, 3].semilogy(mean, "o-", markersize=4, color=color, label=f"{name}, |weights| ≤ {bound:g}")
    for (name, figures), marker in zip(PAPER.items(), "x+", strict=True):
        panels[0, 3].plot((0, 1, 10), figures, marker, color="k", markersize=8, label=f"{name}, paper (about)")
    panels[0, 3].set(title=f"mean of {len(tasks.x)} tasks", xlabel="step", ylabel="mean squared error")
    panels[0, 3].legend(fontsize=8)
    panels[0, 3].grid(alpha=0.3)
    for color, (name, result) in zip(COLORS, results.items(), strict=False):
        numbers = torch.cat([leaf.flatten() for leaf in result.adapted])
        panels[1, 3].hist(
            numbers.numpy(),
            bins=80,
            range=(-1.02 * bound, 1.02 * bound),
            histtype="step",
            density=True,
            color=color,
            label=name,
        )
    panels[1, 3].set(title="weights after ten steps", xlabel="value", yscale="log")
    panels[1, 3].legend(fontsize=8)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)


def main(arguments: Sequence[str] | None = None) -> dict[str, Result]:
    """Train both starts, test them, print, draw; returns the results, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=8000, help="meta-iterations")
    parser.add_argument("--bound", type=float, default=0.5, help="the largest allowed size of a weight")
    parser.add_argument("--test-tasks", type=int, default=600, help="each with 100 points to be judged by")
    parser.add_argument("--eager", action="store_true", help="do not compile: better below some thousand steps")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)

    box = bx.Box(torch.tensor(-options.bound), torch.tensor(options.bound))
    tasks = sample(options.test_tasks, 100, torch.Generator().manual_seed(options.seed + 1000))
    results = {}
    for name, inner_steps in (("MAML", 1), ("pre-trained", 0)):
        start = draw_start(options.bound, torch.Generator().manual_seed(options.seed))
        start, seconds = train(start, box, inner_steps, options.steps, options.seed, not options.eager)
        results[name] = test(start, tasks, box, seconds)
    print_table(results, options.bound)
    picture = options.output / "maml_sinusoid.png"
    save_picture(picture, results, tasks, options.bound)
    print(f"picture: {picture}")
    return results


if __name__ == "__main__":
    main()
