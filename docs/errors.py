"""The table of errors for errors.md, from the library's source and from the tests that look for them.

python docs/errors.py prints it; sphinx puts it into the page (see conf.py). Each ``raise`` with a message of its own
is a row. A test looks for it if one of its texts shares twelve letters in a row with what is fixed in the message.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parent.parent
SHARED = 12
MARK = "<!-- errors -->"


class Message(NamedTuple):
    """An error that the library raises.

    Attributes:
        kind: The exception's name.
        text: The message, with ``…`` for what is filled in.
        place: The module.
    """

    kind: str
    text: str
    place: str


def messages() -> list[Message]:
    """All of them, by module."""
    found = []
    for path in sorted((ROOT / "boxopt").rglob("*.py")):
        place = ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Raise) and isinstance(node.exc, ast.Call) and node.exc.args:
                text = _text(node.exc.args[0])
                if re.search(r"[^…\s]", text):
                    found.append(Message(ast.unparse(node.exc.func).split(".")[-1], text, place))
    return list(dict.fromkeys(found))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        return node.value
    if isinstance(node, ast.JoinedStr):
        return "".join(_text(part) for part in node.values)
    if isinstance(node, ast.BinOp):
        return _text(node.left) + _text(node.right)
    if isinstance(node, ast.IfExp):
        return _text(node.body)
    return "…"


def looked_for() -> Iterator[tuple[str, str]]:
    """The texts in the tests, and the test files that they stand in."""
    for path in sorted((ROOT / "tests").glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Constant) and isinstance(node.value, str) and len(node.value) >= SHARED:
                yield re.sub(r"\\(.)", r"\1", node.value), path.stem


def tests_of(message: Message, texts: list[tuple[str, str]]) -> list[str]:
    """The test files that look for a message."""
    pieces = {
        piece[start : start + SHARED]
        for piece in message.text.split("…")
        for start in range(max(len(piece) - SHARED, 0) + 1)
        if len(piece) >= min(SHARED, len(message.text))
    }
    return sorted({name for text, name in texts if any(piece in text for piece in pieces)})


def table() -> str:
    """The rows as Markdown."""
    texts = list(looked_for())
    lines = ["| raised | message | in | looked for in |", "|---|---|---|---|"]
    for message in messages():
        tests = ", ".join(tests_of(message, texts)) or "–"
        cells = (f"`{message.kind}`", message.text, f"`{message.place}`", tests)
        lines.append("| " + " | ".join(_escaped(cell) for cell in cells) + " |")
    return "\n".join(lines)


def _escaped(text: str) -> str:
    return re.sub(r"([|*_<>\[\]])", r"\\\1", " ".join(text.split())) if not text.startswith("`") else text


if __name__ == "__main__":
    print(table())
