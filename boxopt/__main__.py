"""``python -m boxopt --version`` and ``--doctor``: what is installed, and whether it works on this machine."""

from __future__ import annotations

import argparse
import platform
from collections.abc import Callable

import numpy as np
import optree
import torch
from torch import Tensor

import boxopt as bx


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns its exit status."""
    parser = argparse.ArgumentParser(prog="python -m boxopt", description="Bounded optimization in PyTorch.")
    parser.add_argument("--version", action="version", version=f"boxopt {bx.__version__}")
    parser.add_argument("--doctor", action="store_true", help="say what is installed, and try it out")
    options = parser.parse_args(arguments)
    if not options.doctor:
        parser.print_help()
        return 0
    return doctor()


def doctor() -> int:
    """Print the versions, the device and the outcome of each check; returns 1 if one failed, else 0."""
    for name, version in (
        ("boxopt", bx.__version__),
        ("torch", torch.__version__),
        ("optree", optree.__version__),
        ("numpy", np.__version__),
        ("Python", platform.python_version()),
    ):
        print(f"{name:<24}{version}")
    devices = [torch.device("cpu")]
    print(f"{'CPU threads':<24}{torch.get_num_threads()}")
    if torch.cuda.is_available():
        devices.append(torch.device("cuda"))
        print(f"{'GPU':<24}{torch.cuda.get_device_name()}")
    failed = 0
    for device in devices:
        for name, check in CHECKS.items():
            outcome = _outcome(check, device)
            failed += outcome != "ok"
            print(f"{f'{name} ({device})':<40}{outcome}")
    return min(failed, 1)


def _outcome(check: Callable[[torch.device], None], device: torch.device) -> str:
    try:
        check(device)
    except Exception as error:  # whatever a machine's compiler or driver raises is what is to be told
        lines = str(error).strip().splitlines()
        return f"FAILED: {type(error).__name__}: {lines[0] if lines else ''}"
    return "ok"


BOX = bx.Box(1e-6, 1.0)


def _step(params: Tensor, gradients: Tensor) -> Tensor:
    tx = bx.projected(bx.adam(0.1), BOX)
    updates, _ = tx.update(gradients, tx.init(params), params)
    return bx.apply_updates(params, updates)


def _draw(dtype: torch.dtype, device: torch.device, count: int = 250_000) -> tuple[Tensor, Tensor]:
    random = torch.Generator().manual_seed(0)
    params = torch.rand(count, generator=random, dtype=torch.float64).to(dtype)
    gradients = torch.randn(count, generator=random, dtype=torch.float64).to(dtype)
    return BOX.project(params).to(device), gradients.to(device)


def _check_exact(step: Callable[[Tensor, Tensor], Tensor], device: torch.device) -> None:
    for dtype in (torch.float64, torch.float32, torch.bfloat16, torch.float16):
        new = step(*_draw(dtype, device))
        outside = int(((new < 1e-6) | (new > 1.0)).sum())
        if outside or not bool(bx.is_feasible(BOX, new)):
            raise AssertionError(f"{outside} numbers of dtype {dtype} left the box")


def check_eager(device: torch.device) -> None:
    """A million steps at the walls of a box, in each dtype: none leaves it."""
    _check_exact(_step, device)


def check_compile(device: torch.device) -> None:
    """The same compiled, and the numbers are those of eager mode."""
    compiled = torch.compile(_step, fullgraph=True)
    _check_exact(compiled, device)
    params, gradients = _draw(torch.float64, device)
    torch.testing.assert_close(compiled(params, gradients), _step(params, gradients))


def check_vmap(device: torch.device) -> None:
    """A stack of steps is each step alone."""
    params, gradients = (x.reshape(50, -1) for x in _draw(torch.float32, device))
    together = torch.func.vmap(_step)(params, gradients)
    torch.testing.assert_close(together[7], _step(params[7], gradients[7]))


def check_grad(device: torch.device) -> None:
    """The derivative of a step with respect to the parameters is finite, and 0 where the wall decides."""
    params, gradients = _draw(torch.float64, device, 100)
    slope = torch.func.grad(lambda p: _step(p, gradients).sum())(params)
    if not bool(slope.isfinite().all()):
        raise AssertionError("the derivative of a step is not finite")


CHECKS = {
    "exactly in the box": check_eager,
    "the same under vmap": check_vmap,
    "differentiable": check_grad,
    "compiled": check_compile,
}

if __name__ == "__main__":
    raise SystemExit(main())
