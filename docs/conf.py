"""Sphinx configuration. Pages are built without a network, and are read without one.

GALLERY=1 runs all examples, for their pictures and what they print, which takes minutes; otherwise only one is run.
What has run before and has not changed is kept.
INTERSPHINX=1 links torch's and Python's names to their documentation, whose indices are fetched for that.
"""

import os
import re
import sys
from pathlib import Path
from typing import Any

import boxopt

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))  # for the modules beside this file

import errors  # noqa: E402
import programs  # noqa: E402

project = "boxopt"
author = "The boxopt developers"
copyright = "2026, the boxopt developers"
release = boxopt.__version__
extensions = [
    "sphinx.ext.autodoc",
    "sphinx.ext.autosummary",
    "sphinx.ext.napoleon",
    "myst_parser",
    "sphinx_copybutton",
    "sphinx_gallery.gen_gallery",
    "mathml",
    "reference",
    "links",
]
default_role = "code"
highlight_language = "none"  # a block that does not name its language is a command
exclude_patterns = ["_build"]
html_theme = "furo"
pygments_dark_style = "monokai"
html_title = "boxopt"
html_static_path = ["static"]
html_css_files = ["boxopt.css"]
html_favicon = "static/boxopt.svg"
html_math_renderer = "mathml"
html_copy_source = False
autodoc_typehints = "none"
autodoc_preserve_defaults = True
autodoc_member_order = "bysource"
autosummary_generate = False
napoleon_use_ivar = True
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 3
copybutton_prompt_text = r">>> |\.\.\. |\$ "
copybutton_prompt_is_regexp = True

if os.environ.get("INTERSPHINX"):
    extensions.append("sphinx.ext.intersphinx")
    intersphinx_mapping = {
        "python": ("https://docs.python.org/3", None),
        "torch": ("https://docs.pytorch.org/docs/stable", None),
    }

sphinx_gallery_conf = {
    "examples_dirs": "../examples",
    "gallery_dirs": "gallery",
    "default_thumb_file": str(programs.blank(HERE / "_build" / "blank.png")),
    "filename_pattern": r"\.py$" if os.environ.get("GALLERY") else r"/six_ways\.py$",
    "ignore_pattern": "/output/",
    "within_subsection_order": "programs.place",
    "image_scrapers": ("programs.run",),
    "reset_argv": "programs.as_module",
    "reset_modules": (),
    "notebook_extensions": set(),  # the examples are programs with options
    "download_all_examples": False,
    "write_computation_times": False,
    "min_reported_time": 3600,
    "show_signature": False,
    "inspect_global_variables": False,
}


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
    lines[:] = re.sub(r"(: \w)\.$", r"\1\\.", inline, flags=re.MULTILINE).splitlines()  # "x." alone would begin a list


def table_of_errors(app: Any, name: str, source: list[str]) -> None:
    """The table of errors, where the page has its mark."""
    if name == "errors":
        source[0] = source[0].replace(errors.MARK, errors.table())


def setup(app: Any) -> None:
    """The first runs before napoleon."""
    app.connect("autodoc-process-docstring", mathematics, priority=100)
    app.connect("source-read", table_of_errors)
