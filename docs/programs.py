"""How the gallery runs the examples: as programs, which save their pictures."""

import ast
import shutil
from pathlib import Path
from typing import Any

from PIL import Image
from sphinx_gallery.scrapers import figure_rst

FIRST = ["six_ways", "three_ways", "bounded_ensemble"]  # what the project is about; the others by name


def place(filename: str) -> tuple[int, str]:
    """What the gallery is ordered by."""
    stem = Path(filename).stem
    return (FIRST.index(stem) if stem in FIRST else len(FIRST), stem)


def blank(path: Path) -> Path:
    """A picture of nothing, for an example that has none."""
    path.parent.mkdir(exist_ok=True)
    Image.new("RGBA", (1, 1)).save(path)
    return path


def arguments(configuration: dict[str, Any], variables: dict[str, Any]) -> list[str]:
    """None; and what a program knows of itself, which the gallery does not tell: its file and its docstring."""
    source = Path(variables["src_file"])
    docstring = ast.get_docstring(ast.parse(source.read_text()))
    variables["example_globals"].update(__file__=source.name, __doc__=docstring)  # run where it lies
    return []


def pictures(block: tuple, variables: dict[str, Any], configuration: dict[str, Any]) -> str:
    """What an example has saved: its figures belong to no window, where the gallery would look for them."""
    source = Path(variables["src_file"])
    saved = sorted((source.parent / "output").glob(f"{source.stem}*.png"))
    places = [next(variables["image_path_iterator"]) for _ in saved]
    for picture, place in zip(saved, places, strict=True):
        shutil.move(picture, place)  # so that the example's next block does not show it again
    return figure_rst(places, configuration["src_dir"])
