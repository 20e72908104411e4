"""Six ways to stay in a box
=========================

The path of two parameters in a box, under each of the six ways of keeping them there.

::

    python examples/six_ways.py

A valley that slopes out of the box: the least value inside is on the upper wall. Each way is a chain around the same
optimizer, gradient descent with momentum, from the same start; `bx.record` writes the path and `bx.plot` draws it. The
three in step space (below) are exact in what they promise: on the wall, near it from outside as far as the weight says,
near it from inside as far as mu says. Those in gradient space (above) depend on the step size: with momentum the path
of `tangent` leaves the box for a while, since nothing projects it back.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import grad_and_value

import boxopt as bx
import boxopt.plot

BOX = bx.Box(torch.tensor([-1.0, 0.0]), torch.tensor([1.0, 1.0]))
START = torch.tensor([-0.8, 0.1])
INSIDE, OUTSIDE = "#0072b2", "#d55e00"  # a path that never leaves the box, and one that does
SOLUTION = torch.tensor([0.4, 1.0])  # on the upper wall; the free minimum is (0.4, 1.6)


class Run(NamedTuple):
    """One panel: the name, what was recorded, and where it ended."""

    name: str
    written: dict[str, Tensor]
    end: Tensor


def loss(x: Tensor) -> Tensor:
    """A bowl around (0.4, 1.6), four times as steep along the first coordinate."""
    return 2 * (x[0] - 0.4) ** 2 + 0.5 * (x[1] - 1.6) ** 2


def ways() -> dict[str, bx.GradientTransformation]:
    """The six, in the order of the table in the README: gradient space, then step space."""
    optimizer = bx.sgd(0.05, momentum=0.8)
    return {
        "tangent(box)": bx.chain(bx.tangent(BOX), optimizer),
        "project(box)": bx.chain(optimizer, bx.project(BOX)),
        "add_penalty(box, 10)": bx.chain(bx.add_penalty(BOX, 10.0), optimizer),
        "penalize(box, 10)": bx.chain(optimizer, bx.penalize(BOX, 10.0)),
        "add_barrier(box, 0.02)": bx.chain(bx.add_barrier(BOX, 0.02, relax=0.05), optimizer),
        "barrier(box, 0.02)": bx.chain(optimizer, bx.barrier(BOX, 0.02)),
    }


def descend(name: str, way: bx.GradientTransformation, steps: int) -> Run:
    """The recorded path of one way."""
    tx = bx.chain(bx.record(BOX, 2 * steps, params=True), way)
    x, state = START, tx.init(START)
    for _ in range(steps):
        gradients, value = grad_and_value(loss)(x)
        updates, state = tx.update(gradients, state, x, value=value)
        x = bx.apply_updates(x, updates)
    return Run(name, bx.history(state), x)


def draw(runs: Sequence[Run], path: Path) -> None:
    """Six panels."""
    figure = Figure(figsize=(13, 7.4), layout="constrained")
    limits = {"xlim": (-1.25, 1.25), "ylim": (-0.15, 1.85)}
    for ax, run in zip(figure.subplots(2, 3, sharex=True, sharey=True).ravel(order="F"), runs, strict=True):
        largest, last = float(run.written["violation"].max()), float(bx.violation(BOX, run.end))
        ax.plot(*SOLUTION, "x", color="black", markersize=10, markeredgewidth=2.5, zorder=5)
        ax.set(**limits)  # before the path: contours fill what is shown
        bx.plot.trajectory(run.written, BOX, loss, ax=ax, color=OUTSIDE if largest > 0 else INSIDE)
        ax.set(**limits)
        where = f"outside by {largest:.2g} at most, {last:.2g} at the end" if largest > 0 else "never outside"
        ax.set_title(f"{run.name}\n{where}", fontsize="large")
        ax.label_outer()
    figure.suptitle(
        "Six ways to stay in a box: only the projection and the barrier never leave it\n"
        "above, applied to the gradient; below, to the step; ×, the solution",
        fontsize="x-large",
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> list[Run]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=120)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)
    runs = [descend(name, way, options.steps) for name, way in ways().items()]
    print(f"{'':<26}{'end':>18}{'violation':>12}{'from the solution':>20}")
    for run in runs:
        end = ", ".join(f"{number:.4f}" for number in run.end.tolist())
        distance = float((run.end - SOLUTION).abs().max())
        print(f"{run.name:<26}{end:>18}{float(bx.violation(BOX, run.end)):>12.1e}{distance:>20.1e}")
    picture = options.output / "six_ways.png"
    draw(runs, picture)
    print(picture)
    return runs


if __name__ == "__main__":
    main()
