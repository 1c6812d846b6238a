"""Turn a report into charts: what is drawn, in the data's own coordinates. `svg` and `figures` draw them.

Formats, never measures: only means over seeds are taken here.
"""

import itertools
import re
import statistics
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from sae_lm.pages.difference_entries import DifferenceEntry, verdict_text
from sae_lm.pages.schema import Report
from sae_lm.pages.text import k_name

TONE_COUNT, MARK_COUNT = 9, 6
"""Colours and marks that figures can tell apart; the first colour is the baseline's."""
BALANCE = re.compile(r"@balance=[\d.e+-]+")
NUMBERS_OF_OPTIONS = re.compile(r"(@\w+=)[\d.e+-]+(?=@|$)")
COSTS = ("fvu", "ce_recovered")
"""What a lower primary outcome is paid with."""
RIGHT_L0 = "nth_projection"
"""The metric that is least where L0 is right."""


class Look(NamedTuple):
    """How an arm is drawn: penalties differ by colour, coefficients of one penalty and numbers of one option by mark."""

    tone: int
    mark: int
    family: int
    """number of the arm's family, for switching it off on the page"""
    k: int | None


class Dot(NamedTuple):
    x: float
    y: float
    arm: str
    tooltip: str
    """shown to a pointer at rest"""
    hollow: bool = False


class Line(NamedTuple):
    points: tuple[tuple[float, float], ...]
    arm: str
    """empty: of no arm, grey"""
    style: str = "solid"
    """solid, thin, dashed, step (dash by mark), area (filled down to 0); band (wide) and ribbon (filled along its
    outline) are cut at the edges and set no limits"""


class Chart(NamedTuple):
    title: str
    x_label: str
    y_label: str
    dots: Sequence[Dot]
    lines: Sequence[Line]
    x_ticks: Sequence[tuple[float, str]] = ()
    rows: Sequence[str] = ()
    """names of places on the vertical axis, from above: row i is at y = -i; none where the axis has numbers"""
    log_x: bool = False
    zero: str = ""
    """x, y or xy: the axes with a line at 0"""


def looks(report: Report) -> dict[str, Look]:
    """Every arm's look. Penalties past the last colour get the first again, with other marks."""
    families = list(dict.fromkeys(report["arms"][name]["family"] for name in order_arms(report)))
    variants: dict[str, list[str]] = {}
    for arm in (report["arms"][name] for name in order_arms(report)):
        of_variant = variants.setdefault(_hue(arm["variant"]), [])
        if arm["family"] not in of_variant:
            of_variant.append(arm["family"])
    looks = {}
    for name, arm in report["arms"].items():
        place = list(variants).index(_hue(arm["variant"]))
        again, tone = divmod(place - 1, TONE_COUNT - 1) if place else (0, -1)
        mark = (variants[_hue(arm["variant"])].index(arm["family"]) + 3 * again) % MARK_COUNT
        looks[name] = Look(tone + 1, mark, families.index(arm["family"]), arm["k"])
    return looks


def _hue(variant: str) -> str:
    """What arms of one colour have in common: their options without numbers, a balance as if it were not given."""
    return NUMBERS_OF_OPTIONS.sub(r"\1", BALANCE.sub("", variant))


def baseline_family(report: Report) -> str:
    """What the others are compared with, without its k."""
    baseline = report["baseline"]
    return report["arms"][baseline]["family"] if baseline in report["arms"] else baseline


def is_baseline(report: Report, name: str) -> bool:
    """Whether an arm is of the baseline's family, of whatever k."""
    return report["arms"][name]["family"] == baseline_family(report)


def order_arms(report: Report) -> list[str]:
    """The arms, the baseline's first, else as the report has them."""
    return sorted(report["arms"], key=lambda name: not is_baseline(report, name))


def headline(report: Report) -> list[str]:
    """The metrics that open the page: primary outcomes, then what they cost."""
    metrics = report["metrics"]
    primary = [key for key, metric in metrics.items() if metric["role"] == "primary"]
    return primary + [key for key in COSTS if key in metrics and key not in primary]


