"""Print what the library and its tests need, for pip: at its lower bounds ("lowest"), or as it is ("newest")."""

import sys
import tomllib
from pathlib import Path


def requirements(which):
    project = tomllib.loads(Path("pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    needed = dict.fromkeys(project["dependencies"] + extras["test"] + extras["examples"] + extras["integrations"])
    return [each.replace(">=", "==") if which == "lowest" else each for each in needed]


if __name__ == "__main__":
    print(*requirements(sys.argv[1]))
