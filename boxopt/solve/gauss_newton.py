"""What Levenberg–Marquardt is told of residuals: half their squares, or another loss of them, to second order."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.func import vmap

from boxopt.core import tree
from boxopt.core.transform import bind
from boxopt.core.types import Scalar
from boxopt.solve.flat import Flat
from boxopt.solve.losses import Poisson, RobustLoss, check_loss, each_residual, terms_of

_UNROLLED = 16
"""Up to so many parameters derivatives are taken one by one: under a second ``vmap`` they would not compile."""


def gauss_newton(
    residual: Callable[..., Any],
    loss: str | RobustLoss | Poisson = "linear",
    *,
    f_scale: Scalar = 1.0,
    weights: Any = None,
    jac: str | Callable[..., Any] | None = None,
) -> Callable[..., tuple[Any, dict[str, Tensor]]]:
    r"""The function that evaluates what `levenberg_marquardt` is told, of residuals.

    $$ f = \sum_i w_i\, \ell(r_i), \quad g = J^\top w\,\ell'(r), \quad H = J^\top \operatorname{diag}(w\,\ell'')\, J $$

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
    check_options(loss, jac)
    return bind(_gauss_newton, residual=residual, loss=loss, f_scale=f_scale, weights=weights, jac=jac)


def _gauss_newton(params: Any, *args: Any, residual: Any, loss: Any, f_scale: Any, weights: Any, jac: Any) -> Any:
    return evaluate(params, args, residual, loss, f_scale, weights, jac)


def check_options(loss: Any, jac: Any) -> None:
    """Raise a ``ValueError`` if the name of a loss or of a way to differentiate is none."""
    check_loss(loss)
    if isinstance(jac, str) and jac not in ("forward", "reverse"):
        raise ValueError(f"jac is 'forward', 'reverse', a function or None, got {jac!r}")


def evaluate(
    params: Any,
    args: tuple[Any, ...],
    residual: Callable[..., Any],
    loss: str | RobustLoss | Poisson,
    f_scale: Any,
    weights: Any,
    jac: str | Callable[..., Any] | None,
) -> tuple[Any, dict[str, Tensor]]:
    """`gauss_newton` with everything as an argument."""
    flat = Flat.of(params)
    vector = flat.ravel(params)

    def of_vector(vector: Tensor) -> Tensor:
        return residual_vector(residual(flat.unravel(vector), *args), flat.dtype)

    if callable(jac):
        found = of_vector(vector)
        rows = _rows(jac(params, *args), flat, len(found))
    else:
        found, rows = _differentiate(of_vector, vector, jac)
    value, slope, curvature = terms_of(loss, found, f_scale)
    if weights is not None:
        weight = each_residual("weights", weights, found)
        value, slope, curvature = (torch.where(weight > 0, weight * x, 0.0) for x in (value, slope, curvature))
    gradient = (rows * slope).sum(-1)
    return flat.unravel(gradient), {"value": value.sum(), "curvature": (rows * curvature) @ rows.mT}


def residual_vector(residual: Any, dtype: torch.dtype) -> Tensor:
    """All residuals as one vector."""
    parts = [torch.as_tensor(leaf).reshape(-1).to(dtype) for leaf in tree.leaves(residual)]
    return parts[0] if len(parts) == 1 else torch.cat(parts)


def _rows(jacobian: Any, flat: Flat, count: int) -> Tensor:
    """The transposed Jacobian, (parameters, residuals), of a tree as ``torch.func.jacfwd`` returns it."""
    parts = [leaf.reshape(count, -1).to(flat.dtype) for leaf in tree.leaves(jacobian)]
    return torch.cat(parts, 1).mT


def _differentiate(function: Callable[[Tensor], Tensor], vector: Tensor, jac: str | None) -> tuple[Tensor, Tensor]:
    """The residuals and their transposed Jacobian: forward for each parameter, or backward for each residual."""
    size = len(vector)
    if jac == "reverse":
        found, pull, *_ = torch.func.vjp(function, vector)
        basis = torch.eye(len(found), dtype=found.dtype, device=found.device)
        return found, vmap(lambda row: pull(row)[0])(basis).mT
    basis = torch.eye(size, dtype=vector.dtype, device=vector.device)
    if size and size <= _UNROLLED:
        pairs = [torch.func.jvp(function, (vector,), (direction,)) for direction in basis]
        return pairs[0][0], torch.stack([pair[1] for pair in pairs])
    return function(vector), vmap(lambda row: torch.func.jvp(function, (vector,), (row,))[1])(basis)
