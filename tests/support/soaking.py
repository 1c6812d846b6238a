"""What a process holds of the machine (memory, files, threads), taken again and again, and whether it grows."""

import json
import math
import os
import statistics
import time
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple

from scipy.stats import t

SEGMENTS = 10
WARM_UP = 0.25
"""Share of the time, at its begin, that is left out: imports, and what is kept on purpose."""
TOLERANCE = {"resident MiB": 16.0, "peak MiB": 32.0, "peak MiB of commands": 32.0}
"""Rise over the time that counts as none; of what is counted, less than one."""
NAMES = ("resident MiB", "peak MiB", "open files", "threads", "mapped regions", "temporary files")


class Growth(NamedTuple):
    """A line through medians over time, with its 95% interval."""

    level: float
    """median of what was taken"""
    rise: float
    low: float
    high: float
    """over the whole time, not per second"""
    verdict: str
    """flat, growing, or undecided"""


def take(temporary: Path) -> dict[str, float]:
    """What this process holds now; ``peak MiB`` since the call before (Linux). temporary: where its temporary files lie."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    taken = {
        "seconds": time.monotonic(),
        "resident MiB": int(status["VmRSS"].split()[0]) / 1024,
        "peak MiB": int(status["VmHWM"].split()[0]) / 1024,
        "open files": len(os.listdir("/proc/self/fd")),
        "threads": int(status["Threads"]),
        "mapped regions": Path("/proc/self/maps").read_text().count("\n"),
        "temporary files": sum(1 for _ in temporary.rglob("*")),
    }
    Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
    return taken


def growth(seconds: Sequence[float], values: Sequence[float], tolerance: float = 1.0) -> Growth:
    """Whether values rise with time, after a quarter of it.

    The rest is cut into ten parts; a line goes through their medians, so that what comes and goes within a part does not
    count. growing: its 95% interval (Student's t, 8 degrees of freedom) is above zero, and it rises by more than
    ``tolerance``. flat: the upper end rises by less. Else undecided. Raises ValueError for fewer than 20 values.
    """
    begin = seconds[0] + WARM_UP * (seconds[-1] - seconds[0])
    kept = [(x, y) for x, y in zip(seconds, values, strict=True) if x >= begin]
    if len(kept) < 2 * SEGMENTS:
        raise ValueError(f"{len(kept)} values after the warm-up are too few, expected {2 * SEGMENTS}; take more")
    length = kept[-1][0] - kept[0][0]
    cuts = [round(part * len(kept) / SEGMENTS) for part in range(SEGMENTS + 1)]
    parts = [kept[a:b] for a, b in pairwise(cuts)]
    x = [statistics.median(point[0] for point in part) / length for part in parts]
    y = [statistics.median(point[1] for point in part) for part in parts]
    spread = sum((one - statistics.fmean(x)) ** 2 for one in x)
    slope, start = statistics.linear_regression(x, y)
    left = sum((b - start - slope * a) ** 2 for a, b in zip(x, y, strict=True))
    half = float(t.ppf(0.975, SEGMENTS - 2)) * math.sqrt(left / (SEGMENTS - 2) / spread)
    low, high = slope - half, slope + half
    grows = low > 0 and slope > tolerance
    verdict = "growing" if grows else "flat" if high < tolerance else "undecided"
    return Growth(statistics.median(values), slope, low, high, verdict)


def read(path: Path) -> tuple[list[dict[str, float]], list[dict[str, float]]]:
    """(samples at the ends of rounds, peaks of commands) of a file of JSON lines."""
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return [line for line in lines if "resident MiB" in line], [
        line for line in lines if "peak MiB of commands" in line
    ]


def judge(path: Path) -> dict[str, Growth]:
    """Of everything in a file of samples."""
    samples, commands = read(path)
    found = {
        name: growth([s["seconds"] for s in samples], [s[name] for s in samples], TOLERANCE.get(name, 1.0))
        for name in NAMES
    }
    of_commands = "peak MiB of commands"
    if len(commands) >= 3 * SEGMENTS:
        points = [c["seconds"] for c in commands], [c[of_commands] for c in commands]
        found[of_commands] = growth(*points, TOLERANCE[of_commands])
    return found


def draw(path: Path, picture: Path) -> None:
    """One plot below another: every sample, and where the warm-up ends."""
    from matplotlib.figure import Figure

    samples, commands = read(path)
    figure = Figure(figsize=(8, 6), layout="constrained")
    axes = figure.subplots(len(NAMES) // 2, 2, sharex=True).flat
    start, end = samples[0]["seconds"], samples[-1]["seconds"]
    for name, ax in zip(NAMES, axes, strict=True):
        ax.plot([(s["seconds"] - start) / 60 for s in samples], [s[name] for s in samples], lw=1, label="one process")
        if name == "peak MiB" and commands:
            points = [(c["seconds"] - start) / 60 for c in commands], [c["peak MiB of commands"] for c in commands]
            ax.plot(*points, ".", ms=3, label="commands")
            ax.legend(fontsize=7, frameon=False)
        ax.axvline(WARM_UP * (end - start) / 60, color="0.7", lw=0.8, ls=":")
        ax.set_ylim(0, None)
        ax.set_title(name, fontsize=9, loc="left")
        ax.tick_params(labelsize=8)
        ax.spines[["top", "right"]].set_visible(False)
    for ax in list(axes)[-2:]:
        ax.set_xlabel("minutes", fontsize=8)
    figure.savefig(picture, dpi=90)
