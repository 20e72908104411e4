"""The README's code runs as written, block after block, in one namespace; and its tables name what exists."""

import re
import sys
import types
from pathlib import Path

import torch

import boxopt as bx

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()
PERFORMANCE = (ROOT / "docs" / "performance.md").read_text()
SETS = (ROOT / "docs" / "sets.md").read_text()
META = (ROOT / "docs" / "meta.md").read_text()


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
    assert len(blocks) == 5
    run_as_module("\n".join(blocks), "readme")
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "0.0"
    first = eval(printed[0], {"tensor": torch.tensor})
    torch.testing.assert_close(first, torch.tensor([0.0, 0.3, 1.0]), atol=0.01, rtol=0)


def test_the_fast_path_runs_as_written():
    (block,) = re.findall(r"```python\n(.*?)```", PERFORMANCE, flags=re.DOTALL)
    namespace = run_as_module(block, "performance")
    assert set(namespace["weights"]) == {"weight", "bias"}


def test_the_page_on_sets_prints_what_it_says(capsys):
    code = "\n".join(re.findall(r"```python\n(.*?)```", SETS, flags=re.DOTALL))
    run_as_module(code, "sets_page")
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.MULTILINE)


def test_the_page_on_meta_learning_prints_what_it_says(capsys):
    code = "\n".join(re.findall(r"^```python\n(.*?)```", META, flags=re.DOTALL | re.MULTILINE))
    run_as_module(code, "meta_page")
    assert capsys.readouterr().out.splitlines() == re.findall(r"^print\(.*\)  # (.*)$", code, flags=re.MULTILINE)


def test_the_page_on_sets_has_them_all():
    table = SETS.split("## Why")[0]
    for name in set(bx.sets.__all__) - {"ConstraintSet", "from_torch"}:
        assert f"`{name}(" in table, name


def test_names_in_code_exist():
    for name in re.findall(r"bx\.sets\.([A-Za-z_]\w*)", README + SETS):
        assert hasattr(bx.sets, name), name
    for name in set(re.findall(r"bx\.([A-Za-z_]\w*)", README + PERFORMANCE + SETS + META)):
        assert hasattr(bx, name), name
    for name in re.findall(r"`([a-z_]+)\(", README):
        assert hasattr(bx, name) or name in {"init", "update", "compile", "grad"}, name
