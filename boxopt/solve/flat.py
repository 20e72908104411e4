"""A tree of parameters as one vector, for methods that are written in vectors."""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from boxopt.core import exact, sharded, tree
from boxopt.sets.base import ConstraintSet
from boxopt.sets.box import Box


class Flat(NamedTuple):
    """How the leaves of a tree lie in one vector: in order, in the widest of their dtypes, float32 at least.

    Attributes:
        places: The tree with the number of each leaf in its place; unlike a structure it can be traced.
        shapes: The shape of each leaf.
        dtypes: The dtype of each leaf.
        dtype: The dtype of the vector.
        device: The device of the vector, that of the first leaf.
    """

    places: Any
    shapes: tuple[torch.Size, ...]
    dtypes: tuple[torch.dtype, ...]
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, params: Any, batch_dims: int = 0) -> Flat:
        """The layout of these parameters, or of one problem's where their first dimensions count problems."""
        leaves, structure = tree.flatten(params)
        if any(sharded.is_sharded(leaf) for leaf in leaves):
            raise TypeError("a solver keeps the parameters as one vector, which a DTensor's parts are not")
        dtype = torch.float64 if any(leaf.dtype == torch.float64 for leaf in leaves) else torch.float32
        shapes, dtypes = tuple(leaf.shape[batch_dims:] for leaf in leaves), tuple(leaf.dtype for leaf in leaves)
        return cls(tree.unflatten(structure, range(len(leaves))), shapes, dtypes, dtype, tree.device_of(params))

    def ravel(self, params: Any) -> Tensor:
        """The vector of a tree."""
        leaves = tree.leaves(params)
        parts = [leaf.reshape(-1).to(device=self.device, dtype=self.dtype) for leaf in leaves]
        if len(parts) == 1:
            return parts[0]
        return torch.cat(parts) if parts else torch.zeros(0, dtype=self.dtype, device=self.device)

    def unravel(self, vector: Tensor) -> Any:
        """The tree of a vector, each leaf in its own dtype."""
        parts = vector.split([math.prod(shape) for shape in self.shapes])
        return tree.map(lambda place: parts[place].reshape(self.shapes[place]).to(self.dtypes[place]), self.places)

    def bounds(self, box: Box) -> tuple[Tensor, Tensor]:
        """The bounds of a box as two vectors, infinite where there is none, rounded into each leaf's dtype."""
        places = self.unravel(torch.zeros(sum(math.prod(s) for s in self.shapes), dtype=self.dtype, device=self.device))

        def along(bounds: Any, none: float, *, up: bool) -> Tensor:
            def lay_out(leaf: Tensor, bound: Any) -> Tensor:
                value = none if bound is None else exact.inward(bound, leaf, up=up)
                return exact.as_tensor(value, leaf).expand(leaf.shape)

            return self.ravel(tree.map(lay_out, places, tree.expand(bounds, places, none=none)))

        return along(box.lower, -math.inf, up=True), along(box.upper, math.inf, up=False)

    def project(self, constraint: ConstraintSet, vector: Tensor, step_size: Any = 1.0) -> Tensor:
        """The projection of a vector onto a set of trees."""
        return self.ravel(constraint.project(self.unravel(vector), step_size))
