"""An epidemic from its first days
===============================

The coefficients of a differential equation from its first days, with and without what is known of them.

::

    python examples/epidemic.py

In January 1978 influenza went through a boarding school of 763 boys; each day it was counted how many were in bed
(British Medical Journal, 4 March 1978, page 587). The textbooks' model, of those who can fall ill and those who are, ::

    susceptible' = −contact · susceptible · ill / 763
    ill'         =  contact · susceptible · ill / 763 − recovery · ill

has two coefficients, and the number of the ill on the first day is a third unknown. They are fitted by least squares
through the solution of the equations, an inverse problem, and the model then says what comes. At first the number of
the ill grows as exp((contact − recovery) · t), which tells the difference alone. So the first days leave a coefficient
open, and what is known of it has to fill in: who has influenza is ill for one to five days, 0.2 ≤ recovery ≤ 1.

For every number of days from 4 to 14, with the bounds and without, there is a fit, each with its own weights and
bounds: one call of `bx.least_squares`, whose residuals solve the equations by Runge and Kutta's method. Days that are
not known yet have the weight 0. A network in the place of the equations' solution would be more leaves in the same
tree, without bounds.

What to expect: from five days the free fit finds a recovery of −0.43 a day (the ill multiply by themselves), and 1,197
boys in bed two days later, of 763. It fits the five days better than the bounded one, half the sum of squares being
1.1 against 17.6, and the bounded one, at its bound, foretells 468; there were 258. From six days on no bound is active,
and the two are the same: 166 two days later, where 233 were counted. SciPy's `least_squares` with `solve_ivp` finds
the same bounded fits, with values that differ by less than 0.1 %.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import scipy.integrate
import scipy.optimize
import torch
from matplotlib.cm import ScalarMappable
from matplotlib.colors import BoundaryNorm
from matplotlib.figure import Figure
from torch import Tensor
from torch.func import vmap

import boxopt as bx

BOYS = 763.0
IN_BED = torch.tensor([3, 8, 26, 76, 225, 298, 258, 233, 189, 128, 68, 29, 14, 4], dtype=torch.float64)
KNOWN = torch.arange(4, len(IN_BED) + 1)  # days on which a fit is based
STEPS = 3  # of Runge and Kutta's method a day
RANGES = {"contact": (0.0, 5.0), "recovery": (0.2, 1.0), "start": (0.1, 10.0)}
START = {"contact": 1.5, "recovery": 0.5, "start": 3.0}
FREE, BOUNDED = "#d55e00", "#0072b2"


class Outcome(NamedTuple):
    """What was fitted: the first half of the fits is free, the second bounded; SciPy's values; all forecasts."""

    fit: bx.LeastSquaresResult
    theirs: Tensor
    forecasts: Tensor


def ill(p: dict[str, Tensor]) -> Tensor:
    """How many are ill each day: the solution of the equations, of log(ill), which changes less quickly."""
    contact, recovery = p["contact"] / (STEPS * BOYS), p["recovery"] / STEPS

    def slope(susceptible: Tensor, log_ill: Tensor) -> tuple[Tensor, Tensor]:
        caught = contact * susceptible
        return -caught * log_ill.exp(), caught - recovery

    s, x = BOYS - p["start"], p["start"].log()
    days = [x]
    for _ in range(len(IN_BED) - 1):
        for _ in range(STEPS):
            s1, x1 = slope(s, x)
            s2, x2 = slope(s + s1 / 2, x + x1 / 2)
            s3, x3 = slope(s + s2 / 2, x + x2 / 2)
            s4, x4 = slope(s + s3, x + x3)
            s, x = s + (s1 + 2 * (s2 + s3) + s4) / 6, x + (x1 + 2 * (x2 + x3) + x4) / 6
        days.append(x)
    return torch.stack(days).exp()


def residual(p: dict[str, Tensor]) -> Tensor:
    return ill(p) - IN_BED


def fit(max_steps: int) -> bx.LeastSquaresResult:
    """All fits in one batch: free ones of 4, 5, … days, then bounded ones."""
    count = len(KNOWN)
    known = (torch.arange(len(IN_BED)) < KNOWN[:, None]).double()
    free = torch.full((count,), torch.inf, dtype=torch.float64)
    lower = {name: torch.cat([-free, torch.full_like(free, low)]) for name, (low, _) in RANGES.items()}
    upper = {name: torch.cat([free, torch.full_like(free, high)]) for name, (_, high) in RANGES.items()}
    start = {name: torch.full((2 * count,), value, dtype=torch.float64) for name, value in START.items()}
    return bx.least_squares(
        residual, start, bx.Box(lower, upper), weights=known.repeat(2, 1), batch_dims=1, max_steps=max_steps
    )


def solve_exactly(contact: float, recovery: float, start: float) -> np.ndarray:
    """The equations as they stand, by SciPy."""

    def slope(_: float, state: np.ndarray) -> list[float]:
        caught = contact * state[0] * state[1] / BOYS
        return [-caught, caught - recovery * state[1]]

    days = np.arange(len(IN_BED))
    options = {"rtol": 1e-8, "atol": 1e-8}
    return scipy.integrate.solve_ivp(slope, (0, days[-1]), [BOYS - start, start], t_eval=days, **options).y[1]


