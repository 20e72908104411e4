"""Formulas as MathML, which browsers draw themselves: no script, no picture, no network."""

import re
from typing import Any

from docutils.nodes import SkipNode, math, math_block
from docutils.utils.math import MathError
from docutils.utils.math.latex2mathml import tex2mathml
from sphinx.util import logging


def convert(node: math | math_block, as_block: bool) -> str:
    """What docutils converts, and three commands of LaTeX's that it knows under another name."""
    formula = re.sub(r"\\([bB]ig)(?![a-zA-Z])", r"\\\1l", node.astext()).replace(r"\dots", r"\ldots")
    try:
        return tex2mathml(formula, as_block=as_block)
    except MathError as error:
        logging.getLogger(__name__).warning("%s in the formula %s", error, formula, location=node)
        return ""


def visit_inline(translator: Any, node: math) -> None:
    """A formula between words."""
    translator.body.append(convert(node, as_block=False))
    raise SkipNode


def visit_block(translator: Any, node: math_block) -> None:
    """A formula on lines of its own, in a box that scrolls where it is wider than the page."""
    translator.body.append(translator.starttag(node, "div", "", CLASS="formula"))
    translator.body.append(convert(node, as_block=True) + "</div>\n")
    raise SkipNode


def setup(app: Any) -> dict[str, bool]:
    """Take the place of MathJax, which comes from a network."""
    app.add_html_math_renderer("mathml", (visit_inline, None), (visit_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}
