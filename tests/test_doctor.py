"""``python -m boxopt`` says what is installed and whether it works; what fails shows in its exit status."""

import runpy
import sys

import pytest
import torch

import boxopt as bx
from boxopt import __main__ as command


def test_the_version(capsys):
    with pytest.raises(SystemExit) as stopped:
        command.main(["--version"])
    assert stopped.value.code == 0
    assert capsys.readouterr().out.strip() == f"boxopt {bx.__version__}"


def test_without_arguments_it_explains_itself(capsys):
    assert command.main([]) == 0
    assert "--doctor" in capsys.readouterr().out


def test_every_check_passes_here(capsys):
    assert command.main(["--doctor"]) == 0
    printed = capsys.readouterr().out
    assert torch.__version__ in printed
    assert printed.count(" ok\n") >= len(command.CHECKS)


def test_a_step_that_leaves_the_box_is_found(monkeypatch, capsys):
    def usual(params, gradients):
        return params + (torch.clamp(params - gradients, 1e-6, 1.0) - params)

    monkeypatch.setattr(command, "_step", usual)
    assert command.main(["--doctor"]) == 1
    assert "left the box" in capsys.readouterr().out


def test_a_derivative_that_is_not_finite_is_found(monkeypatch, capsys):
    monkeypatch.setattr(command, "_step", lambda params, gradients: (params - params.clamp(-1, -1) - params - 1).sqrt())
    monkeypatch.setattr(command, "CHECKS", {"differentiable": command.check_grad})
    assert command.main(["--doctor"]) == 1
    assert "the derivative of a step is not finite" in capsys.readouterr().out


def test_python_minus_m(monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["boxopt"])
    monkeypatch.delitem(sys.modules, "boxopt.__main__")  # runpy warns of what has been imported
    with pytest.raises(SystemExit) as stopped:
        runpy.run_module("boxopt", run_name="__main__")
    assert stopped.value.code == 0
    assert "--doctor" in capsys.readouterr().out
