"""Sphinx configuration."""

import re
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


def setup(app: Any) -> None:
    """Run before napoleon."""
    app.connect("autodoc-process-docstring", mathematics, priority=100)
