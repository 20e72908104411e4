"""Parameters of a `TorchOptimizer` that step together: those of one group that got their first gradient in one step.

They share the state's counters, so that one that is thawed later begins at the beginning.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from boxopt.core import exact, tree
from boxopt.core.pack import Packed, on_leaves, pack
from boxopt.core.transform import GradientTransformation, apply_updates
from boxopt.core.types import ParameterSet
from boxopt.run.places import Places

_foreach_add_: Callable[..., None] = torch._foreach_add_  # pyright: ignore[reportPrivateImportUsage]
_foreach_copy_: Callable[..., None] = torch._foreach_copy_  # pyright: ignore[reportPrivateImportUsage]


class Cohort:
    """Parameters that step one by one, leaf by leaf. Their state is what the optimizer's ``state`` holds.

    Args:
        params: From name to parameter.
        places: Where the leaves of the state belong.
        entries: The dicts in the optimizer's ``state`` for these parameters, to be filled if ``state`` is given.
        state: A new state; left out, ``entries`` hold it.
    """

    def __init__(
        self, params: dict[str, Tensor], places: Places, entries: list[dict[str, Any]], state: Any = None
    ) -> None:
        self.params = params
        self.places = places
        if state is not None:
            for entry, own in zip(entries, places.spread(state), strict=True):
                entry.update(own)

    def step(
        self,
        entries: list[dict[str, Any]],
        transformation: GradientTransformation,
        within: ParameterSet | None,
        extra: Mapping[str, Any],
        scale: Tensor | None,
    ) -> None:
        """Move the parameters that have a gradient, and replace their state."""
        params = {name: param.detach() for name, param in self.params.items()}
        gradients = {name: gradient_of(param) for name, param in self.params.items()}
        _follow(entries, self.params)
        state = self.places.gather(entries)
        updates, state = on_leaves(transformation).update(unscaled(gradients, scale), state, params, **extra)
        # The parameters are about to be written over, and the gradients will be: a state that keeps them keeps copies.
        lent = {_memory(tensor) for tensor in (*params.values(), *gradients.values())}
        state = tree.map(lambda leaf: leaf.clone() if _memory(leaf) in lent else leaf, state)
        still = [param.grad is None for param in self.params.values()]
        moving = [name for name, rests in zip(params, still, strict=True) if not rests]
        if within is None:
            _foreach_add_([params[name] for name in moving], [updates[name] for name in moving])
        else:
            new = apply_updates(params, updates, within)
            _foreach_copy_([params[name] for name in moving], [new[name] for name in moving])
        for entry, own, rests in zip(entries, self.places.spread(state), still, strict=True):
            entry.update({key: own[key] for key in self.places.common} if rests else own)


class FusedCohort:
    """Parameters that lie in one buffer, as their state does, and step by one compiled function that writes over both.

    The parameters' ``data`` are views of the buffer, and so is what the optimizer's ``state`` holds.

    Args:
        params: From name to parameter.
        places: Where the leaves of the packed state belong.
        entries: The dicts in the optimizer's ``state`` for these parameters.
        state: A new state; left out, ``entries`` hold it.
    """

    def __init__(
        self, params: dict[str, Tensor], places: Places, entries: list[dict[str, Any]], state: Any = None
    ) -> None:
        self.params = params
        self.places = places
        self._adopt(entries, state)

    def _adopt(self, entries: list[dict[str, Any]], state: Any = None) -> None:
        """Move the parameters and their state to buffers."""
        packed, layout = packed_parameters(self.params)
        _follow(entries, self.params)
        if state is None:
            state = self.places.gather(entries)
        state = tree.map(torch.clone, state)
        views = layout(packed)
        for name, param in self.params.items():
            param.data = views[name]
        self._held = packed, state
        self._gradients = tree.map(torch.zeros_like, packed)
        self._slots = layout(self._gradients)
        self._addresses = [param.data_ptr() for param in self.params.values()]
        for entry, own in zip(entries, self.places.spread(state), strict=True):
            entry.update({key: value.detach() for key, value in own.items()})
        self._own = [value for entry in entries for value in entry.values()]

    def _is_moved(self, entries: list[dict[str, Any]]) -> bool:
        """Whether somebody has given a parameter or its state other memory: ``module.to(...)``, say."""
        if [param.data_ptr() for param in self.params.values()] != self._addresses:
            return True
        found = [value for entry in entries for value in entry.values()]
        return len(found) != len(self._own) or not all(map(operator.is_, found, self._own))

    def step(self, entries: list[dict[str, Any]], function: Callable[..., Any], *arguments: Any) -> None:
        """Move the parameters that have a gradient, and their state, where they lie."""
        if self._is_moved(entries):
            self._adopt(entries)
        params = list(self.params.values())
        _foreach_copy_(list(self._slots.values()), [gradient_of(param) for param in params])
        still = [number for number, param in enumerate(params) if param.grad is None]
        kept = [
            (tensor, tensor.clone())
            for number in still
            for tensor in (
                params[number].detach(),
                *(value for key, value in entries[number].items() if key not in self.places.common),
            )
        ]
        self._held = function(*self._held, self._gradients, *arguments)
        for tensor, value in kept:
            tensor.copy_(value)
        torch.autograd.graph.increment_version(params)


def packed_parameters(params: dict[str, Tensor]) -> tuple[Packed, Any]:
    """The parameters side by side; raises a ``ValueError`` if that would change how one of them lies in memory."""
    for name, param in params.items():
        if not param.is_contiguous():
            raise ValueError(f"parameter {name!r} is not contiguous; fused=True needs parameters that are")
    return pack({name: param.detach() for name, param in params.items()})


def gradient_of(param: Tensor) -> Tensor:
    """A parameter's gradient, zero if it has none."""
    gradient = param.grad
    if gradient is None:
        return torch.zeros_like(param, requires_grad=False)
    if gradient.is_sparse:
        raise RuntimeError("gradients are dense here; make the embedding with sparse=False")
    return gradient.detach()


def unscaled(gradients: Any, scale: Tensor | None) -> Any:
    """The gradients divided by what the loss was multiplied by, in 32 bits at least."""
    if scale is None:
        return gradients
    return tree.map(lambda g: exact.wide(g) / scale.to(g.device), gradients)


def _follow(entries: list[dict[str, Any]], params: dict[str, Tensor]) -> None:
    """Move the state to where the parameters are by now."""
    for entry, param in zip(entries, params.values(), strict=True):
        for key, value in entry.items():
            if value.device != param.device:
                entry[key] = value.to(param.device)


def _memory(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
