"""`scipy.optimize.minimize` with bounds, by boxopt's solver: a change of one import."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from boxopt.sets.box import Box
from boxopt.solve.driver import drive
from boxopt.solve.lbfgsb import lbfgsb
from boxopt.solve.result import Progress, Status

_OPTIONS = {"maxcor": 10, "ftol": 2.2204460492503131e-09, "gtol": 1e-5, "eps": 1e-8, "maxfun": 15000, "maxiter": 15000}


def scipy_minimize(
    fun: Callable[..., Any],
    x0: Any,
    args: tuple[Any, ...] = (),
    method: str | None = None,
    jac: bool | str | Callable[..., Any] | None = None,
    bounds: Any = None,
    tol: float | None = None,
    callback: Callable[..., Any] | None = None,
    options: dict[str, Any] | None = None,
) -> Any:
    """``scipy.optimize.minimize(..., method="L-BFGS-B")``, with `boxopt.lbfgsb` in the place of SciPy's routine.

    For code that calls SciPy, to try another solver or to let go of a gradient written by hand. It solves one problem
    in float64 on the CPU, as SciPy does; for batches and other devices use `boxopt.minimize`.

    Args:
        fun: The loss ``fun(x, *args)`` of a NumPy array; or a function of torch's, if ``jac`` is left out.
        x0: The start, an array or a sequence.
        args: Further arguments of ``fun`` and ``jac``.
        method: ``"L-BFGS-B"`` or None.
        jac: True if ``fun`` returns the loss and its gradient; a function ``jac(x, *args)`` that returns the gradient;
            ``"2-point"`` for forward differences. Left out, ``fun`` is called with a tensor and differentiated if that
            works, and by forward differences if it does not.
        bounds: A sequence of pairs ``(lower, upper)``, in which None is no bound, or a ``scipy.optimize.Bounds``.
        tol: In the place of ``ftol`` and ``gtol``.
        callback: ``callback(x)`` or ``callback(intermediate_result)``, called after each iteration; ``StopIteration``
            ends the search.
        options: Of SciPy's ``maxcor``, ``ftol``, ``gtol``, ``eps``, ``maxfun``, ``maxiter``, with its defaults.

    Returns:
        A ``scipy.optimize.OptimizeResult`` where SciPy is installed, and a dict with attributes of the same names
        otherwise: ``x``, ``fun``, ``jac``, ``nit``, ``nfev``, ``njev``, ``status`` (0 converged, 1 a limit was reached,
        2 neither, 99 stopped by the callback), ``success`` and ``message``.

    Raises:
        ValueError: Another method, an unknown option, or bounds that do not fit.

    Example:
        >>> import boxopt as bx
        >>> found = bx.scipy_minimize(lambda x: ((x - 2) ** 2).sum(), [0.0, 0.0], bounds=[(0, 1), (None, None)])
        >>> found.x, found.success
        (array([1., 2.]), True)

    Source:
        ``scipy.optimize.minimize``.
    """
    if method not in (None, "L-BFGS-B"):
        raise ValueError(f"the method is 'L-BFGS-B', got {method!r}")
    given = options or {}
    unknown = sorted(set(given) - set(_OPTIONS))
    if unknown:
        raise ValueError(f"unknown options {', '.join(unknown)}; there are {', '.join(_OPTIONS)}")
    chosen = {**_OPTIONS, **({} if tol is None else {"ftol": tol, "gtol": tol}), **given}
    start = np.atleast_1d(np.asarray(x0, dtype=np.float64)).ravel()
    loss = _Loss(fun, jac, tuple(args), chosen["eps"])
    watcher = _Watcher(callback, chosen["maxiter"], _result_type())
    result = drive(
        loss,
        torch.from_numpy(start.copy()),
        lbfgsb(_box(bounds, len(start)), memory=chosen["maxcor"]),
        tol=chosen["gtol"],
        value_tol=chosen["ftol"],
        max_steps=chosen["maxfun"],
        callback=watcher,
    )
    status = Status(int(result.status))
    code = 99 if watcher.stopped else 0 if status.converged else 1 if status in (Status.RUNNING, Status.LIMIT) else 2
    evaluations = int(result.steps)
    return _result_type()(
        x=result.params.numpy(),
        fun=float(result.value),
        jac=result.state.iterate.gradient.numpy(),
        nit=max(int(result.state.iterate.accepted) - 1, 0),
        nfev=loss.calls or evaluations,
        njev=evaluations,
        status=code,
        success=code == 0,
        message="stopped by the callback" if watcher.stopped else str(Status.LIMIT if code == 1 else status),
    )


class _Watcher:
    """Calls SciPy's kind of callback after each iteration, and counts iterations."""

    def __init__(self, callback: Callable[..., Any] | None, limit: int, kind: Any) -> None:
        self._callback = callback
        self._kind = kind
        self._limit = limit
        self._seen = 1  # the start is no iteration
        self._named = callback is not None and list(inspect.signature(callback).parameters) == ["intermediate_result"]
        self.stopped = False

    def __call__(self, progress: Progress) -> bool:
        """Whether to stop."""
        iterate = progress.iterate
        accepted = int(iterate.accepted)
        if accepted > self._seen and self._callback is not None:
            point = iterate.params.numpy().copy()
            try:
                if self._named:
                    self._callback(intermediate_result=self._kind(x=point, fun=float(iterate.value)))
                else:
                    self._callback(point)
            except StopIteration:
                self.stopped = True
        self._seen = max(accepted, self._seen)
        return self.stopped or accepted > self._limit


