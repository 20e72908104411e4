"""What a least-squares problem makes of its residuals: a loss of each, with the slope and the curvature that fit it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, tree


class Terms(NamedTuple):
    """A loss ℓ of each residual r, and how it goes up there.

    Attributes:
        value: ℓ(r), a number each; infinite where there is none.
        slope: ℓ'(r), so that the gradient of the sum is Jᵀℓ'.
        curvature: A weight w ≥ 0, about ℓ''(r), so that JᵀwJ stands for the Hessian.
    """

    value: Tensor
    slope: Tensor
    curvature: Tensor


RobustLoss = Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]
"""``z -> (ρ(z), ρ'(z), ρ''(z))`` for z = (r/f_scale)², as the functions that `scipy.optimize.least_squares` takes."""


def huber(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ(z) = z as far as 1, then 2√z − 1: squares of small residuals, absolute values of large ones."""
    inside = z <= 1
    root = torch.where(inside, torch.ones_like(z), z).sqrt()
    return torch.where(inside, z, 2 * root - 1), 1 / root, torch.where(inside, torch.zeros_like(z), -0.5 / root**3)


def soft_l1(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ(z) = 2(√(1 + z) − 1): a smooth absolute value."""
    root = (1 + z).sqrt()
    return 2 * z / (root + 1), 1 / root, -0.5 / root**3


def cauchy(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ(z) = log(1 + z): outliers have hardly any influence, and there may be several minima."""
    inverse = 1 / (1 + z)
    return torch.log1p(z), inverse, -(inverse**2)


def arctan(z: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """ρ(z) = arctan z: the loss of one residual is bounded."""
    inverse = 1 / (1 + z**2)
    return torch.arctan(z), inverse, -2 * z * inverse**2


ROBUST: dict[str, RobustLoss] = {"huber": huber, "soft_l1": soft_l1, "cauchy": cauchy, "arctan": arctan}


@tree.register("counts")
@dataclass(frozen=True, eq=False)
class Poisson:
    r"""The deviance of Poisson counts y, half of it: for residuals μ − y of expected counts μ.

    $$ \ell = \mu - y - y \log(\mu/y), \qquad \ell' = 1 - y/\mu, \qquad w = y/\mu^2 $$

    Its minimizer is the maximum likelihood estimate, where least squares are biased if counts are few. The loss is
    infinite where μ ≤ 0 and a count is positive, or μ < 0: the model has to be positive at the start, which bounds see
    to.

    Args:
        counts: y ≥ 0, as many as there are residuals.

    Example:
        >>> import torch, boxopt as bx
        >>> counts = torch.tensor([3.0, 0.0, 6.0])
        >>> fit = bx.least_squares(lambda rate: rate - counts, torch.tensor(1.0), loss=bx.Poisson(counts))
        >>> fit.params
        tensor(3.0000)

    Source:
        T. A. Laurence and B. A. Chromy, "Efficient maximum likelihood estimator fitting of histograms", Nature Methods
        7, 2010: the estimator "MLE" of Gpufit.
    """

    counts: Any

    def __call__(self, residual: Tensor) -> Terms:
        """The terms of residuals μ − y."""
        counts = each_residual("Poisson's counts", self.counts, residual)
        mean, some = residual + counts, counts > 0
        possible = torch.where(some, mean > 0, mean >= 0)
        safe = torch.where(some & possible, mean, torch.ones_like(mean))
        share = torch.where(some & possible, counts / safe, torch.zeros_like(mean))
        relative = torch.where(some & possible, residual / torch.where(some, counts, 1.0), torch.zeros_like(mean))
        value = torch.where(possible, residual - counts * torch.log1p(relative), torch.inf)
        return Terms(value, 1 - share, share / safe)


def terms_of(loss: str | RobustLoss | Poisson, residual: Tensor, f_scale: Any) -> Terms:
    """The terms of a loss given as to `boxopt.least_squares`.

    Robust ones have the weights ρ' of iteratively reweighted least squares, and more where ρ is convex: a parabola of
    that curvature lies above a concave ρ. A loss's own curvature is about 0 for outliers, and a model that takes it
    knows no length for a step.
    """
    if isinstance(loss, Poisson):
        return loss(residual)
    if loss == "linear":
        return Terms(residual.square() / 2, residual, torch.ones_like(residual))
    rho = ROBUST[loss] if isinstance(loss, str) else loss
    scale = exact.like(f_scale, residual)
    z = (residual / scale).square()
    value, first, second = rho(z)
    return Terms(scale**2 * value / 2, first * residual, first + 2 * z * second.clamp(min=0))


def each_residual(name: str, value: Any, residual: Tensor) -> Tensor:
    """A number, or one for each residual, as a vector."""
    value = exact.as_tensor(value, residual)
    if value.numel() not in (1, len(residual)):
        raise ValueError(f"{name} has the shape {tuple(value.shape)} in a problem of {len(residual)} residuals")
    return value.reshape(-1)


def check_loss(loss: Any) -> None:
    """Raise a ``ValueError`` if a loss has a name that is none."""
    if isinstance(loss, str) and loss != "linear" and loss not in ROBUST:
        raise ValueError(f"loss is one of {['linear', *ROBUST]}, a function or boxopt.Poisson, got {loss!r}")
