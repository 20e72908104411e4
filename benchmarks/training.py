"""A whole training step, gradients included: a 50-layer network and a small transformer, every weight in a box.

make bench                        (or: python benchmarks/training.py)
"""

from __future__ import annotations

import time
from collections.abc import Callable

import torch
from measure import device, machine, medians, table
from torch import nn
from torch.func import functional_call, grad

import boxopt as bx

LOW, HIGH, RATE = -0.5, 0.5, 1e-3
EAGER, COMPILED = "torch.optim fused + clamp, eager", "torch.optim fused + clamp, compiled"


def deep_network() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    layers: list[nn.Module] = []
    for _ in range(50):
        layers += [nn.Linear(64, 64), nn.Tanh()]
    model = nn.Sequential(*layers, nn.Linear(64, 10)).to(device())
    return model, torch.randn(128, 64, device=device()), torch.randint(10, (128,), device=device())


def transformer() -> tuple[nn.Module, torch.Tensor, torch.Tensor]:
    class Model(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Linear(16, 64)
            block = nn.TransformerEncoderLayer(64, 4, 128, dropout=0.0, batch_first=True)
            self.encoder = nn.TransformerEncoder(block, 4, enable_nested_tensor=False)
            self.head = nn.Linear(64, 10)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.encoder(self.embed(x)).mean(1))

    return (
        Model().to(device()),
        torch.randn(32, 24, 16, device=device()),
        torch.randint(10, (32,), device=device()),
    )


def boxopt_step(build: Callable) -> dict[str, Callable[[], object]]:
    model, x, y = build()
    packed, unpack = bx.pack({name: p.detach() for name, p in model.named_parameters()})
    tx = bx.chain(bx.adam(RATE), bx.project(bx.Box(LOW, HIGH)))

    def step(packed: bx.Packed, state: object, x: torch.Tensor, y: torch.Tensor) -> tuple:
        def loss(p: bx.Packed) -> torch.Tensor:
            return nn.functional.cross_entropy(functional_call(model, unpack(p), (x,)), y)

        updates, state = tx.update(grad(loss)(packed), state, packed)
        return bx.apply_updates(packed, updates), state

    fast = bx.compile(step, donate_argnums=(0, 1))
    held = [packed, tx.init(packed)]

    def call() -> None:
        held[:] = fast(*held, x, y)

    return {"boxopt, packed, compiled, donated": call}


def torch_steps(build: Callable) -> dict[str, Callable[[], object]]:
    def train(compiled: bool) -> Callable[[], object]:
        model, x, y = build()
        optimizer = torch.optim.Adam(model.parameters(), RATE, fused=True)
        params = list(model.parameters())

        def loss(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
            return nn.functional.cross_entropy(model(x), y)

        forward = torch.compile(loss) if compiled else loss

        def update() -> None:
            optimizer.step()
            with torch.no_grad():
                torch._foreach_clamp_min_(params, LOW)
                torch._foreach_clamp_max_(params, HIGH)

        def call() -> None:
            optimizer.zero_grad()
            forward(x, y).backward()
            update()

        return call

    return {EAGER: train(compiled=False), COMPILED: train(compiled=True)}


def main() -> None:
    torch.manual_seed(0)
    print(machine())
    for name, build in {"50-layer network": deep_network, "transformer of 4 blocks": transformer}.items():
        torch._dynamo.reset()
        steps = {**boxopt_step(build), **torch_steps(build)}
        for label, call in steps.items():
            start = time.perf_counter()
            call()
            print(f"{name}, {label}: first call {time.perf_counter() - start:.1f} s")
        print(f"\n### {name}\n\n{table(medians(steps), EAGER, COMPILED)}\n", flush=True)


if __name__ == "__main__":
    main()
