"""Bounded solvers: batches of problems against SciPy one by one, and against JAXopt under ``jit(vmap(...))``.

    python benchmarks/solve.py [SECTION ...] [--problems N] [--threads N]

Sections are functions named ``section_…`` below; without names all of them run. All is float64 and on the CPU. Every
solver gets the same starts, bounds and tolerance on the projected gradient. SciPy gets the loss and the gradient in
NumPy, written by hand, which is the fastest that it can be given; and as a user of torch has them, by
``torch.func.grad_and_value``. A loop is timed on the first problems, as if over all. What compiles does so before the
time is taken; how long that takes is printed. ``solved`` is the share of problems whose projected gradient is within
the tolerance, whoever says so.
"""

from __future__ import annotations

import argparse
import resource
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import scipy.optimize
import torch
from measure import machine

import boxopt as bx

TOL = 1e-6
SIZE = 10


class Problems(NamedTuple):
    """A family of bounded problems.

    Attributes:
        torch: The loss of one problem, of tensors.
        numpy: The loss and the gradient of one problem, of arrays.
        jax: The loss of one problem, of JAX arrays.
        start: ``[problems, SIZE]``.
        lower: Likewise.
        upper: Likewise.
        args: Further arguments, with an entry for each problem.
    """

    torch: Callable[..., Any]
    numpy: Callable[..., tuple[float, np.ndarray]]
    jax: Callable[..., Any]
    start: np.ndarray
    lower: np.ndarray
    upper: np.ndarray
    args: tuple[np.ndarray, ...] = ()


def rosenbrock(count: int, random: np.random.Generator, size: int = SIZE) -> Problems:
    """Rosenbrock's chained valley, whose minimum is outside of half of the boxes."""

    def loss(x: Any) -> Any:
        return (100 * (x[1:] - x[:-1] ** 2) ** 2 + (1 - x[:-1]) ** 2).sum()

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        inner, rest = x[1:] - x[:-1] ** 2, 1 - x[:-1]
        gradient = np.zeros_like(x)
        gradient[1:] = 200 * inner
        gradient[:-1] -= 400 * x[:-1] * inner + 2 * rest
        return float((100 * inner**2 + rest**2).sum()), gradient

    upper = random.uniform(0.5, 1.5, (count, size))
    return Problems(loss, both, loss, random.uniform(-2, 0.5, upper.shape), np.full_like(upper, -2.0), upper)


def styblinski_tang(count: int, random: np.random.Generator) -> Problems:
    """A sum of quartics with two valleys each."""

    def loss(x: Any) -> Any:
        return (x**4 - 16 * x**2 + 5 * x).sum() / 2

    def both(x: np.ndarray) -> tuple[float, np.ndarray]:
        return float((x**4 - 16 * x**2 + 5 * x).sum() / 2), 2 * x**3 - 16 * x + 2.5

    lower, upper = random.uniform(-4, -2, (count, SIZE)), random.uniform(2, 4, (count, SIZE))
    return Problems(loss, both, loss, random.uniform(lower, upper), lower, upper)


def quadratic_programs(count: int, random: np.random.Generator) -> Problems:
    """Random convex quadratics, conditioned as 100 or worse."""

    def loss(x: Any, matrix: Any, vector: Any) -> Any:
        return x @ (matrix @ x) / 2 - vector @ x

    def both(x: np.ndarray, matrix: np.ndarray, vector: np.ndarray) -> tuple[float, np.ndarray]:
        image = matrix @ x
        return float(x @ image / 2 - vector @ x), image - vector

    factor = random.normal(size=(count, SIZE, SIZE))
    matrix = factor @ factor.swapaxes(1, 2) / SIZE + 0.01 * np.eye(SIZE)
    vector = random.normal(size=(count, SIZE))
    lower, upper = -random.uniform(0.1, 1, vector.shape), random.uniform(0.1, 1, vector.shape)
    return Problems(loss, both, loss, random.uniform(lower, upper), lower, upper, (matrix, vector))


FAMILIES = {"Rosenbrock": rosenbrock, "Styblinski–Tang": styblinski_tang, "quadratic programs": quadratic_programs}


class Outcome(NamedTuple):
    """What a solver took and found.

    Attributes:
        seconds: For all problems.
        values: The losses at the points found.
        solved: The share of problems whose projected gradient is within the tolerance.
        evaluations: The mean count of a problem; NaN where a solver does not tell.
        warm_up: Seconds of compiling.
    """

    seconds: float
    values: np.ndarray
    solved: float
    evaluations: float = float("nan")
    warm_up: float = 0.0


def judged(problems: Problems, points: np.ndarray) -> tuple[np.ndarray, float]:
    """The losses at the points, and the share of them that are solutions."""
    arguments = (problems.args, range(len(points)))
    found = [problems.numpy(x, *(a[k] for a in arguments[0])) for k, x in enumerate(points)]
    values, gradients = np.array([f for f, _ in found]), np.array([g for _, g in found])
    rows = slice(len(points))
    moved = np.clip(points - gradients, problems.lower[rows], problems.upper[rows]) - points
    return values, float((np.abs(moved).max(1) <= 1.01 * TOL).mean())


