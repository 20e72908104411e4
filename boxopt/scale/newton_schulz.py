"""The nearest orthogonal matrix, roughly, by a few matrix products: Newton–Schulz iterations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.scale.moments import safe_sqrt
from boxopt.scale.scalars import maximum

Preconditioning = Literal["frobenius", "spectral", "aol", "schatten"]

STANDARD = (3.4445, -4.7750, 2.0315)
PRESETS: dict[str, Any] = {
    "standard": STANDARD,
    "dion": (
        (4.0848, -6.8946, 2.9270),
        (3.9505, -6.3029, 2.6377),
        (3.7418, -5.5913, 2.3037),
        (2.8769, -3.1427, 1.2046),
        (2.8366, -3.0525, 1.2012),
    ),
}


def iterations(coefficients: Any, steps: int) -> list[tuple[Any, Any, Any]]:
    """The three coefficients of each iteration: the same ones ``steps`` times, or as many as are given."""
    if isinstance(coefficients, str):
        if coefficients not in PRESETS:
            raise ValueError(f"the coefficients are one of {', '.join(PRESETS)}, or numbers, got {coefficients!r}")
        coefficients = PRESETS[coefficients]
    shape = torch.as_tensor(coefficients).shape if not isinstance(coefficients, Tensor) else coefficients.shape
    if len(shape) not in (1, 2) or shape[-1] != 3:
        raise ValueError(f"the coefficients have the shape (3,) or (n, 3), got {tuple(shape)}")
    rows: Any = [coefficients] * steps if len(shape) == 1 else coefficients
    return [(row[0], row[1], row[2]) for row in rows]


def orthogonalize(
    x: Tensor, coefficients: Sequence[tuple[Any, Any, Any]], preconditioning: Preconditioning, eps: Any
) -> Tensor:
    """A matrix, or a batch of them, with its singular values brought near 1.

    Each iteration is X ← aX + b(XXᵀ)X + c(XXᵀ)²X, after the singular values have been brought below 1: by the
    Frobenius norm, by the spectral norm, or, within the first iteration, by the row sums of |XXᵀ| or its Frobenius
    norm. Derivatives are finite at zero.
    """
    transposed = x.shape[-2] > x.shape[-1]
    if transposed:
        x = x.mT
    eps = exact.like(eps, x)
    if preconditioning == "frobenius":
        x = x / (safe_sqrt(x.square().sum(dim=(-2, -1), keepdim=True)) + eps)
    elif preconditioning == "spectral":
        x = x / (torch.linalg.matrix_norm(x, ord=2, keepdim=True) + eps)
    for index, (a, b, c) in enumerate(coefficients):
        square = x @ x.mT
        if index == 0 and preconditioning in ("aol", "schatten"):
            scale = _inverse_root(square, preconditioning)
            x, square = x * scale, square * scale * scale.mT
        polynomial = exact.like(b, x) * square + exact.like(c, x) * square @ square
        x = exact.like(a, x) * x + polynomial @ x
    return x.mT if transposed else x


def _inverse_root(square: Tensor, preconditioning: Preconditioning) -> Tensor:
    """What the rows of X are multiplied by, from XXᵀ."""
    if preconditioning == "aol":
        size = square.abs().sum(dim=-1, keepdim=True)
    else:
        size = safe_sqrt(square.square().sum(dim=(-2, -1), keepdim=True))
    return 1 / torch.sqrt(maximum(size, torch.full_like(size, 1e-8)))
