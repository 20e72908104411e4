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
