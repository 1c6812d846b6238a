"""Show families of arms at equal L0: what each removes for what it costs, and two of them at one cost."""

from collections.abc import Sequence
from typing import Any

from sae_lm.pages.charts import Chart, Dot, Line
from sae_lm.pages.difference_entries import BandEntry, FrontierEntry, Interval
from sae_lm.pages.schema import Report


def frontier_charts(report: Report) -> list[Chart | None]:
    """A panel for each L0 and primary outcome, by each ranking of main latents that was asked for: change against cost, a
    curve per family, its band, the baseline at 0."""
    rungs = list(dict.fromkeys(entry["rung"] for entry in report["frontier"]))
    return [_panel(report, rung, metric, len(rungs) > 1) for rung in rungs for metric in frontier_metrics(report)]


def frontier_metrics(report: Report) -> list[str]:
    """The primary outcomes that curves have, then the same by the other ranking of main latents."""
    known = {key for entry in report["frontier"] for point in entry["points"] for key in point["changes"]}
    primary = [key for key, metric in report["metrics"].items() if metric["role"] == "primary"]
    by_f1 = [key for key in report["metrics"] if key.removesuffix("_by_f1") in primary and key not in primary]
    return [key for key in (*primary, *by_f1) if key in known]


def _panel(report: Report, rung: str, metric: str, several: bool) -> Chart | None:
    label = report["metrics"][metric]["label"]
    dots, lines = [Dot(0.0, 0.0, rung, f"{rung}: the baseline")], []
    for entry in report["frontier"]:
        if entry["rung"] != rung or metric not in (entry["points"][-1]["changes"]):
            continue
        lines += _curve(entry, metric)
        for point in entry["points"]:
            if point["arm"] != rung:
                cost, change = point["fvu"], point["changes"][metric]
                tooltip = f"{point['arm']}: {label} {_said(change)} for FVU {_said(cost)}"
                dots.append(Dot(cost["mean"], change["mean"], point["arm"], tooltip))
    if not lines:
        return None
    title = f"{label}, L0 of {rung}" if several else label
    return Chart(title, "FVU above the baseline's", "change", list(dict.fromkeys(dots)), lines, zero="xy")


def _curve(entry: FrontierEntry, metric: str) -> list[Line]:
    """A family's line in the look of its last arm, its band, and the intervals of its points."""
    points, last = entry["points"], entry["points"][-1]["arm"]
    line = tuple((point["fvu"]["mean"], point["changes"][metric]["mean"]) for point in points)
    band = [at for at in entry["bands"].get(metric, []) if at["low"] is not None and at["high"] is not None]
    ribbon = [Line(_outline(band), last, "ribbon")] if band else []
    bars = []
    for point in points:
        cost, change = point["fvu"], point["changes"][metric]
        if point["arm"] != entry["rung"] and cost["low"] is not None and change["low"] is not None:
            bars.append(Line(((cost["mean"], change["low"]), (cost["mean"], change["high"])), point["arm"], "thin"))
            bars.append(Line(((cost["low"], change["mean"]), (cost["high"], change["mean"])), point["arm"], "thin"))
    return [*ribbon, *bars, Line(line, last)]


def _outline(band: Sequence[BandEntry]) -> tuple[tuple[float, float], ...]:
    above, below = [(at["fvu"], at["high"]) for at in band], [(at["fvu"], at["low"]) for at in reversed(band)]
    return (*above, *below)


def _said(of: Interval) -> str:
    ends = f" [{of['low']:+.4g}, {of['high']:+.4g}]" if of["low"] is not None else ""
    return f"{of['mean']:+.4g}{ends}"


def frontier_points(report: Report) -> list[dict[str, Any]]:
    """Rows of the table of points: the family, its L0 and each of its points but the baseline."""
    return [
        {"family": entry["family"], "rung": entry["rung"], **point}
        for entry in report["frontier"]
        for point in entry["points"]
        if point["arm"] != entry["rung"]
    ]
