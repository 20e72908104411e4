"""What adaptive scalers share: running averages, their bias, a square root with a derivative at 0, and Adam's ratio.

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


def full_like(params: Any, value: Scalar) -> Any:
    """A tree of one value for a moment; a tensor may have no value yet, or one for each member of a batch."""
    if isinstance(value, Tensor):
        return tree.map(lambda x: torch.zeros_like(x) + exact.like(value, x), params)
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
            return exact.like(exact.like(decay, old) * old + exact.like(1 - decay, old) * new, moment)
        return exact.like(torch.lerp(old, new, 1 - decay), moment)

    return foreach.map(average, moments, updates)


def bias_correction(decay: Scalar, count: Tensor) -> Tensor:
    """1 − decay^count, the weight that an average started at 0 has received; in float64."""
    steps = precise(count)
    base = decay.to(steps) if isinstance(decay, Tensor) else decay
    return 1 - base**steps


def precise(count: Tensor) -> Tensor:
    """A counter as a number to compute with: in float64, where the device has it."""
    return count.to(torch.float32 if count.device.type == "mps" else torch.float64)


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


def over_root(mean_scale: Scalar, square_scale: Scalar, eps: Scalar, eps_root: Scalar) -> Callable[..., Tensor]:
    """x/(c₁·(√(v/c₂ + εᵣ) + ε)) as a function of x and v: both biases are corrected without another pass.

    Args:
        mean_scale: c₁, the weight that x has received; 1 if its bias has been corrected.
        square_scale: c₂, the weight that v has received.
        eps: ε.
        eps_root: εᵣ.
    """
    factor = exact.cast_once(mean_scale * mean_scale / square_scale)
    no_eps_root = isinstance(eps_root, float | int) and eps_root == 0
    under_root = None if no_eps_root else exact.cast_once(mean_scale * mean_scale * eps_root)
    added = exact.cast_once(mean_scale * eps)

    def ratio(x: Tensor, v: Tensor) -> Tensor:
        square = v * factor(v)
        if under_root is not None:
            square = square + under_root(v)
        return divide_by_root(x, square, added(v))

    return ratio


def look_ahead(b1: Scalar, count: Tensor) -> Callable[..., Tensor]:
    """Nesterov's mean, from the new mean and the gradient, times the bias correction: the gradient enters once more."""
    behind = exact.cast_once(bias_correction(b1, count) / bias_correction(b1, count + 1))

    def ahead(m: Tensor, g: Tensor) -> Tensor:
        return exact.like(b1, m) * m * behind(m) + exact.like(1 - b1, m) * g

    return ahead


def multiply_step_size(factor: Any, step_size: Any) -> Any:
    """The step size of updates that were multiplied by a number, or by a prefix of numbers."""
    return tree.combine(_size, factor, step_size)


def _size(factor: Any, step_size: Any) -> Any:
    if isinstance(factor, Tensor) and isinstance(step_size, Tensor):
        factor = exact.like(factor, step_size) if step_size.ndim else factor
    return abs(factor) * step_size


def times(step_size: Any, factor: Callable[..., Tensor], moments: Any, *rest: Any) -> Any:
    """The step size times a factor computed, leaf by leaf, from a state, in the dtype for arithmetic."""

    def scale(v: Tensor, size: Any, *others: Tensor) -> Tensor:
        v = exact.wide(v)
        return exact.like(size, v) * factor(v, *(exact.wide(other) for other in others))

    return tree.map(scale, moments, tree.expand(step_size, moments), *rest)


def map_wide(function: Callable[..., Tensor], reference: Any, *rest: Any) -> Any:
    """Map over leaves in the dtype for arithmetic; the results have the dtype of the first tree's leaves."""

    def compute(x: Tensor, *others: Tensor) -> Tensor:
        first = exact.wide(x)
        return exact.like(function(first, *[exact.like(other, first) for other in others]), x)

    return foreach.map(compute, reference, *rest)
