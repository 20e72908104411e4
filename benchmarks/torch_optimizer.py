"""One bounded Adam step of `TorchOptimizer` against torch's fused Adam and a clamp, with the gradients given.

Run by ``make bench``, or as ``python benchmarks/torch_optimizer.py``; with ``--cpu-time``, for a machine that others
use too, the time that the process was at work, with one thread.
"""

from __future__ import annotations

import argparse
import gc
import time
from collections.abc import Callable

import torch
from measure import device, machine, medians, table

import boxopt as bx

LOW, HIGH, RATE = -0.5, 0.5, 1e-3
SIZES = {
    "416,000 parameters, 200 tensors": [(40, 52)] * 200,
    "22,348,800 parameters, 160 tensors": [(480, 580), (960,)] * 80,
}
THEIRS = "torch.optim.Adam(fused=True) + foreach clamp"


def draw(shapes: list[tuple[int, ...]]) -> list[torch.nn.Parameter]:
    params = [torch.nn.Parameter(torch.rand(shape, device=device()) - 0.5) for shape in shapes]
    for param in params:
        param.grad = torch.randn_like(param)
    return params


def make(lr: float | torch.Tensor) -> bx.GradientTransformation:
    return bx.chain(bx.adam(lr), bx.project(bx.Box(LOW, HIGH)))


def ours(shapes: list[tuple[int, ...]], fused: bool) -> Callable[[], object]:
    return bx.TorchOptimizer(draw(shapes), make, lr=RATE, fused=fused).step


def by_name(shapes: list[tuple[int, ...]]) -> Callable[[], object]:
    """Matrices in the box, vectors free, as `bx.bound_module` would have it."""
    named = [(f"{n}.{'weight' if p.ndim > 1 else 'bias'}", p) for n, p in enumerate(draw(shapes))]
    inside = bx.sets.ByPath({"*.weight": bx.Box(LOW, HIGH)})
    return bx.TorchOptimizer(named, lambda lr: bx.chain(bx.adam(lr), bx.project(inside)), lr=RATE, fused=True).step


def theirs(shapes: list[tuple[int, ...]]) -> Callable[[], object]:
    params = draw(shapes)
    optimizer = torch.optim.Adam(params, RATE, fused=True)

    @torch.no_grad()
    def step() -> None:
        optimizer.step()
        torch._foreach_clamp_min_(params, LOW)
        torch._foreach_clamp_max_(params, HIGH)

    return step


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cpu-time", action="store_true", help="one thread, and the time that it was at work")
    clock = time.perf_counter
    if parser.parse_args().cpu_time:
        torch.set_num_threads(1)
        clock = time.process_time
    torch.manual_seed(0)
    print(machine())
    for name, shapes in SIZES.items():
        gc.collect()
        steps = {"TorchOptimizer(fused=True)": ours(shapes, True), THEIRS: theirs(shapes)}
        steps["TorchOptimizer(fused=True), a box by name"] = by_name(shapes)
        if len(shapes) == 200:
            steps["TorchOptimizer"] = ours(shapes, False)
        print(f"\n### {name}\n\n{table(medians(steps, clock=clock), THEIRS)}", flush=True)


if __name__ == "__main__":
    main()
