"""Ready-made chains around relatives of Adam."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.acprop import scale_by_acprop
from boxopt.scale.ademamix import scale_by_ademamix, scale_by_simplified_ademamix
from boxopt.scale.adopt import fourth_root, scale_by_adopt
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate
from boxopt.scale.sophia import HUTCHINSON, scale_by_sophia


def acprop(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-16,
    eps_root: Scalar = 1e-16,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """ACProp, with decoupled weight decay: see `scale_by_acprop` for the formula.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second, centred, moment.
        eps: Added to the root of the second moment.
        eps_root: Added to the second moment at each step.
        weight_decay: The strength of the decay, times the learning rate.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.acprop(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        J. Zhuang et al., NeurIPS 2021; `optax.contrib.acprop`.
    """
    return chain(
        scale_by_acprop(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def ademamix(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    b3: ScalarOrSchedule = 0.9999,
    alpha: ScalarOrSchedule = 5.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """AdEMAMix, with decoupled weight decay: see `scale_by_ademamix` for the formula.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the fast average.
        b2: The decay of the second moment.
        b3: The decay of the slow average; a number or a schedule.
        alpha: The weight of the slow average; a number or a schedule.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        weight_decay: The strength of the decay, times the learning rate.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.ademamix(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        M. Pagliardini, P. Ablin and D. Grangier, 2024; `optax.contrib.ademamix`.
    """
    return chain(
        scale_by_ademamix(b1, b2, b3, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def simplified_ademamix(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.99,
    b2: Scalar = 0.95,
    alpha: ScalarOrSchedule = 0.0,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """The simplified AdEMAMix, with decoupled weight decay: see `scale_by_simplified_ademamix` for the formula.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the sum of gradients.
        b2: The decay of the second moment.
        alpha: The additional weight of the latest gradient; a number or a schedule.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        weight_decay: The strength of the decay, times the learning rate.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.simplified_ademamix(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        D. Morwani et al., 2025; `optax.contrib.simplified_ademamix`.
    """
    return chain(
        scale_by_simplified_ademamix(b1, b2, alpha, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def adopt(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.9999,
    eps: Scalar = 1e-6,
    *,
    nesterov: bool = False,
    use_clipping: bool = True,
    clip_value_fn: Callable[[Tensor], Tensor] = fourth_root,
) -> GradientTransformation:
    """ADOPT: see `scale_by_adopt` for the formula.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the average of normalized gradients.
        b2: The decay of the second moment.
        eps: The least root of the second moment.
        nesterov: Look ahead by one step.
        use_clipping: Whether to clip the normalized gradient.
        clip_value_fn: Where to clip it, from the number of updates made so far.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.adopt(0.1), torch.tensor([1.0])
        >>> _, state = tx.update(torch.tensor([2.0]), tx.init(params), params)
        >>> tx.update(torch.tensor([2.0]), state, params)[0]
        tensor([-0.0100])

    Source:
        S. Taniguchi et al., NeurIPS 2024; `optax.contrib.adopt`.
    """
    return chain(
        scale_by_adopt(b1, b2, eps, nesterov=nesterov, use_clipping=use_clipping, clip_value_fn=clip_value_fn),
        scale_by_learning_rate(learning_rate),
    )


def sophia(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.965,
    b2: Scalar = 0.99,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    weight_decay_mask: Any = None,
    gamma: Scalar = 0.01,
    clip_threshold: Scalar | None = 1.0,
    update_interval: int = 10,
    hessian_diagonal_fn: GradientTransformation = HUTCHINSON,
) -> GradientTransformation:
    """Sophia, with decoupled weight decay: see `scale_by_sophia` for the formula.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the average of the Hessian's diagonal.
        eps: The least that is divided by.
        weight_decay: The strength of the decay, times the learning rate.
        weight_decay_mask: Which leaves to decay: see `masked`.
        gamma: The factor of the Hessian's diagonal.
        clip_threshold: Where to clip the quotient; None does not.
        update_interval: Every how many steps the diagonal is estimated.
        hessian_diagonal_fn: What estimates it. What this takes, ``obj_fn=``, ``update`` takes.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.sophia(0.1, weight_decay=0.0), torch.tensor([1.0])
        >>> tx.update(2 * params, tx.init(params), params, obj_fn=lambda x: (x**2).sum())[0]
        tensor([-0.1000])

    Source:
        H. Liu et al., ICLR 2024; `optax.contrib.sophia`.
    """
    return chain(
        scale_by_sophia(b1, b2, eps, gamma, clip_threshold, update_interval, hessian_diagonal_fn),
        add_decayed_weights(weight_decay, weight_decay_mask),
        scale_by_learning_rate(learning_rate),
    )
