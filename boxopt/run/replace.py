"""Files that are replaced whole or not at all."""

from __future__ import annotations

import contextlib
import glob
import os
import secrets
from collections.abc import Iterator
from pathlib import Path

_POSIX = os.name == "posix"  # elsewhere there are other locks, and folders need no synchronization


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """The name of a new file beside ``path``, which takes its place when the block ends without an error.

    The file, and then the folder's entry for it, are on the disk when this returns. A process that is killed meanwhile
    leaves the old file, and under a name of its own what it has of the new one; the next one to replace it removes that.
    """
    path = Path(os.path.realpath(path))
    _remove_abandoned(path)
    new = path.with_name(f".{path.name}.{secrets.token_hex(4)}.new")
    try:
        with _held(new):
            yield new
            _synchronize(new)
            os.replace(new, path)
    except BaseException:
        new.unlink(missing_ok=True)
        raise
    if _POSIX:
        _synchronize(path.parent)


@contextlib.contextmanager
def _held(new: Path) -> Iterator[None]:
    """Create a file, and hold a lock on it, which ends with the process however that ends."""
    with open(new, "xb") as file:
        if _POSIX:
            import fcntl

            fcntl.flock(file, fcntl.LOCK_EX)
            yield
            return
    yield


def _remove_abandoned(path: Path) -> None:
    """Remove the new files of others, but for those that are held."""
    if not _POSIX:
        return
    import fcntl

    for new in path.parent.glob(f".{glob.escape(path.name)}.????????.new"):
        with contextlib.suppress(OSError), open(new, "rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            new.unlink()


def _synchronize(path: Path) -> None:
    """Force a file, or the entries of a folder, to the disk."""
    handle = os.open(path, os.O_RDWR if path.is_file() else os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
