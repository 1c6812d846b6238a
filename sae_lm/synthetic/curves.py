"""suite.json -> pictures: what each penalty does as its coefficient grows. Formats, never measures."""

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm.metrics.statistics import student_t
from sae_lm.runtime.files import write_whole

CURVES = ("fvu", "hole", "merge", "mcc")
FEWEST = 3
"""Coefficients from which a family is a curve."""
MARKS = "os^Dv*PX<>"


def write_curves(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """One SVG per experiment that has ladders: means over seeds with 95% intervals, the baseline as a grey line."""
    from matplotlib.figure import Figure  # a second's import

    written = []
    for experiment in result["experiments"]:
        families = ladders(experiment)
        if not families:
            continue
        metrics = ("composite", "recovered", "fvu") if experiment["key"] == "composition" else CURVES
        figure = Figure(figsize=(3.2 * len(metrics), 3.8), layout="constrained")
        axes = figure.subplots(1, len(metrics), squeeze=False)[0]
        for axis, metric in zip(axes, metrics, strict=True):
            base = _mean(experiment["arms"]["none"]["values"][metric])
            axis.axhline(base, color="grey", linewidth=0.9)
            for i, (family, ladder) in enumerate(families.items()):
                points = [(c, *mean_and_reach(values[metric])) for c, values in ladder]
                x, y, reach = ([point[j] for point in points] for j in range(3))
                axis.errorbar(x, y, reach, label=family, marker=MARKS[i % len(MARKS)], markersize=4, linewidth=1)
            axis.set(xscale="log", title=metric, xlabel="coefficient")
            axis.grid(alpha=0.2)
        figure.suptitle(experiment["title"], fontsize=9)
        figure.legend(*axes[0].get_legend_handles_labels(), loc="outside lower center", ncols=4, fontsize=7)
        path = folder / f"{experiment['key']}.svg"
        write_whole(path, lambda part, figure=figure: figure.savefig(part, format="svg", metadata={"Date": None}))
        written.append(path)
    return written


def ladders(experiment: Mapping[str, Any]) -> dict[str, list[tuple[float, dict[str, list[float | None]]]]]:
    """Families with several coefficients: (coefficient, values), ascending."""
    found: dict[str, list[tuple[float, dict[str, list[float | None]]]]] = {}
    for arm in experiment["arms"].values():
        if arm["coefficient"] > 0:
            found.setdefault(arm["family"], []).append((arm["coefficient"], arm["values"]))
    return {f: sorted(ladder, key=lambda p: p[0]) for f, ladder in found.items() if len(ladder) >= FEWEST}


def mean_and_reach(per_seed: Sequence[float | None]) -> tuple[float, float]:
    """Mean over the seeds that have a value, and half the width of its 95% interval (0 with one seed)."""
    there = [value for value in per_seed if value is not None]
    if len(there) < 2:
        return _mean(per_seed), 0.0
    return _mean(per_seed), student_t(len(there) - 1) * statistics.stdev(there) / math.sqrt(len(there))


def _mean(per_seed: Sequence[float | None]) -> float:
    there = [value for value in per_seed if value is not None]
    return sum(there) / len(there) if there else math.nan
