"""Sets of vectors: each vector along ``dim`` of each leaf is constrained by itself.

A subclass gives the mathematics on tensors whose last dimension is the vector; here the vectors are brought there and
back, hyperparameters laid out beside them, and 16-bit leaves computed in float32.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar, TypeVar

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.core.values import check_broadcasts
from boxopt.sets.base import ConstraintSet

P = TypeVar("P")
Dim = int | tuple[int, ...] | None


class Vectorwise:
    """What concerns each vector along ``dim`` of each leaf: an integer, several, or ``None`` for the whole leaf.

    Attributes:
        dim: The dimensions that form a vector.
        numbers: The attributes that hold one number a vector. They are given as a number, a tensor that broadcasts to
            the leaf's shape without ``dim``, or a pytree prefix of such.
        vectors: The attributes that hold a number a coordinate: a number, a tensor that broadcasts to the leaf, or a
            pytree prefix of such.
        reduces: Whether the formulas need of whole vectors no more than sums over them, which cost one number a vector
            where a sharded leaf cuts its vectors. Others are gathered there.
    """

    dim: Dim
    numbers: ClassVar[tuple[str, ...]] = ()
    vectors: ClassVar[tuple[str, ...]] = ()
    reduces: ClassVar[bool] = False

    def _check(self, x: Tensor, *hyper: Any) -> None:
        axes = _axes(x, self.dim)
        if any(x.shape[axis] == 0 for axis in axes):
            raise ValueError(f"{type(self).__name__} needs vectors with entries, got shape {tuple(x.shape)}")
        for name, value in zip((*self.numbers, *self.vectors), hyper, strict=True):
            if name in self.vectors:
                check_broadcasts(name, value, x.shape, "parameter")
            else:
                batch = torch.Size([n for axis, n in enumerate(x.shape) if axis not in axes])
                check_broadcasts(name, value, batch, "batch of vectors")

    def _hyper(self, x: Any) -> list[Any]:
        """The hyperparameters, each for every leaf."""
        return [tree.expand(getattr(self, name), x) for name in (*self.numbers, *self.vectors)]

    def _map(
        self, function: Callable[..., Any], x: Any, *rest: Any, combine: str | None = None, metric: bool = False
    ) -> Any:
        """Map ``function(leaf, *hyperparameters, *rest)`` over the leaves.

        ``combine`` is for results that are scalars, and ``metric`` says whether other formulas than sums may be needed:
        see `boxopt.core.sharded`.
        """

        def on_leaf(leaf: Tensor, *values: Any) -> Any:
            if not sharded.is_sharded(leaf):
                return function(leaf, *values)
            axes, count = _axes(leaf, self.dim), len(self.numbers)
            alike = not any(isinstance(v, Tensor) and v.ndim for v in values[: count + len(self.vectors)])
            if self.reduces and alike and not metric and sharded.flattens(leaf):
                return function(leaf, *values)
            return sharded.on_vectors(function, axes, leaf, values[:count], values[count:], combine)

        return tree.map(on_leaf, x, *self._hyper(x), *rest)

    def _each(self, function: Callable[..., Tensor], x: Any, *rest: Any) -> Any:
        """Map a function of vectors, ``function(x, *rest, *hyperparameters)``, over the leaves."""

        def on_leaf(leaf: Tensor, *values: Any) -> Tensor:
            count = len(self.numbers) + len(self.vectors)
            hyper, others = list(values[:count]), values[count:]
            vectors = _to_vectors(exact.wide(leaf), self.dim)
            beside = [
                _to_vectors(exact.like(other, vectors).expand(leaf.shape), self.dim)
                if isinstance(other, Tensor)
                else other
                for other in others
            ]
            result = function(vectors, *beside, *self._arranged(leaf, vectors, hyper))
            return _from_vectors(result, leaf, self.dim).to(leaf.dtype)

        return self._map(on_leaf, x, *rest)

    def _arranged(self, leaf: Tensor, vectors: Tensor, hyper: list[Any]) -> list[Tensor]:
        """Hyperparameters as tensors that broadcast against the vectors: numbers as [..., 1]."""
        arranged = []
        for name, value in zip((*self.numbers, *self.vectors), hyper, strict=True):
            value = exact.as_tensor(value, vectors)
            if name in self.vectors and value.ndim:
                value = _to_vectors(value.expand(leaf.shape), self.dim)
            elif value.ndim:
                value = value[..., None]
            arranged.append(value)
        return arranged


class VectorSet(Vectorwise, ConstraintSet):
    """A set of vectors along ``dim`` of each leaf."""

    # What a subclass gives, on tensors of shape [..., n]; its hyperparameters follow, with shapes that broadcast.

    def _project(self, x: Tensor, step: Tensor | None, *hyper: Tensor) -> Tensor:
        """The projection in the metric 1/step, or the Euclidean one where step is None."""
        raise NotImplementedError

    def _violation(self, x: Tensor, *hyper: Tensor) -> Tensor:
        """The violation of each vector, [...]."""
        raise NotImplementedError

    def _settle(self, params: Tensor, target: Tensor, *hyper: Tensor) -> Tensor:
        """The update from params to target, exact where the set has a way to be."""
        return target - params

    # What every vector set has from it.

    def _is_cut(self, leaf: Tensor) -> bool:
        return not self.reduces and sharded.is_sharded(leaf) and sharded.cuts(leaf, _axes(leaf, self.dim))

    def check(self, params: Any) -> None:
        tree.check_parameters(params)
        tree.map(self._check, params, *self._hyper(params))

    def project(self, x: P, step_size: Any = 1.0) -> P:
        def project_leaf(leaf: Tensor, *rest: Any) -> Tensor:
            *hyper, step = rest
            vectors = _to_vectors(exact.wide(leaf), self.dim)
            metric = step if isinstance(step, Tensor) and step.ndim else None
            if metric is not None:
                metric = normalized(_to_vectors(exact.like(metric, vectors).expand(leaf.shape), self.dim))
            result = self._project(vectors, metric, *self._arranged(leaf, vectors, hyper))
            return self._rounded(_from_vectors(result, leaf, self.dim), leaf)

        return self._map(project_leaf, x, tree.expand(step_size, x), metric=has_metric(step_size))

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        def land_leaf(leaf: Tensor, *rest: Any) -> Tensor:
            *hyper, goal = rest
            vectors, goal = _to_vectors(leaf, self.dim), _to_vectors(goal, self.dim)
            update = self._settle(vectors, goal, *self._arranged(leaf, precise(vectors), hyper))
            return _from_vectors(update, leaf, self.dim)

        return self._map(land_leaf, params, target)

    def violation(self, x: Any) -> Tensor:
        def largest(leaf: Tensor, *hyper: Any) -> Tensor:
            vectors = _to_vectors(precise(leaf), self.dim)
            each = self._violation(vectors, *self._arranged(leaf, vectors, list(hyper)))
            return (each.amax() if each.numel() else each.new_zeros(())).to(leaf.dtype)

        return tree.reduce(torch.maximum, self._map(largest, x, combine="max"))

    def _rounded(self, result: Tensor, leaf: Tensor) -> Tensor:
        """The result of arithmetic in the leaf's dtype: no number's magnitude grows."""
        return toward_zero(result, leaf.dtype)


def has_metric(step_size: Any) -> bool:
    """Whether a step size differs from one number to another."""
    return any(isinstance(step, Tensor) and step.ndim > 0 for step in tree.leaves(step_size))


def normalized(step: Tensor) -> Tensor:
    """Step sizes divided by the largest of each vector; the metric's scale does not matter, and 0 is no metric."""
    largest = step.detach().amax(-1, keepdim=True)
    usable = (largest > 0) & (largest < torch.inf)
    scaled = torch.where(usable, step, 1.0) / torch.where(usable, largest, 1.0)
    return scaled.clamp_min(1e-12)


