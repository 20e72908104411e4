"""The README's code runs as written, block after block, in one namespace; and its tables name what exists."""

import re
from pathlib import Path

import torch

import boxopt as bx

README = (Path(__file__).parent.parent / "README.md").read_text()


def test_code_blocks_run_as_written(capsys):
    blocks = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    assert len(blocks) == 3
    namespace = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
    printed = capsys.readouterr().out.splitlines()
    assert printed[1] == "0.0"
    first = eval(printed[0], {"tensor": torch.tensor})
    torch.testing.assert_close(first, torch.tensor([0.0, 0.3, 1.0]), atol=0.01, rtol=0)


def test_names_in_code_exist():
    for name in set(re.findall(r"bx\.([A-Za-z_]\w*)", README)):
        assert hasattr(bx, name), name
    for name in re.findall(r"`([a-z_]+)\(", README):
        assert hasattr(bx, name) or name in {"init", "update", "compile", "grad"}, name
