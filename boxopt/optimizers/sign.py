"""Optimizers that follow the sign of the gradient or of a momentum."""

from __future__ import annotations

from typing import Any

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate
from boxopt.scale.sign import scale_by_lion


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
