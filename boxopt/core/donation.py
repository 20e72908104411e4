"""Marks on tensors that were donated to a compiled step: their memory now holds the step's results."""

from __future__ import annotations

from typing import Any

import torch

_MARK = "_boxopt_donated_to"
_FAILED = "_boxopt_donated_in_vain"


class ConsumedError(RuntimeError):
    """A tensor was used after it had been donated to a compiled step."""


def consume(tensor: torch.Tensor, step: str) -> None:
    """Mark a tensor as donated to a step."""
    setattr(tensor, _MARK, step)


def spoil(tensor: torch.Tensor, step: str) -> None:
    """Mark a tensor as donated to a step that failed while it ran: what it holds is not known."""
    setattr(tensor, _MARK, step)
    setattr(tensor, _FAILED, True)


def restore(tensor: torch.Tensor) -> None:
    """Take the mark off again."""
    if getattr(tensor, _MARK, None) is not None:
        delattr(tensor, _MARK)


def is_consumed(value: Any) -> bool:
    """Whether this tensor has been donated; for eager code that is in a hurry."""
    return getattr(value, _MARK, None) is not None


def refuse_consumed(value: Any, place: str) -> None:
    """Raise a `ConsumedError` if this tensor has been donated."""
    if torch.compiler.is_compiling():
        return
    step = getattr(value, _MARK, None)
    if step is not None and getattr(value, _FAILED, False):
        raise ConsumedError(
            f"{place} was donated to the compiled step {step!r}, which failed while it ran and may have overwritten a "
            "part of it: go back to a copy or a checkpoint"
        )
    if step is not None:
        raise ConsumedError(
            f"{place} was donated to the compiled step {step!r}, which has overwritten it: use what the step returned, "
            "or clone it before the call"
        )
