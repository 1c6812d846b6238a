"""Say in a sentence that memory ran out, where, and how much was asked for, whatever form the error comes in."""

import errno
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from sae_lm.errors import SaeLmError

WORDS = (
    "DefaultCPUAllocator",
    "out of memory",
    "bad_alloc",
    "annot allocate memory",
    "failed to map segment",  # of a library that is loaded late
    "could not create a memory object",  # oneDNN
    "start new thread",  # which takes a stack
)
"""What torch, its libraries, Python and the system's loader say where there was no memory left."""
ASKED = re.compile(r"(?:allocate|mmap) ([\d.]+) (bytes|[KMGT]iB)")
UNITS = {unit: 1024**power for power, unit in enumerate(("bytes", "KiB", "MiB", "GiB", "TiB"))}
SAID = "memory ran out"
LESS_MEMORY = {
    "cache": "give a smaller --batch-size and run the same command again: what is finished is kept; or with another "
    "--out a smaller --context-size, --shard-tokens or fewer --hooks",
    "train": "give fewer --arms-at-once or less --parallel and run the same command again: finished SAEs are kept; or "
    "with another --out a smaller --batch-size or --d-sae",
    "compare": "give less --parallel and run the same command again: what is measured is kept; or measure anew with "
    "fewer --tokens, a smaller --per-type or fewer --ce-contexts",
    "show": "give fewer --contexts or name --latents and run the same command again: stored codes are kept; or give "
    "fewer --tokens, for which all is encoded anew",
    "export": "name --latents and run the same command again: stored codes are kept; or give fewer --tokens, for which "
    "all is encoded anew",
    "check": "give fewer --tokens",
}
"""Verb -> what makes it take less, as advice: first what lets it go on where it was, then what begins anew."""


def is_out_of_memory(problem: BaseException) -> bool:
    """Of an accelerator, of the host as torch says it, or of the host as Python, libraries or the system do."""
    return (
        isinstance(problem, MemoryError)
        or type(problem).__name__ == "OutOfMemoryError"
        or (isinstance(problem, OSError) and problem.errno == errno.ENOMEM)
        or any(words in str(problem) for words in WORDS)
    )


def raised_by_memory(problem: BaseException) -> BaseException | None:
    """The error of memory that an error is, or came of: a reader may have taken it for a damaged file."""
    if str(problem).startswith(SAID):
        return None  # it says so already
    one: BaseException | None = problem
    seen = set()
    while one is not None and id(one) not in seen:
        if is_out_of_memory(one):
            return one
        seen.add(id(one))
        one = one.__cause__ or one.__context__
    return None


def out_of_memory_sentence(problem: BaseException, where: str, advice: str) -> str:
    """problem: `is_out_of_memory`. where: which memory, and doing what. advice: what to do."""
    said = " ".join(str(problem).split())[:200] or type(problem).__name__
    asked = ASKED.search(said)
    size = float(asked[1]) * UNITS[asked[2]] if asked else 0.0
    details = [f"{_readable(size)} more were asked for"] if asked else []
    details += [f"the process held {_readable(float(held))}"] if (held := _held_bytes()) else []
    return f"{SAID} {where} ({', '.join([*details, said])}); {advice}"


def _readable(size: float) -> str:
    return f"{size / 1e9:.1f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _held_bytes() -> int:
    """Bytes that are resident now; 0 where the system does not tell."""
    if sys.platform != "linux":
        return 0
    try:
        with open("/proc/self/statm", "rb") as file:
            return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, ValueError, IndexError):
        return 0


@contextmanager
def report_out_of_memory(device: str, advice: str) -> Iterator[None]:
    """Raises SaeLmError where what happens inside needs more memory than there is. advice: what to do."""
    try:
        yield
    except (MemoryError, RuntimeError, OSError) as problem:
        if not is_out_of_memory(problem):
            raise
        where = f"on {device} or on the host beside it"
        raise SaeLmError(out_of_memory_sentence(problem, where, advice)) from None
