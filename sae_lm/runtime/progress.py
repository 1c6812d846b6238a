"""Progress of long work: a bar with rate and ETA on a terminal, plain lines when piped."""

import os
import sys
import threading
import time
from typing import Any

from tqdm import tqdm

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """``with Progress("caching", total, "tok") as bar: bar.update(n, loss=...)``; written to stderr."""

    def __init__(self, label: str, total: int, unit: str, done: int = 0, silent: bool = False) -> None:
        self.label, self.total, self.unit, self.done = label, total, unit, done
        self.began = self.last_line = time.monotonic()
        self.first = done
        self.postfix: dict[str, Any] = {}
        self.silent = silent
        self._lock = threading.Lock()  # several threads may work at it
        self._process = os.getpid()
        self.bar = (
            tqdm(desc=label, total=total, initial=done, unit=unit, unit_scale=True, dynamic_ncols=True)
            if sys.stderr.isatty() and not silent
            else None
        )

    def update(self, amount: int, **postfix: Any) -> None:
        if os.getpid() != self._process:  # a forked one, to which neither the line nor tqdm's locks belong
            return
        with self._lock:
            self.done += amount
            self.postfix.update(postfix)
            if self.bar is not None:
                self.bar.set_postfix(self.postfix, refresh=False)
                self.bar.update(amount)
            elif time.monotonic() - self.last_line > SECONDS_BETWEEN_LINES and not self.silent:
                self.last_line = time.monotonic()
                self._line()

    def reach(self, done: int) -> None:
        """So much is done at least."""
        if done > self.done:
            self.update(done - self.done)

    def _line(self, ended: bool = False) -> None:
        seconds = max(time.monotonic() - self.began, 1e-9)
        rate = (self.done - self.first) / seconds
        left = (self.total - self.done) / rate if rate else float("inf")
        spoken = f"{rate:,.0f}" if rate >= 10 else f"{rate:.2g}"
        postfix = "".join(f", {key} {value}" for key, value in self.postfix.items())
        when = "done" if self.done >= self.total else "ended" if ended else f"{left:.0f} s left"
        line = f"{self.label}: {self.done:,}/{self.total:,} {self.unit}, {spoken} {self.unit}/s, {seconds:.0f} s, {when}{postfix}"
        print(line, file=sys.stderr, flush=True)

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *exception: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.total and not self.silent:
            self._line(ended=True)
