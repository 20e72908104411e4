"""One row an optimizer: what docs/optimizers.md prints, and what test_optimizers.py compares, live, with its peers."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Row:
    """An optimizer, or a transformation, and where its numbers can be checked.

    Attributes:
        name: The export.
        paper: Where it is from.
        step_size: Its step size rule, as the documentation prints it; "unchanged" for what has no metric of its own.
        ours: Makes the boxopt transformation.
        optax: Makes optax's, the hyperparameters the same; None if it has none.
        torch: Makes the torch.optim optimizer from a list of parameters; None if there is none that agrees.
        note: Where conventions differ, or why there is no peer.
        tolerance: Relative, in float64, over the whole path; more than 1e-10 needs a reason in ``note``.
    """

    name: str
    paper: str
    step_size: str
    ours: Callable[[], Any]
    optax: Callable[[], Any] | None = None
    torch: Callable[[list[Any]], Any] | None = None
    note: str = ""
    tolerance: float = 1e-10
