"""Projections onto sets, against every peer on this machine and one pass over the same memory.

    make bench                        (or: python benchmarks/sets.py [NAME ...] [--eager] [--one-core] [--rounds N])

All get the same float32 numbers. JAX's functions are compiled, and mapped over the batch with ``jax.vmap`` (not for
a batch of one); loops in Python call a library vector by vector, and what takes long is timed on one vector alone,
which its name says. ``--one-core`` keeps all to one core and takes the time that the process has spent on it, which
other processes on the machine do not change; without it, theirs is the time of the clock. ``error`` is the largest
difference from boxopt's projection of the same numbers in float64: it shows that all compute the same. The floor is
``torch.clamp`` with two numbers, one pass that reads and writes as much.
"""

from __future__ import annotations

import argparse
import gc
import os
import time
import warnings
from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from measure import device, machine, medians, synchronize

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import cvxpy
    import entmax
    import jax
    import jax.numpy as jnp
    import jaxopt
    import optax
    import ot
    from jaxopt.isotonic import isotonic_l2_pav
    from scipy.optimize import brentq
    from sklearn.isotonic import isotonic_regression

Call = Callable[[], Any]
Clock = Callable[[], float]
SHAPES = [(1, 1_000_000), (10_000, 100), (64, 4096)]
FLOOR, JAXOPT = "torch.clamp, one pass", "JAXopt, jit"
SLOW = 0.5  # seconds, from which on a call is timed three times and takes no turns


class Case(NamedTuple):
    """A set, numbers to project, and peers.

    Attributes:
        points: What is projected, ``[batch, ...]``.
        set: Onto what, for float32 and float64.
        compiled: Functions of one vector, for JAX, by name.
        peers: Other calls, by name; in a name, ``one of`` says that only the first vector is projected.
        step: The step sizes whose metric is meant, or 1.
    """

    points: torch.Tensor
    set: Callable[[torch.dtype], Any]
    compiled: dict[str, Callable[[Any], Any]]
    peers: dict[str, Call]
    step: Any = 1.0


def each(function: Callable[[np.ndarray], Any], points: np.ndarray) -> Call:
    """A loop in Python over the batch."""
    return lambda: np.stack([function(point) for point in points])


def on_first(function: Callable[[np.ndarray], Any], points: np.ndarray) -> Call:
    return lambda: function(points[0])


def simplex(x: torch.Tensor) -> Case:
    points = x.numpy(force=True)

    def root(y: np.ndarray) -> np.ndarray:
        def excess(threshold: float) -> float:
            return float(np.maximum(y - threshold, 0).sum()) - 1.0

        return np.maximum(y - brentq(excess, y.max() - 1.0, y.max()), 0)

    def program(y: np.ndarray) -> np.ndarray:
        weights = cvxpy.Variable(len(y))
        cvxpy.Problem(cvxpy.Minimize(cvxpy.sum_squares(weights - y)), [weights >= 0, cvxpy.sum(weights) == 1]).solve()
        return weights.value

    peers = {
        "entmax.sparsemax": lambda: entmax.sparsemax(x, dim=-1),
        f"SciPy brentq, one of {len(x)}": on_first(root, points.astype(np.float64)),
    }
    if x.shape[-1] <= 5000:
        peers[f"cvxpy, one of {len(x)}"] = on_first(program, points.astype(np.float64))
    return Case(
        x,
        lambda dtype: bx.sets.Simplex(),
        {JAXOPT: jaxopt.projection.projection_simplex, "optax, jit": optax.projections.projection_simplex},
        peers,
    )


def l1_ball(x: torch.Tensor) -> Case:
    """A tenth of the norm's mean for normal numbers: about a seventh of the entries stay."""
    radius = 0.08 * x.shape[-1]
    return Case(
        x,
        lambda dtype: bx.sets.L1Ball(radius),
        {
            JAXOPT: partial(jaxopt.projection.projection_l1_ball, max_value=radius),
            "optax, jit": partial(optax.projections.projection_l1_ball, scale=radius),
        },
        {},
    )


def l2_ball(x: torch.Tensor) -> Case:
    radius = x.shape[-1] ** 0.5 / 2
    return Case(
        x,
        lambda dtype: bx.sets.L2Ball(radius),
        {
            JAXOPT: partial(jaxopt.projection.projection_l2_ball, max_value=radius),
            "optax, jit": partial(optax.projections.projection_l2_ball, scale=radius),
        },
        {},
    )


def linf_ball(x: torch.Tensor) -> Case:
    return Case(
        x,
        lambda dtype: bx.sets.LInfBall(1.0),
        {
            JAXOPT: partial(jaxopt.projection.projection_linf_ball, max_value=1.0),
            "optax, jit": partial(optax.projections.projection_linf_ball, scale=1.0),
        },
        {},
    )


