"""Steps on one and two processes: time, bytes that are exchanged, and what follows for 64 and 1,024 devices.

    make bench                        (or: python benchmarks/scale.py)

Processes have one thread each and are joined by gloo. On a machine with two cores the exchange itself is a copy in memory:
what is measured is the work of each process; what it hands to collectives is counted, and so independent of the machine.
The extrapolation is arithmetic on these counts: see docs/scale.md.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable

import torch
import torch.distributed as dist
from measure import machine, medians
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.func import grad, vmap
from torch.multiprocessing import spawn

import boxopt as bx

WIDTH, DEPTH, BATCH = 512, 8, 32  # the model that is sharded
MEMBERS = 64  # of the ensemble, on each process
ROUNDS = 7
BOX = bx.Box(-0.5, 0.5)
CHAINS: dict[str, Callable[[], bx.GradientTransformation]] = {
    "adam, Box": lambda: bx.chain(bx.adam(1e-3), bx.project(BOX)),
    "adam, Box, barrier": lambda: bx.chain(bx.adam(1e-3), bx.project(BOX), bx.barrier(BOX, 1e-4)),
    "packed adam, Box": lambda: bx.packed(bx.chain(bx.adam(1e-3), bx.project(BOX))),
    "sgd, a Simplex a row": lambda: bx.chain(bx.sgd(1e-3), bx.project(bx.sets.Simplex())),
    "clip_by_global_norm, adam, Box": lambda: bx.chain(bx.clip_by_global_norm(1.0), bx.adam(1e-3), bx.project(BOX)),
    "lamb": lambda: bx.lamb(1e-3),
    "sgd, an L2Ball a leaf": lambda: bx.chain(bx.sgd(1e-3), bx.project(bx.sets.L2Ball(30.0, dim=None))),
    "sgd, a Simplex a column": lambda: bx.chain(bx.sgd(1e-3), bx.project(bx.sets.Simplex(dim=0))),
    "muon": lambda: bx.contrib.muon(1e-3),
    "shampoo, blocks of 128": lambda: bx.contrib.shampoo(1e-3, block_size=128),
}


class FusedAdam:
    """The reference: torch's own, and a clamp."""

    def __init__(self, params: list[torch.Tensor]) -> None:
        self.params, self.optimizer = params, torch.optim.Adam(params, 1e-3, foreach=True)

    def __call__(self) -> None:
        self.optimizer.step()
        with torch.no_grad():
            for param in self.params:
                param.clamp_(-0.5, 0.5)


def stepper(tx: bx.GradientTransformation, params: dict[str, torch.Tensor]) -> Callable[[], None]:
    """A function that makes one step from the parameters' gradients."""
    held = [tx.init(params)]

    def step() -> None:
        with torch.no_grad():
            updates, held[0] = tx.update({name: param.grad for name, param in params.items()}, held[0], params)
            for param, new in zip(params.values(), bx.apply_updates(params, updates).values(), strict=True):
                param.copy_(new)

    return step


def sharded_model(mesh: object, results: dict[str, object]) -> None:
    model = nn.Sequential(*[nn.Linear(WIDTH, WIDTH, bias=False) for _ in range(DEPTH)])
    for layer in model:
        fully_shard(layer, mesh=mesh)  # pyright: ignore
    fully_shard(model, mesh=mesh)  # pyright: ignore
    x = torch.randn(BATCH, WIDTH)

    def gradients() -> None:
        model.zero_grad()
        model(x).square().mean().backward()

    gradients()
    params = dict(model.named_parameters())
    calls: dict[str, Callable[[], object]] = {"forward and backward": gradients}
    with bx.count_communication() as communication:
        gradients()
    results["forward and backward"] = dict(communication.bytes), communication.calls.total()
    for name, chain in CHAINS.items():
        step = stepper(chain(), params)
        step()
        with bx.count_communication() as communication:
            step()
        results[name] = dict(communication.bytes), communication.calls.total()
        if name in ("adam, Box", "packed adam, Box", "clip_by_global_norm, adam, Box"):
            calls[name] = step
    calls["torch.optim.Adam(foreach), clamp"] = FusedAdam(list(params.values()))
    # As many repetitions on each process, which the clock alone would not give.
    results["times of the model"] = medians(calls, ROUNDS, least_seconds=0.0)


def ensemble(mesh: object, world: int, results: dict[str, object]) -> None:
    tx = bx.chain(bx.adam(1e-2), bx.project(BOX))
    generator = torch.Generator().manual_seed(0)
    sizes = {"w": (16, 32), "v": (32, 1)}
    params = {name: 0.1 * torch.randn(world * MEMBERS, *size, generator=generator) for name, size in sizes.items()}
    x = torch.randn(64, 16, generator=generator)

    def loss(p: dict[str, torch.Tensor]) -> torch.Tensor:
        return ((x @ p["w"]).tanh() @ p["v"] - 1).square().mean()

    def member(p: dict[str, torch.Tensor], state: object) -> tuple:
        updates, state = tx.update(grad(loss)(p), state, p)
        p = bx.apply_updates(p, updates)
        return p, state, loss(p)

    params = bx.shard_members(params, mesh)  # pyright: ignore
    state = bx.on_members(vmap(tx.init))(params)
    step = bx.on_members(vmap(member))
    held = [params, state, None]

    def call() -> None:
        held[:] = step(held[0], held[1])

    with bx.count_communication() as communication:
        call()
    results["ensemble"] = dict(communication.bytes), communication.calls.total()
    with bx.count_communication() as communication:
        bx.best_members(held[0], held[2], 4)  # pyright: ignore
    results["best four"] = dict(communication.bytes), communication.calls.total()
    results["times of the ensemble"] = medians({"a step of all members": call}, ROUNDS, least_seconds=0.0)


