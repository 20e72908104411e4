"""Ready-made schedule-free optimizers."""

from __future__ import annotations

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.adam import scale_by_adam
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate
from boxopt.scale.schedule_free import schedule_free
from boxopt.schedules import linear_schedule


def schedule_free_sgd(
    learning_rate: Scalar = 1.0,
    warmup_steps: int | None = None,
    b1: Scalar = 0.9,
    weight_decay: Scalar | None = None,
    weight_lr_power: Scalar = 2.0,
) -> GradientTransformation:
    """Stochastic gradient descent, `schedule_free`.

    Args:
        learning_rate: A number or a 0-d tensor.
        warmup_steps: In how many steps the learning rate rises from 0; at once if left out.
        b1: How near the parameters are to the average; positive.
        weight_decay: Added to the gradient times the parameters.
        weight_lr_power: The power of the learning rate that weights the average.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.schedule_free_sgd(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        A. Defazio et al., NeurIPS 2024; `optax.contrib.schedule_free_sgd`.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    base = chain(
        identity() if weight_decay is None else add_decayed_weights(weight_decay), scale_by_learning_rate(rate)
    )
    return schedule_free(base, rate, b1, weight_lr_power)


def schedule_free_adamw(
    learning_rate: Scalar = 0.0025,
    warmup_steps: int | None = None,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: Scalar = 0.0,
    weight_lr_power: Scalar = 2.0,
) -> GradientTransformation:
    """AdamW without momentum, `schedule_free`.

    Args:
        learning_rate: A number or a 0-d tensor.
        warmup_steps: In how many steps the learning rate rises from 0; at once if left out.
        b1: How near the parameters are to the average; positive.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        weight_decay: The strength of the decay, times the learning rate.
        weight_lr_power: The power of the learning rate that weights the average.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.schedule_free_adamw(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        A. Defazio et al., NeurIPS 2024; `optax.contrib.schedule_free_adamw`.
    """
    rate = _warmed_up(learning_rate, warmup_steps)
    base = chain(
        scale_by_adam(0.0, b2, eps),
        add_decayed_weights(weight_decay),
        scale_by_learning_rate(rate),
    )
    return schedule_free(base, rate, b1, weight_lr_power)


def _warmed_up(learning_rate: Scalar, warmup_steps: int | None) -> ScalarOrSchedule:
    return learning_rate if warmup_steps is None else linear_schedule(0.0, learning_rate, warmup_steps)
