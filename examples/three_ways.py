"""Keeping parameters in a range, right and wrong
==============================================

How can parameters be kept within a given range? Projection, penalty and barrier, beside the usual wrong code.

::

    python examples/three_ways.py

A linear regression on scikit-learn's diabetes data (442 people, 10 measurements), with every coefficient held in
[-0.1, 0.15]. It is convex, so that the exact answer is known: from `scipy.optimize.lsq_linear`, and, with
regularization, from the references named in the table. Each method is a chain of boxopt transformations; the loop is
the same for all. The wrong ways are what one finds in forums.

The table has, for each method, the loss, the violation of the bounds, and the distance from the exact solution. A
penalty and a barrier with a fixed strength end *near* the solution, by design: outside by about 1/weight, inside by
about mu.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import scipy.optimize
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_diabetes
from sklearn.linear_model import Lasso
from torch import Tensor
from torch.func import grad

import boxopt as bx

LOWER, UPPER = -0.1, 0.15
L1_WEIGHT, L2_WEIGHT = 0.05, 0.5
Loss = Callable[[Tensor], Tensor]


class Run(NamedTuple):
    """One row of the table: where a method ended, its distance from the reference at each step, and the reference."""

    group: str
    name: str
    params: Tensor
    distances: list[float]
    box: bx.Box
    reference: str


def load() -> tuple[Tensor, Tensor]:
    """Standardized measurements and outcome, in float64."""
    features, outcome = load_diabetes(return_X_y=True)
    return standardize(features), standardize(outcome)


def standardize(x: np.ndarray) -> Tensor:
    return torch.tensor((x - x.mean(0)) / x.std(0))


def mean_squares(features: Tensor, outcome: Tensor) -> Loss:
    """Half the mean squared error: the smooth part of scikit-learn's Lasso."""
    return lambda x: ((features @ x - outcome) ** 2).mean() / 2


# The exact answers


def exact_bounded(features: Tensor, outcome: Tensor, l2: float = 0.0) -> Tensor:
    """Bounded least squares, with λ₂/2·‖x‖² as additional rows of the system."""
    count, size = features.shape
    rows = np.vstack([features.numpy(), np.sqrt(count * l2) * np.eye(size)])
    right = np.concatenate([outcome.numpy(), np.zeros(size)])
    return torch.tensor(scipy.optimize.lsq_linear(rows, right, (LOWER, UPPER), tol=1e-14).x)


def exact_bounded_l1(features: Tensor, outcome: Tensor, l1: float) -> Tensor:
    """With λ₁·‖x‖₁: split x = p - n, p and n not negative; then the norm is a sum, and SciPy's L-BFGS-B can do it."""
    matrix, target, count, size = features.numpy(), outcome.numpy(), *features.shape

    def value_and_slope(z: np.ndarray) -> tuple[float, np.ndarray]:
        residual = matrix @ (z[:size] - z[size:]) - target
        slope = matrix.T @ residual / count
        return residual @ residual / (2 * count) + l1 * z.sum(), np.concatenate([slope, -slope]) + l1

    bounds = [(0, UPPER)] * size + [(0, -LOWER)] * size
    options = {"ftol": 1e-16, "gtol": 1e-12, "maxiter": 10_000, "maxcor": 20}
    z = scipy.optimize.minimize(value_and_slope, np.zeros(2 * size), jac=True, bounds=bounds, options=options).x
    return torch.tensor(z[:size] - z[size:])


def exact_nonnegative_lasso(features: Tensor, outcome: Tensor, l1: float) -> Tensor:
    lasso = Lasso(alpha=l1, positive=True, fit_intercept=False, tol=1e-14, max_iter=1_000_000)
    return torch.tensor(lasso.fit(features.numpy(), outcome.numpy()).coef_)


# The right ways: one loop for all


def descend(
    tx: bx.GradientTransformation, loss: Loss, start: Tensor, steps: int, reference: Tensor
) -> tuple[Tensor, list[float]]:
    """Gradient steps through a transformation; the distance from the reference after each."""
    params, state, distances = start, tx.init(start), []
    for _ in range(steps):
        updates, state = tx.update(grad(loss)(params), state, params)
        params = bx.apply_updates(params, updates)
        distances.append(float((params - reference).abs().max()))
    return params, distances


def right_ways(features: Tensor, outcome: Tensor, steps: int) -> list[Run]:
    box, positive = bx.Box(LOWER, UPPER), bx.sets.NonNegative()
    loss, start, rate = mean_squares(features, outcome), torch.zeros(features.shape[1], dtype=torch.float64), 0.2
    fading = bx.exponential_decay(1e-2, 100, 0.3)
    bounded = exact_bounded(features, outcome), "lsq_linear"
    chains = [
        ("projection", "gradient descent", bx.chain(bx.sgd(rate), bx.project(box)), box, bounded),
        (
            "projection",
            "Adam, decaying rate",
            bx.chain(bx.adam(bx.exponential_decay(0.02, 100, 0.5)), bx.project(box)),
            box,
            bounded,
        ),
        ("penalty", "proximal step, weight 10", bx.chain(bx.sgd(rate), bx.penalize(box, 10.0)), box, bounded),
        ("penalty", "gradient, weight 1", bx.chain(bx.add_penalty(box, 1.0), bx.sgd(rate)), box, bounded),
        ("penalty", "exact, weight 1", bx.chain(bx.sgd(rate), bx.penalize(box, 1.0, "exact")), box, bounded),
        ("barrier", "mu 1e-3", bx.chain(bx.sgd(rate), bx.barrier(box, 1e-3)), box, bounded),
        ("barrier", "mu from 1e-2 to 0", bx.chain(bx.sgd(rate), bx.barrier(box, fading)), box, bounded),
        (
            "projection, L1",
            "soft threshold, then box",
            bx.chain(bx.sgd(rate), bx.prox(bx.L1(L1_WEIGHT)), bx.project(box)),
            box,
            (exact_bounded_l1(features, outcome, L1_WEIGHT), "L-BFGS-B, split"),
        ),
        (
            "projection, L1",
            "the same, x >= 0",
            bx.chain(bx.sgd(rate), bx.prox(bx.L1(L1_WEIGHT)), bx.project(positive)),
            positive,
            (exact_nonnegative_lasso(features, outcome, L1_WEIGHT), "Lasso(positive)"),
        ),
        (
            "projection, L2",
            "shrink, then box",
            bx.chain(bx.sgd(rate), bx.prox(bx.L2(L2_WEIGHT)), bx.project(box)),
            box,
            (exact_bounded(features, outcome, L2_WEIGHT), "lsq_linear, augmented"),
        ),
    ]
    return [
        Run(group, name, *descend(tx, loss, start, steps, reference), feasible, source)
        for group, name, tx, feasible, (reference, source) in chains
    ]


