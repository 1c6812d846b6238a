"""Take the system's lock on an open file: it ends with its process, however that ends."""

import errno
import sys
from functools import cache
from pathlib import Path
from typing import IO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def take_lock(file: IO[str], folder: Path, *, wait: bool = False) -> bool:
    """False where another process holds it. Windows and some disks have no such locks: then nobody is kept out.

    folder: whose disk is named, once, where it has none.
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except OSError as problem:
        if problem.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        _say_there_are_none(folder, problem.strerror)
    return True


@cache
def _say_there_are_none(folder: Path, why: str | None) -> None:
    print(
        f"note: the disk of {folder} has no file locks ({why}), so nothing keeps a second process out",
        file=sys.stderr,
        flush=True,
    )
