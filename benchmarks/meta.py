"""The outer gradient through bounded inner steps: 32 tasks, each a network of two hidden layers of 40.

    make bench                        (or: python benchmarks/meta.py [--parts steps compile memory])

A task has ten points; its network takes 5 or 50 steps of SGD or Adam and a box from a start that all share, and the
derivative of the mean loss after them with respect to the start is what is timed. The peers clamp after each step.

- steps: medians of interleaved calls. TorchOpt and higher in their loops over tasks, and TorchOpt also under `vmap`,
  eager and compiled where it compiles; a peer that fails is named with its error. Each table is followed by what the
  best of ours is over each peer's best, and by what it should be.
- compile: seconds of the first call, at 5 and at 500 inner steps, in a process of its own with empty caches; of
  TorchOpt's compiled way too.
- memory: peak resident memory and seconds at 1,000 inner steps, with checkpoints and without, each in its own process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable
from itertools import pairwise
from typing import Any, cast

import torch
from measure import device, machine, medians, table
from memory import give_back, resident
from torch.func import grad, vmap

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jax
    import jax.numpy as jnp
    import optax
    import torchopt

SIZES, TASKS, POINTS = (1, 40, 40, 1), 32, 10
HIGH = 0.4
RATES = {"sgd": 0.01, "adam": 0.001}
OWN, JAX, THEIRS, LOOP = "boxopt", "JAX", "TorchOpt, vmap", "TorchOpt, loop over tasks"
SHORT = 5  # the most inner steps that are compiled as one
# bx.compile has the inductor keep intermediate results early. What it keeps for a derivative's way back are then also
# conditions, which it stores one by one on a CPU; with its own threshold it works them out again.
AS_A_WHOLE = {"realize_opcount_threshold": 30}
Weights = Any  # a list or tuple of tensors
Step = Callable[[], Any]


def draw() -> tuple[Weights, torch.Tensor, torch.Tensor]:
    """The start, and the points of every task."""
    torch.manual_seed(0)
    weights = []
    for inputs, outputs in pairwise(SIZES):
        weights += [torch.randn(inputs, outputs) * (2 / inputs) ** 0.5, torch.zeros(outputs)]
    x = 10 * torch.rand(TASKS, POINTS, 1) - 5
    y = (1 + 4 * torch.rand(TASKS, 1, 1)) * torch.sin(x)
    return [leaf.clamp(-HIGH, HIGH).to(device()) for leaf in weights], x.to(device()), y.to(device())


def loss(weights: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    w1, b1, w2, b2, w3, b3 = weights
    return ((torch.relu(torch.relu(x @ w1 + b1) @ w2 + b2) @ w3 + b3 - y) ** 2).mean()


# boxopt


def transformation(kind: str) -> bx.GradientTransformation:
    return bx.chain(getattr(bx, kind)(RATES[kind]), bx.project(bx.Box(-HIGH, HIGH)))


def whole(kind: str, length: int, checkpoint: bool = False) -> Callable[..., Weights]:
    """The outer gradient as one function, as one writes it."""
    tx = transformation(kind)

    def of_task(start: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        def step(carry: Any, _: None) -> Any:
            weights, state = carry
            updates, state = tx.update(grad(loss)(weights, x, y), state, weights)
            return (bx.apply_updates(weights, updates), state), None

        (weights, _), _ = bx.unroll(step, (start, tx.init(start)), length=length, checkpoint=checkpoint or None)
        return loss(weights, x, y)

    def outer(start: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return vmap(of_task, in_dims=(None, 0, 0))(start, x, y).mean()

    return grad(outer)


def by_steps(kind: str, length: int) -> Callable[..., tuple[torch.Tensor, ...]]:
    """A step of the whole batch, compiled by itself, under autograd."""
    tx = transformation(kind)

    def advance(weights: Weights, state: Any, x: torch.Tensor, y: torch.Tensor) -> Any:
        updates, state = tx.update(grad(loss)(weights, x, y), state, weights)
        return bx.apply_updates(weights, updates), state

    @bx.compile
    def step(carry: Any, _: None, x: torch.Tensor, y: torch.Tensor) -> Any:
        weights, state = carry
        return vmap(advance)(weights, state, x, y), None

    @bx.compile
    def end(weights: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return vmap(loss)(weights, x, y).mean()

    def outer_gradient(start: Weights, x: torch.Tensor, y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        start = [leaf.detach().requires_grad_() for leaf in start]
        weights = [leaf.expand(TASKS, *leaf.shape) for leaf in start]
        carry = weights, vmap(tx.init)([leaf.detach() for leaf in weights])
        (weights, _), _ = bx.unroll(step, carry, length=length, args=(x, y))
        return torch.autograd.grad(end(weights, x, y), start)

    return outer_gradient


def boxopt_steps(kind: str, length: int) -> dict[str, Step]:
    data = draw()
    ways: dict[str, Callable] = {
        "boxopt, eager": whole(kind, length),
        "boxopt, a step compiled": by_steps(kind, length),
    }
    if length <= SHORT:
        ways["boxopt, all compiled"] = bx.compile(whole(kind, length), options=AS_A_WHOLE)
    return {name: lambda way=way: way(*data) for name, way in ways.items()}


# Peers


def torchopt_steps(kind: str, length: int) -> dict[str, Step]:
    start, x, y = draw()

    def for_each(start: Weights) -> Weights:
        return [leaf.expand(TASKS, *leaf.shape) for leaf in start]

    def of_task(start: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        tx, weights = getattr(torchopt, kind)(RATES[kind]), tuple(start)
        state = tx.init(weights)
        for _ in range(length):
            updates, state = tx.update(grad(loss)(weights, x, y), state, params=weights, inplace=False)
            weights = torchopt.apply_updates(weights, updates, inplace=False)
            weights = tuple(leaf.clamp(-HIGH, HIGH) for leaf in weights)
        return loss(weights, x, y)

    def outer(start: Weights) -> torch.Tensor:
        return vmap(of_task)(for_each(start), x, y).mean()  # its Adam wants a start for each task

    def loop() -> Weights:
        each = [grad(of_task)(start, *task) for task in zip(x, y, strict=True)]
        return [torch.stack(column).mean(0) for column in zip(*each, strict=True)]

    steps: dict[str, Step] = {THEIRS: lambda: grad(outer)(start), LOOP: loop}
    if length <= SHORT:
        tx = getattr(torchopt, kind)(RATES[kind])  # inside it does not compile

        def of_task_compiled(start: Weights, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            weights = tuple(start)
            state = tx.init(weights)
            for _ in range(length):
                updates, state = tx.update(grad(loss)(weights, x, y), state, params=weights, inplace=False)
                weights = tuple((p + u).clamp(-HIGH, HIGH) for p, u in zip(weights, updates, strict=True))
            return loss(weights, x, y)

        def outer_compiled(start: Weights) -> torch.Tensor:
            return vmap(of_task_compiled)(for_each(start), x, y).mean()

        compiled = torch.compile(grad(outer_compiled), fullgraph=True)
        steps["TorchOpt, vmap, compiled"] = lambda: compiled(start)
    return steps


def higher_steps(kind: str, length: int) -> dict[str, Step]:
    import higher

    start, x, y = draw()
    layers = [torch.nn.Linear(*pair) for pair in pairwise(SIZES)]
    model: Any = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2]).to(device())
    with torch.no_grad():
        for parameter, leaf in zip(model.parameters(), start, strict=True):
            parameter.copy_(leaf.mT if leaf.ndim == 2 else leaf)
    optimizer = (torch.optim.SGD if kind == "sgd" else torch.optim.Adam)(model.parameters(), RATES[kind])

    def loop() -> None:
        model.zero_grad()
        for inputs, targets in zip(x, y, strict=True):
            with higher.innerloop_ctx(model, optimizer, copy_initial_weights=False) as pair:
                inner, steps = cast(Any, pair)
                for _ in range(length):
                    steps.step(((inner(inputs) - targets) ** 2).mean())
                    inner.update_params([leaf.clamp(-HIGH, HIGH) for leaf in inner.parameters()])
                (((inner(inputs) - targets) ** 2).mean() / TASKS).backward()

    return {"higher, loop over tasks": loop}


def jax_steps(kind: str, length: int) -> dict[str, Step]:
    start, *points = draw()
    start = [jnp.asarray(leaf.cpu().numpy()) for leaf in start]
    x, y = (jnp.asarray(leaf.cpu().numpy()) for leaf in points)
    tx = getattr(optax, kind)(RATES[kind])

    def objective(weights: Any, x: Any, y: Any) -> Any:
        w1, b1, w2, b2, w3, b3 = weights
        hidden = jax.nn.relu(jax.nn.relu(x @ w1 + b1) @ w2 + b2)
        return ((hidden @ w3 + b3 - y) ** 2).mean()

    def of_task(start: Any, x: Any, y: Any, scanned: bool) -> Any:
        def step(carry: Any, _: None) -> Any:
            weights, state = carry
            updates, state = tx.update(jax.grad(objective)(weights, x, y), state, weights)
            weights = optax.apply_updates(weights, updates)
            return (jax.tree.map(lambda leaf: jnp.clip(leaf, -HIGH, HIGH), weights), state), None

        carry = start, tx.init(start)
        if scanned:
            carry, _ = jax.lax.scan(step, carry, length=length)
        else:
            for _ in range(length):
                carry, _ = step(carry, None)
        return objective(carry[0], x, y)

    def outer(start: Any, scanned: bool) -> Any:
        return jax.vmap(lambda x, y: of_task(start, x, y, scanned))(x, y).mean()

    name = "jit" if length <= SHORT else "jit, lax.scan"
    compiled = jax.jit(jax.grad(lambda start: outer(start, length > SHORT)))
    return {f"JAX {name}": lambda: jax.block_until_ready(compiled(start))}


# What is measured


def agreement(steps: dict[str, Step]) -> None:
    """Every way gives the same outer gradient, but for higher, which leaves it in its module."""
    found = {}
    for name, step in steps.items():
        result = step()
        if result is not None:
            found[name] = torch.cat([torch.tensor(leaf.tolist()).flatten() for leaf in result])
    reference = found["boxopt, eager"]
    for name, gradient in found.items():
        if not gradient.isfinite().all():
            print(f"{name}: the outer gradient is not finite", flush=True)
            continue
        distance = float((gradient - reference).norm() / reference.norm())
        if not distance < 1e-2:
            print(f"{name}: outer gradient {distance:.1e} from that of boxopt, relatively", flush=True)


def time_steps(kinds: list[str], lengths: list[int], rounds: int) -> None:
    for kind in kinds:
        for length in lengths:
            torch._dynamo.reset()
            steps: dict[str, Step] = {}
            print(f"\n### {kind}, {length} inner steps, {TASKS} tasks\n")
            for makes in (boxopt_steps, torchopt_steps, higher_steps, jax_steps):
                for name, step in makes(kind, length).items():
                    start = time.perf_counter()
                    try:
                        step()
                    except Exception as error:
                        print(f"{name}: {type(error).__name__}: {str(error).strip().splitlines()[0]:.100}", flush=True)
                        continue
                    print(f"{name}: first call {time.perf_counter() - start:.1f} s", flush=True)
                    steps[name] = step
            agreement(steps)
            loops = {name: step for name, step in steps.items() if name.endswith("loop over tasks")}
            times = medians({name: step for name, step in steps.items() if name not in loops}, rounds)
            times |= medians(loops, 3)  # seconds a call
            names = (next(name for name in steps if name.startswith(JAX)), THEIRS, f"{THEIRS}, compiled")
            print(f"\n{table(times, *names)}\n\n{verdict(times, length)}", flush=True)


def verdict(times: dict[str, float], length: int) -> str:
    """The best of ours over each peer's best, with the aims."""
    own = min((name for name in times if name.startswith(OWN)), key=times.__getitem__)
    lines = [f"The best of ours is {own!r}:"]
    for peer in (JAX, "TorchOpt", "higher"):
        others = [name for name in times if name.startswith(peer)]
        if not others:
            continue
        other = min(others, key=times.__getitem__)
        aim = 0.7 if length <= SHORT else 1.0
        if peer != JAX:
            aim = 0.7 if other.endswith("compiled") else 0.5
        ratio = times[own] / times[other]
        lines.append(f"- {ratio:.2f} x {other} (aim {aim}: {'' if ratio <= aim else 'NOT '}reached)")
    return "\n".join(lines)


