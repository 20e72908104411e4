"""Adam and those nearest to it: with decoupled decay, with Nesterov's momentum, with a maximum."""

from __future__ import annotations

from typing import Any

from boxopt.core.combine import chain
from boxopt.core.transform import GradientTransformation
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.adam import scale_by_adam
from boxopt.scale.largest_moment import scale_by_adamax, scale_by_amsgrad
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate


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


def nadam(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
) -> GradientTransformation:
    """Adam that looks ahead by one step: `adam` with ``nesterov=True``.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.nadam(0.1, b1=0.5), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1333])

    Source:
        T. Dozat, "Incorporating Nesterov momentum into Adam", 2016; `optax.nadam`. `torch.optim.NAdam` lets β₁ follow
        a schedule of its own.
    """
    return adam(learning_rate, b1, b2, eps, eps_root, nesterov=True)


def nadamw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
) -> GradientTransformation:
    """Adam that looks ahead by one step, with decoupled weight decay: `adamw` with ``nesterov=True``.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        weight_decay: The strength of the decay, which the learning rate multiplies.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.nadamw(0.1, b1=0.5, weight_decay=0.5), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1833])

    Source:
        T. Dozat, 2016; I. Loshchilov and F. Hutter, ICLR 2019; `optax.nadamw`.
    """
    return adamw(learning_rate, b1, b2, eps, eps_root, weight_decay, mask, nesterov=True)


def amsgrad(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    eps_root: Scalar = 0.0,
    *,
    bias_correction_mu: bool = True,
    bias_correction_nu: bool = True,
) -> GradientTransformation:
    """AMSGrad: Adam whose second moment never decreases; see `scale_by_amsgrad`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        bias_correction_mu: Whether to correct the bias of the first moment.
        bias_correction_nu: Whether to correct that of the second, before the maximum.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.amsgrad(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        S. J. Reddi, S. Kale and S. Kumar, ICLR 2018; `optax.amsgrad`.
    """
    return chain(
        scale_by_amsgrad(
            b1, b2, eps, eps_root, bias_correction_mu=bias_correction_mu, bias_correction_nu=bias_correction_nu
        ),
        scale_by_learning_rate(learning_rate),
    )


def adamax(
    learning_rate: ScalarOrSchedule, b1: Scalar = 0.9, b2: Scalar = 0.999, eps: Scalar = 1e-8
) -> GradientTransformation:
    """Adamax: Adam in the maximum norm; see `scale_by_adamax`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the maximum.
        eps: Added to the absolute values of the gradient.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adamax(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        D. P. Kingma and J. Ba, ICLR 2015, section 7.1; `optax.adamax`; `torch.optim.Adamax`.
    """
    return chain(scale_by_adamax(b1, b2, eps), scale_by_learning_rate(learning_rate))


def adamaxw(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 1e-4,
    mask: Any = None,
) -> GradientTransformation:
    """Adamax with decoupled weight decay.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the maximum.
        eps: Added to the absolute values of the gradient.
        weight_decay: The strength of the decay, which the learning rate multiplies.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.adamaxw(0.1, weight_decay=0.5), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1500])

    Source:
        I. Loshchilov and F. Hutter, ICLR 2019; `optax.adamaxw`.
    """
    return chain(
        scale_by_adamax(b1, b2, eps), add_decayed_weights(weight_decay, mask), scale_by_learning_rate(learning_rate)
    )
