"""Noise on the gradient."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.random import make_key, normal, split
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P, Scalar
from boxopt.core.values import check_nonnegative, zero_count
from boxopt.scale.moments import precise
from boxopt.scale.norms import root


class AddNoiseState(NamedTuple):
    """The state of `add_noise`.

    Attributes:
        count: The number of updates made, an int64 scalar.
        rng_key: The key of the random numbers to come, two words of 32 bits in an int64 tensor.
    """

    count: Tensor  # pyright: ignore[reportIncompatibleMethodOverride]  (optax's name)
    rng_key: Tensor


def add_noise(eta: Scalar, gamma: Scalar, key: int | Tensor = 0) -> GradientTransformation:
    r"""Add normal noise whose variance decays.

    $$ u = g + \varepsilon, \qquad \varepsilon \sim N\left(0, \eta/t^\gamma\right) $$

    The numbers are a pure function of the state, the same in every mode, and those of optax with JAX's default
    generator. Members of an ensemble get the same noise unless each has a key of its own. The step size is unchanged.

    Args:
        eta: η, the variance of the first update's noise, not negative.
        gamma: γ, the power of its decay.
        key: An integer, an integer tensor without dimensions (one a member under ``vmap``), or a key.

    Returns:
        A gradient-space transformation with an `AddNoiseState`.

    Raises:
        ValueError: ``eta`` is negative.

    Example:
        >>> import torch, boxopt as bx
        >>> tx, keys = bx.add_noise(1.0, 0.55), torch.arange(3)
        >>> draw = lambda key: bx.add_noise(1.0, 0.55, key).init(torch.zeros(1)).rng_key
        >>> torch.func.vmap(draw)(keys).tolist()
        [[0, 0], [0, 1], [0, 2]]

    Source:
        A. Neelakantan et al., "Adding gradient noise improves learning for very deep networks", 2015;
        `optax.add_noise`.
    """
    check_nonnegative("eta", eta)
    return GradientTransformation(bind(_noise_init, key=key), bind(_noise_update, eta=eta, gamma=gamma))


def _noise_init(params: Any, *, key: int | Tensor) -> AddNoiseState:
    tree.check_parameters(params)
    count = zero_count(params)
    return AddNoiseState(count, make_key(key, count.device))


def _noise_update(
    updates: P, state: AddNoiseState, params: P, *, eta: Scalar, gamma: Scalar
) -> tuple[P, AddNoiseState]:
    count = state.count + 1
    following, sample = split(state.rng_key)
    steps = precise(count)
    deviation = exact.cast_once(root(exact.as_tensor(eta, steps) / steps**gamma))
    ranks = tree.ranks(updates)
    keys = split(sample, len(tree.leaves(ranks)))

    def perturb(leaf: Tensor, rank: int) -> Tensor:
        wide = exact.wide(leaf)
        noise = normal(keys[rank].to(leaf.device), leaf.shape, wide.dtype, leaf)
        return exact.like(wide + deviation(wide) * noise, leaf)

    return tree.map(perturb, updates, ranks), AddNoiseState(count, following)
