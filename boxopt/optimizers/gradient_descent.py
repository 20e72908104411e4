"""Gradient descent and its momentum."""

from __future__ import annotations

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.momentum import trace
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate


def sgd(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    weight_decay: Scalar | None = None,
) -> GradientTransformation:
    """Stochastic gradient descent, with momentum and L2 regularization if asked for.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        momentum: The decay of the momentum; none if left out.
        nesterov: Whether the momentum looks ahead.
        weight_decay: Added to the gradient times the parameters, before the momentum, as in `torch.optim.SGD`; optax
            has no such argument.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.sgd(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        `optax.sgd`; `torch.optim.SGD`.
    """
    return chain(
        identity() if weight_decay is None else add_decayed_weights(weight_decay),
        identity() if momentum is None else trace(momentum, nesterov),
        scale_by_learning_rate(learning_rate),
    )
