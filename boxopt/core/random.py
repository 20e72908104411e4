"""Random numbers as pure functions of a key: the same alone, under vmap with a key a member, and compiled.

torch's generators are hidden state, and refuse to run under ``vmap`` with ``randomness="error"``. Threefry is a cipher
of a counter: number i of a key is the encryption of i, and a key split is the encryption of 0, 1, …. The bits are
those of JAX, which uses it the same way.

Words of 32 bits are kept in int64 tensors, where no sum of two overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from boxopt.core import sharded

_MASK = 0xFFFFFFFF
_PARITY = 0x1BD11BDA
_ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def make_key(seed: int | Tensor, device: torch.device | None = None) -> Tensor:
    """A key from a seed.

    Args:
        seed: An integer of at most 64 bits, an integer tensor without dimensions (batched by ``vmap``, one a member),
            or a key, which is returned.
        device: Where the key is to be.

    Returns:
        Two words of 32 bits, an int64 tensor of shape ``[2]``.

    Example:
        >>> from boxopt.core.random import make_key
        >>> make_key(2**32 + 7)
        tensor([1, 7])
    """
    if isinstance(seed, Tensor):
        if seed.is_floating_point() or seed.is_complex() or tuple(seed.shape) not in ((), (2,)):
            raise TypeError(
                f"a seed is an integer or a key of two words, got {seed.dtype} of shape {tuple(seed.shape)}"
            )
        seed = seed.to(device=device, dtype=torch.int64)
        return seed if seed.ndim else torch.stack([(seed >> 32) & _MASK, seed & _MASK])
    return torch.tensor([(seed >> 32) & _MASK, seed & _MASK], device=device)


def threefry(key: Tensor, high: Tensor, low: Tensor) -> tuple[Tensor, Tensor]:
    """Threefry 2×32 with 20 rounds: the encryption of two words of 32 bits each, elementwise.

    Args:
        key: Two words, of shape ``[2]``.
        high: A tensor of words.
        low: Another, of the same shape.

    Returns:
        Two tensors of words, int64 between 0 and 2³² − 1.

    Source:
        J. K. Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011.
    """
    first, second = key[0], key[1]
    words = (first, second, first ^ second ^ _PARITY)
    x, y = (high + first) & _MASK, (low + second) & _MASK
    for block in range(5):
        for rotation in _ROTATIONS[block % 2]:
            x = (x + y) & _MASK
            y = ((y << rotation) & _MASK | (y >> (32 - rotation))) ^ x
        x = (x + words[(block + 1) % 3]) & _MASK
        y = (y + words[(block + 2) % 3] + (block + 1)) & _MASK
    return x, y


def split(key: Tensor, number: int = 2) -> Tensor:
    """New keys from one, which is not to be used again.

    Args:
        key: A key.
        number: How many.

    Returns:
        An int64 tensor of shape ``[number, 2]``.
    """
    low = torch.arange(number, device=key.device)
    return torch.stack(threefry(key, torch.zeros_like(low), low), dim=-1)


def uniform(
    key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32, like: Tensor | None = None
) -> Tensor:
    """Numbers between 0, included, and 1, excluded.

    Args:
        key: A key.
        shape: The shape.
        dtype: float32, with 23 random bits a number, or float64, with 52.
        like: A tensor of this shape: if it is sharded, so are the numbers, each process making its own.
    """
    if sharded.is_sharded(like) and like is not None:
        return sharded.join(_uniform(key, _local_places(like, key.device), dtype), like)
    return _uniform(key, torch.arange(math.prod(shape), device=key.device).reshape(tuple(shape)), dtype)


def _uniform(key: Tensor, index: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers with these indices."""
    high, low = threefry(key, index >> 32, index & _MASK)
    if dtype == torch.float64:
        return ((high << 20) | (low >> 12)).to(dtype) * 2.0**-52
    return ((high ^ low) >> 9).to(dtype) * 2.0**-23


def _local_places(x: Tensor, device: torch.device) -> Tensor:
    """The place in the whole of each number of a sharded tensor that this process has."""
    places = torch.zeros([1] * x.ndim, dtype=torch.int64, device=device)
    for dim, size in enumerate(x.shape):
        along = torch.arange(size, device=device) * math.prod(x.shape[dim + 1 :])
        places = places + sharded.local_like(along.reshape(size, *[1] * (x.ndim - dim - 1)), x)
    return places


def normal(key: Tensor, shape: Sequence[int], dtype: torch.dtype = torch.float32, like: Tensor | None = None) -> Tensor:
    """Numbers of the standard normal distribution, by the inverse of its distribution function.

    Args:
        key: A key.
        shape: The shape.
        dtype: float32 or float64; other dtypes are rounded from float32.
        like: As for `uniform`.

    Example:
        >>> import torch
        >>> from boxopt.core.random import make_key, normal
        >>> normal(make_key(0), (3,))
        tensor([ 1.6226,  2.0253, -0.4336])
    """
    wide = dtype if dtype == torch.float64 else torch.float32
    least = -1 + torch.finfo(wide).eps / 2  # the number after -1: the inverse is infinite at -1
    between = (uniform(key, shape, wide, like) * 2 + least).clamp_min(least)
    return (math.sqrt(2) * torch.erfinv(between)).to(dtype)
