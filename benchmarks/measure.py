"""Timing for the benchmarks: interleaved runs, medians, what they ran on, tables and plots."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path

import torch

RESULTS = Path(__file__).parent / "results"


def device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def machine(*packages: str) -> str:
    """The machine and the versions, for the head of a table."""
    name = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    versions = ", ".join(f"{package} {metadata.version(package)}" for package in ("torch", "optree", *packages))
    return f"{name}, {torch.get_num_threads()} threads, Python {platform.python_version()}, {versions}"


def synchronize() -> None:
    """Wait for the GPU."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def medians(
    candidates: dict[str, Callable[[], object]],
    rounds: int = 15,
    least_seconds: float = 0.02,
    clock: Callable[[], float] = time.perf_counter,
) -> dict[str, float]:
    """Median seconds of a call for each candidate.

    The candidates take turns, so that a slow spell of the machine hits all of them; each turn repeats the call until
    ``least_seconds`` have passed by the ``clock``.
    """
    repeats, times = {}, {name: [] for name in candidates}
    for name, call in candidates.items():
        for _ in range(3):
            call()
        synchronize()
        start = clock()
        call()
        synchronize()
        repeats[name] = max(1, int(least_seconds / max(clock() - start, 1e-9)))
    for _ in range(rounds):
        for name, call in candidates.items():
            start = clock()
            for _ in range(repeats[name]):
                call()
            synchronize()
            times[name].append((clock() - start) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def table(times: dict[str, float], *references: str) -> str:
    """Milliseconds and ratios to some of the rows, as Markdown."""
    references = tuple(name for name in references if name in times)
    head = " | ".join(["", "median ms", *(f"÷ {name}" for name in references)])
    rows = [
        " | ".join([name, f"{1e3 * t:.3f}", *(f"{t / times[reference]:.2f}" for reference in references)])
        for name, t in times.items()
    ]
    return "\n".join([f"|{head} |", "|---" * (2 + len(references)) + "|", *(f"| {row} |" for row in rows)])


def plot(curves: dict[str, dict[float, float]], name: str, x: str, y: str, title: str) -> None:
    """Curves on logarithmic axes, saved among the results."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(figsize=(7, 4.5), layout="constrained")
    for label, points in curves.items():
        own = label.startswith("boxopt")
        axes.loglog(list(points), list(points.values()), marker="o", ms=4, lw=2.2 if own else 1.2, label=label)
    axes.set(xlabel=x, ylabel=y, title=title)
    axes.grid(alpha=0.3)
    axes.legend(fontsize=7)
    figure.savefig(RESULTS / f"{name}.png", dpi=110)
    plt.close(figure)
