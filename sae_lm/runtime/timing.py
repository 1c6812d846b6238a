"""Measure the wall time of each part of a training step."""

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping

import torch

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
MEASURED_EVERY = 50
"""On an accelerator one step in this many is measured and stands for all: a mark there has to wait for the device."""


class StepTimer:
    """Seconds by part, each since the mark before. `begin` a step, then `mark` after each part of it."""

    def __init__(self, device: str | torch.device = "cpu") -> None:
        self.device = torch.device(device)
        self.seconds: dict[str, float] = defaultdict(float)
        self._weight = 1
        self._since = 0.0

    def begin(self, step: int) -> None:
        self._weight = 1 if self.device.type == "cpu" else MEASURED_EVERY * (step % MEASURED_EVERY == 0)
        self._since = self._now()

    def mark(self, part: str) -> None:
        """Add the seconds since the last mark to ``part``."""
        if self._weight:
            now = self._now()
            self.seconds[part] += (now - self._since) * self._weight
            self._since = now

    def _now(self) -> float:
        if self.device.type == "cuda" and self._weight:
            torch.cuda.synchronize(self.device)
        return time.perf_counter()


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
