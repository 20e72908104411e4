"""What schedules share: the count as a real number, and the share of a transition that has passed."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from boxopt.core.expect import expect_number
from boxopt.core.types import Scalar


def real(count: Any) -> Tensor:
    """The count in float64, where the device has it."""
    count = torch.as_tensor(count)
    return count.to(torch.float32 if count.device.type == "mps" else torch.float64)


def tensor_like(value: Scalar, x: Tensor) -> Tensor:
    """A hyperparameter as a tensor of the kind of ``x``."""
    return value.to(x) if isinstance(value, Tensor) else torch.full_like(x, value)


def fraction(passed: Tensor, steps: Scalar) -> Tensor:
    """passed/steps held in [0, 1]; 1 where there are no steps."""
    steps = tensor_like(steps, passed)
    share = passed / torch.where(steps > 0, steps, 1.0)
    share = torch.where(share < 0, 0.0, torch.where(share > 1, 1.0, share))
    return torch.where(steps > 0, share, 1.0)


def check_steps(name: str, steps: Any) -> None:
    """Raise a ``ValueError`` if a number of updates is not positive, and a ``TypeError`` if it is no number."""
    expect_number(name, steps)
    if not isinstance(steps, Tensor) and not steps > 0:
        raise ValueError(f"{name} is positive, got {steps!r}")
