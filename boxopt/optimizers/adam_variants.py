"""Adam with another second moment, and Adam that rectifies or extrapolates."""

from __future__ import annotations

from typing import Any

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.adan import scale_by_adan
from boxopt.scale.belief import scale_by_belief, scale_by_yogi
from boxopt.scale.rectified import scale_by_radam
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate


def radam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    threshold: Scalar = 5.0,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """Rectified Adam: see `scale_by_radam`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        threshold: From what variance length on to scale; more than 4.
        nesterov: Look ahead by one step, as NAdam does.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.radam(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        L. Liu et al., ICLR 2020; `optax.radam`; `torch.optim.RAdam`.
    """
    return chain(
        scale_by_radam(b1, b2, eps, eps_root, threshold, nesterov=nesterov), scale_by_learning_rate(learning_rate)
    )


def adabelief(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    *,
    nesterov: bool = False,
) -> GradientTransformation:
    """AdaBelief: see `scale_by_belief`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added to the second moment at each step.
        nesterov: Look ahead by one step, as NAdam does.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adabelief(0.1, b1=0.5), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        J. Zhuang et al., NeurIPS 2020; `optax.adabelief`.
    """
    return chain(scale_by_belief(b1, b2, eps, eps_root, nesterov=nesterov), scale_by_learning_rate(learning_rate))


def yogi(
    learning_rate: ScalarOrSchedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-3
) -> GradientTransformation:
    """Yogi: see `scale_by_yogi`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.yogi(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.0999])

    Source:
        M. Zaheer et al., NeurIPS 2018; `optax.yogi`.
    """
    return chain(scale_by_yogi(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adan(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.98,
    b2: Scalar = 0.92,
    b3: Scalar = 0.99,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """Adan: see `scale_by_adan`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the average of gradients.
        b2: The decay of the average of their changes.
        b3: The decay of the average of squares.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        weight_decay: The strength of the decay, which the learning rate multiplies.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adan(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        X. Xie et al., 2022; `optax.adan`.
    """
    return chain(
        scale_by_adan(b1, b2, b3, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