def with_boxopt(problems: Problems, compiled: bool) -> Outcome:
    start, lower, upper, *args = (
        torch.from_numpy(x) for x in (problems.start, problems.lower, problems.upper, *problems.args)
    )

    def solve() -> Any:
        return bx.minimize(
            problems.torch,
            start,
            bx.lbfgsb(bx.Box(lower, upper)),
            args=tuple(args),
            batch_dims=1,
            tol=TOL,
            compile=compiled,
        )

    warm_up = timed(solve)[0] if compiled else 0.0
    seconds, result = timed(solve, rounds=3)
    values, solved = judged(problems, result.params.numpy())
    return Outcome(seconds, values, solved, float(result.steps.double().mean()), warm_up)


def through_torch(loss: Callable[..., Any]) -> Callable[..., tuple[float, np.ndarray]]:
    """A loss of tensors, and its gradient, as functions of arrays."""
    both = torch.func.grad_and_value(loss)

    def of_arrays(x: np.ndarray, *args: np.ndarray) -> tuple[float, np.ndarray]:
        gradient, value = both(torch.from_numpy(x), *(torch.from_numpy(a) for a in args))
        return float(value), gradient.numpy()

    return of_arrays


def with_scipy(problems: Problems, count: int, loss: Callable[..., tuple[float, np.ndarray]] | None = None) -> Outcome:
    """A loop over the first problems, as if over all, with the loss in NumPy unless another is given."""
    options = {"gtol": TOL, "ftol": 0.0, "maxiter": 1000}
    evaluations = []

    def solve() -> np.ndarray:
        points = []
        for k in range(count):
            found = scipy.optimize.minimize(
                loss or problems.numpy,
                problems.start[k],
                args=tuple(a[k] for a in problems.args),
                jac=True,
                method="L-BFGS-B",
                bounds=scipy.optimize.Bounds(problems.lower[k], problems.upper[k]),
                options=options,
            )
            points.append(found.x)
            evaluations.append(found.nfev)
        return np.array(points)

    seconds, points = timed(solve, rounds=3)
    values, solved = judged(problems, points)
    return Outcome(seconds * len(problems.start) / count, values, solved, float(np.mean(evaluations)))


def with_jaxopt(problems: Problems) -> Outcome:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import jax
        import jaxopt
    jax.config.update("jax_enable_x64", True)

    def solve_one(start: Any, lower: Any, upper: Any, *args: Any) -> Any:
        solver = jaxopt.LBFGSB(problems.jax, tol=TOL, maxiter=1000)
        return solver.run(start, (lower, upper), *args).params

    solve_all = jax.jit(jax.vmap(solve_one))
    arrays = [jax.numpy.asarray(x) for x in (problems.start, problems.lower, problems.upper, *problems.args)]

    def solve() -> Any:
        return jax.block_until_ready(solve_all(*arrays))

    warm_up, _ = timed(solve)
    seconds, points = timed(solve)
    values, solved = judged(problems, np.asarray(points))
    return Outcome(seconds, values, solved, warm_up=warm_up)


def timed(call: Callable[[], Any], rounds: int = 1) -> tuple[float, Any]:
    """The median seconds of a call, and what it returned."""
    times, result = [], None
    for _ in range(rounds):
        start = time.perf_counter()
        result = call()
        times.append(time.perf_counter() - start)
    return statistics.median(times), result


def section_million(count: int) -> None:
    """A million problems in float32; first of all, as the peak of memory is the process's."""
    million = 1_000_000
    random = torch.Generator().manual_seed(0)
    upper = 0.5 + torch.rand(million, SIZE, generator=random)
    start = 2.5 * torch.rand(million, SIZE, generator=random) - 2
    loss = rosenbrock(1, np.random.default_rng(0)).torch
    solve = partial(bx.minimize, loss, batch_dims=1, tol=1e-2)
    solve(start[:100], solver=bx.lbfgsb(bx.Box(-2.0, upper[:100])))
    before = peak()
    seconds, result = timed(partial(solve, start, solver=bx.lbfgsb(bx.Box(-2.0, upper))))
    print(f"\n## {million} Rosenbrock problems with {SIZE} parameters in float32, eager, to 1e-2\n")
    print(
        f"at most {peak():.2f} GiB, {before:.2f} before; {seconds:.0f} s, "
        f"{result.steps.double().mean():.0f} evaluations each, {result.converged.double().mean():.1%} solved",
        flush=True,
    )