def box(x: torch.Tensor) -> Case:
    """Bounds of their own for each coordinate."""
    low, high = -torch.rand(x.shape[-1], device=x.device), torch.rand(x.shape[-1], device=x.device)
    bounds = jnp.asarray(low.numpy(force=True)), jnp.asarray(high.numpy(force=True))
    return Case(
        x,
        lambda dtype: bx.Box(low, high),
        {
            JAXOPT: lambda y: jaxopt.projection.projection_box(y, bounds),
            "optax, jit": lambda y: optax.projections.projection_box(y, *bounds),
        },
        {},
    )


def capped_simplex(x: torch.Tensor) -> Case:
    """Between 0 and 1 each, a quarter of their number in all: three in five entries are at a bound."""
    n = x.shape[-1]
    section = jnp.zeros(n), jnp.ones(n), jnp.ones(n), n / 4
    return Case(
        x,
        lambda dtype: bx.sets.BoxHyperplane(0.0, 1.0, 1.0, n / 4),
        {JAXOPT: lambda y: jaxopt.projection.projection_box_section(y, section)},
        {},
    )


def halfspace(x: torch.Tensor) -> Case:
    """Nearly all vectors are outside."""
    normal, offset = torch.randn(x.shape[-1], device=x.device), -3 * x.shape[-1] ** 0.5
    plain = jnp.asarray(normal.numpy(force=True))
    return Case(
        x,
        lambda dtype: bx.sets.Halfspace(normal.to(dtype), offset),
        {
            JAXOPT: lambda y: jaxopt.projection.projection_halfspace(y, (plain, offset)),
            "optax, jit": lambda y: optax.projections.projection_halfspace(y, plain, offset),
        },
        {},
    )


def hyperplane(x: torch.Tensor) -> Case:
    normal = torch.randn(x.shape[-1], device=x.device)
    plain = jnp.asarray(normal.numpy(force=True))
    return Case(
        x,
        lambda dtype: bx.sets.Hyperplane(normal.to(dtype), 1.0),
        {
            JAXOPT: lambda y: jaxopt.projection.projection_hyperplane(y, (plain, 1.0)),
            "optax, jit": lambda y: optax.projections.projection_hyperplane(y, plain, 1.0),
        },
        {},
    )


def monotone(x: torch.Tensor) -> Case:
    """A slope under noise. JAXopt calls back into Python, which is slow unless numba is there: one vector of it."""
    x = x + torch.linspace(0, 0.1, x.shape[-1], device=x.device)
    points = x.numpy(force=True)
    peers = {"scikit-learn, a loop": each(isotonic_regression, points)}
    if x.shape[-1] <= 5000:
        peers[f"{JAXOPT}, one of {len(x)}"] = jitted(isotonic_l2_pav, x[:1])
    return Case(x, lambda dtype: bx.sets.Monotone(), {}, peers)


def transport(x: torch.Tensor) -> Case:
    """Doubly stochastic, but for the scale."""
    rows, columns = x.shape[-2:]
    row, column = np.full(rows, 1 / rows), np.full(columns, 1 / columns)
    marginals = jnp.asarray(row, jnp.float32), jnp.asarray(column, jnp.float32)

    def smooth(y: np.ndarray) -> np.ndarray:
        return ot.smooth.smooth_ot_semi_dual(row, column, -y, 1.0, reg_type="l2", numItermax=1000, stopThr=1e-9)

    return Case(
        x,
        lambda dtype: bx.sets.TransportPolytope(1 / rows, 1 / columns),
        {JAXOPT: lambda y: jaxopt.projection.projection_transport(y, marginals)},
        {"POT, a loop": each(smooth, x.numpy(force=True).astype(np.float64))},
    )


def psd(x: torch.Tensor) -> Case:
    """Neither peer has the set: the same mathematics by hand."""

    def clipped(y: Any) -> Any:
        values, vectors = jnp.linalg.eigh((y + y.T) / 2)
        return (vectors * jnp.maximum(values, 0)) @ vectors.T

    def by_hand() -> torch.Tensor:
        values, vectors = torch.linalg.eigh((x + x.mT) / 2)
        return (vectors * values.clamp_min(0.0).unsqueeze(-2)) @ vectors.mT

    return Case(x, lambda dtype: bx.sets.PSD(), {"JAX by hand, jit": clipped}, {"torch by hand": by_hand})


def in_metric(x: torch.Tensor, case: Callable[[torch.Tensor], Case]) -> Case:
    """Step sizes over a factor of 50. No peer has this."""
    step = torch.randn(x.shape, device=x.device).exp()
    return Case(x, case(x).set, {}, {}, step)


