"""What is mutated, and by which tests a mutant may be noticed. Of these, each mutant gets those that run its lines."""

from glob import glob

LAWS = "tests/test_laws.py"


def solve(*names):
    return [f"boxopt/solve/{name}.py" for name in names]


# These are used in compiled steps alone, whose tests take seconds each.
COMPILED = {f"boxopt/core/{name}.py" for name in ("donation", "shortcut", "storage")}
# This is tried by processes of their own, which no mutant reaches.
ELSEWHERE = {"boxopt/core/sharded.py"}

# area: (files, tests, words of which the entries in the laws have one)
AREAS = {
    "core": (
        sorted(set(glob("boxopt/core/*.py")) - COMPILED - ELSEWHERE),
        ["combine", "pack", "foreach", "random", "state_access", "bad_input", "edges", "checkpoint", "constrain"],
        ("chain", "masked", "partition", "packed", "noise"),
    ),
    "box": (
        ["boxopt/sets/box.py"],
        ["constrain", "bad_input", "edges", "sets", "feasible_steps", "minimize"],
        ("project", "barrier", "tangent", "wolfe", "penal"),
    ),
    "constrain": (
        sorted(glob("boxopt/constrain/*.py")),
        ["constrain", "bad_input", "feasible_steps", "combine"],
        ("project", "barrier", "tangent", "wolfe", "penal", "mirror", "exponentiated", "prox"),
    ),
    "adam": (["boxopt/scale/adam.py"], ["optimizers", "foreach", "parity"], ("adam",)),
    "box solver": (
        solve("lbfgsb", "wolfe", "box_step", "dense_model", "pair_model", "columns", "step", "pool", "solver", "flat"),
        ["lbfgsb", "minimize", "solvers"],
        ("lbfgsb",),
    ),
}


def arguments(area, keyword=None):
    """How pytest is called for an area."""
    _, names, words = AREAS[area]
    chosen = keyword or f"not test_laws.py and not test_pack.py or {' or '.join(words)}"
    return [LAWS, *(f"tests/test_{name}.py" for name in names), "-k", chosen]
