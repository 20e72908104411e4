"""Complex parameters, as pairs of real ones."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import tree
from boxopt.core.pack import on_leaves
from boxopt.core.transform import GradientTransformation, bind
from boxopt.core.types import P


class SplitRealAndImaginaryArrays(NamedTuple):
    """What stands in the place of a complex leaf: its parts, ``real`` and ``imaginary``."""

    real: Any
    imaginary: Any


class SplitRealAndImaginaryState(NamedTuple):
    """The state of `split_real_and_imaginary`: ``inner_state``, the inner transformation's."""

    inner_state: Any


def split_real_and_imaginary(inner: GradientTransformation) -> GradientTransformation:
    """Give a transformation the real and the imaginary parts of complex leaves, as two leaves each.

    Real leaves pass as they are. Everything else in this library takes real parameters only; within this, sets hold
    for both parts: ``split_real_and_imaginary(chain(adam(1e-2), project(Box(-1.0, 1.0))))``.

    torch's gradient of a real function with respect to a complex number is the direction of steepest ascent; JAX's is
    its conjugate. So nothing needs to be conjugated here.

    The step size is the inner one; where the parts of a leaf differ in it, their mean.

    Args:
        inner: The transformation.

    Returns:
        A transformation with a `SplitRealAndImaginaryState`; it takes the inner one's extra arguments.

    Example:
        >>> import torch, boxopt as bx
        >>> tx = bx.contrib.split_real_and_imaginary(bx.adam(0.1))
        >>> params = torch.tensor([1.0 - 2.0j])
        >>> tx.update(2 * params, tx.init(params), params)[0]
        tensor([-0.1000+0.1000j])

    Source:
        `optax.contrib.split_real_and_imaginary`.
    """
    inner = on_leaves(inner)
    return GradientTransformation(
        bind(_split_init, inner=inner), bind(_split_update, inner=inner), bind(_split_step_size, inner=inner)
    )


def _split_init(params: Any, *, inner: GradientTransformation) -> SplitRealAndImaginaryState:
    return SplitRealAndImaginaryState(inner.init(_split(params)))


def _split_update(
    updates: P, state: SplitRealAndImaginaryState, params: P, *, inner: GradientTransformation, **extra: Any
) -> tuple[P, SplitRealAndImaginaryState]:
    changed, inner_state = inner.update(_split(updates), state.inner_state, _split(params), **extra)
    return tree.map(_merge, changed, is_leaf=_is_split), SplitRealAndImaginaryState(inner_state)


def _split_step_size(state: SplitRealAndImaginaryState, step_size: Any, *, inner: GradientTransformation) -> Any:
    size = inner.step_size(state.inner_state, step_size)
    return size if tree.is_leaf(size) else tree.map(_mean, size, is_leaf=_is_split)


def _split(values: Any) -> Any:
    def split(x: Any) -> Any:
        if not isinstance(x, Tensor) or not x.is_complex():
            return x
        return SplitRealAndImaginaryArrays(x.real, x.imag)

    return tree.map(split, values)


def _is_split(node: Any) -> bool:
    return isinstance(node, SplitRealAndImaginaryArrays)


def _merge(node: Any) -> Any:
    return torch.complex(node.real, node.imaginary) if _is_split(node) else node


def _mean(node: Any) -> Any:
    return (node.real + node.imaginary) / 2 if _is_split(node) else node
