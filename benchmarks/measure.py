"""Timing for the benchmarks: interleaved runs, medians, and what they ran on."""

from __future__ import annotations

import platform
import statistics
import time
from collections.abc import Callable

import torch


def machine() -> str:
    """The machine and the versions, for the head of a table."""
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else platform.machine()
    return f"{device}, {torch.get_num_threads()} threads, Python {platform.python_version()}, torch {torch.__version__}"


def medians(
    candidates: dict[str, Callable[[], object]], rounds: int = 15, least_seconds: float = 0.02
) -> dict[str, float]:
    """Median seconds of a call for each candidate.

    The candidates take turns, so that a slow spell of the machine hits all of them; each turn repeats the call until
    ``least_seconds`` have passed.
    """
    repeats, times = {}, {name: [] for name in candidates}
    for name, call in candidates.items():
        call()
        start = time.perf_counter()
        call()
        repeats[name] = max(1, int(least_seconds / max(time.perf_counter() - start, 1e-9)))
    for _ in range(rounds):
        for name, call in candidates.items():
            start = time.perf_counter()
            for _ in range(repeats[name]):
                call()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return {name: statistics.median(values) for name, values in times.items()}


def table(times: dict[str, float], reference: str) -> str:
    """Milliseconds and ratios to one of the rows, as Markdown."""
    rows = [f"| {name} | {1e3 * t:.3f} | {t / times[reference]:.2f} |" for name, t in times.items()]
    return "\n".join(["| | median ms | ratio |", "|---|---|---|", *rows])
