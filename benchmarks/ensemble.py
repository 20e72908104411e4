"""One training step of many small networks, each with its own learning rate and bounds: vmapped, compiled, packed.

    make bench                        (or: python benchmarks/ensemble.py [--curve])

The networks are 8 → 16 → 1 with tanh, on 64 examples of their own; the step takes gradients, Adam and a box. Peers are
the loop over torch.optim (which is what people write) and JAX's jit(vmap) with optax.
"""

from __future__ import annotations

import argparse
import warnings
from collections.abc import Callable
from typing import Any

import torch
from measure import device, machine, medians, plot, table
from torch.func import grad, vmap

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import jax
    import jax.numpy as jnp
    import optax

SHAPES = {"w1": (8, 16), "b1": (16,), "w2": (16, 1), "b2": (1,)}
EXAMPLES = 64
LOOP, JAX = "loop over torch.optim fused + clamp", "JAX jit(vmap), donated + clip"


def predict(p: Any, x: Any, tanh: Callable) -> Any:
    return (tanh(x @ p["w1"] + p["b1"]) @ p["w2"] + p["b2"])[..., 0]


def draw(members: int) -> tuple[dict[str, torch.Tensor], torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    def uniform(*shape: int) -> torch.Tensor:
        return torch.rand(members, *shape, device=device())

    params = {name: uniform(*shape) - 0.5 for name, shape in SHAPES.items()}
    x, y = 2 * uniform(EXAMPLES, 8) - 1, uniform(EXAMPLES)
    return params, x, y, 1e-3 * (1 + uniform()), 0.5 + uniform()


def loss(p: dict[str, torch.Tensor], x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    return ((predict(p, x, torch.tanh) - y) ** 2).mean()


def transformation(rate: torch.Tensor, bound: torch.Tensor) -> bx.GradientTransformation:
    return bx.chain(bx.adam(rate), bx.project(bx.Box(-bound, bound)))


def boxopt_steps(members: int) -> dict[str, Callable[[], object]]:
    params, x, y, rate, bound = draw(members)

    def step(p: Any, state: Any, rate: Any, bound: Any, x: Any, y: Any) -> tuple[Any, Any]:
        updates, state = transformation(rate, bound).update(grad(loss)(p, x, y), state, p)
        return bx.apply_updates(p, updates), state

    init = vmap(lambda p, rate, bound: transformation(rate, bound).init(p))
    state = init(params, rate, bound)
    packed, unpack = bx.pack(params, batch_dims=1)
    packed_state = init(packed, rate, bound)

    def packed_step(p: Any, state: Any, rate: Any, bound: Any, x: Any, y: Any) -> tuple[Any, Any]:
        gradients = grad(lambda p: loss(unpack(p), x, y))(p)
        updates, state = transformation(rate, bound).update(gradients, state, p)
        return bx.apply_updates(p, updates), state

    def running(step: Callable, params: Any, state: Any, chunk_size: int | None = None) -> Callable[[], object]:
        fast = bx.compile(step, donate_argnums=(0, 1))
        if chunk_size is not None:
            fast = bx.chunked(fast, chunk_size, donate_argnums=(0, 1))
        held = [params, state]

        def call() -> None:
            held[:] = fast(*held, rate, bound, x, y)

        return call

    def copied(tree: Any) -> Any:
        return torch.utils._pytree.tree_map(torch.clone, tree)

    compiled = bx.compile(vmap(step))
    return {
        "boxopt, vmap, eager": lambda: vmap(step)(params, state, rate, bound, x, y),
        "boxopt, vmap, compiled": lambda: compiled(params, state, rate, bound, x, y),
        "boxopt, vmap, compiled, donated": running(vmap(step), copied(params), copied(state)),
        "boxopt, vmap, compiled, packed, donated": running(vmap(packed_step), packed, packed_state),
        "boxopt, a quarter at a time, compiled, donated": running(
            vmap(step), copied(params), copied(state), members // 4
        ),
    }


def loop(members: int) -> dict[str, Callable[[], object]]:
    params, x, y, rate, bound = draw(members)
    models = []
    for index in range(members):
        model = {name: leaf[index].clone().requires_grad_() for name, leaf in params.items()}
        optimizer = torch.optim.Adam(model.values(), float(rate[index]), fused=True)
        models.append((model, optimizer, x[index], y[index], float(bound[index])))

    def step() -> None:
        for model, optimizer, inputs, targets, limit in models:
            optimizer.zero_grad()
            loss(model, inputs, targets).backward()
            optimizer.step()
            with torch.no_grad():
                for leaf in model.values():
                    leaf.clamp_(-limit, limit)

    return {LOOP: step}


def jax_steps(members: int) -> dict[str, Callable[[], object]]:
    params, *rest = draw(members)
    x, y, rate, bound = (jnp.asarray(value.cpu().numpy()) for value in rest)
    params = {name: jnp.asarray(leaf.cpu().numpy()) for name, leaf in params.items()}

    def objective(p: Any, x: Any, y: Any) -> Any:
        return ((predict(p, x, jnp.tanh) - y) ** 2).mean()

    def step(p: Any, state: Any, rate: Any, bound: Any, x: Any, y: Any) -> tuple[Any, Any]:
        updates, state = optax.adam(rate).update(jax.grad(objective)(p, x, y), state, p)
        p = optax.apply_updates(p, updates)
        return jax.tree.map(lambda leaf: jnp.clip(leaf, -bound, bound), p), state

    compiled = jax.jit(jax.vmap(step), donate_argnums=(0, 1))
    held = [params, jax.vmap(lambda p, r: optax.adam(r).init(p))(params, rate)]

    def call() -> None:
        held[:] = jax.block_until_ready(compiled(*held, rate, bound, x, y))

    return {JAX: call}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--curve", action="store_true", help="16 to 4,096 members (65,536 on a GPU) and a plot")
    arguments = parser.parse_args()
    torch.manual_seed(0)
    print(machine("optax", "jax"))
    sizes = [16, 64, 256, 1024, 4096] if arguments.curve else [256]
    if arguments.curve and torch.cuda.is_available():
        sizes += [16384, 65536]
    curves: dict[str, dict[float, float]] = {}
    for members in sizes:
        torch._dynamo.reset()
        steps = {**boxopt_steps(members), **jax_steps(members), **(loop(members) if members <= 1024 else {})}
        times = medians(steps, rounds=11)
        print(f"\n### {members} networks\n\n{table(times, JAX, LOOP)}", flush=True)
        for name, seconds in times.items():
            curves.setdefault(name, {})[members] = 1e3 * seconds
    if arguments.curve:
        plot(curves, "ensemble", "networks", "milliseconds a step", "Training step of an ensemble, with gradients")


if __name__ == "__main__":
    main()