@dataclass(eq=False)
class _Loss:
    """A loss of arrays, or of torch's, as `boxopt.solve.driver.Evaluate`.

    Attributes:
        fun: As of `scipy_minimize`.
        jac: As of `scipy_minimize`.
        args: As of `scipy_minimize`.
        eps: The step of forward differences.
        calls: How often ``fun`` was called, if that is not once an evaluation.
    """

    fun: Callable[..., Any]
    jac: bool | str | Callable[..., Any] | None
    args: tuple[Any, ...]
    eps: float
    calls: int = 0

    def __call__(self, params: Tensor) -> tuple[Tensor, dict[str, Any]]:
        """The gradient and the loss."""
        if self.jac is None:
            found = self._by_autograd(params)
            if found is not None:
                return found
            self.jac = "2-point"
        point = params.numpy().copy()
        if self.jac is True:
            value, gradient = self.fun(point, *self.args)
        elif callable(self.jac):
            value, gradient = self.fun(point, *self.args), self.jac(point, *self.args)
        elif self.jac == "2-point":
            value, gradient = self._by_differences(point)
        else:
            raise ValueError(f"jac is True, a function, '2-point' or left out, got {self.jac!r}")
        gradient = torch.as_tensor(np.array(gradient, dtype=np.float64).ravel())
        return gradient, {"value": torch.tensor(float(np.asarray(value).item()), dtype=torch.float64)}

    def _by_autograd(self, params: Tensor) -> tuple[Tensor, dict[str, Any]] | None:
        with torch.enable_grad():
            point = params.detach().requires_grad_()
            try:
                value = self.fun(point, *self.args)
            except (RuntimeError, TypeError):  # NumPy refuses tensors that require a derivative
                return None
            if not isinstance(value, Tensor) or not value.requires_grad:
                return None
            (gradient,) = torch.autograd.grad(value.sum(), point)
        return gradient, {"value": value.detach().sum()}

    def _by_differences(self, point: np.ndarray) -> tuple[float, np.ndarray]:
        value = float(np.asarray(self.fun(point, *self.args)).item())
        gradient = np.empty_like(point)
        for k in range(len(point)):
            moved = point.copy()
            moved[k] += self.eps
            gradient[k] = (float(np.asarray(self.fun(moved, *self.args)).item()) - value) / (moved[k] - point[k])
        self.calls += len(point) + 1
        return value, gradient


def _box(bounds: Any, size: int) -> Box:
    if bounds is None:
        return Box()
    if hasattr(bounds, "lb"):
        lower, upper = (np.broadcast_to(np.asarray(side, dtype=np.float64), size) for side in (bounds.lb, bounds.ub))
    else:
        pairs: Sequence[Any] = list(bounds)
        if len(pairs) != size:
            raise ValueError(f"there are {size} parameters and {len(pairs)} pairs of bounds")
        lower = np.array([-np.inf if low is None else low for low, _ in pairs], dtype=np.float64)
        upper = np.array([np.inf if high is None else high for _, high in pairs], dtype=np.float64)
    return Box(torch.from_numpy(lower.copy()), torch.from_numpy(upper.copy()))


class _Attributes(dict):
    """A dict whose entries are attributes too, as SciPy's."""

    __getattr__ = dict.__getitem__


def _result_type() -> Any:
    try:
        from scipy.optimize import OptimizeResult
    except ImportError:
        return _Attributes
    return OptimizeResult