def process(rank: int, world: int, folder: str) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=world)
    mesh = init_device_mesh("cpu", (world,))
    results: dict[str, object] = {}
    sharded_model(mesh, results)
    ensemble(mesh, world, results)
    if rank == 0:
        torch.save(results, f"{folder}/results")
    dist.barrier()
    dist.destroy_process_group()


def measured(world: int) -> dict[str, object]:
    with tempfile.TemporaryDirectory() as folder:
        spawn(process, (world, folder), nprocs=world)
        return torch.load(f"{folder}/results", weights_only=False)


# --- 64 and 1,024 devices ------------------------------------------------------------------------------------------

LAYERS, HIDDEN, INNER, VOCABULARY = 32, 4096, 11008, 32000  # a language model with 6.7 billion parameters
MATRICES = [(HIDDEN, HIDDEN)] * 4 + [(HIDDEN, INNER)] * 3
PARAMETERS = LAYERS * sum(m * n for m, n in MATRICES) + 2 * VOCABULARY * HIDDEN
LEAVES = LAYERS * len(MATRICES) + 2
TOKENS = 8192  # on each device
# A device: floating-point operations a second that are reached, bytes a second of its memory and of its network, and
# seconds until the first byte of an exchange arrives, times the logarithm of the number of devices.
OPERATIONS, MEMORY, NETWORK, LATENCY = 4e14, 3.35e12, 50e9, 5e-6


def exchange(kind: str, given: float, devices: int, calls: float = 1) -> float:
    """Seconds for a collective on a ring, ``given`` bytes of input a device in all calls."""
    factor = {"all_reduce": 2 * (devices - 1) / devices, "all_gather": devices - 1, "reduce_scatter": 1}[kind]
    return calls * LATENCY * math.log2(devices) + factor * given / NETWORK


def extrapolated(devices: int) -> dict[str, float]:
    """Seconds a step for each part."""
    own = PARAMETERS / devices
    # X ← aX + (bXXᵀ + c(XXᵀ)²)X, five times: two products with the m × n matrix, one of m × m matrices.
    newton_schulz = LAYERS * sum(5 * 2 * (2 * m * m * n + m**3) for m, n in MATRICES)
    return {
        "forward and backward, arithmetic": 6 * PARAMETERS * TOKENS / OPERATIONS,
        "forward and backward, exchange in bfloat16": 2 * exchange("all_gather", 2 * own, devices, LAYERS)
        + exchange("reduce_scatter", 2 * PARAMETERS, devices, LAYERS),
        "adam, Box: 7 passes over float32, no exchange": 7 * 4 * own / MEMORY,
        "clip_by_global_norm: 4 bytes": exchange("all_reduce", 4, devices),
        "lamb: 2 norms a leaf, 4 bytes each": exchange("all_reduce", 8 * LEAVES, devices, 2 * LEAVES),
        "an L2Ball a leaf: 2 norms a leaf, 8 bytes each": exchange("all_reduce", 16 * LEAVES, devices, 2 * LEAVES),
        "a Simplex a column: 3 leaves gathered": exchange("all_gather", 3 * 4 * own, devices, 3 * LEAVES),
        "muon: the leaf gathered": exchange("all_gather", 4 * own, devices, LEAVES),
        "muon: the same arithmetic on each device": newton_schulz / OPERATIONS,
    }


def extrapolation() -> str:
    columns = [extrapolated(devices) for devices in (8, 64, 1024)]
    rows = [f"| {name} | " + " | ".join(f"{1e3 * c[name]:.3g}" for c in columns) + " |" for name in columns[0]]
    return "\n".join(["| ms a step | 8 devices | 64 devices | 1,024 devices |", "|---|---|---|---|", *rows])


def main() -> None:
    print(machine())
    runs = {world: measured(world) for world in (1, 2)}
    kinds = ("times of the model", "times of the ensemble")
    print(f"\n{DEPTH} × {WIDTH}² parameters in float32 by FSDP2; {MEMBERS} members on each process\n")
    print("| median ms a step and process | 1 process | 2 processes |\n|---|---|---|")
    for kind in kinds:
        for name in runs[1][kind]:  # pyright: ignore
            print(f"| {name} | " + " | ".join(f"{1e3 * runs[w][kind][name]:.2f}" for w in (1, 2)) + " |")  # pyright: ignore
    total = 4 * DEPTH * WIDTH**2
    print("\n| 2 processes | collectives a step | bytes given to them, a process | ÷ bytes of its parameters |")
    print("|---|---|---|---|")
    for name, found in runs[2].items():
        if name not in kinds:
            given, calls = found  # pyright: ignore
            text = ", ".join(f"{kind} {size:,}" for kind, size in given.items()) or "0"
            print(f"| {name} | {calls} | {text} | {sum(given.values()) / (total / 2):.3g} |")
    print(f"\nA model of {PARAMETERS / 1e9:.1f} billion parameters\n\n{extrapolation()}")


if __name__ == "__main__":
    main()
