"""Momentum."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.transform import GradientTransformation, bind, elementwise
from boxopt.core.types import P, Scalar
from boxopt.scale.moments import map_wide, zeros_like


class TraceState(NamedTuple):
    """The state of `trace`: the decaying sum of gradients, ``trace``."""

    trace: Any


def trace(decay: Scalar, nesterov: bool = False) -> GradientTransformation:
    r"""Sum gradients with a decay: momentum.

    $$ m \leftarrow g + \beta m, \qquad u = m \ \text{ or, with Nesterov, } \ g + \beta m $$

    The step size is unchanged: momentum is a search direction.

    Args:
        decay: β.
        nesterov: Look ahead by one step.

    Returns:
        A gradient-space transformation with a `TraceState`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.trace(0.9), torch.zeros(1)
        >>> updates, state = tx.update(torch.ones(1), tx.init(params), params)
        >>> tx.update(torch.ones(1), state, params)[0]
        tensor([1.9000])

    Source:
        B. T. Polyak, "Some methods of speeding up the convergence of iteration methods", 1964; Y. Nesterov, 1983;
        `optax.trace`, and the momentum of `torch.optim.SGD` without dampening.
    """
    return GradientTransformation(_trace_init, bind(_trace_update, decay=decay, nesterov=nesterov))


def _trace_init(params: Any) -> TraceState:
    tree.check_parameters(params)
    return TraceState(zeros_like(params))


@elementwise
def _trace_update(updates: P, state: TraceState, params: P, *, decay: Scalar, nesterov: bool) -> tuple[P, TraceState]:
    def accumulate(m: Tensor, g: Tensor) -> Tensor:
        return g + exact.like(decay, m) * m

    new = map_wide(accumulate, state.trace, updates)
    return map_wide(accumulate, new, updates) if nesterov else new, TraceState(new)
