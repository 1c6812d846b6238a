"""Read damaged files and judge: an error is one sentence, nothing is written elsewhere or run, and it ends soon."""

import io
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, NamedTuple

from fuzz_targets import Target, printable, targets
from hub_stand_in import HubStandIn
from mutations import mutate

SECONDS = 10.0
"""Longest that an input may take."""
GROWTH = 1 << 28
"""Bytes of resident memory by which one input may raise the peak."""
ROOM = 3 << 30
"""Bytes of address space beyond what is taken: what asks for more fails."""
LONGEST = 6000
"""Characters of a sentence: those of a value that is quoted, and some."""
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND
CHANGES = {
    "os.remove",
    "os.rename",
    "os.rmdir",
    "os.mkdir",
    "os.symlink",
    "os.link",
    "os.truncate",
    "os.chmod",
    "shutil.rmtree",
}
RUNS = {
    "os.system",
    "os.exec",
    "os.posix_spawn",
    "os.spawn",
    "os.fork",
    "subprocess.Popen",
    "pickle.find_class",
    "socket.connect",
}


class Fault(NamedTuple):
    target: str
    file: str
    number: int
    """of the input; with the seed it can be made again"""
    what: str


class _TooLong(BaseException):
    pass


class _Watch:
    """What the interpreter is about to do; looks at writes and at what is run, while ``folder`` is set."""

    def __init__(self) -> None:
        self.folder: str | None = None
        self.seen: list[str] = []
        self.port = -1
        """of the hub on this machine; with one, this machine may be asked"""
        sys.addaudithook(self.look)

    def look(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self.folder is None:
            return
        if event == "socket.connect" and arguments[1][:1] == ("127.0.0.1",) and self.port >= 0:
            return  # the hub, or where it has sent this process to
        if event in RUNS:
            self.seen.append(f"{event} {arguments[:2]!r}"[:300])
        elif event in CHANGES or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
            paths = arguments[:2] if event in ("os.rename", "os.link") else arguments[:1]
            if event == "os.symlink":  # where it lies, and where it leads
                paths = (
                    arguments[1],
                    os.path.join(os.path.dirname(os.fsdecode(arguments[1])), os.fsdecode(arguments[0])),
                )
            for path in paths:
                if isinstance(path, (str, bytes, os.PathLike)) and not self.allowed(os.fsdecode(path)):
                    self.seen.append(f"{event} {path!r}"[:300])

    def allowed(self, path: str) -> bool:
        if path == os.devnull or not os.path.isabs(path):  # relative to a folder that is open already, as rmtree has it
            return path == os.devnull or ".." not in path
        return os.path.realpath(path).startswith(f"{self.folder}/") or os.path.realpath(path) == self.folder


_watch: list[_Watch] = []


@contextmanager
def _limits(room: int) -> Iterator[None]:
    """A time limit for what follows, and one for the memory of this process."""

    def ring(*_: object) -> None:
        raise _TooLong

    before = signal.signal(signal.SIGALRM, ring)
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    taken = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (taken + room, hard))
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))


class Bench:
    """Targets, each with a copy of its files that is damaged and restored."""

    def __init__(self, scratch: Path, hub: HubStandIn | None = None) -> None:
        """scratch: an empty folder, best in memory. hub: see `targets`."""
        self.scratch = scratch.resolve()
        self.targets = targets(self.scratch, hub)
        self.whole = {
            target.name: {
                path.relative_to(target.folder).as_posix(): path.read_bytes()
                for path in target.folder.rglob("*")
                if path.is_file()
            }
            for target in self.targets
        }
        if not _watch:
            _watch.append(_Watch())
        if hub is not None:
            _watch[0].port = hub.server.server_port
        for target in self.targets:  # whole files are read, and what is imported on the way is
            folder = self.place(target)
            with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
                target.read(folder)
            shutil.rmtree(folder)

    def place(self, target: Target) -> Path:
        folder = self.scratch / "case" / "inside"
        shutil.rmtree(folder, ignore_errors=True)
        for name, content in self.whole[target.name].items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
        return folder

    def run(self, target: Target, numbers: range, seed: int, outcomes: Counter[str]) -> Iterator[Fault]:
        """Damage and read, once for each number. Outcomes: how many were read, and how many refused."""
        with _limits(ROOM):
            for number in numbers:
                draw = random.Random(f"{seed} {target.name} {number}")
                folder = self.place(target)
                name = draw.choice(target.damaged)
                path = folder / name
                path.write_bytes(mutate(name, path.read_bytes(), draw))
                with suppress(ValueError, KeyError, TypeError, AttributeError, RecursionError):  # it is no manifest now
                    target.reseal(folder, name, draw)
                outcome, faults = judge(target, folder)
                outcomes[outcome] += 1
                for what in faults:
                    yield Fault(target.name, name, number, what)


def judge(target: Target, folder: Path) -> tuple[str, list[str]]:
    """(read, refused or fault; what is wrong) of one reading."""
    from sae_lm.errors import SaeLmError

    watch, faults, outcome = _watch[0], [], "read"
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said, began = io.StringIO(), time.monotonic()
    watch.seen.clear()
    signal.setitimer(signal.ITIMER_REAL, SECONDS)
    watch.folder = str(folder)
    try:
        with redirect_stdout(said), redirect_stderr(said):
            target.read(folder)
    except SaeLmError as error:
        outcome, sentence = "refused", str(error)
        try:
            printable(sentence)
            if "\n" in sentence or not sentence or len(sentence) > LONGEST:
                faults.append(f"not one sentence ({len(sentence)} characters): {sentence[:300]!r}")
        except ValueError as problem:
            faults.append(f"{problem} in an error's sentence: {sentence[:200]!r}")
    except _TooLong as late:
        where = [
            f"{frame.filename.rpartition('/')[2]}:{frame.lineno}" for frame in traceback.extract_tb(late.__traceback__)
        ]
        faults.append(f"no end after {SECONDS:g} s: {' '.join(where[-12:])}")
    except Exception as error:
        last = [
            f
            for f in traceback.extract_tb(error.__traceback__)
            if "sae_lm/" in f.filename and "/tests/" not in f.filename
        ]
        where = f"{last[-1].filename.partition('sae_lm/')[2]}:{last[-1].lineno}" if last else "tests"
        faults.append(f"{type(error).__name__} at {where}: {str(error)[:160]!r}")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        watch.folder = None
    if watch.seen:
        faults.append("beyond its folder, or run: " + "; ".join(watch.seen[:3]))
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) * 1024
    if grown > GROWTH:
        faults.append(f"memory grew by {grown >> 20} MiB")
    if time.monotonic() - began > SECONDS:
        faults.append(f"took {time.monotonic() - began:.0f} s")
    return ("fault" if faults else outcome), faults
