"""Gradient descent: with momentum, with noise, with optimism, with Polyak's step."""

from __future__ import annotations

from torch import Tensor

from boxopt.core.combine import chain
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.adam import scale_by_adam
from boxopt.scale.momentum import trace
from boxopt.scale.noise import add_noise
from boxopt.scale.optimistic import scale_by_optimistic_gradient
from boxopt.scale.polyak import scale_by_polyak
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate


@expects_numbers
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


def noisy_sgd(
    learning_rate: ScalarOrSchedule, eta: Scalar = 0.01, gamma: Scalar = 0.55, key: int | Tensor = 0
) -> GradientTransformation:
    """Gradient descent with normal noise on the gradient: see `add_noise`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        eta: The variance of the first update's noise.
        gamma: The power of its decay.
        key: An integer, an integer tensor without dimensions (one a member under ``vmap``), or a key.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.noisy_sgd(0.1, eta=0.0), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        A. Neelakantan et al., 2015; `optax.noisy_sgd`.
    """
    return chain(add_noise(eta, gamma, key), scale_by_learning_rate(learning_rate))


def optimistic_gradient_descent(
    learning_rate: ScalarOrSchedule, alpha: Scalar = 1.0, beta: Scalar = 1.0
) -> GradientTransformation:
    """Gradient descent that extrapolates the gradient by its last change, for games.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        alpha: The factor of the gradient.
        beta: The strength of the extrapolation.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.optimistic_gradient_descent(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        A. Mokhtari, A. Ozdaglar and S. Pattathil, AISTATS 2020; `optax.optimistic_gradient_descent`.
    """
    return chain(scale_by_optimistic_gradient(alpha, beta), scale_by_learning_rate(learning_rate))


@expects_numbers
def optimistic_adam(
    learning_rate: Scalar,
    optimism: Scalar | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    *,
    nesterov: bool = True,
) -> GradientTransformation:
    """Adam, then optimism: its step is extrapolated by its last change. optax advises `optimistic_adam_v2`.

    Args:
        learning_rate: A number or a tensor; the factor α of Adam's step.
        optimism: The strength β of the extrapolation; the learning rate if left out.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        nesterov: Look ahead by one step, as NAdam does.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.optimistic_adam(0.1, nesterov=False), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        C. Daskalakis et al., "Training GANs with optimism", ICLR 2018; `optax.optimistic_adam`.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov),
        scale_by_optimistic_gradient(learning_rate, learning_rate if optimism is None else optimism),
        scale_by_learning_rate(1.0),
    )


def optimistic_adam_v2(
    learning_rate: ScalarOrSchedule,
    *,
    alpha: Scalar = 1.0,
    beta: Scalar = 1.0,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    nesterov: bool = True,
) -> GradientTransformation:
    """Adam, then optimism, then the learning rate.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        alpha: The factor of Adam's step.
        beta: The strength of the extrapolation.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        nesterov: Look ahead by one step, as NAdam does.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.optimistic_adam_v2(0.1, nesterov=False), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        C. Daskalakis et al., "Training GANs with optimism", ICLR 2018; `optax.optimistic_adam_v2`.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root, nesterov=nesterov),
        scale_by_optimistic_gradient(alpha, beta),
        scale_by_learning_rate(learning_rate),
    )


@expects_numbers
def polyak_sgd(
    max_learning_rate: Scalar = 1.0,
    scaling: ScalarOrSchedule = 1.0,
    f_min: Scalar = 0.0,
    eps: Scalar = 0.0,
    variant: str = "sps",
) -> GradientTransformation:
    """Gradient descent with Polyak's step: see `scale_by_polyak`. ``update`` takes the loss as ``value=``.

    Args:
        max_learning_rate: The largest step.
        scaling: A factor of the gradient before the step is worked out.
        f_min: The least value of the loss, or a lower bound of it.
        eps: Added to the squared norm of the gradient.
        variant: "sps", or "sps+", which rests where the loss is below ``f_min``.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.polyak_sgd(), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params, value=1.0)[0]
        tensor([-0.5000])

    Source:
        N. Loizou et al., AISTATS 2021; `optax.polyak_sgd`.
    """
    return chain(sgd(scaling), scale_by_polyak(f_min, max_learning_rate, eps, variant))
