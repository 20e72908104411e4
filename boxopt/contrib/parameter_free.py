"""Ready-made chains that need no learning rate, or only a rough one."""

from __future__ import annotations

from typing import Any, Literal

from boxopt.core.combine import chain
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.coin_betting import scale_by_cocob
from boxopt.scale.distance_over_gradients import scale_by_dog, scale_by_dowg
from boxopt.scale.dual_averaging import scale_by_madgrad
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate


def cocob(
    learning_rate: ScalarOrSchedule = 1.0,
    alpha: Scalar = 100.0,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """COCOB: see `scale_by_cocob` for the formula.

    Args:
        learning_rate: A multiple of the gradients, for a schedule, say.
        alpha: What bounds the first bets.
        eps: The first guess of the largest gradient.
        weight_decay: Added to the gradient times the parameters.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.cocob(), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.0100])

    Source:
        F. Orabona and T. Tommasi, NeurIPS 2017; `optax.contrib.cocob`.
    """
    return chain(
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate, flip_sign=False),
        scale_by_cocob(alpha, eps),
    )


def dog(
    learning_rate: ScalarOrSchedule = 1.0,
    init_step: tuple[Literal["distance", "learning_rate", "heuristic"], Scalar] = ("heuristic", 1e-6),
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Any = None,
) -> GradientTransformation:
    """Distance over gradients: see `scale_by_dog` for the formula. Its authors average the parameters.

    Args:
        learning_rate: A multiple of the learning rate found.
        init_step: How the first step is found.
        eps: Added to the sum of squares.
        weight_decay: Added to the gradient times the parameters.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.dog(init_step=("learning_rate", 0.1)), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.2000])

    Source:
        M. Ivgi, O. Hinder and Y. Carmon, ICML 2023; `optax.contrib.dog`.
    """
    return chain(
        identity() if weight_decay is None else add_decayed_weights(weight_decay, mask),
        scale_by_dog(init_step, eps),
        scale_by_learning_rate(learning_rate),
    )


@expects_numbers
def dowg(
    learning_rate: ScalarOrSchedule = 1.0,
    init_estim_sq_dist: Scalar | None = None,
    eps: Scalar = 1e-4,
    weight_decay: ScalarOrSchedule | None = None,
    mask: Any = None,
) -> GradientTransformation:
    """Distance over weighted gradients: see `scale_by_dowg` for the formula.

    Args:
        learning_rate: A multiple of the learning rate found.
        init_estim_sq_dist: The first guess of the squared distance to the solution; ``eps`` if left out.
        eps: Added to the root of the weighted sum of squares.
        weight_decay: Added to the gradient times the parameters.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.dowg(init_estim_sq_dist=0.25), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.4999])

    Source:
        A. Khaled, K. Mishchenko and C. Jin, NeurIPS 2023; `optax.contrib.dowg`.
    """
    return chain(
        identity() if weight_decay is None else add_decayed_weights(weight_decay, mask),
        scale_by_dowg(init_estim_sq_dist, eps),
        scale_by_learning_rate(learning_rate),
    )


def madgrad(
    learning_rate: ScalarOrSchedule, momentum: Scalar = 0.9, weight_decay: ScalarOrSchedule = 0.0, eps: Scalar = 1e-6
) -> GradientTransformation:
    """MADGRAD: see `scale_by_madgrad` for the formula.

    Args:
        learning_rate: A number, a 0-d tensor, or a schedule.
        momentum: How much of the parameters is kept in each step.
        weight_decay: Added to the gradient times the parameters.
        eps: Added to the learning rate, and to the cube root.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.madgrad(1.0, momentum=0.0, eps=0.0), torch.tensor([1.0])
        >>> tx.update(torch.tensor([8.0]), tx.init(params), params)[0]
        tensor([-2.])

    Source:
        A. Defazio and S. Jelassi, JMLR 23, 2022; `optax.contrib.madgrad`.
    """
    return chain(add_decayed_weights(weight_decay), scale_by_madgrad(learning_rate, momentum, eps))
