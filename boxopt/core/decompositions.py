"""Decompositions of a batch of matrices, of which those that are not finite have one of NaN.

`torch.linalg` raises for the whole batch if one of its matrices is not finite: a member of an ensemble that diverges
would end the others.
"""

from __future__ import annotations

import torch
from torch import Tensor


def eigh(x: Tensor) -> tuple[Tensor, Tensor]:
    """Eigenvalues, ascending, and eigenvectors of symmetric matrices."""
    usable, finite = _usable(x)
    values, vectors = torch.linalg.eigh(usable)
    return _where(finite[..., None], values), _where(finite[..., None, None], vectors)


def eigvalsh(x: Tensor) -> Tensor:
    """Eigenvalues, ascending, of symmetric matrices."""
    usable, finite = _usable(x)
    return _where(finite[..., None], torch.linalg.eigvalsh(usable))


def svd(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The thin singular value decomposition: U, σ and Vᵀ."""
    usable, finite = _usable(x)
    left, values, right = torch.linalg.svd(usable, full_matrices=False)
    whole = finite[..., None, None]
    return _where(whole, left), _where(finite[..., None], values), _where(whole, right)


def svdvals(x: Tensor) -> Tensor:
    """Singular values, descending."""
    usable, finite = _usable(x)
    return _where(finite[..., None], torch.linalg.svdvals(usable))


def _usable(x: Tensor) -> tuple[Tensor, Tensor]:
    """The matrices, zero where they are not finite, and whether they are."""
    finite = (x.detach().abs() <= torch.finfo(x.dtype).max).flatten(-2).all(-1)
    return torch.where(finite[..., None, None], x, 0.0), finite


def _where(finite: Tensor, x: Tensor) -> Tensor:
    return torch.where(finite, x, torch.nan)
