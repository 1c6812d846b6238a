"""Share out tasks among forked processes, which have at once all that this process has read and made so far.

For work on the CPU that is many small steps of Python: threads wait for each other there, and started processes would
have to be sent gigabytes. On Linux alone: elsewhere libraries do not bear a fork. Each process has one thread, since an
OpenMP pool does not outlive a fork.
"""

import os
import signal
import sys
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

from sae_lm.errors import SaeLmWarning

NUMBER, MOST = 4, 8192
"""Bytes of a task's number in the pipe: what is that short is read whole by one process. Tasks at most: a pipe holds them."""
SECONDS_BETWEEN_LOOKS = 0.2


def can_fork() -> bool:
    return sys.platform == "linux"


def share_out(tasks: Sequence[Callable[[], object]], processes: int, progress: Callable[[int], None]) -> None:
    """Do the tasks, in this process and forked ones; whoever is free takes the next. What they return is lost.

    A task that fails in a forked process is left undone there, without a word, and so is one at which the process is
    killed, of which this one warns: whoever needs the outcome does it again. An exception in this process ends the
    others. progress: gets the number of tasks done so far, in this process alone. Nothing is done where there is no
    second process to do it.
    """
    tasks = tasks[:MOST]
    processes = min(processes, len(tasks))
    if processes < 2 or not can_fork():
        return
    take, give = os.pipe()
    os.write(give, b"".join(number.to_bytes(NUMBER, "little") for number in range(len(tasks))))
    os.close(give)
    see, tell = os.pipe()
    os.set_blocking(see, False)
    threads, done = torch.get_num_threads(), 0
    others: set[int] = set()
    try:
        torch.set_num_threads(1)
        for _ in range(processes - 1):
            with suppress(OSError):  # no room for another process: there are fewer
                _fork(others, lambda: _work(tasks, take, tell))
        while (number := _next(take)) is not None:
            tasks[number]()
            done += 1 + _told(see)
            progress(done)
            _reap(others)
            if not others:
                torch.set_num_threads(threads)
        while others:
            _reap(others)
            done += _told(see)
            progress(done)
            time.sleep(SECONDS_BETWEEN_LOOKS * bool(others))
    finally:
        torch.set_num_threads(threads)
        for other in others:
            with suppress(ProcessLookupError):
                os.kill(other, signal.SIGKILL)
        for other in others:
            with suppress(ChildProcessError):
                os.waitpid(other, 0)
        for end in (take, see, tell):
            os.close(end)


def _work(tasks: Sequence[Callable[[], object]], take: int, tell: int) -> None:
    while (number := _next(take)) is not None:
        with suppress(Exception):  # it will come again where it can be told
            tasks[number]()
            os.write(tell, b".")


def _next(take: int) -> int | None:
    """The number of a task that nobody has taken; None where all are."""
    read = os.read(take, NUMBER)
    return int.from_bytes(read, "little") if read else None


def _told(see: int) -> int:
    """Tasks that others have done since the last look."""
    with suppress(BlockingIOError):
        return len(os.read(see, 1 << 16))
    return 0


def _reap(others: set[int]) -> None:
    """Those that have ended are no others any longer."""
    for other in [*others]:
        try:
            ended, status = os.waitpid(other, os.WNOHANG)
        except ChildProcessError:  # whoever started this one wants no word of ends
            ended, status = other, 0
        if not ended:
            continue
        others.discard(other)
        if os.WIFSIGNALED(status):
            warnings.warn(
                f"one of the processes was killed by signal {os.WTERMSIG(status)}, as happens where memory runs out; the "
                "rest of its work is done by the others. Give less --parallel if it happens again",
                SaeLmWarning,
                stacklevel=3,
            )


def _fork(others: set[int], work: Callable[[], object]) -> None:
    """One process more, which does this and nothing else: it says nothing, and ends with this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    # a signal between the fork and the note of it would leave a process that nobody knows; the new one hears none at all
    before = signal.pthread_sigmask(signal.SIG_BLOCK, (signal.SIGINT, signal.SIGTERM))
    try:
        process = os.fork()
        if process:
            others.add(process)
            return
        try:
            sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 it ends with the process
            threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
            work()
        finally:
            os._exit(0)  # nothing that the first process has begun is ended twice
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
