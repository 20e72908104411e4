r"""The nearest matrix of a convex set in the metric of a step size that varies over the entries.

**The problem.** With weights $0 < w \le 1$, the metric but for a factor, and P the Euclidean projection, the minimizer
over the set of $f(x) = \tfrac12 \sum w (x - y)^2$ is the one fixed point of

$$ T(x) = P(x - \gamma w (x - y)), \qquad 0 < \gamma < 1. $$

**Newton's method.** Let N be the derivative of $v - P(v)$, what the projection takes away: symmetric, between 0 and 1,
and a few products of matrices (Daleckii and Krein; see `boxopt.sets.spectral`). With $s = \sqrt{1 - \gamma w}$ that of
$x - T(x)$ is $s^{-1} A s$ for

$$ A = \gamma w + s N s, $$

symmetric, with eigenvalues from $\gamma \min w$ to 1. So Newton's direction is $d = -s^{-1} A^{-1} s (x - T(x))$, which
conjugate gradients find, the less exactly the farther the solution is. The forward–backward envelope

$$ \varphi(x) = f(x) - \tfrac\gamma2 \|\nabla f(x)\|^2
+ \tfrac1{2\gamma} \operatorname{dist}^2(x - \gamma \nabla f(x)), $$

has the minimizer of f over the set, and the slope $s^2 (x - T(x))/\gamma$, for which d is a direction of descent: d is
halved until φ falls; if it does not, x ← T(x), which always makes it fall. Convergence is of the second order, in five
to twenty decompositions where step sizes differ by factors of 10² to 10⁶; from 10⁸ on it is what a hundred reach. What
is returned is T(x), a member.

**Derivatives.** With M the inverse of the derivative of x − T(x), detached, and θ what a derivative may be asked with
respect to, $x + M(T(x, \theta) - x)$ has the first derivative of the solution; a second such step adds an order. For
matrices with at most `_DENSE` entries M is a matrix, and these derivatives are exact. For larger ones it is a
polynomial, `_CHEBYSHEV_STEPS` steps of Chebyshev's iteration: the derivative is off by about
$(2\exp(-2 \cdot \mathtt{\_CHEBYSHEV\_STEPS}/\sqrt\kappa))^2$ of itself, κ being the ratio of the step sizes.

Source: P. Patrinos, L. Stella and A. Bemporad, "Forward–backward truncated Newton methods for convex composite
optimization", arXiv:1402.6655, 2014; A. Themelis, L. Stella and P. Patrinos, "Forward–backward envelope for the sum of
two nonconvex functions", SIAM Journal on Optimization 28, 2018.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact
from boxopt.core.decompose import eigh, svd
from boxopt.core.search import may_stop, search
from boxopt.sets.spectral import symmetric
from boxopt.sets.threshold import project_simplex

_GAMMA = 0.95
_NEWTON_STEPS, _GRADIENT_STEPS = 100, 100
_BLIND_NEWTON_STEPS, _BLIND_GRADIENT_STEPS = 10, 30  # where nobody may look whether they are enough
_SHORTEST = 2.0**-8
_DENSE = 256  # entries, up to which the derivative's system is solved as a matrix
_DENSE_AT_ONCE = 2**22  # numbers in such matrices
_CHEBYSHEV_STEPS = 32


class Cut(NamedTuple):
    r"""A matrix V = U·diag(σ)·Rᵀ cut down to a set, and the derivative N of what is cut off, V − P(V).

    With $B = U^\top H R$ and the divided differences, for σ and for −σ, of the function t of σ that is cut off,

    $$ N(H) = U (t[\sigma_i, \sigma_j] \operatorname{sym} B + t[\sigma_i, -\sigma_j] \operatorname{skew} B) R^\top
    + (1 - U U^\top) H R \operatorname{diag}(t/\sigma) R^\top + U \operatorname{diag}(l)\, R^\top \langle l, \operatorname{diag} B \rangle. $$

    The last is by how much the threshold moves: l is of length 1 or 0.
    """  # noqa: E501

    nearest: Tensor
    left: Tensor
    right: Tensor
    even: Tensor
    odd: Tensor
    rest: Tensor
    level: Tensor

    def slope(self, change: Tensor) -> Tensor:
        """N(H)."""
        partly = change @ self.right
        inner = self.left.mT @ partly
        made = self.even * symmetric(inner) + self.odd * (inner - symmetric(inner))
        shift = self.level * (self.level * inner.diagonal(dim1=-2, dim2=-1).unsqueeze(-2)).sum(-1, keepdim=True)
        made = made + torch.diag_embed(shift.squeeze(-2))
        if self.left.shape[-2] == self.left.shape[-1]:
            return self.left @ made @ self.right.mT
        return (self.left @ (made - inner * self.rest) + partly * self.rest) @ self.right.mT

    def diagonal(self) -> Tensor:
        """That of N, approximately: what N(H) holds of each entry of H, between 0 and 1."""
        left, right = self.left * self.left, self.right * self.right
        beyond = (1 - left.sum(-1, keepdim=True)).clamp_min(0.0) * (self.rest @ right.mT)
        return left @ ((self.even + self.odd) / 2) @ right.mT + beyond


def _cut(x: Tensor, radius: Tensor, kind: str) -> Cut:
    """The projection of matrices, not wider than high, onto a set of a ``kind``; its radius is of shape [..., 1, 1]."""
    limit = radius.squeeze(-1)
    if kind == "PSD":
        values, left = eigh(symmetric(x))
        right = left
        kept, gone = values.clamp_min(0.0), ~(values > 0)
        outside = torch.ones_like(values[..., :1], dtype=torch.bool)
    else:
        left, values, right = svd(x)
        right = right.mT
        if kind == "SpectralBall":
            kept, gone, outside = torch.minimum(values, limit), values > limit, values[..., :1] > limit
        else:
            outside = values.sum(-1, keepdim=True) > limit
            kept = torch.where(outside, project_simplex(values, None, limit), values)
            gone = outside & ~(kept > 0)
    taken = values - kept
    nearest = torch.where(outside.unsqueeze(-1), (left * kept.unsqueeze(-2)) @ right.mT, x)
    same = gone.unsqueeze(-1) == gone.unsqueeze(-2)
    difference = _ratio(taken.unsqueeze(-1) - taken.unsqueeze(-2), values.unsqueeze(-1) - values.unsqueeze(-2))
    even = torch.where(same, gone.to(x.dtype).unsqueeze(-1), difference)
    level = torch.zeros_like(values)
    if kind == "PSD":
        return Cut(symmetric(nearest), left, right, even, even, level.unsqueeze(-2), level.unsqueeze(-2))
    if kind == "NuclearBall":
        level = (outside & ~gone).to(x.dtype)
        level = level / level.sum(-1, keepdim=True).clamp_min(1.0).sqrt()
    odd = _ratio(taken.unsqueeze(-1) + taken.unsqueeze(-2), values.unsqueeze(-1) + values.unsqueeze(-2))
    return Cut(nearest, left, right, even, odd, _ratio(taken, values).unsqueeze(-2), level.unsqueeze(-2))


def _ratio(part: Tensor, whole: Tensor) -> Tensor:
    """Between 0 and 1, also where both are rounding errors."""
    return (part / torch.where(whole != 0, whole, 1.0)).clamp(0.0, 1.0)


@search("matrix_in_metric")
def nearest_in_metric(y: Tensor, weight: Tensor, radius: Tensor, kind: str) -> Tensor:
    """The minimizer of Σ weight·(x − y)² over the set of a ``kind``, for matrices that are not wider than high.

    Args:
        y: Matrices, symmetric ones for ``"PSD"``.
        weight: Of the same shape, positive, the largest of each matrix being 1.
        radius: [..., 1, 1].
        kind: The name of the set's class.
    """
    shape = y.shape
    y, weight, radius = (_flat(value, shape[:-2]) for value in (y, weight, radius))
    largest = _largest(y)
    size = torch.where((largest > 0) & (largest < torch.inf), largest, 1.0)
    y, radius = y / size, radius / size  # so that no square leaves the numbers' range
    eps, stops = torch.finfo(y.dtype).eps, may_stop(y, dear=True)
    rows, found = torch.arange(len(y), device=y.device), torch.full_like(y, torch.nan)
    point = nearest = _cut(y, radius, kind).nearest
    direction = torch.zeros_like(y)
    envelope, slope, length, error = (torch.full_like(radius, value) for value in (torch.inf, 0.0, 1.0, torch.inf))
    for _ in range(_NEWTON_STEPS if stops else _BLIND_NEWTON_STEPS):
        trial = torch.where(length > 0, point + length * direction, nearest)
        gradient = weight * (trial - y)
        forward = trial - _GAMMA * gradient
        cut = _cut(forward, radius, kind)
        residual = trial - cut.nearest
        value = _dot(gradient, (trial - y) / 2 - residual) + _dot(residual, residual) / (2 * _GAMMA)
        bound = envelope + 1e-4 * length * slope + 16 * eps * envelope.abs()
        gap = cut.nearest - y
        low = torch.minimum(value, _dot(weight * gap, gap) / 2)
        taken = (length == 0) | ~(low > bound)  # NaN is, and then is done
        before, error = error, torch.where(taken, _largest(residual), error)
        stuck = (error > before / 2) & (error <= 1e4 * eps * (_largest(forward) + _largest(trial)))
        done = taken & (~(error > 4 * eps * _largest(cut.nearest)) | stuck)
        point, nearest = torch.where(taken, trial, point), torch.where(taken, cut.nearest, nearest)
        envelope = torch.where(taken, value, envelope)
        again = taken & ((length == 0) | (error <= before / 8) & (value <= bound))
        newton = _newton_direction(cut, weight, torch.where(again & ~done, residual, 0.0), stops)
        direction = torch.where(taken, newton, direction)
        slope = torch.where(taken, _dot(newton, (1 - _GAMMA * weight) * residual) / _GAMMA, slope)
        shorter = torch.where(~taken & (length > _SHORTEST), length / 2, 0.0)
        length = torch.where(again, 1.0, shorter)
        if stops and bool(done.any()):
            found[rows] = nearest
            rest = (~done).flatten().nonzero().squeeze(-1)
            if not len(rest):
                break
            state = (y, weight, radius, point, nearest, direction, envelope, slope, length, error, rows)
            y, weight, radius, point, nearest, direction, envelope, slope, length, error, rows = (
                part[rest] for part in state
            )
    found[rows] = nearest
    return (found * size).reshape(shape)


def _newton_direction(cut: Cut, weight: Tensor, residual: Tensor, stops: bool) -> Tensor:
    """−s⁻¹A⁻¹s·residual by conjugate gradients, preconditioned by A's diagonal; a direction of descent at every step.

    They end when the error has fallen by the factor min(0.1, residual): so Newton's method converges faster than
    linearly.
    """
    weighted, root = _GAMMA * weight, (1 - _GAMMA * weight).sqrt()
    weighted = weighted + 0.03 * _largest(residual)
    inverse = 1 / (weighted + root * root * cut.diagonal())
    left = -root * residual
    solution, conjugate = torch.zeros_like(left), inverse * left
    product = start = _dot(left, conjugate)
    goal = start * _largest(residual).clamp(torch.finfo(left.dtype).eps ** 0.5, 0.1) ** 2
    for _ in range(_GRADIENT_STEPS if stops else _BLIND_GRADIENT_STEPS):
        live = product > goal
        if stops and not bool(live.any()):
            break
        image = weighted * conjugate + root * cut.slope(root * conjugate)
        curvature = _dot(conjugate, image)
        along = torch.where(live, product / torch.where(curvature > 0, curvature, 1.0), 0.0)
        solution, left = solution + along * conjugate, left - along * image
        conditioned = inverse * left
        before, product = product, torch.where(live, _dot(left, conditioned), product)
        conjugate = conditioned + torch.where(live, product / torch.where(live, before, 1.0), 0.0) * conjugate
    return solution / root


def with_derivative(
    project: Callable[[Tensor], Tensor], point: Tensor, y: Tensor, weight: Tensor, radius: Tensor, kind: str
) -> Tensor:
    """What `nearest_in_metric` found, as a function of ``y``, ``weight`` and the numbers that ``project`` follows."""
    args = (y.detach(), weight.detach(), radius.detach())
    solve = _dense_solver(point, *args, kind) if y.shape[-2:].numel() <= _DENSE else _solver(point, *args, kind)
    result = point
    for _ in range(2):
        residual = project(result - _GAMMA * weight * (result - y)) - result
        result = exact.replaced(result + solve(residual), point)
    return result


def _dense_solver(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    inverse = inverse_in_metric(point, y, weight, radius, kind)
    return lambda residual: (inverse @ residual.flatten(-2).unsqueeze(-1)).reshape(residual.shape)


@search("matrix_in_metric_inverse", lambda shape: (*shape[:-2], shape[-2:].numel(), shape[-2:].numel()))
def inverse_in_metric(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor, kind: str) -> Tensor:
    """M = s⁻¹A⁻¹s at the solution, as a matrix for the flattened matrices."""
    batch, (rows, columns) = point.shape[:-2], point.shape[-2:]
    entries = rows * columns
    identity = torch.eye(entries, dtype=y.dtype, device=y.device).reshape(entries, rows, columns)

    def inverse(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor) -> Tensor:
        cut = _cut(point - _GAMMA * weight * (point - y), radius, kind)
        root = (1 - _GAMMA * weight).sqrt()
        each = Cut(*(part.unsqueeze(-3) for part in cut))
        curved = (root.unsqueeze(-3) * each.slope(root.unsqueeze(-3) * identity)).flatten(-2)
        matrix = symmetric(curved) + torch.diag_embed(_GAMMA * weight.flatten(-2))
        factor, _ = torch.linalg.cholesky_ex(matrix)
        flat = root.flatten(-2)
        return torch.cholesky_inverse(factor) * flat.unsqueeze(-2) / flat.unsqueeze(-1)

    flat = (_flat(value, batch) for value in (point, y, weight, radius))
    parts = zip(*(value.split(math.ceil(_DENSE_AT_ONCE / entries**2)) for value in flat), strict=True)
    return torch.cat([inverse(*part) for part in parts]).reshape(*batch, entries, entries)


def _solver(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    """M by Chebyshev's iteration, linear in what it is applied to (G. Golub and C. Van Loan, Matrix Computations)."""
    cut = _cut(point - _GAMMA * weight * (point - y), radius, kind)
    weighted, root = _GAMMA * weight, (1 - _GAMMA * weight).sqrt()
    least = weighted.amin((-2, -1), keepdim=True)
    middle, half = (1 + least) / 2, (1 - least) / 2

    def solve(residual: Tensor) -> Tensor:
        right = root * residual
        solution = change = right / middle
        factor = half / middle
        for _ in range(_CHEBYSHEV_STEPS):
            left = right - weighted * solution - root * cut.slope(root * solution)
            following = 1 / (2 * middle / half - factor)
            change = following * factor * change + 2 * following / half * left
            solution, factor = solution + change, following
        return solution / root

    return solve


def _flat(x: Tensor, batch: torch.Size) -> Tensor:
    """Matrices of batch dimensions that it is expanded to, with one in their place."""
    return x.expand(*batch, *x.shape[-2:]).reshape(-1, *x.shape[-2:])


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((-2, -1), keepdim=True)


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax((-2, -1), keepdim=True)
