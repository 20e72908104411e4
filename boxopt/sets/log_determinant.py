r"""The barrier −log det X of positive definite matrices.

**The proximal step.** $X - \tau X^{-1} = Y$ has Y's eigenvectors and the eigenvalues
$(\lambda + \sqrt{\lambda^2 + 4\tau})/2$. They are computed on detached numbers. Derivatives come by Newton's steps with
the graph attached, in the eigenbasis, with the derivative kept at the solution:
$X \leftarrow X - (X - \tau X^{-1} - Y)_{ij}/(1 + \tau/(x_i x_j))$. No difference of eigenvalues occurs, so that equal
ones are harmless; j steps are exact to the order j. Three are used.

**In a metric** that is a product, $\tau_{ij} = d_i d_j$, the congruence $X = D^{1/2} Z D^{1/2}$ makes it Euclidean.
Any other is brought near that, and what is left is found by `_METRIC_STEPS` accelerated proximal gradient steps: their
error is about exp(−2·_METRIC_STEPS/√κ), κ the ratio of the largest and least $\tau_{ij}/(d_i d_j)$. Every step is
positive definite. Derivatives are those of the steps.

Source: Y. Nesterov, Introductory Lectures on Convex Optimization, 2004, section 2.2, for the acceleration.
"""

from __future__ import annotations

import torch
from torch import Tensor

from boxopt.sets.log_barrier import relaxed_log, relaxed_log_slope
from boxopt.sets.spectral import basis_of, symmetric

_DERIVATIVE_STEPS = 3
_METRIC_STEPS = 60
_LEAST_TAU = 1e-32
_LARGEST = 1e100


def prox_log_determinant(y: Tensor, tau: Tensor) -> Tensor:
    """The minimizer of ½Σ(X − Y)²/τ − log det X over symmetric X; τ of shape [..., 1, 1], or that of y."""
    limit = min(_LARGEST, torch.finfo(y.dtype).max ** 0.3)
    y = torch.where(y.abs() > limit, limit * torch.sign(y), y)
    size = torch.maximum(y.detach().abs(), tau.detach().sqrt()).amax((-2, -1), keepdim=True).clamp_min(1 / limit)
    y, tau = y / size, tau / size**2
    tau = torch.where(tau < _LEAST_TAU, _LEAST_TAU, tau)
    if tau.shape[-2:] == (1, 1):
        return _euclidean(symmetric(y), tau) * size
    weight = (1 / tau + 1 / tau.mT) / 2
    y, tau = symmetric(y / tau) / weight, 1 / weight
    log = torch.log(tau)
    scale = torch.exp((log.mean(-1, keepdim=True) - log.mean((-2, -1), keepdim=True) / 2) / 2)
    scale = scale * scale.mT
    return _in_metric(y / scale, tau / scale**2) * scale * size


def _euclidean(y: Tensor, tau: Tensor) -> Tensor:
    values, vectors = basis_of(y)
    fixed = tau.detach().squeeze(-1)
    length = torch.sqrt(values * values + 4 * fixed)
    ahead = values > 0
    roots = torch.where(ahead, (values + length) / 2, 2 * fixed / torch.where(ahead, 1.0, length - values))
    least = 4 * y.shape[-1] * torch.finfo(y.dtype).eps * roots.amax(-1, keepdim=True)  # what eigenvalues err by
    roots = torch.maximum(roots, least)
    curvature = 1 + fixed.unsqueeze(-1) / roots.unsqueeze(-1) / roots.unsqueeze(-2)
    rotated = vectors.mT @ y @ vectors
    change = rotated - rotated.detach() + torch.diag_embed((tau - tau.detach()).squeeze(-1) / roots)
    x = torch.diag_embed(roots)
    if change.requires_grad or torch._C._are_functorch_transforms_active():
        inverse_roots = torch.diag_embed(1 / roots)
        for _ in range(_DERIVATIVE_STEPS):
            # What is 0 in value is written so that it is 0 in floating point as well.
            step = x - x.detach()
            inverse = torch.linalg.inv_ex(torch.diag_embed(roots) + step).inverse
            excess = step - tau * (inverse - inverse_roots) - change
            x = x - excess / curvature
    return symmetric(vectors @ x @ vectors.mT)


def _in_metric(y: Tensor, tau: Tensor) -> Tensor:
    step = tau.detach().amin((-2, -1), keepdim=True)
    root = torch.sqrt(tau.detach().amax((-2, -1), keepdim=True) / step)
    momentum = (root - 1) / (root + 1)
    before = trial = _euclidean(y, torch.ones_like(step))
    for _ in range(_METRIC_STEPS):
        x = _euclidean(trial - step * (trial - y) / tau, step)
        before, trial = x, x + momentum * (x - before)
    return before


def relaxed_log_determinant(x: Tensor, delta: Tensor) -> Tensor:
    """−log det X, [...], with `relaxed_log` of the eigenvalues; derivatives are exact to the second order."""
    values, vectors = basis_of(x)
    change = vectors.mT @ (x - x.detach()) @ vectors
    slope = relaxed_log_slope(values, delta)
    first = (slope * change.diagonal(dim1=-2, dim2=-1)).sum(-1)
    second = (_slope_differences(values, delta) * change * change.mT).sum((-2, -1)) / 2
    return relaxed_log(values, delta).sum(-1) + first + second


def relaxed_log_determinant_gradient(x: Tensor, delta: Tensor) -> Tensor:
    """Its gradient, whose derivative is exact to the first order."""
    values, vectors = basis_of(x)
    change = vectors.mT @ (x - x.detach()) @ vectors
    slope = torch.diag_embed(relaxed_log_slope(values, delta)) + _slope_differences(values, delta) * change
    return symmetric(vectors @ slope @ vectors.mT)


def _slope_differences(values: Tensor, delta: Tensor) -> Tensor:
    """The divided differences of `relaxed_log_slope`, [..., n, n]."""
    a, b = values.unsqueeze(-1), values.unsqueeze(-2)
    safe = torch.where(delta > 0, delta, 1.0)
    product = torch.where((a >= delta) & (b >= delta), a * b, 1.0)
    both = 1 / torch.where(product > 0, product, 1.0)
    gap = b - a
    slope = relaxed_log_slope(values, delta)
    mixed = (slope.unsqueeze(-2) - slope.unsqueeze(-1)) / torch.where(gap != 0, gap, 1.0)
    regular, relaxed = (a >= delta) & (b >= delta), (a < delta) & (b < delta)
    return torch.where(regular, both, torch.where(relaxed, 1 / safe**2, mixed))
