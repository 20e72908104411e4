"""Seconds of the first call of a compiled bounded Adam step, packed and leaf by leaf, against JAX and torch.optim.

    make bench                        (or: python benchmarks/compile_time.py [--curve])

Each in a process of its own with empty caches. Leaf by leaf it grows with the leaves; packed it does not.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile

from measure import machine, plot

CODE = """
import sys, time, warnings
warnings.simplefilter("ignore")
way, leaves, members = sys.argv[1], int(sys.argv[2]), 1
import torch
torch.manual_seed(0)
shapes = [(40, 52)] * leaves
if way == "optax jit":
    import jax, jax.numpy as jnp, optax
    params = [jnp.zeros(shape) for shape in shapes]
    tx = optax.adam(1e-3)
    def step(p, s, g):
        u, s = tx.update(g, s, p)
        return [jnp.clip(x, -0.5, 0.5) for x in optax.apply_updates(p, u)], s
    state, fast = tx.init(params), jax.jit(step)
    start = time.perf_counter()
    jax.block_until_ready(fast(params, state, params))
elif way == "torch.optim compiled + clamp":
    params = [torch.zeros(shape) for shape in shapes]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = torch.optim.Adam(params, 1e-3)
    @torch.compile
    def step():
        optimizer.step()
        torch._foreach_clamp_min_(params, -0.5)
        torch._foreach_clamp_max_(params, 0.5)
    start = time.perf_counter()
    step()
else:
    import boxopt as bx
    box = bx.Box(-0.5, 0.5)
    tx = bx.chain(bx.adam(1e-3), bx.project(box))
    if "barrier" in way:
        tx = bx.chain(tx, bx.barrier(box, 1e-4))
    params = [torch.zeros(shape) for shape in shapes]
    if "packed" in way:
        params, _ = bx.pack([torch.zeros(shape) for shape in shapes])
    def step(p, s, g):
        u, s = tx.update(g, s, p)
        return bx.apply_updates(p, u), s
    fast, gradients = bx.compile(step, donate_argnums=(0, 1)), torch.utils._pytree.tree_map(torch.ones_like, params)
    state = tx.init(params)
    torch.compile(lambda x: x + 1)(torch.zeros(1))  # the compiler itself is loaded
    start = time.perf_counter()
    fast(params, state, gradients)
print(time.perf_counter() - start)
"""
WAYS = (
    "boxopt, packed",
    "boxopt, packed, with barrier",
    "boxopt, leaf by leaf",
    "torch.optim compiled + clamp",
    "optax jit",
)


def first_call(way: str, leaves: int, limit: float) -> float | None:
    with tempfile.TemporaryDirectory() as cache:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            result = subprocess.run(
                [sys.executable, "-c", CODE, way, str(leaves)],
                env=environment, capture_output=True, text=True, timeout=limit, check=True,
            )  # fmt: skip
        except subprocess.TimeoutExpired:
            return None
    return float(result.stdout.split()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", action="store_true", help="2 to 512 leaves, all ways, and a plot: half an hour")
    parser.add_argument("--limit", type=float, default=240, help="seconds after which a way is given up")
    arguments = parser.parse_args()
    print(machine("optax", "jax"))
    leaves = [2, 8, 32, 128, 200, 512] if arguments.curve else [200]
    ways = WAYS if arguments.curve else (WAYS[0], WAYS[1], WAYS[4])
    curves: dict[str, dict[float, float]] = {way: {} for way in ways}
    print("\n|way | " + " | ".join(f"{n} leaves" for n in leaves) + " |\n" + "|---" * (len(leaves) + 1) + "|")
    for way in ways:
        cells, given_up = [], False
        for count in leaves:
            seconds = None if given_up else first_call(way, count, arguments.limit)
            given_up = given_up or seconds is None
            cells.append("-" if seconds is None else f"{seconds:.1f} s")
            if seconds is not None:
                curves[way][count] = seconds
        print(f"|{way} | {' | '.join(cells)} |", flush=True)
    if arguments.curve:
        plot(curves, "compile_time", "leaves", "seconds of the first call", "Compiling a bounded Adam step")


if __name__ == "__main__":
    main()
