"""SOAP's scaling: Adam in the eigenbases of Shampoo's second moments."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.decompose import eigh
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import zero_count
from boxopt.scale.kronecker import blocks, is_matrix, join, update_moments, zero_moments
from boxopt.scale.moments import bias_correction, map_wide, safe_sqrt, update_moment, zeros_like
from boxopt.scale.shampoo import check_block_size


class ScaleBySoapState(NamedTuple):
    """The state of `scale_by_soap`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        mu: The running average of the gradients.
        nu: That of the squares of the rotated gradients.
        left: The second moments of the rows of each block of each matrix; () for other leaves.
        right: Those of the columns.
        left_basis: The eigenvectors of ``left``, in columns.
        right_basis: Those of ``right``.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]
    mu: Any
    nu: Any
    left: Any
    right: Any
    left_basis: Any
    right_basis: Any


@expects_numbers
def scale_by_soap(
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    shampoo_beta: Scalar | None = None,
    precondition_frequency: int = 10,
    *,
    block_size: int = 128,
) -> GradientTransformation:
    r"""Adam for matrices in the bases of the eigenvectors of their second moments; plain Adam for other leaves.

    $$ G' = Q_L^\top G Q_R, \quad V \leftarrow \beta_2 V + (1 - \beta_2) G'^2, \quad
       M \leftarrow \beta_1 M + (1 - \beta_1) G, \qquad
       U = Q_L \frac{Q_L^\top \hat M Q_R}{\sqrt{\hat V} + \epsilon} Q_R^\top $$

    $$ L \leftarrow \beta L + (1 - \beta) G G^\top, \quad R \leftarrow \beta R + (1 - \beta) G^\top G, \quad
       Q_L \leftarrow \operatorname{qr}(L Q_L), \quad Q_R \leftarrow \operatorname{qr}(R Q_R)
       \ \text{ every so many steps} $$

    The first bases are the eigenvectors for the first gradient. Large leaves are divided into blocks. A leaf with more
    than two dimensions is a matrix whose columns are all but the first. New bases are computed in every step and used
    in some, since nothing branches on a counter; they are constants to derivatives: eigenvectors have none where
    eigenvalues coincide.

    The metric of a rotated space is not diagonal: the step size of all leaves is unchanged, and a set after it is
    projected onto in the Euclidean metric.

    Args:
        b1: β₁.
        b2: β₂.
        eps: ε.
        shampoo_beta: β; β₂ if left out.
        precondition_frequency: Every how many steps the bases are renewed.
        block_size: The most rows, and columns, of a block.

    Returns:
        A gradient-space transformation with a `ScaleBySoapState`.

    Raises:
        ValueError: ``block_size`` is less than 1.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_soap(), torch.zeros(2, 2)
        >>> tx.update(torch.tensor([[0.0, 5.0], [3.0, 0.0]]), tx.init(params), params)[0].round(decimals=3)
        tensor([[0., 1.],
                [1., 0.]])

    Source:
        N. Vyas et al., "SOAP: improving and stabilizing Shampoo using Adam", ICLR 2025, algorithm 3.
    """
    check_block_size(block_size)
    return GradientTransformation(
        bind(_soap_init, size=block_size),
        bind(
            _soap_update,
            b1=b1,
            b2=b2,
            eps=eps,
            decay=b2 if shampoo_beta is None else shampoo_beta,
            frequency=precondition_frequency,
            size=block_size,
        ),
    )


def _soap_init(params: Any, *, size: int) -> ScaleBySoapState:
    tree.check_parameters(params)

    def zeros(right: bool) -> Any:
        return tree.map(lambda x: zero_moments(x, size, right=right) if is_matrix(x) else (), params)

    moments = [zeros(right) for right in (False, True, False, True)]
    left, right, left_basis, right_basis = moments
    return ScaleBySoapState(
        zero_count(params), zeros_like(params), zeros_like(params), left, right, left_basis, right_basis
    )


def _soap_update(
    updates: P,
    state: ScaleBySoapState,
    params: P,
    *,
    b1: Scalar,
    b2: Scalar,
    eps: Scalar,
    decay: Scalar,
    frequency: int,
    size: int,
) -> tuple[P, ScaleBySoapState]:
    count, first = state.count + 1, state.count == 0
    due = ~first & (state.count % frequency == 0)

    gathered = tree.map(sharded.whole, updates)

    def moments(old: Any, right: bool) -> Any:
        def update(g: Tensor, old: Any) -> Any:
            return update_moments(old, g, size, decay, right=right) if is_matrix(g) else ()

        return tree.map(update, gathered, old)

    left, right = moments(state.left, False), moments(state.right, True)
    left_basis = tree.map(lambda m, q: torch.where(first, _eigenvectors(m), q), left, state.left_basis)
    right_basis = tree.map(lambda m, q: torch.where(first, _eigenvectors(m), q), right, state.right_basis)

    def rotate(x: Tensor, lefts: Any, rights: Any, *, back: bool = False) -> Tensor:
        if not is_matrix(x):
            return x
        wide = sharded.whole(exact.wide(x))
        new = []
        for row, row_lefts, row_rights in zip(blocks(wide, size), lefts, rights, strict=True):
            triples = zip(row, row_lefts, row_rights, strict=True)
            new.append([q @ part @ r.mT if back else q.mT @ part @ r for part, q, r in triples])
        return exact.like(join(new, wide), x)

    mu = update_moment(updates, state.mu, b1, 1)
    nu = update_moment(tree.map(rotate, gathered, left_basis, right_basis), state.nu, b2, 2)
    mean_scale, square_scale = bias_correction(b1, count), bias_correction(b2, count)

    def scale(m: Tensor, v: Tensor) -> Tensor:
        root = safe_sqrt(v / exact.like(square_scale, v)) + exact.like(eps, v)
        return m / exact.like(mean_scale, m) / root

    scaled = map_wide(scale, tree.map(rotate, mu, left_basis, right_basis), nu)
    new = tree.map(lambda x, q, r: rotate(x, q, r, back=True), scaled, left_basis, right_basis)
    left_basis = tree.map(lambda m, q: torch.where(due, _power_step(m, q), q), left, left_basis)
    right_basis = tree.map(lambda m, q: torch.where(due, _power_step(m, q), q), right, right_basis)
    return new, ScaleBySoapState(count, mu, nu, left, right, left_basis, right_basis)


def _eigenvectors(moment: Tensor) -> Tensor:
    return eigh(moment.detach()).vectors


def _power_step(moment: Tensor, basis: Tensor) -> Tensor:
    """A step of the power method for all eigenvectors at once."""
    return torch.linalg.qr(moment.detach() @ basis.detach()).Q
