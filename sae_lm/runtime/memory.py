"""Say in a sentence that memory ran out, and where, whatever form the error comes in."""

from collections.abc import Iterator
from contextlib import contextmanager

from sae_lm.errors import SaeLmError


def is_out_of_memory(problem: BaseException) -> bool:
    """Of an accelerator, of the host as torch says it, or of the host as Python does."""
    words = str(problem)
    return (
        isinstance(problem, MemoryError)
        or type(problem).__name__ == "OutOfMemoryError"
        or "DefaultCPUAllocator" in words
        or "out of memory" in words
    )


@contextmanager
def report_out_of_memory(device: str, advice: str) -> Iterator[None]:
    """Raises SaeLmError where what happens inside needs more memory than there is. advice: what to do."""
    try:
        yield
    except (MemoryError, RuntimeError) as problem:
        if not is_out_of_memory(problem):
            raise
        reason = " ".join(str(problem).split())[:200]
        raise SaeLmError(f"memory ran out on {device} or on the host beside it ({reason}); {advice}") from None
