"""Names in a text, in whatever language the page is written, lead to their places in the reference."""

import re
from typing import Any

from docutils import nodes
from reference import canonical, public
from sphinx.addnodes import pending_xref
from sphinx.transforms import SphinxTransform

PLACES = {path.rpartition(".")[2]: path for path in reversed(public())}


def target(code: str) -> str | None:
    """What `bx.name` or `torch.name` means; without a prefix, what looks like nothing but a name of ours."""
    dotted = re.match(r"(bx|boxopt|torch)((?:\.[A-Za-z_]\w*)+)", code)
    if dotted:
        return dotted[0] if dotted[1] == "torch" else canonical(f"boxopt{dotted[2]}")
    bare = re.match(r"([A-Za-z_]\w*)(\(|$)", code)  # `project(box)` or `scale_by_adam`; `scale` may be an argument
    return PLACES.get(bare[1]) if bare and (bare[2] or re.search("[A-Z_]", bare[1])) else None


class LinkNames(SphinxTransform):
    """Make references of names that are set as code; those of torch lead somewhere with INTERSPHINX=1."""

    default_priority = 500

    def apply(self, **_: Any) -> None:
        for literal in list(self.document.findall(nodes.literal)):
            found = target(literal.astext())
            if found and not isinstance(literal.parent, (nodes.reference, nodes.title, pending_xref)):
                link = pending_xref("", refdomain="py", reftype="obj", reftarget=found, refexplicit=True, refwarn=False)
                literal.replace_self(link)
                link += literal


def setup(app: Any) -> dict[str, bool]:
    """As every page is read."""
    app.add_transform(LinkNames)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
