"""Ready-made chains for parameters that are matrices."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor

from boxopt.core import tree
from boxopt.core.combine import chain, partition
from boxopt.core.expect import expects_numbers
from boxopt.core.transform import GradientTransformation, bind, identity
from boxopt.core.types import Scalar, ScalarOrSchedule
from boxopt.optimizers import adamw
from boxopt.scale.galore import scale_by_galore
from boxopt.scale.momentum import trace
from boxopt.scale.muon import dimension_numbers_of, scale_by_muon, scale_by_shape
from boxopt.scale.newton_schulz import STANDARD, Preconditioning
from boxopt.scale.scale import add_decayed_weights, scale_by_learning_rate
from boxopt.scale.shampoo import scale_by_shampoo
from boxopt.scale.soap import scale_by_soap


@expects_numbers
def muon(
    learning_rate: ScalarOrSchedule,
    ns_coeffs: Any = STANDARD,
    ns_steps: int = 5,
    beta: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.0,
    weight_decay_mask: Any = None,
    *,
    nesterov: bool = True,
    adaptive: bool = False,
    preconditioning: Preconditioning = "frobenius",
    adam_b1: Scalar = 0.9,
    adam_b2: Scalar = 0.999,
    adam_eps_root: Scalar = 0.0,
    adam_weight_decay: ScalarOrSchedule = 0.0,
    adam_learning_rate: ScalarOrSchedule | None = None,
    muon_weight_dimension_numbers: Any | Callable[[Any], Any] | None = None,
    consistent_rms: Scalar | None = None,
) -> GradientTransformation:
    """Muon for the leaves that are matrices, AdamW for the others: see `scale_by_muon` for the formula.

    Args:
        learning_rate: A number, a tensor, or a schedule.
        ns_coeffs: The coefficients of the Newton–Schulz iterations, or "standard" or "dion".
        ns_steps: The number of iterations.
        beta: The decay of the momentum.
        eps: Added to what is divided by, in AdamW too.
        weight_decay: The strength of the decay, times the learning rate.
        weight_decay_mask: Which of the matrices to decay: see `masked`.
        nesterov: Look ahead by one step, in AdamW too.
        adaptive: Whether to multiply by the dual norm.
        preconditioning: How the singular values are brought below 1.
        adam_b1: AdamW's first decay.
        adam_b2: AdamW's second decay.
        adam_eps_root: Added under AdamW's root.
        adam_weight_decay: AdamW's weight decay.
        adam_learning_rate: AdamW's learning rate; the same if left out.
        muon_weight_dimension_numbers: Which leaves are matrices and how: a prefix of the parameters with
            `MuonDimensionNumbers`, or None for AdamW, or a function from the parameters to one. Left out, the leaves
            with two dimensions are.
        consistent_rms: The root mean square of the updates, whatever the shape; 0.2 is about Adam's.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.contrib.muon(0.1)
        >>> params = {"weight": torch.eye(2), "bias": torch.zeros(2)}
        >>> tx.update(params, tx.init(params), params)[0]["weight"].diagonal() < -0.05
        tensor([True, True])

    Source:
        K. Jordan et al., 2024; `optax.contrib.muon`.
    """
    numbers = muon_weight_dimension_numbers
    return partition(
        {
            "muon": chain(
                scale_by_muon(
                    ns_coeffs,
                    ns_steps,
                    beta,
                    eps,
                    nesterov=nesterov,
                    adaptive=adaptive,
                    preconditioning=preconditioning,
                    weight_dimension_numbers=numbers,
                ),
                scale_by_shape(numbers, consistent_rms),
                add_decayed_weights(weight_decay, weight_decay_mask),
                scale_by_learning_rate(learning_rate),
            ),
            "adam": adamw(
                learning_rate if adam_learning_rate is None else adam_learning_rate,
                b1=adam_b1,
                b2=adam_b2,
                eps=eps,
                eps_root=adam_eps_root,
                weight_decay=adam_weight_decay,
                nesterov=nesterov,
            ),
        },
        bind(_muon_or_adam, dimension_numbers=numbers),
    )


def _muon_or_adam(params: Any, *, dimension_numbers: Any) -> Any:
    tree.check_parameters(params)
    if dimension_numbers is None:
        return tree.map(lambda x: "muon" if x.ndim == 2 else "adam", params)

    def label(x: Tensor, numbers: Any) -> str:
        return "adam" if numbers is None else "muon"

    return tree.map(label, params, dimension_numbers_of(dimension_numbers, params))


def galore(
    learning_rate: ScalarOrSchedule,
    rank: int = 128,
    update_proj_gap: int = 200,
    scale: Scalar = 1.0,
    base_optimizer: GradientTransformation | None = None,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    weight_dimension_numbers: Any | Callable[[Any], Any] | None = None,
) -> GradientTransformation:
    """GaLore, with decoupled weight decay: see `scale_by_galore` for the formula.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        rank: The rank of the projected gradients.
        update_proj_gap: Every how many steps the projection is recomputed.
        scale: A factor of the matrices' updates.
        base_optimizer: What scales the projected gradients; `scale_by_adam` if left out.
        weight_decay: The strength of the decay, times the learning rate.
        mask: Which leaves to decay: see `masked`.
        weight_dimension_numbers: Which leaves are matrices and how; those with two dimensions if left out.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.galore(0.1, rank=1), torch.eye(2)
        >>> tx.update(torch.ones(2, 2), tx.init(params), params)[0]
        tensor([[-0.0707, -0.0707],
                [-0.0707, -0.0707]])

    Source:
        J. Zhao et al., ICML 2024; `optax.contrib.galore`.
    """
    return chain(
        scale_by_galore(rank, update_proj_gap, scale, base_optimizer, weight_dimension_numbers),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


@expects_numbers
def shampoo(
    learning_rate: ScalarOrSchedule,
    momentum: Scalar | None = 0.9,
    b2: Scalar | None = None,
    eps: Scalar = 1e-6,
    weight_decay: ScalarOrSchedule = 0.0,
    mask: Any = None,
    *,
    block_size: int = 128,
) -> GradientTransformation:
    """Shampoo, with momentum and decoupled weight decay: see `scale_by_shampoo` for the formula. optax has none.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        momentum: The decay of the momentum of the preconditioned gradients; None for none.
        b2: The decay of the second moments; sums if left out.
        eps: Added to their eigenvalues.
        weight_decay: The strength of the decay, times the learning rate.
        mask: Which leaves to decay: see `masked`.
        block_size: The most rows, and columns, of a block.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.shampoo(0.1), torch.eye(2)
        >>> tx.update(3 * params, tx.init(params), params)[0].round(decimals=3).diagonal()
        tensor([-0.1000, -0.1000])

    Source:
        V. Gupta, T. Koren and Y. Singer, ICML 2018.
    """
    return chain(
        scale_by_shampoo(b2, eps, block_size=block_size),
        identity() if momentum is None else trace(momentum),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )


def soap(
    learning_rate: ScalarOrSchedule = 3e-3,
    b1: Scalar = 0.95,
    b2: Scalar = 0.95,
    eps: Scalar = 1e-8,
    weight_decay: ScalarOrSchedule = 0.01,
    mask: Any = None,
    *,
    shampoo_beta: Scalar | None = None,
    precondition_frequency: int = 10,
    block_size: int = 128,
) -> GradientTransformation:
    """SOAP, with decoupled weight decay: see `scale_by_soap` for the formula. optax has none.

    Args:
        learning_rate: A number, a tensor, a pytree prefix of the parameters, or a schedule.
        b1: The decay of the first moment.
        b2: The decay of the second moment, in the eigenbases.
        eps: Added to its root.
        weight_decay: The strength of the decay, times the learning rate.
        mask: Which leaves to decay: see `masked`.
        shampoo_beta: The decay of the matrices of second moments; ``b2`` if left out.
        precondition_frequency: Every how many steps the eigenbases are renewed.
        block_size: The most rows, and columns, of a block.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, params = bx.contrib.soap(0.1, weight_decay=0.0), torch.eye(2)
        >>> tx.update(3 * params, tx.init(params), params)[0].diagonal()
        tensor([-0.1000, -0.1000])

    Source:
        N. Vyas et al., ICLR 2025.
    """
    return chain(
        scale_by_soap(b1, b2, eps, shampoo_beta, precondition_frequency, block_size=block_size),
        add_decayed_weights(weight_decay, mask),
        scale_by_learning_rate(learning_rate),
    )