CASES: dict[str, tuple[Callable[[torch.Tensor], Case], list[tuple[int, ...]]]] = {
    "simplex": (simplex, SHAPES),
    "L1 ball": (l1_ball, SHAPES),
    "L2 ball": (l2_ball, SHAPES),
    "L∞ ball": (linf_ball, SHAPES),
    "box": (box, SHAPES),
    "capped simplex": (capped_simplex, SHAPES),
    "halfspace": (halfspace, SHAPES),
    "hyperplane": (hyperplane, SHAPES),
    "monotone": (monotone, SHAPES),
    "transport": (transport, [(64, 32, 32)]),
    "PSD": (psd, [(256, 16, 16)]),
    "simplex in a metric": (partial(in_metric, case=simplex), SHAPES),
    "L2 ball in a metric": (partial(in_metric, case=l2_ball), SHAPES),
    "capped simplex in a metric": (partial(in_metric, case=capped_simplex), SHAPES),
}


def jitted(function: Callable[[Any], Any], points: torch.Tensor) -> Call:
    values = jnp.asarray(points.numpy(force=True))
    if len(values) == 1:
        compiled, values = jax.jit(function), values[0]
    else:
        compiled = jax.jit(jax.vmap(function))
    return lambda: jax.block_until_ready(compiled(values))


def candidates(case: Case, eager: bool) -> dict[str, Call]:
    set_, points, step = case.set(torch.float32), case.points, case.step
    calls: dict[str, Call] = {"boxopt, eager": lambda: set_.project(points, step)}
    if not eager:
        fast = torch.compile(lambda x, step: set_.project(x, step), fullgraph=True, dynamic=False)
        calls["boxopt, compiled"] = lambda: fast(points, step)
    calls |= {name: jitted(function, points) for name, function in case.compiled.items()}
    return {**calls, **case.peers, FLOOR: lambda: torch.clamp(points, -1.0, 1.0)}


def measured(calls: dict[str, Call], rounds: int, clock: Clock) -> dict[str, float]:
    def once(call: Call) -> float:
        start = clock()
        call()
        synchronize()
        return clock() - start

    for call in calls.values():
        call()
    slow = {name: seconds for name, call in calls.items() if (seconds := once(call)) > SLOW}
    times = medians({name: call for name, call in calls.items() if name not in slow}, rounds, clock=clock)
    times |= {name: sorted((seconds, once(calls[name]), once(calls[name])))[1] for name, seconds in slow.items()}
    return {name: times[name] for name in calls}


def error(call: Call, exact: torch.Tensor) -> float:
    result = call()
    values = result.numpy(force=True) if isinstance(result, torch.Tensor) else np.asarray(result)
    exact = exact if values.size == exact.numel() else exact[:1]
    return float(np.abs(values.reshape(exact.shape) - exact.numpy(force=True)).max())


def report(name: str, shape: tuple[int, ...], case: Case, rounds: int, eager: bool, clock: Clock) -> None:
    calls = candidates(case, eager)
    times = measured(calls, rounds, clock)
    step = case.step.double() if isinstance(case.step, torch.Tensor) else case.step
    exact = case.set(torch.float64).project(case.points.double(), step)
    references = [reference for reference in (JAXOPT, FLOOR) if reference in times]
    print(f"\n### {name}, {list(shape)}\n")
    print("| " + " | ".join(["", "median ms", *(f"÷ {reference}" for reference in references), "error"]) + " |")
    print("|---" * (3 + len(references)) + "|")
    for candidate, seconds in times.items():
        ratios = [f"{seconds / times[reference]:.2f}" for reference in references]
        difference = "" if candidate == FLOOR else f"{error(calls[candidate], exact):.0e}"
        print(f"| {' | '.join([candidate, f'{1e3 * seconds:.3f}', *ratios, difference])} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"only these: {', '.join(CASES)}")
    parser.add_argument("--eager", action="store_true", help="without torch.compile, which takes most of the time")
    parser.add_argument("--one-core", action="store_true", help="keep to one core, and take the time spent on it")
    parser.add_argument("--rounds", type=int, default=9, help="turns of each candidate")
    arguments = parser.parse_args()
    if unknown := set(arguments.names) - set(CASES):
        parser.error(f"no such case: {', '.join(sorted(unknown))}")
    if arguments.one_core:  # before JAX counts the cores
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
        torch.set_num_threads(1)
    clock = time.process_time if arguments.one_core else time.perf_counter
    warnings.filterwarnings("ignore", message="Numba could not be imported")
    print(machine("jax", "jaxopt", "optax", "entmax", "POT", "scikit-learn", "scipy", "cvxpy"))
    for name in arguments.names or CASES:
        make, shapes = CASES[name]
        for shape in shapes:
            torch.manual_seed(0)
            torch._dynamo.reset()
            gc.collect()
            with torch.no_grad():
                case = make(torch.randn(shape, device=device()))
                report(name, shape, case, arguments.rounds, arguments.eager, clock)


if __name__ == "__main__":
    main()
