"""What adaptive scalers share: running averages, their bias, and a square root with a derivative at 0.

Leaves of 16 bits are computed in float32 and stored rounded; the others in their own dtype.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, foreach, tree
from boxopt.core.types import Scalar


def zeros_like(params: Any) -> Any:
    """A tree of zeros for a moment."""
    return tree.map(torch.zeros_like, params)


def full_like(params: Any, value: float) -> Any:
    """A tree of one value for a moment."""
    return tree.map(lambda x: torch.full_like(x, value), params)


def update_moment(updates: Any, moments: Any, decay: Scalar, power: int) -> Any:
    """Decay · moment + (1 − decay) · update^power, for power 1 or 2."""

    def average(moment: Tensor, g: Tensor) -> Tensor:
        old = exact.wide(moment)
        new = exact.like(g, old)
        if power == 2:
            new = new * new
            if not isinstance(decay, Tensor) and exact.is_constant(new, old):
                return exact.like(torch.lerp(old, new, 1 - decay, out=new), moment)
        if isinstance(decay, Tensor):
            rate = exact.like(decay, old)
            return exact.like(rate * old + (1 - rate) * new, moment)
        return exact.like(torch.lerp(old, new, 1 - decay), moment)

    return foreach.map(average, moments, updates)


def bias_correction(decay: Scalar, count: Tensor) -> Tensor:
    """1 − decay^count, the weight that an average started at 0 has received; in float64."""
    steps = count.to(_precise(count.device))
    base = decay.to(steps) if isinstance(decay, Tensor) else decay
    return 1 - base**steps


def _precise(device: torch.device) -> torch.dtype:
    return torch.float32 if device.type == "mps" else torch.float64


def safe_sqrt(x: Tensor) -> Tensor:
    """√x for x ≥ 0, with derivative 0 at 0, to any order, where that of ``torch.sqrt`` is infinite.

    Below the smallest normal number of the dtype it is that number's root, 1e-19 in float32.
    """
    return x.clamp_min(torch.finfo(x.dtype).tiny).sqrt()


def divide_by_root(x: Tensor, square: Tensor, added: Any) -> Tensor:
    """x/(√square + added), where ``square`` is the caller's own: it may be overwritten."""
    if exact.is_constant(x, square, added):
        root = square.clamp_min_(torch.finfo(square.dtype).tiny).sqrt_().add_(added)
        return torch.div(x, root, out=root)
    return x / (safe_sqrt(square) + added)


def map_wide(function: Callable[..., Tensor], reference: Any, *rest: Any) -> Any:
    """Map over leaves in the dtype for arithmetic; the results have the dtype of the first tree's leaves."""

    def compute(x: Tensor, *others: Tensor) -> Tensor:
        first = exact.wide(x)
        return exact.like(function(first, *[exact.like(other, first) for other in others]), x)

    return foreach.map(compute, reference, *rest)