# The wrong ways, in the usual imperative code


def wrong_ways(features: Tensor, outcome: Tensor, steps: int) -> list[Run]:
    loss, reference, box = mean_squares(features, outcome), exact_bounded(features, outcome), bx.Box(LOWER, UPPER)

    def clamp_before_the_step(params: Tensor) -> Tensor:
        params = params.clamp(LOWER, UPPER)
        return params - 0.2 * grad(loss)(params)

    def penalize_one_side(params: Tensor) -> Tensor:
        too_large = lambda x: 10.0 * torch.relu(x - UPPER).square().sum() / 2  # noqa: E731
        return params - 0.05 * grad(lambda x: loss(x) + too_large(x))(params)

    def clamp_in_the_model(params: Tensor) -> Tensor:
        return params - 0.2 * grad(lambda x: loss(x.clamp(LOWER, UPPER)))(params)

    runs = []
    for name, step, start in (
        ("clamp before the step", clamp_before_the_step, 0.0),
        ("penalty on one side only", penalize_one_side, 0.0),
        ("clamp in the model, from 0.5", clamp_in_the_model, 0.5),
    ):
        params, distances = torch.full((features.shape[1],), start, dtype=torch.float64), []
        for _ in range(steps):
            params = step(params)
            distances.append(float((params - reference).abs().max()))
        runs.append(Run("wrong", name, params, distances, box, "lsq_linear"))
    return runs


# What is shown


def print_table(runs: Sequence[Run], loss: Loss) -> None:
    print(f"{'':16}{'method':32}{'loss':>9}{'violation':>12}{'distance':>11}   from the exact solution by")
    for run in runs:
        violation = float(bx.violation(run.box, run.params))
        print(
            f"{run.group:16}{run.name:32}{float(loss(run.params)):>9.5f}{violation:>12.2g}{run.distances[-1]:>11.1e}   "
            f"{run.reference}"
        )


def save_picture(path: Path, runs: Sequence[Run], reference: Tensor) -> None:
    """Left, convergence; right, the coefficients against the walls."""
    figure = Figure(figsize=(13, 6.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    colours = {"projection": "#0072b2", "penalty": "#cc79a7", "barrier": "#009e73", "wrong": "#d55e00"}
    shown = [run for run in runs if run.group in colours]
    styles = {group: iter(["-", "--", ":"]) for group in colours}
    for run in shown:
        distances = np.maximum(run.distances, 1e-17)
        left.semilogy(distances, next(styles[run.group]), color=colours[run.group], label=f"{run.group}: {run.name}")
    left.set(
        xlabel="step",
        ylabel="largest distance from the exact solution",
        title="The projection reaches the solution; wrong ways stop somewhere else",
    )
    left.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    left.grid(alpha=0.3)
    right.axhspan(LOWER, UPPER, color="0.93", zorder=0)
    right.axhline(LOWER, color="0.4", linewidth=1)
    right.axhline(UPPER, color="0.4", linewidth=1)
    place = np.arange(len(reference))
    right.plot(place, reference, "k_", markersize=24, label="exact")
    chosen = [next(run for run in shown if run.group == group) for group in ("projection", "penalty", "barrier")]
    chosen += [run for run in shown if run.group == "wrong"]
    markers = iter("oooxs^")
    for number, run in enumerate(chosen):
        offset = (number - (len(chosen) - 1) / 2) * 0.12
        label = run.group if run.group != "wrong" else f"wrong: {run.name}"
        right.plot(place + offset, run.params, next(markers), color=colours[run.group], markersize=5, label=label)
    right.set(
        xlabel="coefficient",
        ylabel="value",
        title="Where they end: projection on the walls, barrier inside (grey: allowed)",
        xticks=place,
    )
    right.legend(fontsize=9, ncols=2, loc="upper center", bbox_to_anchor=(0.5, -0.12))
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def main(arguments: Sequence[str] | None = None) -> list[Run]:
    """Run every method, print the table, draw the picture; returns the rows, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--steps", type=int, default=1500)
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)
    features, outcome = load()
    runs = [*right_ways(features, outcome, options.steps), *wrong_ways(features, outcome, options.steps)]
    print_table(runs, mean_squares(features, outcome))
    path = options.output / "three_ways.png"
    save_picture(path, runs, exact_bounded(features, outcome))
    print(
        "\nprojection: exact and feasible at every step; the default.\n"
        "barrier:    strictly inside at every step; exact as mu goes to 0. For walls that must not be touched.\n"
        "penalty:    outside by about 1/weight; the exact kind ends on the bound at a finite weight. For soft wishes.\n"
        f"picture:    {path}"
    )
    return runs


if __name__ == "__main__":
    main()
