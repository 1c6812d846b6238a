"""Draw what each penalty does to SAEs of synthetic worlds as its coefficient grows; nothing is measured here."""

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm.metrics.statistics import student_t
from sae_lm.pages.charts import MARK_COUNT, TONE_COUNT, Chart, Dot, Line, Look, space_out
from sae_lm.pages.figures import painter
from sae_lm.runtime.files import write_whole

CURVES = ("fvu", "hole", "merge", "mcc")
FEWEST = 3
"""Coefficients from which a family is a curve."""
Ladders = Mapping[str, Sequence[tuple[float, Mapping[str, Sequence[float | None]]]]]
"""Family -> (coefficient, metric -> one value per seed), ascending."""


def write_curves(result: Mapping[str, Any], folder: Path) -> list[Path]:
    """One SVG per experiment that has ladders: means over seeds with 95% intervals, the baseline as a grey line."""
    written = []
    for experiment in result["experiments"]:
        families = ladders(experiment)
        metrics = ("composite", "recovered", "fvu") if experiment["key"] == "composition" else CURVES
        base = experiment["arms"]["none"]["values"]
        charts = [chart for metric in metrics if (chart := curve(families, metric, _mean(base[metric]))) is not None]
        if charts:
            looks = {
                family: Look(1 + place % (TONE_COUNT - 1), place % MARK_COUNT, place, None)
                for place, family in enumerate(families)
            }
            names, path = {family: family for family in families}, folder / f"{experiment['key']}.svg"
            write_whole(path, painter(charts, looks, names, "svg", experiment["title"], across=len(charts)))
            written.append(path)
    return written


def curve(families: Ladders, metric: str, base: float) -> Chart | None:
    """One metric of every family against the coefficient; None without any number. base: the baseline's mean."""
    dots, lines = [], []
    for family, ladder in families.items():
        points = [(coefficient, *mean_and_reach(values[metric])) for coefficient, values in ladder]
        points = [point for point in points if math.isfinite(point[1])]
        dots += [Dot(x, y, family, f"{family}:{x:g}: {y:.4g}") for x, y, _ in points]
        lines += [Line(((x, y - reach), (x, y + reach)), family, "thin") for x, y, reach in points]
        lines += [Line(((x, y), (x2, y2)), family) for (x, y, _), (x2, y2, _) in itertools.pairwise(points)]
    if not dots:
        return None
    coefficients = sorted({dot.x for dot in dots})
    if math.isfinite(base):
        lines.append(Line(((coefficients[0], base), (coefficients[-1], base)), ""))
    ticks = [(x, f"{x:g}") for x in space_out(coefficients)]
    return Chart(metric, "coefficient", "", dots, lines, ticks, log_x=True)


def ladders(experiment: Mapping[str, Any]) -> dict[str, list[tuple[float, dict[str, list[float | None]]]]]:
    """Families with several coefficients: (coefficient, values), ascending."""
    found: dict[str, list[tuple[float, dict[str, list[float | None]]]]] = {}
    for arm in experiment["arms"].values():
        if arm["coefficient"] > 0:
            found.setdefault(arm["family"], []).append((arm["coefficient"], arm["values"]))
    return {f: sorted(ladder, key=lambda p: p[0]) for f, ladder in found.items() if len(ladder) >= FEWEST}


def mean_and_reach(per_seed: Sequence[float | None]) -> tuple[float, float]:
    """Mean over the seeds that have a value, and half the width of its 95% interval (0 with one seed)."""
    known = [value for value in per_seed if value is not None]
    if len(known) < 2:
        return _mean(per_seed), 0.0
    return _mean(per_seed), student_t(len(known) - 1) * statistics.stdev(known) / math.sqrt(len(known))


def _mean(per_seed: Sequence[float | None]) -> float:
    known = [value for value in per_seed if value is not None]
    return sum(known) / len(known) if known else math.nan
