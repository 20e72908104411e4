"""Saving and loading the state of Adam, beside what a file of that size takes at least.

    make bench                        (or: python benchmarks/checkpoint.py)

`bx.save` waits until the disk has the file; `torch.save` and safetensors do not, unless they are told to, and a file
that `torch.save` writes over is gone meanwhile. "torch.save, fsync" is the fair one.
"""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from measure import machine, medians, table
from safetensors.torch import load_file, save_file

import boxopt as bx

PLAIN = "torch.save, fsync"


def save_with_torch(mapping: Any, path: Path, synchronize: bool) -> None:
    with open(path, "wb") as file:
        torch.save(mapping, file)
        if synchronize:
            file.flush()
            os.fsync(file.fileno())


def candidates(folder: Path, leaves: int, size: int, packed: bool) -> tuple[dict[str, Callable], dict[str, Callable]]:
    params = {f"layer {index}": torch.rand(size) for index in range(leaves)}
    params = bx.pack(params)[0] if packed else params
    state = bx.adam(1e-3).init(params)
    mapping = bx.state_to_dict(state)
    saving = {
        "torch.save, not forced to the disk": lambda: save_with_torch(mapping, folder / "fast.pt", False),
        PLAIN: lambda: save_with_torch(mapping, folder / "plain.pt", True),
        "bx.save": lambda: bx.save(folder / "own.pt", state),
        "safetensors, not forced to the disk": lambda: save_file(mapping, folder / "plain.safetensors"),
        "bx.save, safetensors": lambda: bx.save(folder / "own.safetensors", state),
        "bx.state_to_dict": lambda: bx.state_to_dict(state),
    }
    loading = {
        "torch.load": lambda: torch.load(folder / "plain.pt", weights_only=True),
        "bx.load": lambda: bx.load(folder / "own.pt", state),
        "safetensors": lambda: load_file(folder / "plain.safetensors"),
        "bx.load, safetensors": lambda: bx.load(folder / "own.safetensors", state),
        "bx.state_from_dict": lambda: bx.state_from_dict(mapping, state),
    }
    return saving, loading


def main() -> None:
    print(machine("safetensors"))
    for leaves, size, packed in ((200, 2_080, False), (160, 139_680, False), (160, 139_680, True)):
        with tempfile.TemporaryDirectory() as folder:
            saving, loading = candidates(Path(folder), leaves, size, packed)
            kind = "packed" if packed else "not packed"
            print(f"\n### {leaves * size:,} parameters in {leaves} leaves, {kind}\n")
            print(table(medians(saving, rounds=7), PLAIN), flush=True)
            print(f"\n{table(medians(loading, rounds=7), 'torch.load')}", flush=True)


if __name__ == "__main__":
    main()
