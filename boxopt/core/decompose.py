"""Eigenvalues and singular values of batches in which a matrix may not be finite.

LAPACK's drivers refuse a matrix with a NaN or an infinite entry, and torch then raises for the whole batch. Here the
results for such a matrix are NaN, and those for the others are what they would be without it.

Now and then an iteration of LAPACK's does not end, on a matrix that has one eigenvalue many times, say; it does on a
multiple of it, and in float64. So it is tried again.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor


class Eigen(NamedTuple):
    """Eigenvalues in increasing order, [..., n], and eigenvectors as columns, [..., n, n]."""

    values: Tensor
    vectors: Tensor


class Singular(NamedTuple):
    """Left singular vectors as columns, singular values in decreasing order, right singular vectors as rows."""

    left: Tensor
    values: Tensor
    right: Tensor


def eigh(x: Tensor) -> Eigen:
    """The eigenvalues and eigenvectors of symmetric matrices."""
    usable, x = _usable(x)
    values, vectors = _ended(torch.linalg.eigh, x)
    return Eigen(_where(usable[..., 0], values), _where(usable, vectors))


def eigvalsh(x: Tensor) -> Tensor:
    """The eigenvalues of symmetric matrices."""
    usable, x = _usable(x)
    return _where(usable[..., 0], _ended(torch.linalg.eigvalsh, x))


def svd(x: Tensor, *, full: bool = False) -> Singular:
    """The singular value decomposition, reduced or with all vectors."""
    usable, x = _usable(x)
    left, values, right = _ended(partial(torch.linalg.svd, full_matrices=full), x)
    return Singular(_where(usable, left), _where(usable[..., 0], values), _where(usable, right))


def svdvals(x: Tensor) -> Tensor:
    """The singular values."""
    usable, x = _usable(x)
    return _where(usable[..., 0], _ended(torch.linalg.svdvals, x))


def _ended(function: Callable[[Tensor], Any], x: Tensor) -> Any:
    """A decomposition; if an iteration does not end, that of the same matrices but for a rounding, in float64."""
    if torch.compiler.is_compiling():
        return function(x)
    try:
        return function(x)
    except torch.linalg.LinAlgError:  # pyright: ignore[reportPrivateImportUsage]
        made = function(x.double() * (1 + 2**-50))
    return made.to(x.dtype) if isinstance(made, Tensor) else tuple(part.to(x.dtype) for part in made)


def _usable(x: Tensor) -> tuple[Tensor, Tensor]:
    """Which matrices are finite, [..., 1, 1], and all of them, 0 where they are not."""
    usable = (x.detach().abs() <= torch.finfo(x.dtype).max).flatten(-2).all(-1)[..., None, None]
    return usable, torch.where(usable, x, 0.0)


def _where(usable: Tensor, result: Tensor) -> Tensor:
    return torch.where(usable, result, torch.nan)
