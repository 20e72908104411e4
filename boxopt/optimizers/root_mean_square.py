"""Optimizers that divide by a root mean square, or by the root of a sum of squares."""

from __future__ import annotations

from typing import Any

from boxopt.core.combine import chain
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.adadelta import scale_by_adadelta
from boxopt.scale.clipping import clip_by_block_rms
from boxopt.scale.factored import scale_by_factored_rms
from boxopt.scale.layerwise import scale_by_param_block_rms
from boxopt.scale.momentum import ema, trace
from boxopt.scale.root_mean_square import scale_by_rms, scale_by_rss, scale_by_stddev
from boxopt.scale.scale import add_decayed_weights, scale, scale_by_learning_rate
from boxopt.scale.sm3 import scale_by_sm3


@expects_numbers
def rmsprop(
    learning_rate: ScalarOrSchedule,
    decay: Scalar = 0.9,
    eps: Scalar = 1e-8,
    initial_scale: float = 0.0,
    eps_in_sqrt: bool = True,
    centered: bool = False,
    momentum: Scalar | None = None,
    nesterov: bool = False,
    bias_correction: bool = False,
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
        bias_correction: Whether to correct the bias of the averages, as Adam does.

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
        scaler(decay, eps, initial_scale, eps_in_sqrt=eps_in_sqrt, bias_correction=bias_correction),
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


def adadelta(
    learning_rate: ScalarOrSchedule = 1.0,
    rho: Scalar = 0.9,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
) -> GradientTransformation:
    """Adadelta: see `scale_by_adadelta`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule. Without one,
            optax leaves out the sign too and so ascends; here it is 1, as in torch.
        rho: The decay of the averages.
        eps: Added to both mean squares.
        weight_decay: The strength of an L2 regularization, before the scaling.
        weight_decay_mask: Which leaves to regularize: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adadelta(eps=1.0), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-1.6903])

    Source:
        M. D. Zeiler, 2012; `optax.adadelta`; `torch.optim.Adadelta`.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_adadelta(rho, eps),
        scale_by_learning_rate(learning_rate),
    )


@expects_numbers
def adafactor(
    learning_rate: ScalarOrSchedule | None = None,
    min_dim_size_to_factor: int = 128,
    decay_rate: Scalar = 0.8,
    decay_offset: Scalar = 0,
    multiply_by_parameter_scale: bool = True,
    clipping_threshold: Scalar | None = 1.0,
    momentum: Scalar | None = None,
    weight_decay_rate: ScalarOrSchedule | None = None,
    eps: Scalar = 1e-30,
    factored: bool = True,
    weight_decay_mask: Any = None,
) -> GradientTransformation:
    """Adafactor: second moments of matrices by rows and columns, and steps relative to the parameters.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
            None for steps of the parameters' own size.
        min_dim_size_to_factor: How long the second longest dimension of a leaf must be for its moment to be factored.
        decay_rate: The power in the decay of the second moment: see `scale_by_factored_rms`.
        decay_offset: How many updates to leave out of the count.
        multiply_by_parameter_scale: Whether to multiply by the root mean square of the leaf of the parameters.
        clipping_threshold: The largest root mean square of a leaf's scaled gradient; None for no limit.
        momentum: The decay of a running average of the steps; none if left out.
        weight_decay_rate: The strength of a weight decay, which the learning rate does not multiply.
        eps: Added to the squared gradients.
        factored: Whether to factor at all.
        weight_decay_mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adafactor(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        N. Shazeer and M. Stern, ICML 2018; `optax.adafactor`. `torch.optim.Adafactor` factors every matrix, has its ε
        elsewhere and a step size that decays by itself.
    """
    none = identity()
    return chain(
        scale_by_factored_rms(factored, decay_rate, decay_offset, min_dim_size_to_factor, eps),
        none if clipping_threshold is None else clip_by_block_rms(clipping_threshold),
        none if learning_rate is None else scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_param_block_rms() if multiply_by_parameter_scale else none,
        none if momentum is None else ema(momentum, debias=False),
        none if weight_decay_rate is None else add_decayed_weights(weight_decay_rate, weight_decay_mask),
        scale(-1.0),
    )


@expects_numbers
def sm3(learning_rate: ScalarOrSchedule, momentum: Scalar = 0.9) -> GradientTransformation:
    """SM3: Adagrad with the memory of rows and columns; see `scale_by_sm3`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        momentum: The decay of the average of scaled gradients.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.sm3(0.1, momentum=0.0), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        R. Anil et al., NeurIPS 2019; `optax.sm3`.
    """
    return chain(scale_by_sm3(momentum), scale_by_learning_rate(learning_rate))
