"""Measure the time of each part of a training step, on an accelerator by the device's own clock."""

import time
from collections import defaultdict, deque
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from sae_lm.runtime.device import device_module, is_accelerator

PARTS = (
    "reading",
    "encoder",
    "selection",
    "sparse forward and backward",
    "dead latents",
    "penalty",
    "exchange",
    "optimizer",
    "log and checkpoints",
)
"""In the order of a step."""
MOST_MARKS = 4096
"""Marks of an accelerator's clock that are kept until somebody asks how long things took; then the older half is read."""


class StepTimer:
    """Seconds by part, each since the mark before. `begin` a step, then `mark` after each part of it.

    An accelerator works behind the host. There a mark is an event in its queue, which it passes when it comes to it:
    nobody waits, and every step counts as what it took. Only `seconds` waits, for what was marked so far.
    """

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self._module = device_module(device) if is_accelerator(device) else None
        self._spent: dict[str, float] = defaultdict(float)
        self._marks: deque[tuple[str, Any, Any]] = deque()
        """part, and the events at its begin and end"""
        self._since: Any = 0.0

    def begin(self) -> None:
        self._since = self._now()

    def mark(self, part: str) -> None:
        """Add the seconds since the last mark to ``part``."""
        now = self._now()
        if self._module is None:
            self._spent[part] += now - self._since
        else:
            self._marks.append((part, self._since, now))
            if len(self._marks) > MOST_MARKS:
                self._read(MOST_MARKS // 2)
        self._since = now

    @property
    def seconds(self) -> dict[str, float]:
        """By part, of all that was marked."""
        self._read(len(self._marks))
        return self._spent

    def _read(self, count: int) -> None:
        for _ in range(count):
            part, begin, end = self._marks.popleft()
            end.synchronize()
            self._spent[part] += begin.elapsed_time(end) / 1000

    def _now(self) -> Any:
        if self._module is None:
            return time.perf_counter()
        event = self._module.Event(enable_timing=True)
        if hasattr(self._module, "current_stream"):  # of this device, where another is the current one
            event.record(self._module.current_stream(self.device))
        else:
            event.record()
        return event


def sum_seconds(timers: Iterable[Mapping[str, float]]) -> dict[str, float]:
    """Seconds by part of several timers together."""
    total: dict[str, float] = defaultdict(float)
    for seconds in timers:
        for part, spent in seconds.items():
            total[part] += spent
    return dict(total)


def timing_line(seconds: Mapping[str, float]) -> str:
    """``seconds: reading 1.2, encoder 33.4 (52%), ...``"""
    total = sum(seconds.values()) or 1.0
    parts = [f"{part} {seconds[part]:,.1f} ({seconds[part] / total:.0%})" for part in PARTS if seconds.get(part)]
    return f"seconds of {total:,.1f}: {', '.join(parts)}"
