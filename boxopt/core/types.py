"""The types that appear in signatures."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, TypeAlias, TypeVar

from torch import Tensor

P = TypeVar("P")
"""A tree of parameters, and of anything of its structure: what goes in comes out, a ``dict[str, Tensor]``, say."""

Scalar: TypeAlias = float | Tensor
"""A number, or a tensor that broadcasts to the parameters: a batched scalar under ``vmap``."""

Schedule: TypeAlias = Callable[[Tensor], Tensor]
"""From the number of updates made so far, an integer tensor, to a value."""

ScalarOrSchedule: TypeAlias = Scalar | Schedule


class MaskedNode(NamedTuple):
    """What stands in a masked tree in the place of a leaf that is left out. It has no leaves."""


class ParameterSet(Protocol):
    """What `apply_updates` needs of a set."""

    def project(self, x: P, step_size: Any = ...) -> P: ...
