"""Optimizers that follow the sign of the gradient or of a momentum."""

from __future__ import annotations

from typing import Any

from boxopt.core.combine import chain
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.momentum import ema
from boxopt.scale.rprop import scale_by_rprop
from boxopt.scale.scale import add_decayed_weights, scale, scale_by_learning_rate
from boxopt.scale.sign import scale_by_lion, scale_by_sign


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


def sign_sgd(learning_rate: ScalarOrSchedule) -> GradientTransformation:
    """Gradient descent by the sign of the gradient.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.sign_sgd(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        J. Bernstein et al., "signSGD: compressed optimisation for non-convex problems", ICML 2018; `optax.sign_sgd`.
    """
    return chain(scale_by_sign(), scale_by_learning_rate(learning_rate))


@expects_numbers
def signum(learning_rate: ScalarOrSchedule, beta: Scalar = 0.9) -> GradientTransformation:
    """Gradient descent by the sign of the running average of the gradients.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        beta: The decay of the average.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.signum(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        J. Bernstein et al., ICML 2018; `optax.signum`.
    """
    return chain(ema(beta, debias=False), scale_by_sign(), scale_by_learning_rate(learning_rate))


def rprop(
    learning_rate: Scalar,
    eta_minus: Scalar = 0.5,
    eta_plus: Scalar = 1.2,
    min_step_size: Scalar = 1e-6,
    max_step_size: Scalar = 50.0,
) -> GradientTransformation:
    """Rprop: see `scale_by_rprop`. For deterministic gradients.

    Args:
        learning_rate: The first step size of every number.
        eta_minus: The factor of the step size where the gradient changes its sign.
        eta_plus: The factor where it does not.
        min_step_size: The least step size.
        max_step_size: The largest.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.rprop(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        M. Riedmiller and H. Braun, 1993; `optax.rprop`; `torch.optim.Rprop`.
    """
    return chain(scale_by_rprop(learning_rate, eta_minus, eta_plus, min_step_size, max_step_size), scale(-1.0))
