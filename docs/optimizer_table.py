"""Write the tables of optimizers into optimizers.md, from the rows that the tests compare with their peers.

python docs/optimizer_table.py
"""

from __future__ import annotations

import sys
from pathlib import Path

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "optimizers.md"
sys.path.insert(0, str(ROOT))

from tests.contrib_table import CONTRIB_ROWS, CONTRIB_VARIANTS  # noqa: E402
from tests.optimizer_table import ROWS, TRANSFORMATIONS, VARIANTS, Row  # noqa: E402

TABLES = {"optimizers": ROWS, "transformations": TRANSFORMATIONS, "contributed": CONTRIB_ROWS}
ALL = (*ROWS, *TRANSFORMATIONS, *VARIANTS, *CONTRIB_ROWS, *CONTRIB_VARIANTS)


def peers(name: str) -> str:
    """What any row of that name is compared with."""
    rows = [row for row in ALL if row.name == name]
    found = {"optax": any(row.optax for row in rows), "torch.optim": any(row.torch for row in rows)}
    return ", ".join(peer for peer, has in found.items() if has)


def table(rows: list[Row]) -> str:
    """Rows as Markdown."""
    lines = ["| name | paper | step size | parity with | note |", "|---|---|---|---|---|"]
    for row in rows:
        cells = (f"`{row.name}`", row.paper, row.step_size, peers(row.name), row.note)
        lines.append("| " + " | ".join(cell.replace("|", "\\|") for cell in cells) + " |")
    return "\n".join(lines)


def rendered() -> str:
    """The page with each table renewed between its marks."""
    text = PAGE.read_text(encoding="utf-8")
    for name, rows in TABLES.items():
        begin, end = f"<!-- begin {name} -->", f"<!-- end {name} -->"
        before, rest = text.split(begin)
        _, after = rest.split(end)
        text = f"{before}{begin}\n\n{table(rows)}\n\n{end}{after}"
    return text


if __name__ == "__main__":
    PAGE.write_text(rendered(), encoding="utf-8")
