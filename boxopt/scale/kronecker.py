"""What preconditioners of matrices share: blocks of leaves, their second moments, and inverse roots of these."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, sharded
from boxopt.core.decompose import eigh
from boxopt.core.types import Scalar


def blocks(x: Tensor, size: int) -> list[list[Tensor]]:
    """The blocks of a leaf as a matrix, in rows of blocks; of vectors and scalars, as columns.

    A leaf with more dimensions is a matrix whose columns are all dimensions but the first. An empty one has no blocks.
    """
    if x.numel() == 0:
        return []
    matrix = x.reshape(x.shape[0], -1) if x.ndim > 1 else x.reshape(-1, 1)
    return [list(rows.split(size, dim=1)) for rows in matrix.split(size, dim=0)]


def join(parts: list[list[Tensor]], like: Tensor) -> Tensor:
    """The leaf of these blocks."""
    if not parts:
        return like
    return torch.cat([torch.cat(row, dim=1) for row in parts], dim=0).reshape(like.shape)


def is_matrix(x: Tensor) -> bool:
    """Whether a leaf has rows and columns to precondition, rather than rows only."""
    return x.ndim > 1


def zero_moments(x: Tensor, size: int, *, right: bool) -> Any:
    """Zeros for the second moments of a leaf's blocks: of the rows or, if it has any, of the columns."""
    if right and not is_matrix(x):
        return ()
    wide = sharded.whole(exact.wide(x))
    return [[wide.new_zeros((part.shape[right], part.shape[right])) for part in row] for row in blocks(wide, size)]


def update_moments(moments: Any, x: Tensor, size: int, decay: Scalar | None, *, right: bool) -> Any:
    """The second moments GGᵀ, or GᵀG, of a leaf's blocks: summed up, or averaged with a decay."""
    if right and not is_matrix(x):
        return ()

    def update(old: Tensor, part: Tensor) -> Tensor:
        new = part.mT @ part if right else part @ part.mT
        if decay is None:
            return old + new
        return exact.like(decay, old) * old + exact.like(1 - decay, old) * new

    parts = blocks(exact.wide(x), size)
    return [[update(*pair) for pair in zip(*rows, strict=True)] for rows in zip(moments, parts, strict=True)]


def inverse_root(moment: Tensor, power: int, eps: Scalar) -> Tensor:
    r"""$(A + \epsilon)^{-1/p}$ of a positive semidefinite matrix, by its eigenvalues.

    Derivatives of eigenvectors are infinite where eigenvalues coincide, as at zero gradients; the root's are not. So
    the decomposition is a constant, and where derivatives may be asked for, two steps of the chord method for
    $Y^p = A + \epsilon$ from its solution carry them to second order: in the basis of eigenvectors, the equation's
    derivative is a multiplication of each element by $\sum_k \mu_i^k \mu_j^{p-1-k}$, with $\mu^p$ the eigenvalues.
    """
    ridge = exact.as_tensor(eps, moment) * torch.eye(moment.shape[-1], dtype=moment.dtype, device=moment.device)
    shifted = (moment + moment.mT) / 2 + ridge
    values, vectors = eigh(shifted.detach())
    least = exact.as_tensor(eps, moment).detach().clamp_min(torch.finfo(moment.dtype).tiny)
    roots = torch.where(values > least, values, least) ** (1 / power)
    root = (vectors / roots.unsqueeze(-2)) @ vectors.mT
    if exact.is_constant(shifted):
        return root
    slope = sum(roots.unsqueeze(-1) ** k * roots.unsqueeze(-2) ** (power - 1 - k) for k in range(power))
    y = (vectors * roots.unsqueeze(-2)) @ vectors.mT
    for _ in range(2):
        missing = shifted - torch.linalg.matrix_power(y, power)
        missing = missing - missing.detach()  # a rounding, which small slopes would magnify
        y = y + vectors @ ((vectors.mT @ missing @ vectors) / slope) @ vectors.mT
    # The inverse of y by its series at y: where a root is lost to rounding, y itself is singular.
    step = root @ (y - y.detach())
    return root - step @ root + step @ step @ root