def way_of(name: str, kind: str, length: int) -> Callable:
    """A way to the outer gradient, as a function of `draw`'s."""
    if name == "all compiled":
        return bx.compile(whole(kind, length), options=AS_A_WHOLE)
    if name == "a step compiled":
        return by_steps(kind, length)
    if name == "TorchOpt, all compiled":
        step = torchopt_steps(kind, length)[f"{THEIRS}, compiled"]
        return lambda *_: step()
    return whole(kind, length, checkpoint=name == "checkpoints")


def first_call(name: str, kind: str, length: int) -> float:
    call, data = way_of(name, kind, length), draw()
    torch.compile(lambda x: x + 1)(torch.zeros(1, device=device()))  # the compiler itself is loaded
    start = time.perf_counter()
    call(*data)
    return time.perf_counter() - start


def peak(name: str, kind: str, length: int) -> tuple[float, float]:
    """Megabytes above what was held before, and seconds."""
    call, data = way_of(name, kind, length), draw()
    way_of(name, kind, 4)(*data)
    if torch.cuda.is_available():
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before, start = torch.cuda.memory_allocated(), time.perf_counter()
        call(*data)
        torch.cuda.synchronize()
        return (torch.cuda.max_memory_allocated() - before) / 1e6, time.perf_counter() - start
    give_back()
    before, most, running = resident(), 0, True

    def watch() -> None:
        nonlocal most
        while running:
            most = max(most, resident())
            time.sleep(0.001)

    watcher = threading.Thread(target=watch)
    watcher.start()
    start = time.perf_counter()
    call(*data)
    seconds = time.perf_counter() - start
    running = False
    watcher.join()
    return (most - before) / 1e6, seconds


