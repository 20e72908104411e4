"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from pathlib import Path

_POSIX = os.name == "posix"  # elsewhere folders can neither be locked nor forced to the disk


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file, which takes the place of ``path`` when the block ends without an error.

    The file, and then its folder's entry, are on the disk when this returns. It is written in a folder of its own
    beside ``path``, as is what the writer may put next to it. A process that is killed leaves the old file, and that
    folder, which the next one takes over. Several take turns, where the file system has locks.
    """
    path = Path(os.path.realpath(path))
    with _workplace(path.with_name(f".{path.name}.new")) as workplace:
        yield workplace / path.name
        _synchronize(workplace / path.name)
        os.replace(workplace / path.name, path)
    if _POSIX:
        _synchronize(path.parent)


@contextlib.contextmanager
def _workplace(folder: Path) -> Iterator[Path]:
    """An empty folder that no other process has; it is removed in the end."""
    handle = None
    while handle is None:
        with contextlib.suppress(FileExistsError):  # not exist_ok, which raises when the folder is gone the next moment
            folder.mkdir()
        handle = _locked(folder)
    try:
        for left in folder.iterdir():  # by a process that was killed
            left.unlink()
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # before the lock is gone
        if _POSIX:
            os.close(handle)


def _locked(folder: Path) -> int | None:
    """Lock a folder until the handle is closed, or the process ends; None if another one has removed it meanwhile."""
    if not _POSIX:
        return 0
    import fcntl

    try:
        handle = os.open(folder, os.O_RDONLY)
    except FileNotFoundError:
        return None
    with contextlib.suppress(OSError):  # there may be no locks
        fcntl.flock(handle, fcntl.LOCK_EX)
    try:
        if os.path.samestat(os.stat(folder), os.fstat(handle)):
            return handle
    except FileNotFoundError:
        pass
    os.close(handle)
    return None


def _synchronize(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
