"""All modes together, and how often each is run."""

import torch

from tests.fuzz import compiled, modes, relations
from tests.fuzz.agreement import Refused, Skipped
from tests.fuzz.programs import Program
from tests.fuzz.reference import reference

# How often each is run: those that compile take seconds.
MODES = {
    "tensors": (modes.tensors, 0.7),
    "tracked": (modes.tracked, 0.7),
    "fake": (modes.fake, 0.05),
    "wrapped": (relations.wrapped, 0.5),
    "directions": (relations.directions, 0.3),
    "saved": (modes.saved, 0.2),
    "packed": (modes.packed, 0.5),
    "vmapped": (modes.vmapped, 0.2),
    "nested": (modes.nested, 0.1),
    "shared": (modes.shared, 0.1),
    "torch_optimizer": (modes.torch_optimizer, 0.2),
    "dtensor": (modes.dtensor, 0.04),
    "compiled": (compiled.compiled, 0.01),
    "compiled_vmap": (compiled.compiled_vmap, 0.005),
    "donated": (compiled.donated, 0.005),
    "inductor": (compiled.inductor, 0.001),
    "donated_inductor": (compiled.donated_inductor, 0.001),
    "fused": (compiled.fused, 0.001),
}
COMPILES = ("compiled", "compiled_vmap", "donated", "inductor", "donated_inductor", "fused")


def check(program: Program, *modes: str) -> dict[str, str]:
    """Run a program in some modes, all but those that compile if none is named, and say how each went."""
    steps = reference(program)
    outcome = {}
    for mode in modes or [name for name in MODES if name not in COMPILES]:
        try:
            MODES[mode][0](program, steps)
            outcome[mode] = "ok"
        except (Refused, Skipped) as reason:
            outcome[mode] = type(reason).__name__.lower() + (" ill-conditioned" if "ill" in str(reason) else "")
        finally:
            if mode in COMPILES:
                torch._dynamo.reset()
    return outcome