def precise(x: Tensor) -> Tensor:
    """``x`` in float64, where the device has it."""
    return x.to(torch.float32 if x.device.type == "mps" else torch.float64)


def toward_zero(x: Tensor, dtype: torch.dtype) -> Tensor:
    """``x`` in a narrower dtype, rounded so that no magnitude grows."""
    if x.dtype == dtype:
        return x
    nearest = exact.rounded(x.to(dtype))
    grew = (nearest.to(x.dtype).abs() > x.detach().abs()).to(dtype)
    return exact.replaced(x.to(dtype), torch.addcmul(nearest, nearest, grew, value=-torch.finfo(dtype).eps / 2))


def summation_error(x: Tensor) -> float:
    """A bound, relative, on the rounding of a sum over each vector in float64; 0 for narrower dtypes."""
    return x.shape[-1] ** 0.5 / 4 * torch.finfo(x.dtype).eps if x.dtype == torch.float64 else 0.0


def beside(number: Any, leaf: Tensor, dim: Dim) -> Any:
    """A number a vector, laid out to broadcast against the leaf."""
    if not isinstance(number, Tensor) or number.ndim == 0:
        return number
    axes = sorted(_axes(leaf, dim))
    rest = [size for axis, size in enumerate(leaf.shape) if axis not in axes]
    number = number.expand(rest)
    for axis in axes:
        number = number.unsqueeze(axis)
    return number


def _axes(x: Tensor, dim: Dim) -> tuple[int, ...]:
    """The dimensions of the vectors, not negative."""
    if dim is None:
        return tuple(range(x.ndim))
    axes = (dim,) if isinstance(dim, int) else dim
    if x.ndim == 0 and axes in ((-1,), (0,)):
        return ()
    for axis in axes:
        if not -x.ndim <= axis < x.ndim:
            raise ValueError(f"dim={dim} does not exist in a parameter of shape {tuple(x.shape)}")
    found = tuple(axis % x.ndim for axis in axes)
    if len(set(found)) < len(found):
        raise ValueError(f"dim={dim} names a dimension of a parameter of shape {tuple(x.shape)} twice")
    return found


def _to_vectors(x: Tensor, dim: Dim) -> Tensor:
    """[..., n], the vectors last."""
    if dim == -1 and x.ndim:
        return x
    axes = _axes(x, dim)
    if not axes:
        return x.reshape(*x.shape, 1)
    return x.movedim(axes, tuple(range(-len(axes), 0))).flatten(-len(axes))


def _from_vectors(vectors: Tensor, leaf: Tensor, dim: Dim) -> Tensor:
    """What `_to_vectors` made of a tensor like ``leaf``, back in its shape."""
    if dim == -1 and leaf.ndim:
        return vectors
    axes = _axes(leaf, dim)
    if not axes:
        return vectors.reshape(leaf.shape)
    shape = [leaf.shape[axis] for axis in axes]
    return vectors.unflatten(-1, shape).movedim(tuple(range(-len(axes), 0)), axes)