def ladder_metrics(report: Report) -> list[str]:
    """The metrics that are drawn against L0: those that open the page, and the one that tells a right L0."""
    return headline(report) + [RIGHT_L0] * (RIGHT_L0 in report["metrics"])


def mean(values: Iterable[float | int | None]) -> float | None:
    known = [value for value in values if value is not None]
    return statistics.fmean(known) if known else None


def several_l0(report: Report) -> bool:
    """Whether there is a curve over L0 to draw; what counts as equal in the verdicts is one L0."""
    l0 = [value for arm in report["arms"].values() if (value := mean(arm["values"]["l0"])) is not None]
    return bool(l0) and max(l0) > (1 + report["l0_tolerance"]) * min(l0)


# --- charts


def against_l0(report: Report, key: str) -> Chart | None:
    """A metric against L0, a line along the k of a family, a thin upright one over the seeds of an arm."""
    dots, lines, ladders = [], [], {}
    for name, arm in report["arms"].items():
        known = [value for value in arm["values"][key] if value is not None]
        l0, middle = mean(arm["values"]["l0"]), mean(known)
        if l0 is None or middle is None or l0 <= 0:
            continue
        dots.append(Dot(l0, middle, name, f"{name}: {middle:.4g} at L0 {l0:.3g}, {len(known)} seeds"))
        lines.append(Line(((l0, min(known)), (l0, max(known))), name, "thin"))
        ladders.setdefault(arm["family"], []).append(dots[-1])
    if not dots:
        return None
    for rungs in ladders.values():
        rungs = sorted(rungs)
        lines += [Line(((a.x, a.y), (b.x, b.y)), b.arm) for a, b in itertools.pairwise(rungs)]
    if key == "fvu":
        front = sorted((dot.x, dot.y) for dot in dots if report["arms"][dot.arm].get("pareto"))
        lines += [Line(tuple(front), "", "dashed")] if len(front) > 1 else []
    ticks = [(l0, f"{l0:.3g}") for l0 in space_out(sorted(dot.x for dot in dots))]
    return Chart(report["metrics"][key]["label"], "L0", "", dots, lines, ticks, log_x=True)


def space_out(values: Sequence[float | int]) -> list[float | int]:
    """Those that leave room for their labels on a log axis, at most six."""
    kept: list[float | int] = []
    least = max(1.05, (values[-1] / values[0]) ** (1 / 5))
    for value in values:
        if not kept or value >= kept[-1] * least:
            kept.append(value)
    return kept


def by_seed(report: Report, key: str) -> Chart | None:
    """A dot per arm and seed, the seeds joined from arm to arm."""
    names = order_arms(report)
    values = {name: report["arms"][name]["values"][key] for name in names}
    dots = [
        Dot(value, -row, name, f"{name}, seed {seed}: {value:.4g}")
        for row, name in enumerate(names)
        for seed, value in zip(report["seeds"], values[name], strict=False)
        if value is not None
    ]
    joined = [
        tuple((value, -row) for row, value in enumerate(of_seed) if value is not None)
        for of_seed in zip(*values.values(), strict=False)
    ]
    lines = [Line(points, "", "thin") for points in joined if len(points) > 1]
    return Chart(report["metrics"][key]["label"], "", "", dots, lines, rows=names) if dots else None


def forest(report: Report, key: str) -> Chart | None:
    """Differences from the baseline with intervals; full marks have a verdict, the band is what would go unseen."""
    dots, lines, rows = [], [], []
    for d in report["differences"]:
        if d["metric"] != key or d["mean"] is None:
            continue
        y, interval = -len(rows), _interval(d)
        ends = f" [{interval[0]:+.4g}, {interval[1]:+.4g}]" if interval else ""
        tooltip = f"{d['arm']} - {d['baseline']}: {d['mean']:+.4g}{ends}, {verdict_text(d)}"
        dots.append(Dot(d["mean"], y, d["arm"], tooltip, d["verdict"] not in ("lower", "higher")))
        if d["detectable"] is not None:
            lines.append(Line(((-d["detectable"], y), (d["detectable"], y)), "", "band"))
        if interval:
            lines.append(Line(((interval[0], y), (interval[1], y)), d["arm"]))
        rows.append(d["arm"])
    label = report["metrics"][key]["label"]
    return Chart(label, "difference from the baseline", "", dots, lines, rows=rows, zero="x") if rows else None


