"""Nonlinear least squares in a box, for one problem or for a million."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import bind
from boxopt.core.types import Scalar
from boxopt.solve.flat import Flat
from boxopt.solve.losses import Poisson, RobustLoss, check_loss, terms_of


def gauss_newton(
    residual: Callable[..., Any],
    loss: str | RobustLoss | Poisson = "linear",
    *,
    f_scale: Scalar = 1.0,
    weights: Any = None,
    jac: str | Callable[..., Any] | None = None,
) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    r"""The function that evaluates what `levenberg_marquardt` is told, of residuals.

    $$ f = \sum_i w_i\, \ell(r_i), \qquad g = J^\top w\,\ell'(r), \qquad H = J^\top \operatorname{diag}(w\,\ell'')\, J $$

    Args:
        residual: ``residual(params, *args)``, a tensor or a tree of them, for one problem.
        loss: As in `least_squares`.
        f_scale: As in `least_squares`.
        weights: As in `least_squares`.
        jac: As in `least_squares`.

    Returns:
        ``evaluate(params, *args)``, which returns the gradients, a tree as ``params``, and a dict of ``value`` and
        ``curvature``, a matrix over all leaves as one vector.

    Raises:
        ValueError: A loss or a ``jac`` has a name that is none.

    Example:
        >>> import torch, boxopt as bx
        >>> bx.gauss_newton(lambda x: x**2 - 2.0)(torch.tensor([1.0]))
        (tensor([-2.]), {'value': tensor(0.5000), 'curvature': tensor([[4.]])})
    """
    check_loss(loss)
    if isinstance(jac, str) and jac not in ("forward", "reverse"):
        raise ValueError(f"jac is 'forward', 'reverse', a function or None, got {jac!r}")
    return bind(_evaluate, residual=residual, loss=loss, f_scale=f_scale, weights=weights, jac=jac)


def _evaluate(
    params: Any,
    *args: Any,
    residual: Callable[..., Any],
    loss: str | RobustLoss | Poisson,
    f_scale: Scalar,
    weights: Any,
    jac: str | Callable[..., Any] | None,
) -> tuple[Any, dict[str, Tensor]]:
    flat = Flat.of(params)
    vector = flat.ravel(params)

    def of_vector(vector: Tensor) -> Tensor:
        return _column(residual(flat.unravel(vector), *args), flat.dtype)

    if callable(jac):
        found = of_vector(vector)
        rows = _rows(jac(params, *args), params, len(found), flat.dtype)
    else:
        found, rows = _differentiate(of_vector, vector, jac)
    value, slope, curvature = terms_of(loss, found, f_scale)
    if weights is not None:
        weight = exact.as_tensor(weights, found).reshape(-1)
        value, slope, curvature = weight * value, weight * slope, weight * curvature
    gradient = (rows * slope).sum(-1)
    return flat.unravel(gradient), {"value": value.sum(), "curvature": _gram(rows, curvature)}
