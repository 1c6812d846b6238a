"""The processor time that a container grants: torch counts cores, and on many cores behind a small quota its threads
wait for each other."""

import math
import os
from collections.abc import Iterator
from pathlib import Path

THREADS = "OMP_NUM_THREADS"
"""What torch, numpy's BLAS and MKL read as they are loaded."""


def heed_quota(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> None:
    """Let libraries that are loaded from now on start no more threads than the quota feeds, unless OMP_NUM_THREADS is set."""
    granted = granted_cores(mount, own)
    if granted is not None and granted < (os.cpu_count() or 1):
        os.environ.setdefault(THREADS, str(granted))


def granted_cores(mount: Path, own: Path) -> int | None:
    """Cores' worth of time that the control groups of this process grant, rounded up; None where nothing is limited.

    mount: where control groups are mounted, of version 2 or 1. own: the file that names the process's groups.
    """
    limits = [quota / period for quota, period in _limits(mount, own) if quota > 0 and period > 0]
    return max(1, math.ceil(min(limits))) if limits else None


def _limits(mount: Path, own: Path) -> Iterator[tuple[int, int]]:
    """Quota and period of each group that holds the process, in microseconds."""
    for line in _words(own, "\n"):
        if line.count(":") < 2:
            continue
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        top = mount / "cpu" if controllers else mount
        inner = top / path.strip("/")
        for group in (inner, *inner.parents):
            if controllers:  # version 1
                found = [*_words(group / "cpu.cfs_quota_us"), *_words(group / "cpu.cfs_period_us")]
            else:
                found = _words(group / "cpu.max")
            if len(found) == 2 and all(word.isdecimal() for word in found):  # not `max 100000`, not `-1`
                yield int(found[0]), int(found[1])
            if group == top:
                break


def _words(file: Path, separator: str | None = None) -> list[str]:
    try:
        return file.read_text(encoding="utf-8").split(separator)
    except (OSError, UnicodeDecodeError):
        return []  # another system, or groups that are not shown
