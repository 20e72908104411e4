"""What a constraint set offers. Transformations know sets through these methods alone."""

from __future__ import annotations

from typing import Any, TypeVar

from torch import Tensor

from boxopt.core import sharded, tree
from boxopt.core.transform import apply_updates

P = TypeVar("P")


def expect_set(value: Any, operation: str | None = None) -> None:
    """Raise a ``TypeError`` where something else than a set is given, or a set that lacks what is asked of it."""
    if not isinstance(value, ConstraintSet):
        raise TypeError(
            f"expected a constraint set, such as bx.Box(0.0, 1.0), got {type(value).__name__} {value!r:.60}"
        )
    if operation is not None and not value.offers(operation):
        raise TypeError(f"expected a set that offers {operation}, got {value!r:.60}")


class ConstraintSet:
    """A closed convex set of parameter trees: a small, immutable pytree of numbers and tensors.

    Its numbers can be batched by ``vmap``, differentiated and learned. Methods that a set does not offer raise
    ``NotImplementedError``. ``params``, ``x``, ``y`` and ``gradients`` are trees of one structure.
    """

    separable: bool = False
    """Whether the set constrains each number by itself, so that it may be given packed parameters."""

    @property
    def coordinatewise(self) -> bool:
        """Whether the set constrains each number by itself, also where it has to be given whole leaves."""
        return self.separable

    def offers(self, operation: str) -> bool:
        """Whether the set has a method that not all sets have, such as ``"tangent"`` or ``"barrier"``."""
        return getattr(type(self), operation) is not getattr(ConstraintSet, operation)

    def check(self, params: Any) -> None:
        """Raise a ``ValueError`` or ``TypeError``, naming the leaf, if the set does not fit these parameters."""
        tree.check_parameters(params)

    def project(self, x: P, step_size: Any = 1.0) -> P:
        """The nearest point of the set, in the metric 1/step_size: argmin over z of Σ (z − x)²/step_size."""
        raise NotImplementedError(f"{type(self).__name__} has no projection")

    def land(self, params: P, target: P, *, strictly: bool = False) -> P:
        """The update that takes ``params`` to ``target``, such that their sum in floating point is in the set.

        ``target`` is in the set, and so must ``params`` be for the promise to hold. ``strictly`` asks for the
        interior instead.
        """
        raise NotImplementedError(f"{type(self).__name__} has no exact update")

    def step(self, params: P, updates: P, step_size: Any = 1.0) -> P:
        """The update that takes ``params`` to the projection of ``params + updates``."""
        if any(self._is_cut(leaf) for leaf in tree.leaves(params)):
            return self._step_gathered(params, updates, step_size)
        return self.land(params, self.project(apply_updates(params, updates), step_size))

    def _is_cut(self, leaf: Tensor) -> bool:
        """Whether a sharded leaf has to be gathered, because it cuts what the set constrains together."""
        return False

    def _step_gathered(self, params: P, updates: P, step_size: Any) -> P:
        """`step` on whole leaves, gathered once rather than for the projection and for landing on it."""

        def gathered(leaf: Tensor, value: Any) -> Any:
            return sharded.whole(value) if self._is_cut(leaf) else value

        values = (params, updates, tree.expand(step_size, params))
        made = self.step(*(tree.map(gathered, params, value) for value in values))
        return tree.map(sharded.like, made, params)

    def violation(self, x: Any) -> Tensor:
        """How far ``x`` is outside, as a scalar in the parameters' units: 0, with derivative 0, where it is not."""
        raise NotImplementedError(f"{type(self).__name__} has no measure of violation")

    def tangent(self, x: Any, gradients: P) -> P:
        """The gradients without what would push ``x`` out of the set in a step along −gradient."""
        raise NotImplementedError(f"{type(self).__name__} has no tangent")

    def linear_minimizer(self, gradients: P) -> P:
        """The point of the set at which the linear function with these coefficients is least."""
        raise NotImplementedError(f"{type(self).__name__} has no linear minimizer")

    def barrier(self, x: Any, relax: float | Tensor = 1e-3) -> Tensor:
        """The log-barrier −Σ log(slack) as a scalar, extended quadratically where slack < relax."""
        raise NotImplementedError(f"{type(self).__name__} has no barrier")

    def barrier_gradient(self, x: P, relax: float | Tensor = 1e-3) -> P:
        """The gradient of `barrier`."""
        raise NotImplementedError(f"{type(self).__name__} has no barrier")

    def prox_barrier(self, y: P, tau: Any) -> P:
        """The minimizer over x of ½‖x − y‖² − Σ tau·log(slack of x), strictly inside; ``tau`` is a prefix of ``y``."""
        raise NotImplementedError(f"{type(self).__name__} has no proximal barrier step")
