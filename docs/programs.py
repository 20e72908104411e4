"""How the gallery runs the examples: as programs, each in a process of its own, which print and save pictures."""

import shutil
import subprocess
import sys
from pathlib import Path
from textwrap import indent
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


def as_module(configuration: dict[str, Any], variables: dict[str, Any]) -> list[str]:
    """Where the gallery itself executes an example, it is imported, and nothing is done. There are no arguments."""
    variables["example_globals"]["__name__"] = Path(variables["src_file"]).stem
    return []


def run(block: tuple, variables: dict[str, Any], configuration: dict[str, Any]) -> str:
    """Run the example, and show what it has saved and printed."""
    source = Path(variables["src_file"])
    done = subprocess.run([sys.executable, source], capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{source.name}:\n{done.stderr}")
    saved = sorted((source.parent / "output").glob(f"{source.stem}*.png"))
    places = [next(variables["image_path_iterator"]) for _ in saved]
    for picture, place in zip(saved, places, strict=True):
        shutil.copy(picture, place)
    printed = done.stdout.replace(f"{source.parent.parent.resolve()}/", "")
    return f"{figure_rst(places, configuration['src_dir'])}\n.. code-block:: none\n\n{indent(printed, '   ')}\n"
