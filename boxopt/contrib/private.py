"""Ready-made optimizers with differential privacy."""

from __future__ import annotations

from torch import Tensor

from boxopt.core.combine import chain
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.momentum import trace
from boxopt.scale.privacy import differentially_private_aggregate
from boxopt.scale.scale import scale_by_learning_rate


@expects_numbers
def dpsgd(
    learning_rate: ScalarOrSchedule,
    l2_norm_clip: Scalar,
    noise_multiplier: Scalar,
    seed: int | Tensor,
    momentum: Scalar | None = None,
    nesterov: bool = False,
) -> GradientTransformation:
    """Stochastic gradient descent with differential privacy: see `differentially_private_aggregate`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        l2_norm_clip: The largest norm of the gradient of one example.
        noise_multiplier: The noise's standard deviation, over that norm.
        seed: A seed, or a key.
        momentum: The decay of the momentum; none if left out.
        nesterov: Whether the momentum looks ahead.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.dpsgd(1.0, 1.0, 0.0, seed=0), torch.zeros(2)
        >>> tx.update(torch.tensor([[3.0, 4.0], [0.0, 0.5]]), tx.init(params), params)[0]
        tensor([-0.3000, -0.6500])

    Source:
        M. Abadi et al., CCS 2016; `optax.contrib.dpsgd`.
    """
    return chain(
        differentially_private_aggregate(l2_norm_clip, noise_multiplier, seed),
        identity() if momentum is None else trace(momentum, nesterov),
        scale_by_learning_rate(learning_rate),
    )
