"""When results agree: to the bit, up to rounding, or as far as they are known at all."""

import math
from typing import Any

import torch
import torch.utils._cxx_pytree as pytree


class Refused(Exception):
    """The library says, in words of its own, that it does not do this."""


class Skipped(Exception):
    """The mode does not apply to the program."""


class Finding(AssertionError):
    """Modes that disagree, or a broken law."""


def clone(x):
    return x.clone() if isinstance(x, torch.Tensor) else x


def versions(values):
    return [x._version for x in pytree.tree_leaves(values) if isinstance(x, torch.Tensor)]


def kinds(values):
    return [x if x is None else (x.dtype, tuple(x.shape)) for x in pytree.tree_leaves(values)]


def finite(values):
    return all(bool(x.isfinite().all()) for x in pytree.tree_leaves(values) if isinstance(x, torch.Tensor))


def same(got, expected, what):
    """Equal to the bit, but for the sign of zero and of NaN."""
    apart = deviation(got, expected, what)
    if any(apart):
        raise Finding(f"{what} differ by {max(apart):.3e}:\n{got}\n{expected}")


def deviation(got, expected, what):
    """For each leaf the largest difference, NaN equal to itself."""
    leaves, structure = pytree.tree_flatten(got)
    others, other_structure = pytree.tree_flatten(expected)
    if structure != other_structure:
        raise Finding(f"{what}: structures differ\n{structure}\n{other_structure}")
    return [_distance(one, other, what) for one, other in zip(leaves, others, strict=True)]


def _distance(one, other, what):
    if one is None or other is None:
        return 0.0 if one is other else math.inf
    if one.dtype != other.dtype or one.shape != other.shape:
        raise Finding(f"{what}: {one.dtype} {tuple(one.shape)}, expected {other.dtype} {tuple(other.shape)}")
    if not one.numel() or torch.equal(one, other):
        return 0.0
    if not one.is_floating_point():
        return float((one.double() - other.double()).abs().max())
    one, other = one.detach().double(), other.detach().double()
    alike = (one == other) | (~one.isfinite() & ~other.isfinite())  # infinite or NaN: by the order of operations
    apart = torch.where(alike, 0.0, (one - other).abs())
    return float(apart.nan_to_num(math.inf, math.inf).max())


def agree(got, expected, function, arguments, what, ulps=16.0):
    """Equal up to some ulps of the largest number at hand, or as far as the result is known: see `_blur`."""
    apart = deviation(got, expected, what)
    if not any(apart):
        return
    if not finite(arguments) and not (finite(got) and finite(expected)):
        raise Skipped("infinite or NaN: by the order of operations")
    inputs = [x for x in pytree.tree_leaves(arguments) if isinstance(x, torch.Tensor) and x.is_floating_point()]
    leaves = pytree.tree_leaves(expected)
    coarsest: dict[Any, float] = {}  # an update is the difference of two parameters, and as coarse as they are
    for y in inputs:
        if y.numel():
            size = float(y.abs().double().nan_to_num(0, 0, 0).max())
            coarsest[y.dtype, y.shape] = max(coarsest.get((y.dtype, y.shape), 0.0), size)
    scale = max([1e-30, *coarsest.values()])

    def allowed(x):
        if x is None or not x.is_floating_point():
            return 0.0
        return max(relative(x), torch.finfo(x.dtype).eps * coarsest.get((x.dtype, x.shape), 0.0))

    def relative(x):
        own = float(x.detach().abs().double().nan_to_num(0, 0, 0).max()) if x.numel() else 0.0
        # A sum over leaves is as coarse as the coarsest.
        eps = max(torch.finfo(y.dtype).eps for y in (x, *inputs) if ulps > 16 or y is x)
        return (1.0 if eps > 1e-6 else ulps) * eps * max(own, min(scale, 1e3 * own + 1))

    limits = [allowed(x) for x in leaves]
    if all(d <= limit for d, limit in zip(apart, limits, strict=True)):
        return
    # Where a search or a solver has decided otherwise, on a loss that is as coarse as the coarsest leaf.
    decisions = [x is not None and not x.is_floating_point() for x in leaves]
    decided = any(d for d, is_one in zip(apart, decisions, strict=True) if is_one)
    coarsest_eps = max([0.0, *(torch.finfo(x.dtype).eps for x in inputs)]) if decided else 0.0
    blur = _blur(function, arguments, expected, what, coarsest_eps)
    if decided and any(b for b, is_one in zip(blur, decisions, strict=True) if is_one):
        raise Skipped("ill-conditioned")
    worst = [
        (d, limit, b, x) for d, limit, b, x in zip(apart, limits, blur, leaves, strict=True) if not d <= limit + 50 * b
    ]
    if worst:
        d, limit, b, _ = worst[0]
        raise Finding(f"{what} differ by {d:.3e}, allowed {limit:.1e} and {b:.1e}:\n{got}\n{expected}")
    raise Skipped("ill-conditioned")


def _blur(function, arguments, expected, what, least_eps):
    """How far the result moves if the arguments do by some ulps: what no mode can be expected to know better."""
    leaves, structure = pytree.tree_flatten(arguments)
    generator = torch.Generator().manual_seed(1)
    blur = None
    for _ in range(6):
        moved = [jitter(x, generator, least_eps) if isinstance(x, torch.Tensor) else x for x in leaves]
        apart = deviation(function(*structure.unflatten(moved)), expected, what)
        blur = apart if blur is None else [max(pair) for pair in zip(blur, apart, strict=True)]
    return blur


def jitter(x, generator, least_eps=0.0):
    """Moved by up to two ulps, or by so many of a coarser dtype."""
    if not x.is_floating_point():
        return x
    noise = torch.rand(x.shape, generator=generator, dtype=torch.float64) * 2 - 1
    eps = max(torch.finfo(x.dtype).eps, least_eps)
    return (x.double() * (1 + 2 * eps * noise)).to(x.dtype)


def same_kind(state, expected):
    if pytree.tree_structure(state) != pytree.tree_structure(expected) or kinds(state) != kinds(expected):
        raise Finding(f"states are of other kinds: {state}, expected {expected}")
