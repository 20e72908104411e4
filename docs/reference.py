"""The reference, made of the public names: a page a folder, on which each name is what users write.

Writes `api/*.rst` before Sphinx reads its sources: nobody keeps a list, and no public name can be missing.
"""

import inspect
from importlib import import_module
from pathlib import Path
from typing import Any

import boxopt
import boxopt.plot

PAGES = {
    "core": "Transformations, and how they are combined",
    "sets": "Sets",
    "constrain": "Keeping parameters in a set",
    "regularizers": "Regularizers",
    "optimizers": "Optimizers",
    "scale": "What optimizers are made of",
    "schedules": "Schedules",
    "wrap": "Wrappers",
    "contrib": "Optimizers of optax.contrib, and more",
    "solve": "Solvers",
    "meta": "Differentiating through optimization",
    "run": "Compiled steps, checkpoints, ensembles, training loops",
    "look": "Looking at a run",  # modules that are in no folder
}
NOT_EXPORTED = (  # but handed to callbacks, and to be returned by solvers of one's own
    "boxopt.solve.result.Progress",
    "boxopt.solve.solver.SolverState",
    "boxopt.solve.solver.Iterate",
)


def resolve(path: str) -> Any:
    """What a dotted path means, or None."""
    found: Any = boxopt
    for name in path.split(".")[1:]:
        found = getattr(found, name, None)
    return found


def canonical(path: str) -> str:
    """The name in `boxopt` itself of what is also exported by a module of it."""
    short = f"boxopt.{path.rpartition('.')[2]}"
    return short if resolve(short) is resolve(path) else path


def public() -> dict[str, Any]:
    """What there is to document, by the name that users write."""
    paths = [f"boxopt.{name}" for name in boxopt.__all__]
    for space in ("sets", "regularizers", "contrib"):
        paths += [f"boxopt.{space}.{name}" for name in resolve(f"boxopt.{space}").__all__]
    for name, found in vars(boxopt.plot).items():
        if inspect.isfunction(found) and found.__module__ == "boxopt.plot" and not name.startswith("_"):
            paths.append(f"boxopt.plot.{name}")
    found = {canonical(path): resolve(path) for path in (*paths, *NOT_EXPORTED)}
    return {path: thing for path, thing in found.items() if not inspect.ismodule(thing)}


def page_of(path: str, thing: Any) -> str:
    """The folder of its file, unless it is exported as contributed."""
    folder = "contrib" if path.startswith("boxopt.contrib.") else thing.__module__.split(".")[1]
    return folder if folder in PAGES else "look"


def entry(path: str, thing: Any) -> str:
    """One name."""
    if not inspect.isclass(thing):
        return f".. autofunction:: {path}\n"
    if issubclass(thing, Exception):
        return f".. autoexception:: {path}\n"
    return f".. autoclass:: {path}\n   :members:\n"


def page(key: str, names: dict[str, Any]) -> str:
    """A table of the names, states left out, then each file's introduction and names in the order of the source."""
    parts = [f"{PAGES[key]}\n{'=' * len(PAGES[key])}\n"]
    if key != "look" and import_module(f"boxopt.{key}").__doc__:
        parts.append(f".. automodule:: boxopt.{key}\n   :no-index:\n")
    table = "\n".join(f"   {path}" for path in sorted(names, key=str.lower) if not path.endswith("State"))
    parts.append(f".. currentmodule:: None\n\n.. autosummary::\n   :nosignatures:\n\n{table}\n")
    for module in sorted({thing.__module__ for thing in names.values()}):
        parts.append(f".. automodule:: {module}\n   :no-index:\n")
        own = [path for path in names if names[path].__module__ == module]
        own.sort(key=lambda path: inspect.getsourcelines(names[path])[1])
        parts += [entry(path, names[path]) for path in own]
    return "\n".join(parts)


def write(path: Path, text: str) -> None:
    """Leave a file alone that is right, or Sphinx reads it again."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def write_pages(app: Any) -> None:
    """All pages, and their contents."""
    folder = Path(app.srcdir) / "api"
    folder.mkdir(exist_ok=True)
    names = public()
    for key in PAGES:
        write(folder / f"{key}.rst", page(key, {p: found for p, found in names.items() if page_of(p, found) == key}))
    contents = "\n".join(f"   {key}" for key in PAGES)
    write(
        folder / "index.rst",
        "API reference\n=============\n\n"
        "Names are what one writes after ``import boxopt as bx``, with ``bx`` for ``boxopt``.\n\n"
        f".. toctree::\n   :maxdepth: 1\n\n{contents}\n",
    )


def skip_fields(app: Any, what: str, name: str, thing: Any, skip: bool, options: Any) -> bool | None:
    """Fields of a NamedTuple are in its docstring; Python's own texts say that a field is a field."""
    return True if str(getattr(thing, "__doc__", "")).startswith("Alias for field number") else None


def setup(app: Any) -> dict[str, bool]:
    """Write before Sphinx looks for its sources."""
    app.connect("builder-inited", write_pages)
    app.connect("autodoc-skip-member", skip_fields)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