def fit_by_scipy() -> Tensor:
    """The bounded fits one after the other: their values."""
    values = []
    for known in KNOWN.tolist():
        data = IN_BED[:known].numpy()

        def difference(x: np.ndarray, data: np.ndarray = data) -> np.ndarray:
            return solve_exactly(*x)[: len(data)] - data

        bounds = list(zip(*RANGES.values(), strict=True))
        found = scipy.optimize.least_squares(difference, list(START.values()), bounds=bounds, x_scale=(1, 0.1, 1))
        values.append(found.cost)
    return torch.tensor(values, dtype=torch.float64)


# What is shown


def print_table(outcome: Outcome) -> None:
    """A line for each number of days."""
    fit, count = outcome.fit, len(KNOWN)
    print(f"{'':6}{'recovery a day':>22}{'half the squares':>34}{'ill two days later':>30}")
    print(
        f"{'days':6}{'free':>12}{'bounded':>10}{'free':>12}{'bounded':>10}{'SciPy':>12}{'free':>14}{'bounded':>10}",
        end="",
    )
    print(f"{'counted':>10}")
    for k, days in enumerate(KNOWN.tolist()):
        recovery, value = fit.params["recovery"][[k, count + k]].tolist(), fit.value[[k, count + k]].tolist()
        line = f"{days:<6}{recovery[0]:12.3f}{recovery[1]:10.3f}{value[0]:12.2f}{value[1]:10.2f}"
        line += f"{float(outcome.theirs[k]):12.2f}"
        if days + 2 <= len(IN_BED):
            told = outcome.forecasts[[k, count + k], days + 1].tolist()
            line += f"{told[0]:14,.0f}{told[1]:10,.0f}{float(IN_BED[days + 1]):10.0f}"
        print(line)


def draw_forecasts(axes: Any, forecasts: Tensor, norm: BoundaryNorm, title: str) -> None:
    days = torch.arange(1, len(IN_BED) + 1)
    axes.axhline(BOYS, color="0.4", linestyle=":", linewidth=1.2)
    axes.text(len(IN_BED), BOYS + 8, "all boys", ha="right", color="0.3")
    colors = ScalarMappable(norm, "viridis_r")
    for known, forecast in zip(KNOWN.tolist(), forecasts, strict=True):
        color = colors.to_rgba(known)
        axes.plot(days[:known], forecast[:known], color=color, linewidth=1.2, alpha=0.6)
        axes.plot(days[known - 1 :], forecast[known - 1 :], color=color, linewidth=2, linestyle="--")
    axes.plot(days, IN_BED, "o", color="black", markersize=5, zorder=5, label="counted")
    axes.set(xlabel="day", ylabel="boys in bed", xlim=(0.7, 14.3), ylim=(0, 900), title=title)
    axes.grid(alpha=0.25)
    axes.legend(loc="center right", frameon=False)


def save_picture(path: Path, outcome: Outcome) -> None:
    """Forecasts without and with the range, and the coefficient over the days."""
    figure = Figure(figsize=(15, 5.4), layout="constrained")
    left, middle, right = figure.subplots(1, 3)
    norm, count = BoundaryNorm(np.arange(len(KNOWN) + 1) + float(KNOWN[0]) - 0.5, 256), len(KNOWN)
    free, bounded = outcome.forecasts[:count], outcome.forecasts[count:]
    at = int((KNOWN == 5).nonzero())
    draw_forecasts(left, free.clamp(max=2e3), norm, f"Free: from five days, {free[at, 6]:,.0f} of 763 boys on day 7")
    draw_forecasts(middle, bounded, norm, f"Recovery in [0.2, 1]: from five days, {bounded[at, 6]:.0f} on day 7")
    colors = ScalarMappable(norm, "viridis_r")
    figure.colorbar(colors, ax=[left, middle], label="fitted to so many days; dashed: forecast", ticks=KNOWN.tolist())
    right.axhspan(
        *RANGES["recovery"], color=BOUNDED, alpha=0.12, linewidth=0, label="allowed: ill for one to five days"
    )
    recovery = outcome.fit.params["recovery"]
    right.axhline(0, color="0.4", linewidth=1)
    right.text(14, -0.02, "below: the ill multiply", ha="right", va="top", color="0.3")
    right.plot(KNOWN, recovery[:count], "o-", color=FREE, markersize=9, label="free")
    right.plot(KNOWN, recovery[count:], "o-", color=BOUNDED, markersize=5, label="bounded")
    right.set(xlabel="days known", ylabel="recovery a day", title="The bound holds until the data can tell")
    right.grid(alpha=0.25)
    right.legend(loc="lower right")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=110)


def main(arguments: Sequence[str] | None = None) -> Outcome:
    """Fit, forecast, compare, draw; returns what was found, for the tests."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--max-steps", type=int, default=40, help="evaluations of a fit at most")
    parser.add_argument("--output", type=Path, default=Path(__file__).parent / "output")
    options = parser.parse_args(arguments)
    found = fit(options.max_steps)
    outcome = Outcome(found, fit_by_scipy(), vmap(ill)(found.params))
    print_table(outcome)
    path = options.output / "epidemic.png"
    save_picture(path, outcome)
    print(f"picture: {path}")
    return outcome


if __name__ == "__main__":
    main()
