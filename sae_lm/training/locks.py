"""Keep two processes from training one SAE: a lock for each that is being trained, and one for run.json.

The locks are the system's, on files in the folder of checkpoints, ``state/NAME.lock``: a lock ends with its process,
however that ends. What a kill leaves there is an unlocked file, which the next run removes. Where there are no such
locks nobody is kept out (sae_lm.runtime.locks).
"""

import errno
import os
import time
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from sae_lm.errors import SaeError
from sae_lm.runtime.files import present
from sae_lm.runtime.locks import has_locks, open_lock, take_lock
from sae_lm.training.run_folder import RUN, STATE_FOLDER


@contextmanager
def only_trainer(out: Path, names: Iterable[str]) -> Iterator[None]:
    """Hold the locks of some SAEs of a folder, all or none. Raises SaeError where another process trains one of them."""
    with ExitStack() as held:
        for name in names:
            if not held.enter_context(_lock(out, name, wait=False, patience=PATIENCE_SECONDS)):
                raise SaeError(
                    f"another process is training {out / name}; wait for its end, or give another --out or other arms"
                )
        yield


@contextmanager
def only_writer_of_run(out: Path) -> Iterator[None]:
    """Hold the lock of run.json, which is written within moments: wait for it."""
    with _lock(out, RUN, wait=True):
        yield


def remove_locks(out: Path) -> bool:
    """Remove the locks that nobody holds, and the folder of checkpoints if it is then empty; whether all were free."""
    free = True
    for path in present(out / STATE_FOLDER, "*.lock"):
        with _lock(out, path.name.removesuffix(".lock"), wait=False) as held:
            free = free and held
    try:
        (out / STATE_FOLDER).rmdir()
    except OSError as problem:
        if problem.errno not in (errno.ENOTEMPTY, errno.EEXIST, errno.ENOENT):
            raise
    return free


def others_at_work(out: Path, names: Iterable[str]) -> bool:
    """Whether another process trains an SAE of the folder beside ``names``, whose locks this one holds."""
    ours = {f"{name}.lock" for name in (*names, RUN)}
    for path in present(out / STATE_FOLDER, "*.lock"):
        if path.name not in ours:
            with _lock(out, path.name.removesuffix(".lock"), wait=False) as free:
                if not free:
                    return True
    return False


PATIENCE_SECONDS = 0.5
"""Another process that ends here holds each lock for a moment, to see whether it is free."""


@contextmanager
def _lock(out: Path, name: str, wait: bool, patience: float = 0.0) -> Iterator[bool]:
    """Whether the lock was to be had, within ``patience`` seconds; held inside the block. Its file goes with it."""
    path = out / STATE_FOLDER / f"{name}.lock"
    if not has_locks():
        with suppress(OSError):
            path.unlink()  # of a folder that comes from another system
        yield True
        return
    deadline = time.monotonic() + patience
    while True:
        with open_lock(path) as file:
            if not take_lock(file, out, wait=wait):
                if time.monotonic() < deadline:
                    time.sleep(0.02)
                    continue
                yield False
                return
            if not _is_same(path, file.fileno()):
                continue  # the one before removed its file while this one waited for it
            try:
                yield True
            finally:
                path.unlink(missing_ok=True)
            return


def _is_same(path: Path, descriptor: int) -> bool:
    try:
        return os.path.samestat(path.stat(), os.fstat(descriptor))
    except FileNotFoundError:
        return False
