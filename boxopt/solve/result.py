"""What a solver returns, and why it stopped."""

from __future__ import annotations

from enum import IntEnum
from typing import Any, NamedTuple

from torch import Tensor


class Status(IntEnum):
    """Why a problem's solver stopped. ``str(status)`` is the sentence to show.

    Example:
        >>> import boxopt as bx
        >>> print(bx.Status(1))
        converged: the projected gradient is within the tolerance
    """

    message: str

    def __new__(cls, code: int, message: str) -> Status:
        member = int.__new__(cls, code)
        member._value_ = code
        member.message = message
        return member

    RUNNING = 0, "running"
    GRADIENT = 1, "converged: the projected gradient is within the tolerance"
    STEP = 2, "converged: the last step is within the tolerance"
    VALUE = 3, "converged: the last decrease of the loss is within the tolerance"
    STALLED = 4, "stalled: no further decrease of the loss can be found in this arithmetic"
    NONFINITE = 5, "failed: the loss or its gradient is not finite at the start"
    LIMIT = 6, "stopped: the limit on the number of steps is reached"

    def __str__(self) -> str:
        return self.message

    @property
    def converged(self) -> bool:
        """Whether one of the tolerances was met."""
        return self in (Status.GRADIENT, Status.STEP, Status.VALUE)


class Result(NamedTuple):
    """What `minimize` found: one entry a problem, whose batch dimensions come first in every tensor.

    ``print`` of it shows how it ended, a batch as the counts of each `Status`.

    Attributes:
        params: The best feasible point seen, a tree as the parameters given.
        value: The loss there.
        optimality: ‖P(x − g) − x‖∞ there, see `boxopt.optimality`.
        status: Codes of `Status`, int8.
        steps: How many evaluations of the loss and its gradient were used, int64.
        state: The state of the solver, with which it can be continued.
        aux: What ``fun`` returned beside the loss at ``params``; None without ``has_aux``.
    """

    params: Any
    value: Tensor
    optimality: Tensor
    status: Tensor
    steps: Tensor
    state: Any
    aux: Any = None

    @property
    def converged(self) -> Tensor:
        """Which problems met one of the tolerances: Booleans, one a problem."""
        return is_converged(self.status)

    def __str__(self) -> str:
        return summary(self)


def is_converged(status: Tensor) -> Tensor:
    """Which of these codes say that a tolerance was met."""
    return (status >= int(Status.GRADIENT)) & (status <= int(Status.VALUE))


def summary(result: Any) -> str:
    """A result in words: of one problem its end, numbers and parameters; of a batch how many ended in which way.

    Example:
        >>> import torch, boxopt as bx
        >>> loss = lambda x: ((x - 2) ** 2).sum()
        >>> print(bx.minimize(loss, torch.zeros(2), bx.lbfgsb(bx.Box(0.0, 1.0))))
        converged: the projected gradient is within the tolerance
        value 2, optimality 0, after 2 evaluations
        params tensor([1., 1.])
        >>> print(bx.minimize(loss, torch.zeros(5, 2), bx.lbfgsb(bx.Box(0.0, 1.0)), batch_dims=1))
        5 problems, 2 evaluations at most
        5 converged: the projected gradient is within the tolerance
    """
    if result.status.ndim == 0:
        return (
            f"{Status(int(result.status))}\n"
            f"value {float(result.value):.6g}, optimality {float(result.optimality):.3g}, "
            f"after {int(result.steps)} evaluations\n"
            f"params {result.params}"
        )
    codes, counts = result.status.unique(return_counts=True)
    most = int(result.steps.max()) if result.steps.numel() else 0
    ends = [f"{count} {Status(code)}" for code, count in zip(codes.tolist(), counts.tolist(), strict=True)]
    return "\n".join([f"{result.status.numel()} problems, {most} evaluations at most", *ends])


class Progress(NamedTuple):
    """What a callback is told.

    Attributes:
        steps: How many evaluations were used, by that problem of those that take part which used most, a scalar tensor.
        running: How many problems have not stopped.
        problems: How many there are.
        iterate: The points reached by the problems that take part, a `boxopt.solve.solver.Iterate`: ``params`` as
            vectors, ``gradient``, ``value``, ``optimality`` and ``accepted``.
    """

    steps: Tensor
    running: int
    problems: int
    iterate: Any
