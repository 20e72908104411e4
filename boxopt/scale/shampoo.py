"""Shampoo's scaling: AdaGrad with a full matrix for the rows, and another for the columns."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import check_nonnegative
from boxopt.scale.kronecker import blocks, inverse_root, is_matrix, join, update_moments, zero_moments


class ScaleByShampooState(NamedTuple):
    """The state of `scale_by_shampoo`.

    Attributes:
        left: The second moments of the rows of each block of each leaf.
        right: Those of the columns; () for leaves that are no matrices.
    """

    left: Any
    right: Any


def scale_by_shampoo(b2: Scalar | None = None, eps: Scalar = 1e-6, *, block_size: int = 128) -> GradientTransformation:
    r"""Multiply the gradient of a matrix from both sides by inverse roots of its second moments.

    $$ L \leftarrow L + G G^\top, \qquad R \leftarrow R + G^\top G, \qquad
       U = (L + \epsilon)^{-1/4}\, G\, (R + \epsilon)^{-1/4} $$

    and $u = (L + \epsilon)^{-1/2} g$ for a vector. Large leaves are divided into blocks, each with matrices of its own.
    A leaf with more than two dimensions is a matrix whose columns are all but the first.

    The roots are of eigenvalues, computed in every step. Derivatives are right to second order, and finite at zero
    gradients. The metric is not diagonal: the step size is unchanged, and a set after it is projected onto in the
    Euclidean metric.

    Args:
        b2: With it, L and R are averages, $\beta_2 L + (1 - \beta_2) G G^\top$. Sums, as in the paper, if left out.
        eps: ε, positive.
        block_size: The most rows, and columns, of a block.

    Returns:
        A gradient-space transformation with a `ScaleByShampooState`.

    Raises:
        ValueError: ``eps`` is negative, or ``block_size`` is less than 1.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.scale_by_shampoo(), torch.zeros(2, 2)
        >>> tx.update(torch.tensor([[0.0, 5.0], [3.0, 0.0]]), tx.init(params), params)[0].round(decimals=3)
        tensor([[0., 1.],
                [1., 0.]])

    Source:
        V. Gupta, T. Koren and Y. Singer, "Shampoo: preconditioned stochastic tensor optimization", ICML 2018.
    """
    check_nonnegative("eps", eps)
    check_block_size(block_size)
    return GradientTransformation(
        bind(_shampoo_init, size=block_size), bind(_shampoo_update, b2=b2, eps=eps, size=block_size)
    )


def check_block_size(size: int) -> None:
    """Raise a ``ValueError`` if there can be no such block."""
    if size < 1:
        raise ValueError(f"block_size is at least 1, got {size!r}")


def _shampoo_init(params: Any, *, size: int) -> ScaleByShampooState:
    tree.check_parameters(params)
    return ScaleByShampooState(
        tree.map(lambda x: zero_moments(x, size, right=False), params),
        tree.map(lambda x: zero_moments(x, size, right=True), params),
    )


def _shampoo_update(
    updates: P, state: ScaleByShampooState, params: P, *, b2: Scalar | None, eps: Scalar, size: int
) -> tuple[P, ScaleByShampooState]:
    gathered = tree.map(sharded.whole, updates)
    left = tree.map(lambda g, old: update_moments(old, g, size, b2, right=False), gathered, state.left)
    right = tree.map(lambda g, old: update_moments(old, g, size, b2, right=True), gathered, state.right)

    def precondition(g: Tensor, lefts: Any, rights: Any) -> Tensor:
        power = 4 if is_matrix(g) else 2
        new = []
        for index, row in enumerate(blocks(exact.wide(g), size)):
            parts = [inverse_root(m, power, eps) @ part for part, m in zip(row, lefts[index], strict=True)]
            if is_matrix(g):
                parts = [part @ inverse_root(m, power, eps) for part, m in zip(parts, rights[index], strict=True)]
            new.append(parts)
        return exact.like(join(new, exact.wide(g)), g)

    new = tree.map(precondition, gathered, left, right)
    return tree.map(exact.like, new, updates), ScaleByShampooState(left, right)
