"""Nonlinear least squares in a box, for one problem or for a million."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.core.types import Scalar
from boxopt.sets.box import Box
from boxopt.solve.batching import is_each, shared
from boxopt.solve.driver import batch_of, checked, drive
from boxopt.solve.flat import Flat
from boxopt.solve.gauss_newton import check_options, evaluate, residual_vector
from boxopt.solve.levenberg_marquardt import LevenbergMarquardtState, levenberg_marquardt
from boxopt.solve.losses import Poisson, RobustLoss, each_residual, terms_of
from boxopt.solve.result import Progress, is_converged, summary


class LeastSquaresResult(NamedTuple):
    """What `least_squares` found: one entry a problem, whose batch dimensions come first in every tensor.

    ``print`` of it shows how it ended, a batch as the counts of each `Status`.

    Attributes:
        params: The solution, a tree as the parameters given.
        value: The loss there: half the sum of squares, unless another was asked for.
        optimality: The largest cosine between the residuals and a column of their Jacobian, 0 for what a bound holds:
            see `levenberg_marquardt`.
        status: Codes of `boxopt.Status`, int8.
        steps: How many evaluations of the residuals and their Jacobian were used, int64.
        active: A tree as ``params``, int8: −1 at a lower bound, 1 at an upper, 0 between them.
        degrees: How many residuals, of a weight above 0, there are more than parameters between bounds; int64.
        variance: σ², an estimate of that of a residual of weight 1, as `covariance` takes it.
        state: The `LevenbergMarquardtState`, whose ``curvature`` is JᵀJ at the solution.
    """

    params: Any
    value: Tensor
    optimality: Tensor
    status: Tensor
    steps: Tensor
    active: Any
    degrees: Tensor
    variance: Tensor
    state: LevenbergMarquardtState

    @property
    def converged(self) -> Tensor:
        """Which problems met one of the tolerances: Booleans, one a problem."""
        return is_converged(self.status)

    def __str__(self) -> str:
        return summary(self)


def least_squares(
    residual: Callable[..., Any],
    params: Any,
    bounds: Box | None = None,
    *,
    args: tuple[Any, ...] = (),
    loss: str | RobustLoss | Poisson = "linear",
    f_scale: Scalar = 1.0,
    weights: Any = None,
    jac: str | Callable[..., Any] | None = None,
    batch_dims: int = 0,
    tol: Any = None,
    step_tol: Any = 0.0,
    value_tol: Any = 0.0,
    max_steps: Any = 500,
    damping: Scalar = 1e-3,
    callback: Callable[[Progress], Any] | None = None,
    progress: bool = False,
    compile: bool = False,
    sync_every: int | None = None,
    chunk_size: int | None = None,
) -> LeastSquaresResult:
    r"""Fit parameters in a box, by least squares, a robust loss, or the likelihood of Poisson counts.

    $$ \min_{l \le x \le u}\; \tfrac12 \sum_i w_i\, C^2 \rho\big((r_i(x)/C)^2\big) $$

    by `levenberg_marquardt`. With ``batch_dims=1`` the first dimension of every leaf of ``params`` and ``args`` counts
    problems, and ``residual`` is still written for one; what the problems share, it closes over. Each problem has the
    bounds, the damping and the end of its own, and gets the result of being solved alone.

    Args:
        residual: ``residual(params, *args)`` of one problem, a tensor or a tree of them: model minus data.
        params: Where to start, a tree of tensors. What lies outside of the bounds is moved to them.
        bounds: A box; none unless given. Bounds whose leading dimensions are the batch's are one for each problem.
        args: Further arguments of ``residual``, trees of tensors.
        loss: ρ: "linear" for squares; "huber", "soft_l1", "cauchy" or "arctan", as in `scipy.optimize.least_squares`; a
            function ``z -> (ρ, ρ', ρ'')``; or `boxopt.Poisson` of the data.
        f_scale: C, where a robust loss begins to take residuals for outliers, in their units. A number, or one for each
            problem.
        weights: w ≥ 0, 1/σ² for data of standard deviation σ; 0 leaves out a residual, even NaN. As many as there are
            residuals, or so many for each problem.
        jac: "forward", as it is unless given, differentiates with respect to each parameter, "reverse" each residual;
            or ``jac(params, *args)``, which returns what ``torch.func.jacfwd(residual)`` does.
        batch_dims: How many leading dimensions of ``params`` and ``args`` count problems.
        tol: The largest cosine of a solution, see `levenberg_marquardt`; 1e-6 in float64 and 1e-4 in float32 unless
            given. Like the next three, a number or one for each problem.
        step_tol: Stop after a step with ‖Δx‖∞ ≤ ``step_tol`` · max(1, ‖x‖∞); 0 never does.
        value_tol: Stop after a step with ``|Δf|`` ≤ ``value_tol`` · max(1, ``|f|``); 0 never does.
        max_steps: How many evaluations a problem may take.
        damping: λ at the start, a number or one for each problem; 1 for starts that are far off.
        callback: As of `boxopt.minimize`.
        progress: As of `boxopt.minimize`.
        compile: As of `boxopt.minimize`.
        sync_every: As of `boxopt.minimize`.
        chunk_size: As of `boxopt.minimize`.

    Returns:
        A `LeastSquaresResult`. `covariance` of it tells how well the parameters are determined.

    Raises:
        ValueError, TypeError: A name is none, or the parameters, the arguments and the bounds do not fit together.

    Example:
        Two decays, whose rate may not exceed 2:

        >>> import torch, boxopt as bx
        >>> t = torch.linspace(0.0, 2.0, 30)
        >>> def residual(p, data):
        ...     return p["height"] * torch.exp(-p["rate"] * t) - data
        >>> data = torch.stack([3 * torch.exp(-1.5 * t), 3 * torch.exp(-2.5 * t)])
        >>> start = {"height": torch.ones(2), "rate": torch.ones(2)}
        >>> bounds = bx.Box(0.0, {"height": None, "rate": 2.0})
        >>> fit = bx.least_squares(residual, start, bounds, args=(data,), batch_dims=1)
        >>> fit.params
        {'height': tensor([3.0000, 2.7112]), 'rate': tensor([1.5000, 2.0000])}
        >>> fit.active["rate"]
        tensor([0, 1], dtype=torch.int8)

    Source:
        `scipy.optimize.least_squares`, whose losses these are; for fits in batches Gpufit (A. Przybylski et al.,
        Scientific Reports 7, 2017).
    """
    check_options(loss, jac)
    tree.check_parameters(params)
    params, args = tree.map(torch.detach, params), tree.map(tree.as_value, tuple(args))
    batch = batch_of(params, batch_dims)
    flat = Flat.of(params, batch_dims)
    counts = loss.counts if isinstance(loss, Poisson) else None
    data = _Data(_each(counts, batch, 1), _each(f_scale, batch, 0), _each(weights, batch, 1))
    args = checked(args, batch)
    result = drive(
        _Evaluation(residual, None if isinstance(loss, Poisson) else loss, jac),
        params,
        levenberg_marquardt(bounds, damping=damping),
        args=(args, data),
        batch_dims=batch_dims,
        tol=tol,
        step_tol=step_tol,
        value_tol=value_tol,
        max_steps=max_steps,
        callback=callback,
        progress=progress,
        compile=compile,
        sync_every=sync_every,
        chunk_size=chunk_size,
    )
    active = result.state.active
    free = (active == 0).sum(-1)
    degrees = _count(residual, params, args, data.weights, flat, batch) - free
    if isinstance(loss, Poisson):
        variance = torch.ones_like(result.value)
    else:
        variance = 2 * result.value / degrees
        if loss != "linear":
            spread = partial(_robust_spread, residual=residual, loss=loss)
            for _ in batch:
                spread = vmap(spread, in_dims=(0, 0, 0, tree.map(_batched, data)), chunk_size=chunk_size)
            variance = spread(result.params, args, free, data) / degrees
        variance = torch.where(degrees > 0, variance, torch.inf)
    return LeastSquaresResult(
        result.params,
        result.value,
        result.optimality,
        result.status,
        result.steps,
        _as_tree(active, flat, batch),
        degrees,
        variance,
        result.state,
    )


def covariance(result: LeastSquaresResult, absolute_sigma: bool = False) -> Tensor:
    r"""The covariance of fitted parameters, those at a bound taken as known.

    $$ \sigma^2 (J^\top J)^{-1} \ \text{of the free parameters}, \qquad \sigma^2 = 2 f / (m - n_\text{free}) $$

    With a robust loss of slope ψ and weights ω, of which the curvature JᵀωJ is made,

    $$ \sigma^2 = \frac{\sum \psi^2}{m - n_\text{free}}\; \frac{\bar\omega\, K^2}{\bar{\psi'}^2}, \qquad
       K = 1 + \frac{n_\text{free}}{m}\, \frac{\operatorname{var} \psi'}{\bar{\psi'}^2} $$

    which, other than `scipy.optimize.curve_fit`'s, is how much such fits vary, whatever share of the data are outliers.

    Args:
        result: Of `least_squares`.
        absolute_sigma: Whether the weights are 1/σ² of known σ, or the loss is `boxopt.Poisson`: then σ² = 1. With a
            robust loss the estimate is the better choice.

    Returns:
        A matrix of all leaves as one vector, a problem each, (..., n, n), with zeros for what is at a bound; infinite
        where the data do not determine the parameters.

    Example:
        >>> import torch, boxopt as bx
        >>> data = torch.tensor([1.0, 2.0, 3.0, 4.0])
        >>> fit = bx.least_squares(lambda mean: mean - data, torch.tensor(0.0))
        >>> bx.covariance(fit), data.var() / 4
        (tensor([[0.4167]]), tensor(0.4167))

    Source:
        `scipy.optimize.curve_fit`; P. J. Huber, "Robust Statistics", 1981, section 7.6, for robust losses.
    """
    curvature, free = result.state.curvature, result.state.active == 0
    both = free[..., :, None] & free[..., None, :]
    identity = torch.eye(free.shape[-1], dtype=curvature.dtype, device=curvature.device)
    factor, failed = torch.linalg.cholesky_ex(torch.where(both, curvature, identity))
    failed = failed[..., None, None] > 0
    inverse = torch.cholesky_inverse(torch.where(failed, identity, factor))
    unscaled = torch.where(failed, torch.inf, inverse)
    variance = torch.ones_like(result.variance) if absolute_sigma else result.variance
    return torch.where(both, variance[..., None, None] * unscaled, 0.0)


class _Data(NamedTuple):
    """What a loss holds of tensors: one for each problem."""

    counts: Any
    f_scale: Any
    weights: Any


@dataclass(frozen=True)
class _Evaluation:
    """`boxopt.solve.gauss_newton` as `boxopt.solve.driver.Evaluate`.

    Attributes:
        residual: As of `least_squares`.
        loss: As of `least_squares`; None for that of counts.
        jac: As of `least_squares`.
    """

    residual: Callable[..., Any]
    loss: str | RobustLoss | None
    jac: str | Callable[..., Any] | None

    def __call__(self, params: Any, args: tuple[Any, ...], data: _Data) -> tuple[Any, dict[str, Tensor]]:
        """The gradients, the loss and the curvature."""
        loss = Poisson(data.counts) if self.loss is None else self.loss
        return evaluate(params, args, self.residual, loss, data.f_scale, data.weights, self.jac)


def _robust_spread(
    params: Any, args: tuple[Any, ...], free: Tensor, data: _Data, *, residual: Callable[..., Any], loss: Any
) -> Tensor:
    """The variance of `covariance` times the degrees of freedom, of one problem."""
    found = residual_vector(residual(params, *args), tree.leaves(params)[0].dtype)

    def slope(found: Tensor) -> Tensor:
        return terms_of(loss, found, data.f_scale).slope

    terms = terms_of(loss, found, data.f_scale)
    bend = torch.func.jvp(slope, (found,), (torch.ones_like(found),))[1]
    weight = torch.ones_like(found) if data.weights is None else each_residual("weights", data.weights, found)
    used = weight > 0
    share = weight / weight.sum()

    def mean(x: Tensor) -> Tensor:
        return torch.where(used, share * x, 0.0).sum()

    average = mean(bend)
    correction = 1 + free / used.sum() * mean((bend - average) ** 2) / average**2
    square = torch.where(used, weight * terms.slope**2, 0.0).sum()
    return torch.where(average > 0, square * mean(terms.curvature) * correction**2 / average**2, torch.inf)


def _batched(value: Any) -> int | None:
    return 0 if isinstance(value, Tensor) else None


def _each(value: Any, batch: tuple[int, ...], dims: int) -> Any:
    """A tensor with an entry for each problem, of at least so many dimensions; a number is for all as it is."""
    value = tree.as_value(value)
    if not isinstance(value, Tensor) or not batch:
        return value
    if value.ndim >= len(batch) + dims and is_each(value, batch):
        return value
    value = shared(value, batch)
    return value.expand(*batch, *value.shape)


def _count(
    residual: Callable[..., Any], params: Any, args: tuple[Any, ...], weights: Any, flat: Flat, batch: tuple[int, ...]
) -> Tensor | int:
    """How many residuals there are of a weight above 0: of the first problem, which all are like."""

    def first(value: Any) -> Any:
        return value[(0,) * len(batch)] if isinstance(value, Tensor) else value

    if math.prod(batch) == 0:
        return 0
    if isinstance(weights, Tensor) and weights.ndim > len(batch):
        return (weights > 0).flatten(len(batch)).sum(-1).to(flat.device)
    return len(residual_vector(residual(*tree.map(first, (params, *args))), flat.dtype))


def _as_tree(vector: Tensor, flat: Flat, batch: tuple[int, ...]) -> Any:
    """The tree of a vector in its own dtype, batch dimensions in front."""
    parts = vector.split([math.prod(shape) for shape in flat.shapes], dim=-1)
    return tree.map(lambda place: parts[place].reshape((*batch, *flat.shapes[place])), flat.places)
