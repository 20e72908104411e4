"""What is mutated, and by which tests a mutant may be noticed. Of these, each mutant gets those that run its lines."""

from glob import glob
from typing import NamedTuple


def solve(*names):
    return [f"boxopt/solve/{name}.py" for name in names]


# These are used in compiled steps alone, whose tests take seconds each.
COMPILED = {f"boxopt/core/{name}.py" for name in ("donation", "shortcut", "storage")}
# This is tried by processes of their own, which no mutant reaches.
ELSEWHERE = {"boxopt/core/sharded.py"}


class Area(NamedTuple):
    """The files that are mutated, the tests, and beginnings of the names of the entries whose laws are tried."""

    files: list[str]
    tests: list[str]
    entries: tuple[str, ...]


AREAS = {
    "core": Area(
        sorted(set(glob("boxopt/core/*.py")) - COMPILED - ELSEWHERE),
        [
            "combine",
            "pack",
            "foreach",
            "random",
            "state_access",
            "bad_input",
            "constrain",
            "torch_optimizer",
            "sets",
            "traced",
            "sharded",
            "devices",
            "checkpoint",
            "edges",
            "tree",
            "search",
        ],
        ("chain", "masked", "packed", "noisy"),
    ),
    "box": Area(
        ["boxopt/sets/box.py"],
        ["constrain", "bad_input", "edges", "feasible_steps", "pack", "traced", "devices", "tree", "sharded"],
        ("project]", "barrier]", "tangent]", "add_barrier]"),
    ),
    "constrain": Area(
        sorted(glob("boxopt/constrain/*.py")),
        ["constrain", "bad_input", "feasible_steps", "combine", "errors", "traced", "devices", "pack"],
        ("project]", "projected]", "barrier", "tangent]", "penal", "add_", "mirror]", "expon", "frank", "prox+L"),
    ),
    "sets": Area(
        [
            f"boxopt/sets/{name}.py"
            for name in ("affine", "balls", "cones", "intersection", "orders", "polyhedron", "simplex", "splitting")
        ],
        ["sets", "projections", "barriers", "edges", "bad_input", "feasible_steps", "pack", "regularizers"],
        ("barrier+L2Ball",),
    ),
    "least squares": Area(
        solve("nnls", "losses", "least_squares", "levenberg_marquardt", "gauss_newton", "quadratic"),
        ["nnls", "least_squares", "solvers"],
        ("levenberg",),
    ),
    "adam": Area(
        ["boxopt/scale/adam.py"],
        ["optimizers", "foreach", "parity", "traced", "devices", "combine"],
        ("scale_by_adam", "adam"),
    ),
    "box solver": Area(
        solve("lbfgsb", "wolfe", "box_step", "dense_model", "pair_model", "columns", "step", "pool", "solver", "flat"),
        ["lbfgsb", "minimize", "solvers"],
        ("lbfgsb]",),
    ),
}


def arguments(area, keyword=None):
    """How pytest is called for an area, or for those of its tests that an expression selects."""
    laws = " or ".join(f"[{entry} or -{entry}" for entry in AREAS[area].entries)
    laws = f"not test_laws.py and not test_packed_equals_leafwise or {laws}"
    chosen = keyword or f"({laws}) and not compil"  # within compiled code nobody sees which lines run
    return ["tests/test_laws.py", *(f"tests/test_{name}.py" for name in AREAS[area].tests), "-k", chosen]
