"""Optimizers that divide by a root mean square, or by the root of a sum of squares."""

from __future__ import annotations

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.momentum import trace
from boxopt.scale.root_mean_square import scale_by_rms, scale_by_rss, scale_by_stddev
from boxopt.scale.scale import scale_by_learning_rate


def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
) -> GradientTransformation:
    """RMSProp.

    The defaults are optax's. Those of `torch.optim.RMSprop` are ``decay=0.99, eps_in_sqrt=False``, with the momentum
    before the learning rate, where optax has it after; for a constant learning rate that is the same.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        decay: The decay of the average of squared gradients (torch's ``alpha``).
        eps: Added to the mean square, or to its root.
        initial_scale: The average's first value.
        eps_in_sqrt: Whether ``eps`` is under the root.
        centered: Whether to divide by the standard deviation.
        momentum: The decay of a momentum on the scaled gradient; none if left out.
        nesterov: Whether the momentum looks ahead.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.rmsprop(0.1, decay=0.75), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        T. Tieleman and G. Hinton, 2012; `optax.rmsprop`; `torch.optim.RMSprop`.
    """
    scaler = scale_by_stddev if centered else scale_by_rms
    return chain(
        scaler(decay, eps, initial_scale, eps_in_sqrt=eps_in_sqrt),
        scale_by_learning_rate(learning_rate),
        identity() if momentum is None else trace(momentum, nesterov),
    )


def adagrad(
    learning_rate: ScalarOrSchedule,
    initial_accumulator_value: float = 0.1,
    eps: Scalar = 1e-7,
    *,
    eps_in_sqrt: bool = True,
) -> GradientTransformation:
    """Adagrad.

    The defaults are optax's. Those of `torch.optim.Adagrad` are
    ``initial_accumulator_value=0.0, eps=1e-10, eps_in_sqrt=False``.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        initial_accumulator_value: The first value of the sum of squares.
        eps: Added to the sum of squares, or to its root.
        eps_in_sqrt: Whether ``eps`` is under the root.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adagrad(0.1, initial_accumulator_value=0.0), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        J. Duchi, E. Hazan and Y. Singer, JMLR 12, 2011; `optax.adagrad`; `torch.optim.Adagrad`.
    """
    return chain(
        scale_by_rss(initial_accumulator_value, eps, eps_in_sqrt=eps_in_sqrt), scale_by_learning_rate(learning_rate)
    )
