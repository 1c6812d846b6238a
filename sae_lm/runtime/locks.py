"""Take the system's lock on an open file: it ends with its process, however that ends."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from functools import cache
from pathlib import Path
from typing import IO

from sae_lm.errors import SaeLmError

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None


def has_locks() -> bool:
    """False on Windows, where nobody is kept out and no file is made to lock: one that is open cannot be deleted."""
    return fcntl is not None


def take_lock(file: IO[str] | int, folder: Path, *, wait: bool = False) -> bool:
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


LOCK_FLAGS = os.O_RDWR | os.O_CREAT | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0)
TRIES = 100
"""Times that the folder of a lock may vanish, removed by another process that ends, between its making and its use."""


def open_lock(path: Path) -> IO[str]:
    """Open the file that a lock is taken on, without a change to what it holds; its folder is made.

    Raises SaeLmError where it is a link: nothing is made at its other end.
    """
    for _ in range(TRIES):
        try:
            return _opened(path)
        except (FileNotFoundError, FileExistsError):
            continue
    return _opened(path)


def _opened(path: Path) -> IO[str]:
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        return open(path, "r+", opener=lambda name, _: os.open(name, LOCK_FLAGS, 0o666))
    except OSError:
        if path.is_symlink():
            raise SaeLmError(f"{path} is a link, expected a file to lock; delete the link") from None
        raise


@contextmanager
def only_writer(folder: Path) -> Iterator[None]:
    """Hold the lock of a folder, on the folder itself, so that nothing is left in it; wait for it.

    For what is written within moments, or what whoever waits would have to make as well.
    """
    with _held(folder, wait=True):
        yield


def held_if_free(folder: Path) -> AbstractContextManager[bool]:
    """Hold the lock of a folder for as long as the block takes, unless another process does; whether it is held."""
    return _held(folder, wait=False)


@contextmanager
def _held(folder: Path, wait: bool) -> Iterator[bool]:
    if fcntl is None:
        yield True
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _open_here.add(descriptor)
    try:
        yield take_lock(descriptor, folder, wait=wait)
    finally:
        if descriptor in _open_here:
            _open_here.discard(descriptor)
            os.close(descriptor)


_open_here: set[int] = set()
"""Descriptors of folders whose locks are held, or waited for."""


def _leave_to_the_first() -> None:
    """In a forked process: with its copies closed, locks end with the process that took them."""
    while _open_here:
        os.close(_open_here.pop())


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_leave_to_the_first)


@cache
def _say_there_are_none(folder: Path, why: str | None) -> None:
    print(
        f"note: the disk of {folder} has no file locks ({why}), so nothing keeps a second process out",
        file=sys.stderr,
        flush=True,
    )