def peak() -> float:
    """The most memory that the process has had, in GiB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def section_batches(count: int) -> None:
    """Many problems with ten parameters."""
    print(f"\n## {count} bounded problems with {SIZE} parameters, tolerance {TOL:g}\n")
    print(
        "`× SciPy`: how many times as long its loop takes, with the loss in NumPy and in torch; likewise `× JAXopt`.\n"
    )
    columns = ("problems", "solver", "seconds", "× SciPy", "× SciPy, torch", "× JAXopt")
    print(f"| {' | '.join(columns)} | solved | worse than SciPy | evaluations | warm-up |")
    print("|---" * 10 + "|")
    for name, family in FAMILIES.items():
        problems = family(count, np.random.default_rng(0))
        outcomes = {
            "SciPy, a loop, loss in NumPy": with_scipy(problems, min(count, 200)),
            "SciPy, a loop, loss in torch": with_scipy(problems, min(count, 50), through_torch(problems.torch)),
            "JAXopt, jit(vmap)": with_jaxopt(problems),
            "boxopt": with_boxopt(problems, compiled=False),
            "boxopt, compiled": with_boxopt(problems, compiled=True),
        }
        scipy_, of_torch, jaxopt_ = list(outcomes.values())[:3]
        for label, own in outcomes.items():
            some = min(len(scipy_.values), len(own.values))
            reference = scipy_.values[:some]
            worse = (own.values[:some] - reference > 1e-6 * (1 + np.abs(reference))).mean()
            print(
                f"| {name} | {label} | {own.seconds:.2f} | {scipy_.seconds / own.seconds:.1f} × | "
                f"{of_torch.seconds / own.seconds:.1f} × | {jaxopt_.seconds / own.seconds:.1f} × | "
                f"{own.solved:.1%} | {worse:.1%} | {own.evaluations:.0f} | {own.warm_up:.0f} s |",
                flush=True,
            )


def section_single(count: int) -> None:
    """One problem."""
    print(f"\n## One bounded problem with {SIZE} parameters, milliseconds\n")
    print("| problem | SciPy, NumPy | SciPy, torch | boxopt | boxopt, compiled | of NumPy | of torch | warm-up |")
    print("|---" * 8 + "|")
    for name, family in FAMILIES.items():
        problems = family(1, np.random.default_rng(0))
        start, lower, upper, *args = (
            torch.from_numpy(x[0]) for x in (problems.start, problems.lower, problems.upper, *problems.args)
        )
        box = bx.Box(lower, upper)

        solve = partial(bx.minimize, problems.torch, start, bx.lbfgsb(box), args=tuple(args), tol=TOL)
        theirs, of_torch = (with_scipy(problems, 1, loss).seconds for loss in (None, through_torch(problems.torch)))
        warm_up, _ = timed(partial(solve, compile=True))
        eager, _ = timed(solve, rounds=5)
        compiled, _ = timed(partial(solve, compile=True), rounds=15)
        print(
            f"| {name} | {1e3 * theirs:.2f} | {1e3 * of_torch:.2f} | {1e3 * eager:.1f} | {1e3 * compiled:.2f} | "
            f"{compiled / theirs:.2f} | {compiled / of_torch:.2f} | {warm_up:.0f} s |",
            flush=True,
        )


def section_long(count: int) -> None:
    """One problem with many parameters, for some evaluations."""
    some = 60
    print(f"\n## Rosenbrock's valley with many parameters: milliseconds an evaluation, of {some}\n")
    print("| parameters | the loss in torch | SciPy, NumPy | SciPy, torch | boxopt | of NumPy | of torch |")
    print("|---" * 7 + "|")
    for size in (1_000, 30_000, 1_000_000):
        problems = rosenbrock(1, np.random.default_rng(0), size)
        start, lower, upper = (torch.from_numpy(x[0]) for x in (problems.start, problems.lower, problems.upper))
        loss = timed(partial(torch.func.grad_and_value(problems.torch), start), rounds=9)[0]
        times = []
        for both in (problems.numpy, through_torch(problems.torch)):
            seconds, found = timed(
                partial(
                    scipy.optimize.minimize,
                    both,
                    problems.start[0],
                    jac=True,
                    method="L-BFGS-B",
                    bounds=scipy.optimize.Bounds(problems.lower[0], problems.upper[0]),
                    options={"gtol": 0.0, "ftol": 0.0, "maxfun": some},
                ),
                rounds=3,
            )
            times.append(seconds / found.nfev)
        solve = partial(bx.minimize, problems.torch, start, bx.lbfgsb(bx.Box(lower, upper)), tol=0.0, max_steps=some)
        own = timed(solve, rounds=3)[0] / some
        print(
            f"| {size} | {1e3 * loss:.2f} | {1e3 * times[0]:.2f} | {1e3 * times[1]:.2f} | {1e3 * own:.2f} | "
            f"{own / times[0]:.2f} | {own / times[1]:.2f} |",
            flush=True,
        )


def main() -> None:
    sections = {name.removeprefix("section_"): call for name, call in globals().items() if name.startswith("section_")}
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sections", nargs="*", choices=[*sections, []])
    parser.add_argument("--problems", type=int, default=10_000)
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(machine("scipy", "jax", "jaxopt"))
    for name in options.sections or sections:
        sections[name](options.problems)


if __name__ == "__main__":
    main()
