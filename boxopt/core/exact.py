"""Floating-point numbers as they are: neighbours, inward rounding, and updates that land where they should.

Adding the update ``u = target - params`` back to ``params`` rounds twice, and the sum can leave the set by an ulp.
`land` repairs that. Write fl for rounding to the nearest number of the dtype. If |u| ≤ |target − params| in exact
arithmetic, ``params + u`` lies between ``params`` and ``target``, and so does fl(params + u), because rounding is
monotone and leaves both ends where they are. Shrinking u by one ulp restores the premise whenever rounding broke it.

The number before u, towards zero, is fl(u·(1 − ε/2)), ε being the dtype's: the product lies between a half and a whole
ulp below u and rounds to a whole one. That holds for normal u; a subnormal difference is exact and needs no repair.

Everything here is elementwise on tensors, without branches on their values, and so runs under vmap and compile.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from boxopt.core import sharded

_BITS = {
    torch.float64: torch.int64,
    torch.float32: torch.int32,
    torch.bfloat16: torch.int16,
    torch.float16: torch.int16,
}

_NARROW = (torch.bfloat16, torch.float16)


def is_narrow(dtype: torch.dtype) -> bool:
    """Whether the dtype has 16 bits or fewer, so that arithmetic is done in float32 and only its result is rounded."""
    return dtype in _NARROW


def wide(x: Tensor) -> Tensor:
    """``x`` in the dtype that arithmetic is done in: float32 for 16-bit dtypes, its own otherwise."""
    return x.float() if is_narrow(x.dtype) else x


def like(value: Any, x: Tensor) -> Any:
    """A hyperparameter in the dtype and on the device of ``x``; Python numbers need neither."""
    return same_kind(value, x) if isinstance(value, Tensor) else value


def same_kind(value: Tensor, x: Tensor) -> Tensor:
    """``value`` in the dtype and on the device of ``x``, and cut as it is if that is sharded.

    A call of ``to`` that changes nothing is not free.
    """
    if value.dtype != x.dtype or value.device != x.device:
        value = value.to(device=x.device, dtype=x.dtype)
    if value.ndim:
        return sharded.like(value, x)
    return value if sharded.is_sharded(x) else sharded.reduced(value)


def cast_once(value: Any) -> Callable[[Tensor], Any]:
    """`like` for one value and many leaves: converts it once a dtype and device.

    On a CPU a kernel takes half as long with a tensor without dimensions as with a number, which it makes one of.
    """
    if torch.compiler.is_compiling():
        return lambda x: like(value, x)
    made: list[Tensor] = []

    def cast(x: Tensor) -> Any:
        for known in made:
            if known.dtype == x.dtype and known.device == x.device:
                return known
        if not isinstance(value, Tensor) and x.device.type != "cpu":
            return value
        made.append(as_tensor(value, x))
        return made[-1]

    return cast


def as_tensor(value: Any, x: Tensor) -> Tensor:
    """A hyperparameter as a tensor in the dtype and on the device of ``x``."""
    if isinstance(value, Tensor):
        return same_kind(value, x)
    if abs(value) > 6e4 and abs(value) > torch.finfo(x.dtype).max:
        value = math.copysign(math.inf, value)  # as the cast of a tensor makes it
    return torch.full((), value, dtype=x.dtype, device=x.device)


def rounded(x: Tensor) -> Tensor:
    """``x`` rounded to its dtype, also in a compiled function.

    The inductor computes 16-bit dtypes in float32 and rounds on storing only. A trip through the bit pattern rounds
    at once; the two ``xor`` keep the compiler from seeing that the trip is the identity. No derivative passes.
    """
    if not is_narrow(x.dtype) or not torch.compiler.is_compiling():
        return x.detach()
    bits = x.detach().view(torch.int16)
    return (bits ^ 0x55 ^ 0x55).view(x.dtype)


def next_up(x: Tensor) -> Tensor:
    """The least number of the dtype above ``x``: ``nextafter(x, inf)``, in 16-bit dtypes and compiled functions too."""
    x = rounded(x)
    bits = x.view(_BITS[x.dtype])
    smallest = torch.ones_like(bits)
    return torch.where(x > 0, bits + 1, torch.where(x < 0, bits - 1, smallest)).view(x.dtype)


def next_down(x: Tensor) -> Tensor:
    """The greatest number of the dtype below ``x``."""
    return -next_up(-x)


def is_constant(*values: Any) -> bool:
    """Whether nothing can ask for a derivative with respect to these: eager mode, outside of autograd and torch.func.

    Then a faster kernel may be taken whose derivative is not the library's.
    """
    if torch.compiler.is_compiling() or torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0:
        return False
    if not torch.is_grad_enabled():
        return True
    return not any(isinstance(value, Tensor) and value.requires_grad for value in values)


def replaced(x: Tensor, value: Tensor) -> Tensor:
    """``value`` with the derivative of ``x``, for corrections of a rounding error."""
    finite = x.detach().abs() <= torch.finfo(x.dtype).max  # not isfinite, which the inductor does not vectorize
    return value.detach() + torch.where(finite, x - x.detach(), 0.0)


def inward(bound: Any, x: Tensor, *, up: bool) -> Any:
    """A bound in the dtype of ``x``, rounded into the set: a lower bound ``up``, an upper bound down.

    A Python number stays a Python number (which is faster in eager mode), except in a compiled function.
    """
    if not isinstance(bound, Tensor):
        if not torch.compiler.is_compiling():
            return _inward_number(float(bound), x.dtype, up=up)
        bound = torch.full((), bound, dtype=torch.float64, device=x.device)
    bound = sharded.like(bound.to(device=x.device), x)
    if not bound.is_floating_point():
        bound = bound.to(torch.float64)
    cast = bound.to(x.dtype)
    if torch.promote_types(bound.dtype, x.dtype) == x.dtype:
        return cast
    nearest = rounded(cast)
    back = nearest.to(torch.promote_types(bound.dtype, x.dtype))
    outside = back < bound.detach() if up else back > bound.detach()
    neighbour = next_up(nearest) if up else next_down(nearest)
    return replaced(cast, torch.where(outside, neighbour, nearest))


@lru_cache(maxsize=1024)
def _inward_number(bound: float, dtype: torch.dtype, *, up: bool) -> float:
    if dtype == torch.float64 or bound == 0 or not math.isfinite(bound):
        return bound
    info = torch.finfo(dtype)
    _, exponent = math.frexp(bound)
    digits = 2 - math.frexp(info.eps)[1]  # of the significand, the hidden one included
    _, least = math.frexp(info.smallest_normal)
    unit = math.ldexp(1.0, max(exponent, least) - digits)
    near = (math.ceil(bound / unit) if up else math.floor(bound / unit)) * unit
    if near > info.max:
        return math.inf if up else info.max
    if near < info.min:
        return info.min if up else -math.inf
    return near


def land(params: Tensor, target: Tensor, lower: Any, upper: Any) -> Tensor:
    """The update u ≈ target − params for which fl(params + u) lies in [lower, upper], if params does.

    ``lower`` and ``upper`` are numbers or tensors of the dtype of ``params``, ±inf where there is no bound, and
    ``target`` lies between them. From params outside, the sum may still be outside, yet nearer: see the module. The
    derivative is that of target − params: the repair, a rounding error, has none, and keeps nothing for one.
    """
    info = torch.finfo(params.dtype)
    if is_constant(params, target, lower, upper):
        return _land_in_place(params, target, lower, upper)
    update = _finite(target - params)
    if is_unbounded(lower) and is_unbounded(upper):
        return update
    step = rounded(update)
    total = rounded(params.detach() + step)
    outside = clip(total, _constant(lower), _constant(upper)).ne(total).to(params.dtype)
    if is_narrow(params.dtype) and torch.compiler.is_compiling():
        return replaced(update, torch.addcmul(step, step, outside, value=-info.eps / 2))
    return torch.addcmul(update, step, outside, value=-info.eps / 2)


def _land_in_place(params: Tensor, target: Tensor, lower: Any, upper: Any) -> Tensor:
    """`land` where no derivative is asked for: the same numbers with half the kernels' memory."""
    info = torch.finfo(params.dtype)
    update = torch.sub(target, params).clamp_(info.min, info.max)
    if is_unbounded(lower) and is_unbounded(upper):
        return update
    total = params + update
    outside = clip(total, lower, upper).ne_(total)
    return update.addcmul_(update, outside, value=-info.eps / 2)


