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
from collections.abc import Callable, Sequence
from contextlib import suppress

import torch

NUMBER, MOST = 4, 8192
"""Bytes of a task's number in the pipe: what is that short is read whole by one process. Tasks at most: a pipe holds them."""
SECONDS_BETWEEN_LOOKS = 0.2


def can_fork() -> bool:
    return sys.platform == "linux"


def share_out(tasks: Sequence[Callable[[], object]], processes: int, progress: Callable[[int], None]) -> None:
    """Do the tasks, in this process and forked ones; whoever is free takes the next. What they return is lost.

    A task at which a forked process fails or is killed is left undone, without a word: whoever needs its outcome does it
    again. An exception in this process ends the others. progress: gets the number of tasks done so far, in this process
    alone. Nothing is done where there is no second process to do it.
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
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    others: list[int] = []
    done = 0
    try:
        for _ in range(processes - 1):
            others.append(_forked(lambda: _work(tasks, take, lambda: os.write(tell, b"."))))
        while (number := _next(take)) is not None:
            tasks[number]()
            done += 1 + _told(see)
            progress(done)
        while others:
            others = [other for other in others if os.waitpid(other, os.WNOHANG) == (0, 0)]
            done += _told(see)
            progress(done)
            time.sleep(SECONDS_BETWEEN_LOOKS * bool(others))
    finally:
        torch.set_num_threads(threads)
        for other in others:
            with suppress(ProcessLookupError, ChildProcessError):  # it has just ended
                os.kill(other, signal.SIGKILL)
                os.waitpid(other, 0)
        for end in (take, see, tell):
            os.close(end)


def _work(tasks: Sequence[Callable[[], object]], take: int, done: Callable[[], object]) -> None:
    while (number := _next(take)) is not None:
        tasks[number]()
        done()


def _next(take: int) -> int | None:
    """The number of a task that nobody has taken; None where all are."""
    read = os.read(take, NUMBER)
    return int.from_bytes(read, "little") if read else None


def _told(see: int) -> int:
    """Tasks that others have done since the last look."""
    with suppress(BlockingIOError):
        return len(os.read(see, 1 << 16))
    return 0


def _forked(work: Callable[[], object]) -> int:
    """The number of a process that does this and nothing else: it says nothing, and ends with this one."""
    sys.stdout.flush()
    sys.stderr.flush()
    parent = os.getpid()
    process = os.fork()
    if process:
        return process
    try:
        for stop in (signal.SIGINT, signal.SIGTERM):  # those are for the first process, which ends this one
            signal.signal(stop, signal.SIG_IGN)
        sys.stdout = sys.stderr = open(os.devnull, "w", encoding="utf-8")  # noqa: SIM115 it ends with the process
        threading.Thread(target=_end_with, args=(parent,), daemon=True).start()
        work()
    finally:
        os._exit(0)  # nothing that the first process has begun is ended twice


def _end_with(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    os._exit(1)
