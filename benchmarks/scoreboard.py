"""L-BFGS-B on problems that we did not write: a table, data profiles and performance profiles.

Prints one line for each problem of CUTEst with bounds alone and at most 101 parameters, and writes
``examples/output/scoreboard.png``. A problem counts as solved at the first evaluation where the optimality
‖P(x − g) − x‖∞ is within 1e-6, or 1e-6 times that of the start where it is larger; all solvers are measured so. The
profiles (Moré and Wild, 2009) ask for f(x₀) − f(x) ≥ (1 − τ)(f(x₀) − f*), where f* is the least value that any found.
"""

from __future__ import annotations

import argparse
import time
from functools import partial
from pathlib import Path

import numpy as np
import torch
from cutest import LISTED, Problem, Trace, load, names, run_boxopt, run_scipy, tolerance

import boxopt as bx

SOLVERS = {
    "boxopt lbfgsb": partial(run_boxopt, bx.lbfgsb),
    "SciPy L-BFGS-B": run_scipy,
}
OURS, REFERENCE = "boxopt lbfgsb", "SciPy L-BFGS-B"
SLOW = 0.2  # seconds an evaluation


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--listed", action="store_true", help="only the problems of the test")
    parser.add_argument("--limit", type=int, default=1000, help="evaluations for each problem and solver")
    parser.add_argument("--output", type=Path, default=Path("examples/output/scoreboard.png"))
    arguments = parser.parse_args()
    torch.set_num_threads(1)

    print(f"{'problem':11}{'n':>4}   " + "".join(f"{name:>32}" for name in SOLVERS) + "   ratio")
    traces: dict[str, dict[str, Trace]] = {}
    tols: dict[str, float] = {}
    left_out = []
    for name in LISTED if arguments.listed else names(101):
        problem = load(name)
        begin = time.perf_counter()
        problem.evaluate(problem.start)
        if time.perf_counter() - begin > SLOW:
            left_out.append(name)
            continue
        tols[name] = tolerance(problem)
        traces[name] = {solver: run(problem, tols[name], arguments.limit) for solver, run in SOLVERS.items()}
        print(_line(problem, traces[name], tols[name]), flush=True)
    if left_out:
        print(f"left out, at more than {SLOW} s an evaluation: {', '.join(left_out)}")
    _summary(traces, tols)
    _plot(traces, arguments.output)


def _line(problem: Problem, traces: dict[str, Trace], tol: float) -> str:
    cells = []
    for trace in traces.values():
        count, value = trace.evaluations(tol), trace.value(tol)
        cells.append(f"{count if count else 'failed':>8}  f = {value:<18.10g}")
    ours, theirs = traces[OURS].evaluations(tol), traces[REFERENCE].evaluations(tol)
    ratio = f"{ours / theirs:.2f}" if ours and theirs else ""
    return f"{problem.name:11}{problem.start.size:4}   " + "".join(cells) + f"   {ratio}"


def _summary(traces: dict[str, dict[str, Trace]], tols: dict[str, float]) -> None:
    print()
    for solver in SOLVERS:
        failed = [name for name, found in traces.items() if not found[solver].evaluations(tols[name])]
        print(f"{solver}: {len(traces) - len(failed)} of {len(traces)} solved; failed: {', '.join(failed) or 'none'}")
    ratios = []
    for name, found in traces.items():
        ours, theirs = found[OURS].evaluations(tols[name]), found[REFERENCE].evaluations(tols[name])
        if ours and theirs:
            ratios.append(ours / theirs)
    print(
        f"evaluations of {OURS} over those of {REFERENCE}, where both solve: median {np.median(ratios):.2f}, "
        f"geometric mean {np.exp(np.mean(np.log(ratios))):.2f}, largest {max(ratios):.2f}"
    )
    values = {name: [found[solver].value(tols[name]) for solver in (OURS, REFERENCE)] for name, found in traces.items()}
    for word, sign in (("lower", 1), ("higher", -1)):
        differ = [name for name, (a, b) in values.items() if sign * (b - a) > 1e-6 * max(1.0, abs(b))]
        print(f"{word} by more than 1e-6 than {REFERENCE}: {', '.join(differ) or 'none'}")


def _counts(traces: dict[str, dict[str, Trace]], tau: float) -> np.ndarray:
    """Evaluations until the profiles' condition holds, solver by problem; inf where it does not."""
    table = np.full((len(SOLVERS), len(traces)), np.inf)
    for column, found in enumerate(traces.values()):
        first = next(iter(found.values())).values[0]
        least = min(np.nanmin(trace.values) for trace in found.values())
        for row, trace in enumerate(found.values()):
            reached = np.flatnonzero(first - trace.values >= (1 - tau) * (first - least))
            table[row, column] = reached[0] + 1 if reached.size else np.inf
    return table


def _plot(traces: dict[str, dict[str, Trace]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 7), layout="constrained")
    axes = figure.subplots(2, 2)
    for column, tau in enumerate((1e-3, 1e-8)):
        counts = _counts(traces, tau)
        data, performance = axes[0, column], axes[1, column]
        ratios = counts / counts.min(axis=0)
        for row, solver in enumerate(SOLVERS):
            for axis, table in ((data, counts), (performance, ratios)):
                solved = np.sort(table[row][np.isfinite(table[row])])
                share = np.arange(1, solved.size + 1) / len(traces)
                axis.step([*solved, 1e4], [*share, share[-1] if share.size else 0], where="post", label=solver)
        data.set(title=f"τ = {tau:g}", xlabel="evaluations", ylabel="problems solved", xscale="log", xlim=(1, 1000))
        performance.set(
            xlabel="evaluations / those of the best solver", ylabel="problems solved", xscale="log", xlim=(1, 32)
        )
        for axis in (data, performance):
            axis.set_ylim(0, 1.02)
            axis.legend(loc="lower right", frameon=False)
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=120)
    print(f"profiles: {path}")


if __name__ == "__main__":
    main()
