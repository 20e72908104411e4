r"""Functions of a symmetric matrix through its eigenvalues, with derivatives that are safe at equal ones.

Let $f(\lambda) = \alpha_\pm + \beta_\pm\lambda$ on either side of 0, and $X = V \operatorname{diag}(\lambda) V^\top$.
`torch.linalg.eigh` differentiates V, which divides by differences of eigenvalues and gives NaN where two are equal;
f(X) has no such problem. Here V and λ are detached, and the graph is attached by the Taylor polynomial of f at X: with
$E = V^\top(X' - X)V$, 0 in value,

$$ f(X') = V\Bigl(f(\Lambda) + f[\lambda_i, \lambda_j] E_{ij}
+ \sum_k f[\lambda_i, \lambda_k, \lambda_j] E_{ik} E_{kj}\Bigr)V^\top + O(E^3), $$

the Daleckii–Krein formula and its second order. The divided differences of a function with two affine pieces have a
denominator $\lambda_i - \lambda_k$ only for i and k on different sides of 0, so that the sum is a few products of
matrices. Derivatives are exact to the second order; higher ones are 0.

A rectangular matrix's singular values are the eigenvalues of its dilation
$\begin{pmatrix}0 & X\\ X^\top & 0\end{pmatrix}$, together with their negatives.

Source: N. J. Higham, Functions of Matrices, 2008, theorem 3.11; R. Bhatia, Matrix Analysis, 1997, section V.3.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.core.decompose import Singular, eigh, svd

Basis = tuple[Tensor, Tensor]


def symmetric(x: Tensor) -> Tensor:
    """(x + xᵀ)/2."""
    return (x + x.mT) / 2


def basis_of(x: Tensor) -> Basis:
    """Eigenvalues and eigenvectors of a symmetric matrix, detached."""
    return eigh(x.detach())


def positive_part(x: Tensor, basis: Basis) -> Tensor:
    """The matrix with the negative eigenvalues replaced by 0, f(λ) = max(λ, 0); ``basis`` is that of ``x``."""
    values, vectors = basis
    positive = (values > 0).to(x.dtype)
    rotated = vectors.mT @ x @ vectors
    change = rotated - rotated.detach()
    row, column = positive.unsqueeze(-1), positive.unsqueeze(-2)
    across = row * (1 - column)  # i above 0, k not
    gap = values.unsqueeze(-1) - values.unsqueeze(-2)
    inverse = torch.where(across > 0, 1 / torch.where(across > 0, gap, 1.0), 0.0)
    first = (
        row * column
        + values.clamp_min(0.0).unsqueeze(-1) * inverse
        + (values.clamp_min(0.0).unsqueeze(-1) * inverse).mT
    )
    scaled = inverse * change
    below, above = values.clamp_max(0.0), values.clamp_min(0.0)
    # Two indices on one side and one on the other: the gap between the two pieces there, over both differences.
    outer_above = -(scaled * below.unsqueeze(-2)) @ scaled.mT
    outer_below = scaled.mT @ (scaled * above.unsqueeze(-1))
    inner_above = -inverse * below.unsqueeze(-2) * ((row * column * change) @ scaled)
    inner_below = inverse * above.unsqueeze(-1) * (scaled @ ((1 - row) * (1 - column) * change))
    crossed = inner_above + inner_below
    second = outer_above + outer_below + crossed + crossed.mT
    return symmetric(vectors @ (torch.diag_embed(above) + first * change + second) @ vectors.mT)


def dilation(x: Tensor) -> Tensor:
    """The symmetric matrix of a rectangular one."""
    upper = torch.cat([x.new_zeros((*x.shape[:-2], x.shape[-2], x.shape[-2])), x], -1)
    lower = torch.cat([x.mT, x.new_zeros((*x.shape[:-2], x.shape[-1], x.shape[-1]))], -1)
    return torch.cat([upper, lower], -2)


def basis_of_dilation(x: Tensor) -> tuple[Singular, Basis]:
    """A matrix's reduced singular value decomposition, and what it makes: the basis of its dilation; detached."""
    left, values, right = svd(x.detach(), full=True)
    rank, (rows, columns) = values.shape[-1], x.shape[-2:]
    u, v = left[..., :rank], right[..., :rank, :].mT
    upper = [u, u, left[..., rank:] * 2**0.5, x.new_zeros((*x.shape[:-1], columns - rank))]
    lower = [v, -v, x.new_zeros((*x.shape[:-2], columns, rows - rank)), right[..., rank:, :].mT * 2**0.5]
    vectors = torch.cat([torch.cat(upper, -1), torch.cat(lower, -1)], -2) / 2**0.5
    eigenvalues = torch.cat([values, -values, x.new_zeros((*x.shape[:-2], rows + columns - 2 * rank))], -1)
    return Singular(u, values, v.mT), (eigenvalues, vectors)


def shifted(x: Tensor, shift: Tensor) -> Tensor:
    """X − shift·I, for a shift of shape [...]."""
    identity = torch.eye(x.shape[-1], dtype=x.dtype, device=x.device)
    return x - shift[..., None, None] * identity


def leading_pair(x: Tensor) -> Tensor:
    """u₁v₁ᵀ, of the leading singular vectors; exact derivatives to the second order, none towards vectors that tie.

    Two steps of a Newton method for an eigenvector of the dilation, whose matrix is that at the solution and detached:
    each step adds an order.
    """
    left, _, right = svd(x.detach())
    vector = torch.cat([left[..., :, :1], right[..., :1, :].mT], -2) / 2**0.5
    if not exact.is_constant(x):
        whole = dilation(x)
        values, vectors = basis_of(whole)
        gap = values[..., -1:] - values
        apart = gap > 16 * torch.finfo(x.dtype).eps * values[..., -1:]
        inverse = torch.where(apart, 1 / torch.where(apart, gap, 1.0), 0.0).unsqueeze(-1)
        for _ in range(2):
            image = whole @ vector
            residual = image - vector * (vector.mT @ image)
            vector = vector + vectors @ (inverse * (vectors.mT @ residual))
            vector = vector / (vector * vector).sum(-2, keepdim=True).sqrt()
    return 2 * vector[..., : x.shape[-2], :] @ vector[..., x.shape[-2] :, :].mT
