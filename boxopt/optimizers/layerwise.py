"""Optimizers that fit the step to the norm of each layer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from boxopt.core import tree
from boxopt.core.combine import chain, masked
from boxopt.core.expect import expect_number, expects_numbers
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.scale.adam import scale_by_adam
from boxopt.scale.layerwise import scale_by_trust_ratio
from boxopt.scale.momentum import trace
from boxopt.scale.novograd import scale_by_novograd
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate


@expects_numbers
def lars(
    learning_rate: ScalarOrSchedule,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = True,
    trust_coefficient: Scalar = 1e-3,
    eps: Scalar = 0.0,
    trust_ratio_mask: Any = True,
    momentum: Scalar = 0.9,
    nesterov: bool = False,
) -> GradientTransformation:
    """LARS: momentum of gradients that have, leaf by leaf, the norm of the parameters.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        weight_decay: The strength of an L2 regularization, before the ratio is taken.
        weight_decay_mask: Which leaves to regularize: see `masked`.
        trust_coefficient: The factor of the ratio of norms.
        eps: Added to the norm of the gradient.
        trust_ratio_mask: Which leaves to scale.
        momentum: The decay of the momentum, after the learning rate.
        nesterov: Whether the momentum looks ahead.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.lars(0.1, trust_coefficient=1.0), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        Y. You, I. Gitman and B. Ginsburg, 2017; `optax.lars`.
    """
    return chain(
        add_decayed_weights(weight_decay, weight_decay_mask),
        masked(scale_by_trust_ratio(trust_coefficient=trust_coefficient, eps=eps), trust_ratio_mask),
        scale_by_learning_rate(learning_rate),
        trace(momentum, nesterov),
    )


def lamb(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.999,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
) -> GradientTransformation:
    """LAMB: Adam's step with, leaf by leaf, the norm of the parameters.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment.
        eps: Added to the root of the second moment.
        eps_root: Added under that root.
        weight_decay: The strength of the decay, before the ratio is taken.
        mask: Which leaves to decay: see `masked`.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.lamb(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        Y. You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020;
        `optax.lamb`.
    """
    return chain(
        scale_by_adam(b1, b2, eps, eps_root),
        add_decayed_weights(weight_decay, mask),
        scale_by_trust_ratio(),
        scale_by_learning_rate(learning_rate),
    )


def fromage(learning_rate: ScalarOrSchedule, min_norm: Scalar = 1e-6) -> GradientTransformation:
    r"""Fromage: steps relative to the norm of each leaf, and a shrinkage that keeps the norms from growing.

    $$ x \leftarrow \frac{1}{\sqrt{1 + \eta^2}} \left(x - \eta \frac{\lVert x \rVert}{\lVert g \rVert} g\right) $$

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        min_norm: The least norm of a leaf.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.fromage(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1045])

    Source:
        J. Bernstein et al., "On the distance between two neural networks and the stability of learning", NeurIPS 2020;
        `optax.fromage`.
    """
    return chain(
        scale_by_trust_ratio(min_norm),
        scale_by_learning_rate(_with(learning_rate, _shrunk)),
        add_decayed_weights(_with(learning_rate, _shrinkage)),
    )


def _with(learning_rate: Any, function: Callable[[Any], Any]) -> Any:
    """A function of a learning rate, which may be a schedule."""
    if tree.is_function(learning_rate):
        return bind(_composed, schedule=learning_rate, function=function)
    expect_number("learning_rate", learning_rate)
    return function(learning_rate)


def _composed(count: Tensor, *, schedule: Callable[[Tensor], Any], function: Callable[[Any], Any]) -> Any:
    return function(schedule(count))


def _shrunk(rate: Any) -> Any:
    return rate / (1 + rate**2) ** 0.5


def _shrinkage(rate: Any) -> Any:
    return 1 / (1 + rate**2) ** 0.5 - 1


def novograd(
    learning_rate: ScalarOrSchedule,
    b1: Scalar = 0.9,
    b2: Scalar = 0.25,
    eps: Scalar = 1e-6,
    eps_root: Scalar = 0.0,
    weight_decay: Scalar = 0.0,
) -> GradientTransformation:
    """NovoGrad: see `scale_by_novograd`.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the momentum.
        b2: The decay of the squared norms.
        eps: Added to the root of the squared norm.
        eps_root: Added under that root.
        weight_decay: The strength of a decay, which enters the momentum.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.novograd(0.1), torch.tensor([1.0])
        >>> tx.update(torch.tensor([2.0]), tx.init(params), params)[0]
        tensor([-0.1000])

    Source:
        B. Ginsburg et al., 2019; `optax.novograd`.
    """
    return chain(scale_by_novograd(b1, b2, eps, eps_root, weight_decay), scale_by_learning_rate(learning_rate))
