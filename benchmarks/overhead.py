"""The cost of one eager update by the number of leaves, each of one number: Python and dispatch, no arithmetic.

make bench                        (or: python benchmarks/overhead.py [--curve] [--processor])
"""

from __future__ import annotations

import argparse
import time
import warnings
from collections.abc import Callable

import torch
from measure import machine, medians, plot

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import torchopt


def steps(leaves: int) -> dict[str, Callable[[], object]]:
    params = {f"leaf{index}": torch.zeros(1) for index in range(leaves)}
    gradients = {name: torch.ones(1) for name in params}
    chains = {
        "boxopt: adam → project": bx.chain(bx.adam(1e-3), bx.project(bx.Box(-0.5, 0.5))),
        "boxopt: packed(adam → project)": bx.packed(bx.chain(bx.adam(1e-3), bx.project(bx.Box(-0.5, 0.5)))),
        "boxopt: sgd": bx.sgd(1e-3),
        "boxopt: identity": bx.identity(),
    }

    def updating(tx: bx.GradientTransformation) -> Callable[[], object]:
        state = tx.init(params)
        return lambda: bx.apply_updates(params, tx.update(gradients, state, params)[0])

    calls = {name: updating(tx) for name, tx in chains.items()}
    adam = torchopt.adam(1e-3)
    state = adam.init(params)
    calls["TorchOpt: adam"] = lambda: adam.update(gradients, state, params=params, inplace=False)
    tensors = [torch.zeros(1) for _ in range(leaves)]
    for tensor in tensors:
        tensor.grad = torch.ones(1)
    optimizer = torch.optim.Adam(tensors, 1e-3, foreach=False)

    def loop() -> None:
        optimizer.step()
        torch._foreach_clamp_min_(tensors, -0.5)
        torch._foreach_clamp_max_(tensors, 0.5)

    calls["torch.optim foreach=False + clamp"] = loop
    return calls


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", action="store_true", help="1 to 1,024 leaves and a plot")
    parser.add_argument("--processor", action="store_true", help="processor time, on one thread: for a busy machine")
    arguments = parser.parse_args()
    if arguments.processor:
        torch.set_num_threads(1)
    clock = time.process_time if arguments.processor else time.perf_counter
    print(machine("torchopt"))
    counts = [1, 4, 16, 64, 256, 1024] if arguments.curve else [4, 200]
    curves: dict[str, dict[float, float]] = {}
    with torch.no_grad():
        for count in counts:
            for name, seconds in medians(steps(count), rounds=9, clock=clock).items():
                curves.setdefault(name, {})[count] = 1e6 * seconds
    print("\n|microseconds a step | " + " | ".join(f"{n} leaves" for n in counts) + " |")
    print("|---" * (len(counts) + 1) + "|")
    for name, points in curves.items():
        print(f"|{name} | " + " | ".join(f"{points[count]:.0f}" for count in counts) + " |")
    if arguments.curve:
        plot(curves, "overhead", "leaves of one number", "microseconds a step", "What an eager update costs")


if __name__ == "__main__":
    main()
