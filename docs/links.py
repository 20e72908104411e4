"""`bx.name` in a text, in whatever language the page is written, leads to the name's place in the reference."""

import re
from typing import Any

from docutils import nodes
from reference import canonical
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform


class LinkNames(SphinxTransform):
    """Make references of names in the type of code, also of torch's, which lead somewhere with INTERSPHINX=1."""

    default_priority = 500

    def apply(self, **_: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            found = re.match(r"(bx|boxopt|torch)((?:\.[A-Za-z_]\w*)+)", literal.astext())
            if not found or isinstance(literal.parent, (nodes.reference, nodes.title, pending_xref)):
                continue
            target = found[0] if found[1] == "torch" else canonical(f"boxopt{found[2]}")
            link = pending_xref("", refdomain="py", reftype="obj", reftarget=target, refexplicit=True, refwarn=False)
            literal.replace_self(link)
            link += literal


def setup(app: Any) -> dict[str, bool]:
    """As every page is read."""
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
