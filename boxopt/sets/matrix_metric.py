r"""The nearest matrix of a convex set in the metric of a step size that varies over the entries.

**The problem.** With weights $0 < w \le 1$, the metric but for a factor, and P the Euclidean projection, the minimizer
over the set of $f(x) = \tfrac12 \sum w (x - y)^2$ is the one fixed point of

$$ T(x) = P(x - \gamma w (x - y)), \qquad 0 < \gamma < 1. $$

**Newton's method.** Let N be the derivative of $v - P(v)$, what the projection takes away: symmetric, between 0 and 1,
and a few products of matrices (Daleckii and Krein; see `boxopt.sets.spectral`). With $s = \sqrt{1 - \gamma w}$ that of
$x - T(x)$ is $s^{-1} A s$ for

$$ A = \gamma w + s N s, $$

symmetric, with eigenvalues from $\gamma \min w$ to 1. So Newton's direction is $d = -s^{-1} A^{-1} s (x - T(x))$, which
conjugate gradients find, the less exactly the farther the solution is. Far from it a multiple of x − T(x) is added to
A, the larger the oftener steps were too long (Levenberg and Marquardt). The forward–backward envelope

$$ \varphi(x) = f(x) - \tfrac\gamma2 \|\nabla f(x)\|^2
+ \tfrac1{2\gamma} \operatorname{dist}^2(x - \gamma \nabla f(x)) $$

has the minimizer of f over the set, the slope $s^2 (x - T(x))/\gamma$, for which d is a direction of descent, and
$\varphi(T(x)) \le \min(\varphi(x), f(T(x)))$. So d is halved until one of these two has fallen enough. Then x ← T(x), a
member; unless Newton's full step made x − T(x) much shorter, as it does near the solution, where convergence is of the
second order. That takes five to thirty decompositions where step sizes differ by factors of 10² to 10⁴, up to a
hundred where they differ by 10⁶, rarely more; beyond that the solution is what `_NEWTON_STEPS` reach. What is returned
is T(x).

**Derivatives.** With M the inverse of the derivative of x − T(x), detached, and θ what a derivative may be asked with
respect to, $x + M(T(x, \theta) - x)$ has the first derivative of the solution; a second such step adds an order. For
matrices with at most `_DENSE` entries A is a matrix, of so many rows, and the derivatives are exact. For larger ones M
is a polynomial, `_CHEBYSHEV_STEPS` steps of Chebyshev's iteration preconditioned by A's diagonal: that keeps a compiled
function short, and its memory in proportion to the matrices. In the median of random problems the derivatives of
`NuclearBall` are off by less than $10^{-9}$, of `SpectralBall` by $10^{-6}$ where step sizes differ by 10² and
$10^{-2}$ where by 10⁴, of `PSD` by $10^{-4}$ and $0.2$; single ones where by 10⁴ by most of themselves.

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
from boxopt.core.decompose import eigh, eigvalsh, svd
from boxopt.core.search import may_stop, search
from boxopt.sets.spectral import symmetric
from boxopt.sets.threshold import project_simplex

_GAMMA = 0.95
_NEWTON_STEPS, _GRADIENT_STEPS = 300, 100
_BLIND_NEWTON_STEPS, _BLIND_GRADIENT_STEPS = 10, 30  # where nobody may look whether they are enough
_DAMPING, _LEAST_DAMPING = 0.3, 0.03
_SHORTEST = 2.0**-8
_IDLE_STEPS = 4
_DENSE = 1024
_DENSE_AT_ONCE = 2**22
_CHEBYSHEV_STEPS, _LANCZOS_STEPS = 12, 40


class Cut(NamedTuple):
    r"""A matrix V = U·diag(σ)·Rᵀ cut down to a set, and the derivative N of what is cut off, V − P(V).

    With $B = U^\top H R$ and the divided differences, for σ and for −σ, of the function t of σ that is cut off,

    $$ N(H) = U (t[\sigma_i, \sigma_j] \operatorname{sym} B + t[\sigma_i, -\sigma_j] \operatorname{skew} B) R^\top
    + (1 - U U^\top) H R \operatorname{diag}(t/\sigma) R^\top
    + U \operatorname{diag}(l)\, R^\top \langle l, \operatorname{diag} B \rangle. $$

    The last is by how much the threshold moves: l is of length 1 or 0.
    """

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
    envelope = error = least = torch.full_like(radius, torch.inf)
    slope = idle = torch.zeros_like(radius)
    length, damping = torch.ones_like(radius), torch.full_like(radius, _DAMPING)
    for _ in range(_NEWTON_STEPS if stops else _BLIND_NEWTON_STEPS):
        trial = torch.where(length > 0, point + length * direction, nearest)
        gradient = weight * (trial - y)
        forward = trial - _GAMMA * gradient
        cut = _cut(forward, radius, kind)
        residual = trial - cut.nearest
        value = _dot(gradient, (trial - y) / 2 - residual) + _dot(residual, residual) / (2 * _GAMMA)
        gap = cut.nearest - y
        bound = envelope + 1e-4 * length * slope + 16 * eps * envelope.abs()
        taken = (length == 0) | ~(torch.minimum(value, _dot(weight * gap, gap) / 2) > bound)  # NaN is, and then is done
        before, error = error, torch.where(taken, _largest(residual), error)
        # Above rounding one step may fail to shorten the residual; several do not.
        idle = torch.where(error <= least / 2, 0.0, idle + taken)
        least = torch.minimum(least, error)
        stuck = (idle >= _IDLE_STEPS) & (error <= 1e4 * eps * (_largest(forward) + _largest(trial)))
        done = taken & (~(error > 16 * eps * _largest(cut.nearest)) | stuck)
        point, nearest = torch.where(taken, trial, point), torch.where(taken, cut.nearest, nearest)
        envelope = torch.where(taken, value, envelope)
        # After Newton's step comes T, unless Newton's converges.
        again = taken & ((length == 0) | (error <= before / 8) & (value <= bound))
        eased = torch.where(length == 1, (damping / 2).clamp_min(_LEAST_DAMPING), damping)
        damping = torch.where(taken, eased, 4 * damping)
        newton = _newton_direction(cut, weight, torch.where(again & ~done, residual, 0.0), damping, stops)
        direction = torch.where(again, newton, direction)
        slope = torch.where(again, _dot(newton, (1 - _GAMMA * weight) * residual) / _GAMMA, slope)
        length = torch.where(again, 1.0, torch.where(~taken & (length > _SHORTEST), length / 2, 0.0))
        if not stops:
            continue
        rest = (~done).flatten().nonzero().squeeze(-1)
        if 0 < len(rest) == len(rows):
            continue
        found[rows] = nearest
        if not len(rest):
            break
        y, weight, radius, rows = (part[rest] for part in (y, weight, radius, rows))
        point, nearest, direction, envelope = (part[rest] for part in (point, nearest, direction, envelope))
        state = (slope, length, damping, error, least, idle)
        slope, length, damping, error, least, idle = (part[rest] for part in state)
    found[rows] = nearest
    return (found * size).reshape(shape)


def _newton_direction(cut: Cut, weight: Tensor, residual: Tensor, damping: Tensor, stops: bool) -> Tensor:
    """−s⁻¹A⁻¹s·residual by conjugate gradients, preconditioned by A's diagonal; a direction of descent at every step.

    They end when the error has fallen by the factor min(0.1, residual), and what is added to A falls with the
    residual: so Newton's method converges faster than linearly.
    """
    weighted, root = _GAMMA * weight + damping * _largest(residual), (1 - _GAMMA * weight).sqrt()
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
    """M = s⁻¹A⁻¹s by a Cholesky decomposition of A."""
    factor, root = factor_in_metric(point, y, weight, radius, kind), (1 - _GAMMA * weight).sqrt()

    def solve(residual: Tensor) -> Tensor:
        right = (root * residual).flatten(-2).unsqueeze(-1)
        return torch.cholesky_solve(right, factor).reshape(residual.shape) / root

    return solve


@search("matrix_in_metric_factor", lambda shape: (*shape[:-2], shape[-2:].numel(), shape[-2:].numel()))
def factor_in_metric(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor, kind: str) -> Tensor:
    """The Cholesky factor of A at the solution, a matrix for flattened matrices."""
    batch, (rows, columns) = point.shape[:-2], point.shape[-2:]
    entries = rows * columns
    identity = torch.eye(entries, dtype=y.dtype, device=y.device).reshape(entries, rows, columns)

    def factor(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor) -> Tensor:
        cut = Cut(*(part.unsqueeze(-3) for part in _cut(point - _GAMMA * weight * (point - y), radius, kind)))
        root = (1 - _GAMMA * weight).sqrt().unsqueeze(-3)
        curved = symmetric((root * cut.slope(root * identity)).flatten(-2))
        return torch.linalg.cholesky_ex(curved + torch.diag_embed(_GAMMA * weight.flatten(-2)))[0]

    flat = (_flat(value, batch) for value in (point, y, weight, radius))
    parts = zip(*(value.split(math.ceil(_DENSE_AT_ONCE / entries**2)) for value in flat), strict=True)
    return torch.cat([factor(*part) for part in parts]).reshape(*batch, entries, entries)


def _solver(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor, kind: str) -> Callable[[Tensor], Tensor]:
    """M by Chebyshev's iteration, linear in what it is applied to, preconditioned by A's diagonal.

    Source: G. H. Golub and C. F. Van Loan, Matrix Computations, 2013, section 11.2.
    """
    cut = _cut(point - _GAMMA * weight * (point - y), radius, kind)
    weighted, root = _GAMMA * weight, (1 - _GAMMA * weight).sqrt()
    inverse = 1 / (weighted + root * root * cut.diagonal())
    spectrum = spectrum_in_metric(point, y, weight, radius, kind)
    least, most = 0.9 * spectrum[..., :1], 1.1 * spectrum[..., 1:]
    middle, half = (most + least) / 2, (most - least) / 2

    def solve(residual: Tensor) -> Tensor:
        right = root * residual
        solution = change = inverse * right / middle
        factor = half / middle
        for _ in range(_CHEBYSHEV_STEPS):
            left = inverse * (right - weighted * solution - root * cut.slope(root * solution))
            following = 1 / (2 * middle / half - factor)
            change = following * factor * change + 2 * following / half * left
            solution, factor = solution + change, following
        return solution / root

    return solve


@search("matrix_in_metric_spectrum", lambda shape: (*shape[:-2], 1, 2))
def spectrum_in_metric(point: Tensor, y: Tensor, weight: Tensor, radius: Tensor, kind: str) -> Tensor:
    """About the least and the largest eigenvalue of A with its diagonal made 1, by Lanczos's iteration."""
    cut = _cut(point - _GAMMA * weight * (point - y), radius, kind)
    weighted, root = _GAMMA * weight, (1 - _GAMMA * weight).sqrt()
    scale = (weighted + root * root * cut.diagonal()).rsqrt()
    start = (
        torch.arange(1, point.shape[-2:].numel() + 1, dtype=y.dtype, device=y.device).sin().reshape(point.shape[-2:])
    )
    vector, previous = start.expand(point.shape) / _dot(start, start).sqrt(), torch.zeros_like(point)
    beside, diagonal, off_diagonal = torch.zeros_like(point[..., :1, :1]), [], []
    for _ in range(_LANCZOS_STEPS):
        scaled = scale * vector
        image = scale * (weighted * scaled + root * cut.slope(root * scaled)) - beside * previous
        along = _dot(vector, image)
        image = image - along * vector
        size = _dot(image, image).sqrt()
        ended = size <= 64 * torch.finfo(y.dtype).eps  # and then the rest repeats a quotient that is known
        beside = torch.where(ended, 0.0, size)
        previous, vector = vector, image / torch.where(ended, torch.inf, size)
        diagonal.append(torch.where(_dot(previous, previous) > 0, along, diagonal[0] if diagonal else along))
        off_diagonal.append(beside)
    upper = torch.diag_embed(torch.cat(off_diagonal[:-1], -1).squeeze(-2), 1)
    values = eigvalsh(torch.diag_embed(torch.cat(diagonal, -1).squeeze(-2)) + upper + upper.mT)
    return values[..., [0, -1]].unsqueeze(-2)


def _flat(value: Tensor, batch: torch.Size) -> Tensor:
    """The matrices with one batch dimension."""
    return value.expand(*batch, *value.shape[-2:]).reshape(batch.numel(), *value.shape[-2:])


def _dot(one: Tensor, other: Tensor) -> Tensor:
    return (one * other).sum((-2, -1), keepdim=True)


def _largest(x: Tensor) -> Tensor:
    return x.abs().amax((-2, -1), keepdim=True)
