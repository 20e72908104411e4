"""Linear systems as one operation: A x = b, where A is known by its products.

As in `boxopt.meta.scan`, what a transform of torch makes of a system is a system again, so that solutions have
derivatives of any order with respect to b and to whatever A depends on, and batches in batches.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor

Tensors = list[Tensor]
Product: TypeAlias = Callable[[Tensors, Tensors], Tensors]
LinearSolver: TypeAlias = Literal["cg", "dense", "neumann"]


@dataclass(frozen=True, eq=False)
class System:
    """A linear system for the leaves of a tree.

    Attributes:
        product: ``(constants, x) -> A x``.
        adjoint: ``(constants, y) -> Aᵀ y``; the same function if A is symmetric and positive definite. Otherwise
            conjugate gradients go over to the normal equations.
        constants: The number of tensors that A depends on.
        method: How it is solved.
        rate: The factor η in the series Σ (I − η A)ᵏ η b.
        steps: The most steps of conjugate gradients, or the number of terms of the series after the first.
        tolerance: The residual at which conjugate gradients stop, relative to b.
        batch: The number of leading dimensions of batches, which x and b have.
    """

    product: Product
    adjoint: Product
    constants: int
    method: LinearSolver
    rate: float
    steps: int
    tolerance: float
    batch: int = 0

    def __call__(self, constants: Tensors, b: Tensors) -> Tensors:
        """The solution."""
        return list(_Solution.apply(self, *constants, *b))

    def transposed(self) -> System:
        """The system with the transpose of A."""
        return replace(self, product=self.adjoint, adjoint=self.product)

    def batched(self, dims: Sequence[int | None]) -> System:
        """The systems of a batch, in whose constants it has these dimensions."""
        both = [self.product] if self.product is self.adjoint else [self.product, self.adjoint]
        in_dims = ([None if dim is None else 0 for dim in dims], 0)
        batched: list[Any] = [torch.func.vmap(product, in_dims=in_dims) for product in both]
        return replace(self, product=batched[0], adjoint=batched[-1], batch=self.batch + 1)

    def solve(self, constants: Tensors, b: Tensors) -> Tensors:
        """The solution in numbers."""
        if self.method == "dense":
            return self._dense(constants, b)
        if self.method == "neumann":
            return self._series(constants, b)
        if self.product is self.adjoint:
            return self._conjugate_gradients(partial(self.product, constants), b)
        return self._conjugate_gradients(
            lambda x: self.adjoint(constants, self.product(constants, x)), self.adjoint(constants, b)
        )

    def _series(self, constants: Tensors, b: Tensors) -> Tensors:
        x = [self.rate * leaf for leaf in b]
        for _ in range(self.steps):
            moved = self.product(constants, x)
            x = [leaf + self.rate * (goal - now) for leaf, goal, now in zip(x, b, moved, strict=True)]
        return x

    def _dense(self, constants: Tensors, b: Tensors) -> Tensors:
        flat = self._flat(b)
        sizes = [x.shape[self.batch :].numel() for x in b]

        def column(direction: Tensor) -> Tensor:
            pieces = direction.expand(*flat.shape).split(sizes, -1)
            x = [piece.reshape(leaf.shape).to(leaf.dtype) for piece, leaf in zip(pieces, b, strict=True)]
            return self._flat(self.product(constants, x))

        columns = torch.func.vmap(column)(torch.eye(flat.shape[-1], dtype=flat.dtype, device=flat.device))
        solution = torch.linalg.solve(columns.movedim(0, -1), flat)
        return [x.reshape(leaf.shape).to(leaf.dtype) for x, leaf in zip(solution.split(sizes, -1), b, strict=True)]

    def _flat(self, leaves: Tensors) -> Tensor:
        return torch.cat([x.reshape(*x.shape[: self.batch], -1) for x in leaves], -1)

    def _conjugate_gradients(self, product: Callable[[Tensors], Tensors], b: Tensors) -> Tensors:
        x, residual, direction = [torch.zeros_like(leaf) for leaf in b], b, b
        square = start = self._inner(b, b)
        for _ in range(self.steps):
            going = square > start * self.tolerance**2
            if not bool(going.any()):
                break
            moved = product(direction)
            curvature = self._inner(direction, moved)
            step = torch.where(going, square / torch.where(going, curvature, 1.0), 0.0)
            x = self._add(x, step, direction)
            residual = self._add(residual, -step, moved)
            new = self._inner(residual, residual)
            direction = self._add(residual, torch.where(going, new / torch.where(going, square, 1.0), 0.0), direction)
            square = torch.where(going, new, square)
        return x

    def _inner(self, one: Tensors, other: Tensors) -> Tensor:
        products = [(x * y).reshape(*x.shape[: self.batch], -1).sum(-1) for x, y in zip(one, other, strict=True)]
        return sum(products[1:], products[0])

    def _add(self, x: Tensors, factor: Tensor, direction: Tensors) -> Tensors:
        return [
            leaf + factor.reshape(*factor.shape, *(1,) * (leaf.ndim - self.batch)).to(leaf.dtype) * by
            for leaf, by in zip(x, direction, strict=True)
        ]


class _Solution(torch.autograd.Function):
    """The solution of a system under autograd and the transforms of ``torch.func``."""

    @staticmethod
    def forward(system: System, *leaves: Tensor) -> tuple[Tensor, ...]:
        return tuple(system.solve(list(leaves[: system.constants]), list(leaves[system.constants :])))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        system, *leaves = inputs
        ctx.system = system
        ctx.save_for_backward(*leaves[: system.constants], *output)
        ctx.save_for_forward(*leaves[: system.constants], *output)

    @staticmethod
    def backward(ctx: Any, *cotangents: Tensor) -> tuple[Tensor | None, ...]:
        system, saved = ctx.system, list(ctx.saved_tensors)
        constants, x = saved[: system.constants], saved[system.constants :]
        of_b = system.transposed()(constants, list(cotangents))
        moved = [-y for y in of_b]
        of_constants = pulled(
            lambda constants: system.product(constants, x), constants, moved, ctx.needs_input_grad[1:]
        )
        return (None, *of_constants, *of_b)

    @staticmethod
    def jvp(  # pyright: ignore[reportIncompatibleMethodOverride]
        ctx: Any, _: None, *tangents: Tensor | None
    ) -> tuple[Tensor, ...]:
        system, saved = ctx.system, list(ctx.saved_tensors)
        constants, x = saved[: system.constants], saved[system.constants :]
        moved = pushed(lambda constants: system.product(constants, x), constants, tangents[: system.constants])
        of_b = [torch.zeros_like(y) if t is None else t for t, y in zip(tangents[system.constants :], x, strict=True)]
        b = of_b if moved is None else [one - other for one, other in zip(of_b, moved, strict=True)]
        return tuple(system(constants, b))

    @staticmethod
    def vmap(  # pyright: ignore[reportIncompatibleMethodOverride]
        info: Any, in_dims: tuple[Any, ...], system: System, *leaves: Tensor
    ) -> tuple[Any, Any]:
        count = system.constants
        constants = [in_front(leaf, dim) for leaf, dim in zip(leaves[:count], in_dims[1:], strict=False)]
        dims = in_dims[1 + count :]
        b = [in_front(leaf, dim, info.batch_size) for leaf, dim in zip(leaves[count:], dims, strict=True)]
        outputs = system.batched(in_dims[1 : 1 + count])(constants, b)
        return tuple(outputs), (0,) * len(outputs)


def in_front(leaf: Tensor, dim: int | None, size: int | None = None) -> Tensor:
    """The leaf with the dimension of ``vmap`` in front; given the size, also where it has none."""
    if dim is not None:
        return leaf.movedim(dim, 0)
    return leaf if size is None else leaf.expand(size, *leaf.shape)


def pulled(
    function: Callable[[Tensors], Tensors], inputs: Tensors, cotangents: Sequence[Tensor], needed: Sequence[bool]
) -> list[Tensor | None]:
    """The cotangents of some of a function's inputs."""
    places = [p for p, x in enumerate(inputs) if needed[p] and x.is_floating_point()]
    results: list[Tensor | None] = [None] * len(inputs)
    if places:
        pullback: Any = torch.func.vjp(_of_some(function, inputs, places), *(inputs[p] for p in places))[1]
        for place, cotangent in zip(places, pullback(tuple(cotangents)), strict=True):
            results[place] = cotangent
    return results


def pushed(
    function: Callable[[Tensors], Tensors], inputs: Tensors, tangents: Sequence[Tensor | None]
) -> Sequence[Tensor] | None:
    """The tangents of a function's outputs, given those of some of its inputs; None without any.

    In reverse twice: the projections onto some sets know no other way.
    """
    places = [place for place, tangent in enumerate(tangents) if tangent is not None]
    if not places:
        return None
    outputs, pullback, *_ = torch.func.vjp(_of_some(function, inputs, places), *(inputs[p] for p in places))
    transposed: Any = torch.func.vjp(pullback, tuple(torch.zeros_like(y) for y in outputs))[1]
    return transposed(tuple(tangents[place] for place in places))[0]


def _of_some(function: Callable[[Tensors], Tensors], inputs: Tensors, places: list[int]) -> Callable[..., Any]:
    def of_some(*some: Tensor) -> tuple[Tensor, ...]:
        new = list(inputs)
        for place, x in zip(places, some, strict=True):
            new[place] = x
        return tuple(function(new))

    return of_some
