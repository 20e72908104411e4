"""Sphinx configuration."""

import importlib.util
import re
from pathlib import Path
from typing import Any

import boxopt

project = "boxopt"
author = "The boxopt developers"
copyright = "2026, the boxopt developers"
release = boxopt.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_parser"]
html_theme = "furo"
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
exclude_patterns = ["_build"]
napoleon_use_ivar = True


def mathematics(app: Any, what: str, name: str, obj: Any, options: Any, lines: list[str]) -> None:
    """Docstrings write formulas between dollars, as Markdown does; autodoc reads reStructuredText."""
    text = "\n".join(lines)
    text = re.sub(
        r"^( *)\$\$(.*?)\$\$",
        lambda found: f"{found[1]}.. math:: {' '.join(found[2].split())}\n",
        text,
        flags=re.DOTALL | re.MULTILINE,
    )
    inline = re.sub(r"\$((?:[^$\n]|\n(?!\n))+)\$", lambda found: f":math:`{' '.join(found[1].split())}`", text)
    lines[:] = inline.splitlines()


def errors(app: Any, name: str, source: list[str]) -> None:
    """The table of errors, where the page has its mark."""
    if name == "errors":
        spec = importlib.util.spec_from_file_location("errors_table", Path(__file__).with_name("errors.py"))
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        source[0] = source[0].replace(module.MARK, module.table())


def setup(app: Any) -> None:
    """The first runs before napoleon."""
    app.connect("autodoc-process-docstring", mathematics, priority=100)
    app.connect("source-read", errors)
