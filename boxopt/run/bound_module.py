"""The parameters of a module in sets, by the patterns of their names."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from boxopt.core import tree
from boxopt.core.pack import Packed
from boxopt.sets.base import ConstraintSet
from boxopt.sets.intersection import ByPath


def bound_module(module: torch.nn.Module, sets: Mapping[str, ConstraintSet]) -> ByPath:
    """Project a module's parameters onto sets, in place, and return the set of all that are in them.

    Give it to the optimizer, and they stay there.

    Args:
        module: Any.
        sets: From a pattern of parameter names to a set: ``{"*.weight": bx.Box(-1.0, 1.0)}``. A parameter belongs to
            the first pattern that it matches; those that match none are free.

    Returns:
        A set of the parameters by name, or of some of them: of ``dict(module.named_parameters())``, or of each group of
        a `TorchOptimizer` that was given names. It refuses a name that is none of the module's.

    Raises:
        ValueError: A pattern matches no parameter, or a set does not fit.

    Example:
        >>> import torch, boxopt as bx
        >>> model = torch.nn.Sequential(torch.nn.Linear(2, 8), torch.nn.Linear(8, 1))
        >>> inside = bx.bound_module(model, {"*.weight": bx.Box(-0.1, 0.1), "1.bias": bx.sets.NonNegative()})
        >>> bx.violation(inside, dict(model.named_parameters())).item()
        0.0
        >>> optimizer = bx.TorchOptimizer(model.named_parameters(), bx.adam, lr=0.1, within=inside)
    """
    params = {name: param.detach() for name, param in module.named_parameters() if param.is_floating_point()}
    inside = ModuleSet(sets)
    ByPath.check(inside, params)
    inside.names = tuple(params)
    for name, projected in inside.project(params).items():
        params[name].copy_(projected)
    return inside


@tree.register("sets", static=("names",))
class ModuleSet(ByPath):
    """A set for each pattern of a module's parameter names, for all parameters or some.

    Attributes:
        names: The names of all.
    """

    names: tuple[str, ...]

    def check(self, params: Any) -> None:
        """Raise a ``ValueError`` that names a leaf which is no parameter of the module's, or which does not fit."""
        params = params.unpack() if isinstance(params, Packed) else params
        strange = [path for path in tree.paths(params) if path not in self.names]
        if strange:
            raise ValueError(
                f"the module has no parameter {', '.join(map(repr, strange[:8]))}; it has "
                f"{', '.join(map(repr, self.names[:8]))}: give the optimizer named_parameters() of this module"
            )
        for pattern, group in self._groups(params).items():
            if group:
                self.sets[pattern].check(group)
