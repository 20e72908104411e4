"""Every Python block of every page of the documentation runs as written, and prints what its comments say."""

import re
import sys
import tempfile
import types
from pathlib import Path

import pytest

import boxopt as bx

DOCS = Path(__file__).parent.parent / "docs"
PAGES = sorted(
    page
    for page in DOCS.glob("*.md")
    if "```python" in page.read_text() and "<!-- run by tests/" not in page.read_text()  # what needs more than a call
)


def blocks(page):
    return re.findall(r"```python\n(.*?)```", page.read_text(), flags=re.DOTALL)


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning", "ignore:.*LeafSpec:FutureWarning")
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_code_prints_what_it_says(page, capsys, tmp_path, monkeypatch):
    """A block may go on with the names of those before it. ``print(...)  # x`` prints x."""
    for needed in re.findall(r"<!-- needs: (.*) -->", page.read_text()):
        for package in needed.split(", "):
            pytest.importorskip(package, reason=f"{package}, beside which the page shows boxopt, is not installed")
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    code = "\n".join(blocks(page))
    module = types.ModuleType(f"page_{page.stem}")
    sys.modules[module.__name__] = module  # torch.compile looks there for the names that functions use
    try:
        exec(compile(code, page.name, "exec"), module.__dict__)
    finally:
        del sys.modules[module.__name__]
    said = re.findall(r"^ *print\(.*\)  # (.*)$", code, flags=re.MULTILINE)
    assert capsys.readouterr().out.splitlines() == said


@pytest.mark.parametrize("page", sorted(DOCS.glob("*.md")), ids=lambda page: page.stem)
def test_the_names_exist(page):
    text = page.read_text()
    for dotted in set(re.findall(r"\bbx\.([A-Za-z_]\w*(?:\.[A-Za-z_]\w*)?)", text)):
        target = bx
        for name in dotted.split("."):
            assert hasattr(target, name), f"bx.{dotted}"
            target = getattr(target, name)
            if not isinstance(target, types.ModuleType):
                break


def test_every_page_is_in_the_contents():
    contents = (DOCS / "index.md").read_text()
    for page in DOCS.glob("*.md"):
        assert page.stem == "index" or re.search(rf"^{page.stem}$", contents, flags=re.MULTILINE), page.name


def test_pages_that_say_who_runs_them_are_right():
    for page in DOCS.glob("*.md"):
        for name in re.findall(r"<!-- run by (tests/\S+) -->", page.read_text()):
            assert (
                f"{page.stem}.md" in (DOCS.parent / name).read_text() or page.stem in (DOCS.parent / name).read_text()
            )
