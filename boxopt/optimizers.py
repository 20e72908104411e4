"""Ready-made chains: gradients in, updates to be added out. Bound them by chaining `project`, `barrier`, … after."""

from __future__ import annotations

from typing import Any

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.adam import scale_by_adam
from boxopt.scale.momentum import trace
from boxopt.scale.root_mean_square import scale_by_rms, scale_by_rss, scale_by_stddev
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate
from boxopt.scale.sign import scale_by_lion


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


def adam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam: see `scale_by_adam` for the formula.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        nesterov: Look ahead by one step, as NAdam does.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adam(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        D. P. Kingma and J. Ba, ICLR 2015; `optax.adam`; `torch.optim.Adam`.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov),
        scale_by_learning_rate(learning_rate),
    )


def adamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Adam with decoupled weight decay, which, as in optax and torch, is multiplied by the learning rate.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        nesterov: Look ahead by one step, as NAdam does.
        weight_decay: The strength; optax's default is 1e-4, that of `torch.optim.AdamW` 1e-2.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adamw(0.1, weight_decay=0.5), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1500])

    Source:
        I. Loshchilov and F. Hutter, ICLR 2019; `optax.adamw`; `torch.optim.AdamW`.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


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


def lion(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.99,
    weight_decay: ScalarOrSchedule = 1e-3,
    mask: Any = None,
) -> GradientTransformation:
    """Lion: the sign of an interpolated momentum, with decoupled weight decay.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule; 3 to 10 times smaller than
            Adam's.
        b1: The weight of the momentum in the update.
        b2: The decay of the momentum.
        weight_decay: The strength of the decay.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.lion(0.1, weight_decay=0.0), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        X. Chen et al., NeurIPS 2023; `optax.lion`.
    """
    return chain(scale_by_lion(b1, b2), add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate))
