"""One bounded Adam step with the gradients given, against every peer on this machine and the copy of the same bytes.

    make bench                        (or: python benchmarks/step.py [--curve] [--optimizers [PARAMETERS]])

All step from the same shapes: Adam, then a box. boxopt's rows keep every parameter in its bounds exactly; the peers
clamp after the step. The floor copies what an Adam step must read and write: four model sizes read, three written.
"""

from __future__ import annotations

import argparse
import gc
import time
import warnings
from collections.abc import Callable

import torch
from measure import device, machine, medians, plot, table

import boxopt as bx
from boxopt.core.transform import accepted

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jax
    import jax.numpy as jnp
    import optax
    import torchopt

Shapes = list[tuple[int, ...]]
SIZES: dict[str, Shapes] = {
    "385 parameters, 4 leaves": [(16, 16), (16,), (7, 16), (1,)],
    "416,000 parameters, 200 leaves": [(40, 52)] * 200,
    "22,348,800 parameters, 160 leaves": [(480, 580), (960,)] * 80,
}
LOW, HIGH, RATE = -0.5, 0.5, 1e-3
FUSED, FLOOR = "torch.optim fused + foreach clamp", "copy of the same bytes"


def adam_and_box() -> bx.GradientTransformation:
    return bx.chain(bx.adam(RATE), bx.project(bx.Box(LOW, HIGH)))


def chain_of_five() -> bx.GradientTransformation:
    """Clip → Adam → decay → learning rate → project → barrier, as one chain."""
    box = bx.Box(LOW, HIGH)
    return bx.chain(
        bx.clip(1.0),
        bx.scale_by_adam(),
        bx.add_decayed_weights(1e-4),
        bx.scale_by_learning_rate(RATE),
        bx.project(box),
        bx.barrier(box, 1e-6),
    )


def draw(shapes: Shapes) -> tuple[list[torch.Tensor], list[torch.Tensor]]:
    params = [torch.rand(shape, device=device()) - 0.5 for shape in shapes]
    return params, [torch.randn(shape, device=device()) for shape in shapes]


def stepper(tx: bx.GradientTransformation) -> Callable[..., tuple]:
    def step(params: object, state: object, gradients: object) -> tuple:
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state

    return step


def donated(tx: bx.GradientTransformation, shapes: Shapes, leaves: bool = False) -> Callable[[], object]:
    """Packed, compiled, donated; with gradients packed already, or as leaves that are gathered first."""
    params, gradients = draw(shapes)
    packed, unpack = bx.pack(params)
    fast = bx.compile(stepper(tx), donate_argnums=(0, 1))
    ready = unpack.pack(gradients)
    held = [packed, tx.init(packed)]

    def call() -> None:
        held[:] = fast(*held, unpack.pack(gradients) if leaves else ready)

    return call


def boxopt_steps(shapes: Shapes, eager: bool = True) -> dict[str, Callable[[], object]]:
    tx = adam_and_box()
    steps = {
        "boxopt, packed, donated": donated(tx, shapes),
        "boxopt, packed, donated, gradients as leaves": donated(tx, shapes, leaves=True),
    }
    if eager:
        params, gradients = draw(shapes)
        state, step = tx.init(params), stepper(tx)
        wrapped = bx.packed(tx)
        wrapped_state, wrapped_step = wrapped.init(params), stepper(wrapped)
        steps["boxopt, eager, packed(tx)"] = lambda: wrapped_step(params, wrapped_state, gradients)
        steps["boxopt, eager"] = lambda: step(params, state, gradients)
    return steps