def alone(measure: str, name: str, kind: str, length: int, limit: float) -> list[float] | None:
    """What a process of its own with empty caches measures; None if it takes too long."""
    with tempfile.TemporaryDirectory() as cache:
        command = [sys.executable, __file__, "--alone", measure, name, kind, str(length)]
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": cache}
        try:
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True, timeout=limit)
        except (subprocess.TimeoutExpired, subprocess.CalledProcessError):  # too slow; or TorchOpt's Adam
            return None
    return [float(number) for number in done.stdout.splitlines()[-1].split()]


def compile_times(kinds: list[str], limit: float) -> None:
    print(
        "\n### Seconds of the first call (aim: 15)\n\n| | 5 inner steps | 500 inner steps |\n|---|---|---|", flush=True
    )
    for kind in kinds:
        for name in ("a step compiled", "all compiled", "TorchOpt, all compiled"):
            cells = []
            for length in (5, 500):
                long = length > SHORT and name.endswith("all compiled")
                found = None if long else alone("first", name, kind, length, limit)
                cells.append("-" if found is None else f"{found[0]:.1f}")
            print(f"| {kind}, {name} | {' | '.join(cells)} |", flush=True)


def memory_peaks(kinds: list[str], length: int, limit: float) -> None:
    print(
        f"\n### Peak memory at {length:,} inner steps\n\n"
        "| | MB | ÷ plain (aim: 0.1) | s | ÷ plain (aim: 2.2) |\n|---|---|---|---|---|",
        flush=True,
    )
    for kind in kinds:
        plain: list[float] | None = None
        for name in ("plain", "checkpoints"):
            found = alone("peak", name, kind, length, limit)
            if found is None:
                print(f"| {kind}, {name} | - | - | - | - |", flush=True)
                continue
            plain = plain or found
            megabytes, seconds = (f"{x:.1f} | {x / y:.2f}" for x, y in zip(found, plain, strict=True))
            print(f"| {kind}, {name} | {megabytes} | {seconds} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--parts", nargs="+", choices=("steps", "compile", "memory"), default=["steps", "compile", "memory"]
    )
    parser.add_argument("--inner", nargs="+", choices=list(RATES), default=list(RATES), help="the inner optimizers")
    parser.add_argument("--lengths", nargs="+", type=int, default=[5, 50], help="the inner steps that are timed")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--memory-steps", type=int, default=1000)
    parser.add_argument("--limit", type=float, default=120, help="seconds after which a process is given up")
    parser.add_argument("--alone", nargs=4, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    warnings.simplefilter("ignore")
    if arguments.alone:
        measure, name, kind, length = arguments.alone
        found = first_call(name, kind, int(length)) if measure == "first" else peak(name, kind, int(length))
        print(*(found if isinstance(found, tuple) else (found,)))
        return
    print(machine("torchopt", "higher", "jax", "optax"))
    if "steps" in arguments.parts:
        time_steps(arguments.inner, arguments.lengths, arguments.rounds)
    if "compile" in arguments.parts:
        compile_times(arguments.inner, arguments.limit)
    if "memory" in arguments.parts:
        memory_peaks(arguments.inner, arguments.memory_steps, arguments.limit)


if __name__ == "__main__":
    main()
