"""One bounded Adam step (Adam, then a box), gradients given, against peers on this machine.

    make bench                        (or: python benchmarks/step.py)

Per-leaf code only: packing and donation are not built yet, and the tables show what they are for. Two hundred leaves
are not compiled here: leaf by leaf, the inductor needs over eight minutes for them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from measure import machine, medians, table

import boxopt as bx

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)
    import jax
    import jax.numpy as jnp
    import optax

SIZES = {
    "385 parameters, 4 leaves": [(16, 16), (16,), (7, 16), (1,)],
    "416,000 parameters, 200 leaves": [(40, 52)] * 200,
}
LOW, HIGH, RATE = -0.5, 0.5, 1e-3


def boxopt_steps(shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], object]]:
    tx = bx.chain(bx.adam(RATE), bx.project(bx.Box(LOW, HIGH)))
    params = [torch.rand(shape) - 0.5 for shape in shapes]
    gradients = [torch.randn(shape) for shape in shapes]
    state = tx.init(params)

    def step(gradients: list, state: object, params: list) -> object:
        updates, state = tx.update(gradients, state, params)
        return bx.apply_updates(params, updates), state

    steps = {"boxopt, eager": lambda: step(gradients, state, params)}
    if len(shapes) < 10:
        compiled = torch.compile(step, fullgraph=True)
        steps["boxopt, compiled"] = lambda: compiled(gradients, state, params)
    return steps


def torch_steps(shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], object]]:
    def build(**options: bool) -> Callable[[], object]:
        params = [torch.rand(shape) - 0.5 for shape in shapes]
        for param in params:
            param.grad = torch.randn_like(param)
        optimizer = torch.optim.Adam(params, RATE, **options)

        def step() -> None:
            optimizer.step()
            torch._foreach_clamp_min_(params, LOW)
            torch._foreach_clamp_max_(params, HIGH)

        return step

    return {
        "torch.optim.Adam(fused) + foreach clamp": build(fused=True),
        "torch.optim.Adam(foreach=False) + foreach clamp": build(foreach=False),
    }


def optax_steps(shapes: list[tuple[int, ...]]) -> dict[str, Callable[[], object]]:
    tx = optax.adam(RATE)
    params = [jnp.asarray(torch.rand(shape).numpy()) - 0.5 for shape in shapes]
    gradients = [jnp.asarray(torch.randn(shape).numpy()) for shape in shapes]
    state = tx.init(params)

    @jax.jit
    def step(gradients: list, state: object, params: list) -> object:
        updates, state = tx.update(gradients, state, params)
        params = optax.apply_updates(params, updates)
        return [jnp.clip(p, LOW, HIGH) for p in params], state

    return {"optax.adam + clip, jit": lambda: jax.block_until_ready(step(gradients, state, params))}


def main() -> None:
    torch.manual_seed(0)
    print(f"{machine()}, jax {jax.__version__}, optax {optax.__version__}")
    for name, shapes in SIZES.items():
        with torch.no_grad():
            times = medians({**boxopt_steps(shapes), **torch_steps(shapes), **optax_steps(shapes)})
        print(f"\n### {name}\n\n{table(times, 'torch.optim.Adam(fused) + foreach clamp')}")


if __name__ == "__main__":
    main()
