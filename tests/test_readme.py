"""The README's code runs as written, block after block, in one namespace; and its tables name what exists."""

import re
import sys
import types
from pathlib import Path

import torch

import boxopt as bx

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
SETS = (ROOT / "docs" / "sets.md").read_text()


def run_as_module(code, name):
    """Run code in a module of its own, in which torch.compile finds the names that functions use."""
    module = types.ModuleType(name)
    sys.modules[name] = module
    try:
        exec(compile(code, f"{name}.py", "exec"), module.__dict__)
    finally:
        del sys.modules[name]
    return module.__dict__


def test_code_blocks_run_as_written(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 7
    run_as_module("\n".join(blocks), "readme")
    printed = capsys.readouterr().out.splitlines()
    assert printed[1:] == ["0.0", str(bx.Status.GRADIENT)]
    first = eval(printed[0], {"tensor": torch.tensor})
    torch.testing.assert_close(first, torch.tensor([0.0, 0.3, 1.0]), atol=0.01, rtol=0)


def test_measured_claims_are_in_the_results():
    """Every ratio stands in the table that its row links to; a row without a link goes on with the one before."""
    results, checked = "", 0
    for row in README.split("| | time | measured by |")[1].split("\n\n")[0].splitlines()[2:]:
        _, _, time, link, _ = row.split("|")
        if link.strip():
            results = (ROOT / re.findall(r"\((.*)\)", link)[0]).read_text()
        for ratio in re.findall(r"\b0\.\d+", time):
            assert f"| {ratio} " in results, row
            checked += 1
    assert checked == 8


def test_the_page_on_sets_has_them_all():
    table = SETS.split("## Why")[0]
    for name in set(bx.sets.__all__) - {"ConstraintSet", "from_torch"}:
        assert f"`{name}(" in table, name


def test_names_in_code_exist():
    for name in re.findall(r"bx\.sets\.([A-Za-z_]\w*)", README):
        assert hasattr(bx.sets, name), name
    for name in set(re.findall(r"bx\.([A-Za-z_]\w*)", README)):
        assert hasattr(bx, name), name
    for name in re.findall(r"`([a-z_]+)\(", README):
        assert hasattr(bx, name) or name in {"init", "update", "compile", "grad"}, name