def torch_steps(shapes: Shapes, compiled: bool = True) -> dict[str, Callable[[], object]]:
    def build(**options: bool) -> Callable[[], object]:
        params, gradients = draw(shapes)
        for param, gradient in zip(params, gradients, strict=True):
            param.grad = gradient
        optimizer = torch.optim.Adam(params, RATE, **options)

        def step() -> None:
            optimizer.step()
            torch._foreach_clamp_min_(params, LOW)
            torch._foreach_clamp_max_(params, HIGH)

        return step

    steps = {
        FUSED: build(fused=True),
        "torch.optim foreach + foreach clamp": build(foreach=True),
        "torch.optim foreach=False + foreach clamp": build(foreach=False),
    }
    if compiled:
        steps["torch.optim compiled + clamp"] = torch.compile(build(foreach=True))
    return steps


def torchopt_steps(shapes: Shapes) -> dict[str, Callable[[], object]]:
    params, gradients = draw(shapes)
    tx = torchopt.adam(RATE)
    state = tx.init(params)

    def step() -> object:
        updates, _ = tx.update(gradients, state, params=params, inplace=False)
        new = torchopt.apply_updates(params, updates, inplace=False)
        return [p.clamp(LOW, HIGH) for p in new]

    return {"TorchOpt (its Python path) + clamp": step}


def optax_steps(shapes: Shapes) -> dict[str, Callable[[], object]]:
    tx = optax.adam(RATE)

    def build(donate: bool) -> Callable[[], object]:
        params, gradients = ([jnp.asarray(x.cpu().numpy()) for x in trees] for trees in draw(shapes))
        held = [params, tx.init(params)]

        def step(params: list, state: object, gradients: list) -> tuple:
            updates, state = tx.update(gradients, state, params)
            params = optax.apply_updates(params, updates)
            return [jnp.clip(p, LOW, HIGH) for p in params], state

        compiled = jax.jit(step, donate_argnums=(0, 1) if donate else ())

        def call() -> None:
            held[:] = jax.block_until_ready(compiled(*held, gradients))

        return call

    return {"optax jit + clip": build(False), "optax jit, donated + clip": build(True)}


