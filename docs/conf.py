"""Sphinx configuration."""

import boxopt

project = "boxopt"
author = "The boxopt developers"
copyright = "2026, the boxopt developers"  # noqa: A001
release = boxopt.__version__
extensions = ["sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.mathjax", "myst_parser"]
html_theme = "furo"
default_role = "code"
autodoc_typehints = "none"
autodoc_member_order = "bysource"
myst_enable_extensions = ["dollarmath"]
exclude_patterns = ["_build"]
