"""What torch.compile has made of a function, called without the hook by which torch finds it.

``torch.compile`` looks a function's compiled versions up in a hook on Python frames, which costs 10 µs a call, as much
as a small step. A shortcut asks the guards of one version, all that torch would ask, and calls that version. Where they
do not hold, or the internals of torch that it needs are not there, the call takes the ordinary way.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from types import FunctionType
from typing import Any, NamedTuple

import torch

# The inductor repeats an intermediate result at each use until it has 30 operations. With 5, long formulas (a barrier's
# proximal step) compile in a sixth of the time. Each intermediate then counts as a step of a fused kernel, of which 64
# are allowed: a chain of five would become two passes with nine buffers of the model's size between them.
OPTIONS: dict[str, Any] = {"realize_opcount_threshold": 5, "max_fusion_size": 1000}

# What the compiled function reads that is boxopt's, optree's, torch's or Python's own, and the plan that it follows.
_INSIDES = re.compile(
    r"G\['(?!__import_|___unnamed_scope)|G\['__import_(boxopt|optree|torch)_(?!dot_testing)|^(type\()?(places|numbers)\b"
)


def needed(guards: Sequence[Any]) -> list[bool]:
    """Which of torch's guards, checked on each call, are about something that may change.

    Most watch the insides of boxopt and optree, which do not. The structure of the arguments has been compared.
    """
    return [not _INSIDES.search(guard.name) for guard in guards]


class Shortcut(NamedTuple):
    """The guards and the code of a compiled version of a function of ``*arguments``.

    Attributes:
        run: The compiled version as a plain function.
        guards: torch's guard manager. Its ``cache_entry`` is None once torch has thrown the version away.
        parameter: The name under which the guards find the arguments.
        closure: What else they find by name: the variables that the function closes over, which do not change.
    """

    run: Callable[..., Any]
    guards: Any
    parameter: str
    closure: dict[str, Any]

    def holds(self, arguments: Any) -> bool:
        """Whether ``run(*arguments)`` is what torch would call now; ``arguments`` is a tuple."""
        usual = torch._dynamo.eval_frame._stance.stance == "default"
        return (
            usual
            and self.guards.cache_entry is not None
            and self.guards.check(self.closure | {self.parameter: arguments})
        )


def shortcut(function: FunctionType) -> Shortcut | None:
    """A shortcut to the version of a compiled function that torch called last, if there is one."""
    try:
        hooks = torch._dynamo.eval_frame
        version: Any = hooks._debug_get_cache_entry_list(function.__code__)[0]
        guards, code = version.guard_manager, version.code
        if guards.cache_entry is None or hooks._stance.stance != "default":
            return None
    except (AttributeError, IndexError):  # another torch; or it compiled nothing, as it was told
        return None
    run = FunctionType(code, function.__globals__, function.__name__, None, function.__closure__)
    cells = zip(function.__code__.co_freevars, function.__closure__ or (), strict=True)
    closure = {name: cell.cell_contents for name, cell in cells}
    return Shortcut(run, guards, function.__code__.co_varnames[0], closure)
