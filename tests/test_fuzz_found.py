"""What the fuzzer has found and what has no better place: each program failed in the mode that is named."""

import pytest
import torch

from tests.fuzz.check import check
from tests.fuzz.programs import Program

FOUND = [
    ("dtensor", Program("bx.chain(bx.scale_by_adam(), C.galore(0.1, 1), bx.prox(R.L1(0.1)))", "leaf((3,), 'f64', 2)")),
    ("dtensor", Program("bx.packed(bx.project(S.ByPath({'a': bx.Box(0.0, 1.0)})))", "{'a': leaf(()), 'b': leaf(())}")),
    (
        "wrapped",  # a step size with None where the parameters have none
        Program(
            "bx.chain(bx.masked(entry('scale_by_backtracking_linesearch', h[0]), True), bx.prox(R.L1(0.1)))",
            "{'a': leaf(()), 'z': None}",
        ),
    ),
]


@pytest.mark.parametrize(("mode", "program"), FOUND)
def test_found(mode, program):
    assert check(program, mode) == {mode: "ok"}
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