def _interval(d: DifferenceEntry) -> tuple[float, float] | None:
    low, high = d["low"], d["high"]
    return None if low is None or high is None else (low, high)


def along_coefficient(report: Report, key: str) -> Chart | None:
    """The difference from the baseline against the coefficient, for penalties that were given two or more.

    Not of arms that were steered, whose coefficient is what they began at.
    """
    curves: dict[tuple[str, str, int | None], list[tuple[float, float, DifferenceEntry]]] = {}
    for d in report["differences"]:
        arm = report["arms"][d["arm"]]
        steered = any(f"@{option}=" in d["arm"] for option in ("fvu", "coherence"))
        if d["metric"] == key and d["mean"] is not None and arm["coefficient"] > 0 and not steered:
            variant = (arm["variant"], arm["arch"], arm["k"])
            curves.setdefault(variant, []).append((arm["coefficient"], d["mean"], d))
    dots, lines = [], []
    for curve in curves.values():
        if len({x for x, _, _ in curve}) < 2:
            continue
        curve.sort(key=lambda point: point[0])
        lines += [Line(((x, y), (x2, y2)), d["arm"]) for (x, y, _), (x2, y2, d) in itertools.pairwise(curve)]
        for x, y, d in curve:
            tooltip = f"{d['arm']}: {y:+.4g}, {verdict_text(d)}"
            dots.append(Dot(x, y, d["arm"], tooltip, d["verdict"] not in ("lower", "higher")))
            if interval := _interval(d):
                lines.append(Line(((x, interval[0]), (x, interval[1])), d["arm"], "thin"))
    if not dots:
        return None
    ticks = [(x, f"{x:g}") for x in space_out(sorted(dot.x for dot in dots))]
    label = report["metrics"][key]["label"]
    return Chart(label, "coefficient", "difference", dots, lines, ticks, log_x=True, zero="y")


def nearest_cosines(report: Report, names: Sequence[str], title: str) -> Chart | None:
    """Histograms of the cosine to the nearest other decoder row, over that of random directions."""
    shares, edges = report["nearest_cos"]["arms"], report["nearest_cos"]["edges"]
    drawn = {name: shares[name] for name in names if shares.get(name)}
    if not drawn:
        return None
    null = report["nearest_cos"]["null"] or []
    # the range of all arms, so that charts beside each other can be compared
    filled = [bin for values in (*shares.values(), null) for bin, share in enumerate(values) if share and share > 5e-4]
    first, last = min(filled, default=0), max(filled, default=len(edges) - 2) + 1

    def steps(values: Sequence[float | int | None]) -> tuple[tuple[float, float], ...]:
        inside = [(float(edges[bin + side]), float(values[bin] or 0)) for bin in range(first, last) for side in (0, 1)]
        return ((float(edges[first]), 0.0), *inside, (float(edges[last]), 0.0))

    lines = [Line(steps(null), "", "area")] if null else []
    lines += [Line(steps(values), name, "step") for name, values in drawn.items()]
    return Chart(title, "cosine to the nearest other row", "share of latents", (), lines)


def nearest_panels(report: Report) -> dict[int | None, list[Chart]]:
    """Per k one chart for each penalty, beside the baseline's arm of that k."""
    panels: dict[int | None, list[Chart]] = {}
    ks = list(dict.fromkeys(arm["k"] for arm in report["arms"].values())) if report["nearest_cos"] else []
    for k in ks:
        here = [name for name in order_arms(report) if report["arms"][name]["k"] == k]
        base = [name for name in here if is_baseline(report, name)]
        variants = dict.fromkeys(report["arms"][name]["variant"] for name in here if name not in base)
        for variant in variants or {report["baseline"]: None}:
            own = [name for name in here if name not in base and report["arms"][name]["variant"] == variant]
            chart = nearest_cosines(report, base + own, f"{variant}, k = {k_name(k)}" if len(ks) > 1 else variant)
            panels.setdefault(k, []).extend([chart] if chart else [])
    return {k: charts for k, charts in panels.items() if charts}
