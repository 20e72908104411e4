"""The peak memory of a bounded Adam step against what must be there: parameters, gradients and the two moments.

    make bench                        (or: python benchmarks/memory.py)

On a CPU each way runs in a process of its own, and the peak is the largest resident set during the steps, less what the
process held before the model was made. On a GPU it is torch's own count.
"""

from __future__ import annotations

import contextlib
import ctypes
import gc
import subprocess
import sys
import threading
import time

import torch
from measure import device, machine

import boxopt as bx

LEAVES, SIDE = 100, 1000
WAYS = ("pure, eager", "pure, compiled", "packed, donated", "torch.optim fused + foreach clamp")


def resident() -> int:
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * 4096


def give_back() -> None:
    """Return to the system what was freed: it belongs to making the model, not to a step."""
    gc.collect()
    with contextlib.suppress(AttributeError, OSError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


def step_of(tx: bx.GradientTransformation):
    def step(params: object, state: object, gradients: object) -> tuple:
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state

    return step


def build(way: str, leaves: int):
    """The function that makes one step, with its own parameters, gradients and state."""
    params = [torch.rand(SIDE, SIDE, device=device()) - 0.5 for _ in range(leaves)]
    if way.startswith("torch.optim"):
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = torch.optim.Adam(params, 1e-3, fused=True)

        def call() -> None:
            optimizer.step()
            torch._foreach_clamp_min_(params, -0.5)
            torch._foreach_clamp_max_(params, 0.5)

        return call
    tx = bx.chain(bx.adam(1e-3), bx.project(bx.Box(-0.5, 0.5)))
    packed, _ = bx.pack(params)
    params.clear()
    gradients = bx.Packed({"float32": torch.randn_like(packed.buffers["float32"])}, packed.layout)
    held = [packed, torch.utils._pytree.tree_map(torch.clone, tx.init(packed))]
    del packed
    step = step_of(tx)
    if way == "pure, compiled":
        step = bx.compile(step)
    elif way == "packed, donated":
        step = bx.compile(step, donate_argnums=(0, 1))

    def call() -> None:
        held[:] = step(*held, gradients)

    return call


def measure(way: str) -> float:
    """Peak over parameters + gradients + state."""
    needed = 4 * 4 * LEAVES * SIDE * SIDE
    with torch.no_grad():
        build(way, 1)()  # compilers and libraries are loaded
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
            before = torch.cuda.memory_allocated()
            call = build(way, LEAVES)
            call()
            torch.cuda.reset_peak_memory_stats()
            call()
            torch.cuda.synchronize()
            return (torch.cuda.max_memory_allocated() - before) / needed
        give_back()
        before = resident()
        call = build(way, LEAVES)
        call()
        give_back()
        peak, running = 0, True

        def watch() -> None:
            nonlocal peak
            while running:
                peak = max(peak, resident())
                time.sleep(0.0005)

        watcher = threading.Thread(target=watch)
        watcher.start()
        for _ in range(5):
            call()
        running = False
        watcher.join()
        return (peak - before) / needed


def main() -> None:
    if len(sys.argv) > 1:
        print(measure(sys.argv[1]))
        return
    print(machine())
    print(f"\n{LEAVES * SIDE * SIDE:,} parameters in float32, one bounded Adam step\n")
    print("|way | peak ÷ (parameters + gradients + state) |\n|---|---|")
    for way in WAYS:
        result = subprocess.run([sys.executable, __file__, way], capture_output=True, text=True, check=True)
        print(f"|{way} | {float(result.stdout.split()[-1]):.3f} |", flush=True)


if __name__ == "__main__":
    main()