def floor(shapes: Shapes) -> dict[str, Callable[[], object]]:
    numbers = sum(torch.Size(shape).numel() for shape in shapes)
    source = torch.randn(7 * numbers // 2, device=device())
    target = torch.empty_like(source)
    return {FLOOR: lambda: target.copy_(source)}


def chains(shapes: Shapes) -> dict[str, Callable[[], object]]:
    """Chains of 2 and of 5, packed and donated: what one more member costs."""
    return {
        "adam → project": donated(adam_and_box(), shapes),
        "clip → adam → decay → rate → project → barrier": donated(chain_of_five(), shapes),
        **floor(shapes),
    }


# Those of contrib with a learning rate alone; not Shampoo, SOAP and GaLore, which decompose matrices.
CONTRIBUTED = ("acprop", "ademamix", "adopt", "cocob", "dadapt_adamw", "dog", "dowg", "madgrad", "momo", "momo_adam")
CONTRIBUTED += ("muon", "prodigy", "schedule_free_adamw", "schedule_free_sgd", "simplified_ademamix")


def every_optimizer() -> dict[str, bx.GradientTransformation]:
    """Each optimizer with a box, its arguments the defaults."""
    box = bx.project(bx.Box(LOW, HIGH))
    makers = {name: getattr(bx.optimizers, name) for name in bx.optimizers.__all__ if name != "lbfgs"}
    makers |= {f"contrib.{name}": getattr(bx.contrib, name) for name in CONTRIBUTED}
    own_rate = ("adadelta", "adafactor", "polyak_sgd", "contrib.cocob")
    return {name: bx.chain(build() if name in own_rate else build(RATE), box) for name, build in sorted(makers.items())}


def bytes_moved(tree: object) -> int:
    return sum(x.numel() * x.element_size() for x in torch.utils._pytree.tree_leaves(tree))


def optimizers(parameters: int) -> None:
    """Every optimizer with a box, packed, compiled and donated, over a copy of the bytes that it must move.

    It reads parameters, gradients and state, and writes parameters and state.
    """
    shapes = [(parameters // 2600, 130)] * 20
    count = sum(torch.Size(shape).numel() for shape in shapes)
    print(f"\n### every optimizer with a box, {count:,} parameters in {len(shapes)} leaves\n")
    print(
        "| | median ms | compile s | bytes a parameter | ÷ copy of the same bytes |\n|---|---|---|---|---|", flush=True
    )
    for name, tx in every_optimizer().items():
        torch._dynamo.reset()
        gc.collect()
        params, gradients = draw(shapes)
        packed, unpack = bx.pack(params)
        ready, state = unpack.pack(gradients), tx.init(packed)
        moved = 2 * bytes_moved((packed, state)) + bytes_moved(ready)
        source = torch.randn(moved // 8, device=device())
        target = torch.empty_like(source)
        extra = {"value": torch.ones((), device=device())} if "value" in (accepted(tx) or ()) else {}

        def step(params: object, state: object, gradients: object, tx=tx, extra=extra) -> tuple:
            updates, state = tx.update(gradients, state, params, **extra)
            return bx.apply_updates(params, updates), state

        fast, held = bx.compile(step, donate_argnums=(0, 1)), [packed, state]

        def call(fast=fast, held=held, ready=ready) -> None:
            held[:] = fast(*held, ready)

        start = time.perf_counter()
        call()
        compiling = time.perf_counter() - start
        times = medians({name: call, FLOOR: lambda target=target, source=source: target.copy_(source)}, rounds=7)
        cells = (
            name,
            f"{1e3 * times[name]:.3f}",
            f"{compiling:.1f}",
            f"{moved / count:.0f}",
            f"{times[name] / times[FLOOR]:.2f}",
        )
        print(f"| {' | '.join(cells)} |", flush=True)


def curve() -> None:
    """The step over the number of parameters, in leaves of 2,080."""
    curves: dict[str, dict[float, float]] = {}
    for leaves in (2, 8, 32, 128, 512, 2048):
        torch._dynamo.reset()
        shapes = [(40, 52)] * leaves
        steps = {**boxopt_steps(shapes, eager=leaves <= 128), **torch_steps(shapes, compiled=False), **floor(shapes)}
        if leaves <= 512:  # XLA takes minutes for more
            steps |= optax_steps(shapes)
        for name, seconds in medians(steps, rounds=7).items():
            curves.setdefault(name, {})[2080 * leaves] = 1e3 * seconds
    plot(curves, "step", "parameters (leaves of 2,080)", "milliseconds a step", f"Bounded Adam, {machine()[:60]}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", action="store_true", help="also the curve over the number of parameters, as a plot")
    parser.add_argument(
        "--optimizers",
        nargs="?",
        type=int,
        const=22_348_800,
        help="only every optimizer with a box, at this many parameters",
    )
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(machine("optax", "jax", "torchopt"))
    if arguments.optimizers:
        with torch.no_grad():
            optimizers(arguments.optimizers)
        return
    sizes = dict(SIZES)
    if torch.cuda.is_available():
        sizes["1,073,741,824 parameters, 64 leaves"] = [(4096, 4096)] * 64
    for name, shapes in sizes.items():
        torch._dynamo.reset()
        gc.collect()
        large = name.startswith("1,073")
        with torch.no_grad():
            steps = {
                **boxopt_steps(shapes, eager=not large),
                **torch_steps(shapes, compiled=len(shapes) < 10),
                **floor(shapes),
            }
            if not large:
                steps |= {**torchopt_steps(shapes), **optax_steps(shapes)}
            times = medians(steps)
        print(f"\n### {name}\n\n{table(times, FUSED, FLOOR, 'optax jit + clip')}", flush=True)
        if not large:
            print(f"\n{table(medians(chains(shapes)), 'adam → project', FLOOR)}", flush=True)
    if arguments.curve:
        with torch.no_grad():
            curve()


if __name__ == "__main__":
    main()