def clamp(x: Tensor, low: Any, high: Any) -> Tensor:
    """The nearest number between two bounds; at a tie its derivative is that of the identity. A NaN bound is none."""
    if is_constant(x, low, high) or (is_unbounded(low) and is_unbounded(high)):
        return clip(x, low, high)
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and not torch.compiler.is_compiling():
        near = clip(x.detach(), low, high)  # one choice: of x only where it was changed is kept for the derivative
        return torch.where(near == x.detach(), x, near)
    if not is_unbounded(low):
        x = torch.where(x < low, low, x)
    if not is_unbounded(high):
        x = torch.where(x > high, high, x)
    return x


def _finite(x: Tensor) -> Tensor:
    """Infinities as the largest numbers; what the derivative is at these is of no matter."""
    info = torch.finfo(x.dtype)
    if torch.compiler.is_compiling():  # the inductor would store the condition of a choice one by one
        return torch.clamp(x, info.min, info.max)
    return clamp(x, info.min, info.max)


def clip(x: Tensor, lower: Any, upper: Any) -> Tensor:
    """``torch.clamp``, whose derivative at ties is torch's, with numbers and tensors mixed."""
    if is_unbounded(lower):
        lower = None
    if is_unbounded(upper):
        upper = None
    if lower is None and upper is None:
        return x
    if lower is None or upper is None or isinstance(lower, Tensor) == isinstance(upper, Tensor):
        return torch.clamp(x, lower, upper)
    return torch.clamp(torch.clamp(x, min=lower), max=upper)


def is_unbounded(bound: Any) -> bool:
    """Whether a bound is known to be none: an infinite number."""
    return not isinstance(bound, Tensor) and math.isinf(bound)


def _constant(bound: Any) -> Any:
    return bound.detach() if isinstance(bound, Tensor) else bound
