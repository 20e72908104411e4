"""What a regularizer offers. `boxopt.prox` knows regularizers through these methods alone."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.sets.vectors import Vectorwise, _from_vectors, _to_vectors, has_metric, precise

P = TypeVar("P")


class Regularizer:
    """A convex function of parameter trees whose proximal step is known: a small, immutable pytree of its weights.

    Its numbers can be batched by ``vmap``, differentiated and learned.
    """

    separable: bool = False
    """Whether it is a sum of functions of single numbers, so that it may be given packed parameters."""

    def check(self, params: Any) -> None:
        """Raise a ``ValueError`` or ``TypeError``, naming the leaf, if the regularizer does not fit the parameters."""
        tree.check_parameters(params)

    def __call__(self, params: Any) -> Tensor:
        """The value at these parameters, a scalar."""
        raise NotImplementedError

    def prox(self, y: P, step_size: Any = 1.0) -> P:
        """The minimizer over x of the value at x plus Σ (x − y)²/(2·step_size).

        Args:
            y: A tree of tensors.
            step_size: Not negative: a number, a tensor, or a pytree prefix of y with such values.
        """
        raise NotImplementedError

    def land(self, params: P, target: P) -> P:
        """The update that takes ``params`` to ``target``, which is a result of `prox`."""
        return tree.map(torch.sub, target, params)


class VectorRegularizer(Vectorwise, Regularizer):
    """A regularizer of each vector along ``dim`` of each leaf, computed in float64 where the device has it.

    A subclass gives the mathematics on tensors of shape [..., n]. Its hyperparameters follow, with shapes that
    broadcast: numbers as [] or [..., 1], vectors as [] or [..., n]; and so does the step size, [] or [..., n].
    """

    def _prox(self, y: Tensor, step: Tensor, *hyper: Tensor) -> Tensor:
        raise NotImplementedError

    def _value(self, x: Tensor, *hyper: Tensor) -> Tensor:
        """The values of the vectors, in a shape whose sum is the value."""
        raise NotImplementedError

    def _check(self, x: Tensor, *hyper: Any) -> None:
        if x.numel():
            super()._check(x, *hyper)

    def check(self, params: Any) -> None:
        tree.check_parameters(params)
        tree.map(self._check, params, *self._hyper(params))

    def __call__(self, params: Any) -> Tensor:
        def value(leaf: Tensor, *hyper: Any) -> Tensor:
            if leaf.numel() == 0:
                return leaf.sum()
            vectors = _to_vectors(precise(leaf), self.dim)
            return self._value(vectors, *self._arranged(leaf, vectors, list(hyper))).sum().to(leaf.dtype)

        return tree.reduce(torch.add, self._map(value, params, combine="sum"))

    def prox(self, y: P, step_size: Any = 1.0) -> P:
        def prox_leaf(leaf: Tensor, *rest: Any) -> Tensor:
            if leaf.numel() == 0:
                return leaf
            *hyper, step = rest
            vectors = _to_vectors(precise(leaf), self.dim)
            step = exact.as_tensor(step, vectors)
            if step.ndim:
                step = _to_vectors(step.expand(leaf.shape), self.dim)
            result = self._prox(vectors, step, *self._arranged(leaf, vectors, hyper))
            return _from_vectors(result, leaf, self.dim).to(leaf.dtype)

        return self._map(prox_leaf, y, tree.expand(step_size, y), metric=has_metric(step_size))


def usable(step: Tensor, weight: Tensor, size: Tensor) -> tuple[Tensor, Tensor]:
    """A positive step size, and the weight that makes with it the same proximal step.

    A scalar step size becomes 1. Of a vector, those are raised that move nothing by more than a rounding error of a
    number of this size.
    """
    if step.ndim == 0:
        return torch.ones_like(step), weight * step
    matters = (weight > 0) & (size > 0)
    floor = torch.finfo(step.dtype).eps / 2 * (size / torch.where(matters, weight, 1.0)).detach()
    floor = torch.where(matters, floor.clamp_min(torch.finfo(step.dtype).tiny * 1e8), 1.0)
    return torch.where(step < floor, floor, step), weight
