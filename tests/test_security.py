"""Nothing is unpickled, fetched or left behind. Damaged and foreign files are in ``test_faults.py``."""

import ast
import functools
import os
import subprocess
import sys
from pathlib import Path

import boxopt as bx

ROOT = Path(bx.__file__).parent
# What the library may import besides itself: nothing to open a connection, start a process or read a pickle with.
STANDARD = {
    *(
        "__future__",
        "_signal",
        "_thread",
        "argparse",
        "bisect",
        "collections",
        "contextlib",
        "copy",
        "dataclasses",
        "enum",
    ),
    *("fcntl", "fnmatch", "functools", "inspect", "itertools", "math", "numbers", "operator", "os", "pathlib"),
    *("platform", "re", "shutil", "sys", "threading", "time", "types", "typing", "weakref", "zipfile", "zlib"),
}
DEPENDENCIES = {"torch", "optree", "numpy"}
OPTIONAL = {"matplotlib", "safetensors", "scipy", "tqdm"}
UNPICKLES = ("eval", "exec", "__import__", "torch.load", "np.load", "numpy.load")


@functools.cache
def everything():
    files = sorted(ROOT.rglob("*.py"))
    return [(path, node) for path in files for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))]


def nodes(kind):
    return [(path, node) for path, node in everything() if isinstance(node, kind)]


def test_imports_are_few_and_known():
    found = {name.name.split(".")[0] for _, node in nodes(ast.Import) for name in node.names}
    found |= {str(node.module).split(".")[0] for _, node in nodes(ast.ImportFrom) if node.level == 0}
    assert found == STANDARD | DEPENDENCIES | OPTIONAL | {"boxopt"}


def test_nothing_in_the_sources_unpickles():
    calls = [(path.name, ast.unparse(node)) for path, node in nodes(ast.Call) if ast.unparse(node.func) in UNPICKLES]
    assert calls == [("checkpoint.py", "torch.load(path, map_location='cpu', weights_only=True)")]
    texts = [path.read_text(encoding="utf-8") for path in ROOT.rglob("*.py")]
    assert not any("_object(" in text or "_object_list(" in text for text in texts)  # torch.distributed's, which pickle


WATCHED = """
import os, sys, tempfile
import torch
import boxopt as bx

def watch(event, arguments):
    if event == "pickle.find_class" or event.startswith(("socket.", "subprocess.", "tempfile.", "urllib.")):
        raise RuntimeError(f"{event} {arguments}")

state = bx.adam(0.1).init({"w": torch.zeros(3)})
bx.save("first.pt", state)  # torch imports what it needs
bx.save("first.safetensors", state)
sys.addaudithook(watch)
for name in ("run.pt", "run.safetensors"):
    for _ in range(2):
        bx.save(name, state)
        bx.load(name, state)
    with open(name, "r+b") as file:
        file.truncate(100)
    try:
        bx.load(name, state)
    except ValueError:
        pass
    else:
        raise AssertionError(name)
try:
    tempfile.mkdtemp()
except RuntimeError:
    print("watched")
"""


def test_saving_and_loading_make_no_temporary_files_connections_or_processes(tmp_path):
    work, temporary = tmp_path / "work", tmp_path / "temporary"
    work.mkdir()
    temporary.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", WATCHED],
        capture_output=True,
        text=True,
        timeout=120,
        cwd=work,
        env={**os.environ, "TMPDIR": str(temporary), "PYTHONPATH": str(ROOT.parent), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "watched"
    assert os.listdir(temporary) == []
    assert sorted(os.listdir(work)) == ["first.pt", "first.safetensors", "run.pt", "run.safetensors"]
