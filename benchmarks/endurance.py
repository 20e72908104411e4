"""Long runs: memory that stays flat, nothing compiled anew, parameters that stay in the set, in threads and workers.

    python benchmarks/endurance.py [--share 1.0]

Four runs: 10⁶ compiled and donated steps, 10⁵ eager ones, 10⁴ of `TorchOptimizer` with gradients of autograd, and two
compiled ones at a time in two threads. Each prints how much the process's memory and Python's count of objects grew
over its last three quarters, and fails if that is more than noise, if anything was compiled anew or if a parameter left
the box. ``make endurance`` runs it; ``--share 0.01`` is a hundredth of it.
"""

from __future__ import annotations

import argparse
import gc
import threading
import time
from collections.abc import Callable
from pathlib import Path

import torch

import boxopt as bx

SIZE = 1000
BOX = bx.Box(-0.5, 0.75)
SAMPLES = 24
BYTES_ALLOWED = 3_000_000  # of growth: a leak of 3 bytes in each of 10⁶ steps
OBJECTS_ALLOWED = 500


def step(params: torch.Tensor, state: bx.EmptyState, noise: torch.Tensor) -> tuple[torch.Tensor, bx.EmptyState]:
    updates, state = TX.update(params - noise, state, params)
    return bx.apply_updates(params, updates), state


TX = bx.chain(bx.adam(bx.cosine_decay_schedule(0.1, 1000, alpha=0.1)), bx.project(BOX))


def resident() -> int:
    """The bytes of memory that this process has."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


def watched(name: str, count: int, advance: Callable[[int], torch.Tensor]) -> None:
    """Call ``advance`` so often, which gives the parameters, and compare memory and objects along the way."""
    every, samples, worst = max(count // SAMPLES, 1), [], 0.0
    start = time.perf_counter()
    for number in range(count):
        params = advance(number)
        if number % every == 0:
            gc.collect()
            samples.append((resident(), len(gc.get_objects())))
            worst = max(worst, bx.violation(BOX, params.detach()).item())
            assert params.isfinite().all(), f"{name}: not finite after {number} steps"
    seconds = time.perf_counter() - start
    late = samples[len(samples) // 4 :]
    grown = [_trend([float(sample[kind]) for sample in late]) for kind in (0, 1)]
    print(
        f"{name}: {count} steps in {seconds:.0f} s; in the last three quarters memory grew by {grown[0] / 1e6:+.2f} MB "
        f"of {late[-1][0] / 1e6:.0f} MB, objects by {grown[1]:+.0f} of {late[-1][1]}; violation {worst}",
        flush=True,
    )
    assert worst == 0, f"{name} left the box"
    assert grown[0] < BYTES_ALLOWED, f"{name} leaks memory"
    assert grown[1] < OBJECTS_ALLOWED, f"{name} leaks objects"


def _trend(values: list[float]) -> float:
    """The growth along the line of least squares."""
    y = torch.tensor(values, dtype=torch.float64)
    x = torch.linspace(-0.5, 0.5, len(values), dtype=torch.float64)
    return float((x * (y - y.mean())).sum() / (x * x).sum())


def noises() -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(SIZE, generator=generator) for _ in range(7)]


def compiled(name: str, count: int, fast: Callable[..., tuple[torch.Tensor, bx.EmptyState]]) -> None:
    """Steps that write over their arguments."""
    drawn, carry = noises(), [torch.zeros(SIZE)]
    carry.append(TX.init(carry[0]))
    carry[:] = fast(*carry, drawn[0])

    def advance(number: int) -> torch.Tensor:
        carry[:] = fast(*carry, drawn[number % 7])
        return carry[0]

    with torch._dynamo.config.patch(error_on_recompile=True):
        watched(name, count, advance)
    assert int(bx.tree_get(carry[1], "0.0.count")) == count + 1


def eager(count: int) -> None:
    """Pure steps on parameters that require gradients, as loops of beginners have: no graph may grow."""
    drawn, carry = noises(), [torch.zeros(SIZE)]
    carry.append(TX.init(carry[0]))

    def advance(number: int) -> torch.Tensor:
        params = carry[0].detach().requires_grad_()
        (gradient,) = torch.autograd.grad((params - drawn[number % 7]).square().sum(), params)
        with torch.no_grad():
            updates, carry[1] = TX.update(gradient, carry[1], params)
            carry[0] = bx.apply_updates(params, updates)
        assert carry[0].grad_fn is None
        return carry[0]

    watched("eager", count, advance)


def torch_optimizer(count: int) -> None:
    """`TorchOptimizer`, with ``backward`` and ``zero_grad``."""
    drawn, params = noises(), torch.nn.Parameter(torch.zeros(SIZE))
    optimizer = bx.TorchOptimizer([params], TX)

    def advance(number: int) -> torch.Tensor:
        optimizer.zero_grad()
        (params - drawn[number % 7]).square().sum().backward()
        optimizer.step()
        return params

    watched("TorchOptimizer", count, advance)


def in_threads(count: int, fast: Callable[..., tuple[torch.Tensor, bx.EmptyState]]) -> None:
    """Two runs at the same time; their results are those of one alone, to the bit."""
    drawn = noises()

    def run(results: list[torch.Tensor], place: int) -> None:
        params = torch.zeros(SIZE)
        state = TX.init(params)
        for number in range(count):
            params, state = fast(params, state, drawn[number % 7])
        results[place] = params

    results = [torch.empty(0)] * 3
    run(results, 0)
    threads = [threading.Thread(target=run, args=(results, place)) for place in (1, 2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])
    print(f"two threads: {count} steps each, and the results of one alone", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--share", type=float, default=1.0, help="of the steps to run")
    share = parser.parse_args().share
    torch.set_num_threads(1)
    fast = bx.compile(step, donate_argnums=(0, 1))
    torch_optimizer(int(1e4 * share))
    eager(int(1e5 * share))
    compiled("compiled, donated", int(1e6 * share), fast)
    in_threads(int(1e4 * share), fast)


if __name__ == "__main__":
    main()
