"""report -> charts: what is drawn, in the data's coordinates; ``figures`` draws it, on the page and for a paper.

Formats, never measures: only means over seeds are taken here.
"""

import itertools
import statistics
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, NamedTuple

TONES, SHAPES = 9, 6
"""Colours and marks that figures can tell apart; the first colour is the baseline's."""
COSTS = ("fvu", "ce_recovered")
"""What a lower primary outcome is paid with."""


class Look(NamedTuple):
    """How an arm is drawn: penalties differ by colour, coefficients of one penalty by mark."""

    tone: int
    mark: int
    family: int
    """number of the arm's family, for switching it off on the page"""
    k: int | None


class Dot(NamedTuple):
    x: float
    y: float
    arm: str
    told: str
    """what a pointer at rest is told"""
    hollow: bool = False


class Line(NamedTuple):
    points: tuple[tuple[float, float], ...]
    arm: str
    """empty: of no arm, grey"""
    style: str = "solid"
    """solid, thin, dashed, band (wide, cut at the edges, sets no limits), area (filled down to 0), step (dash by mark)"""


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
    """x or y: the axis with a line at 0"""


def looks(report: Mapping[str, Any]) -> dict[str, Look]:
    """Every arm's look. Penalties past the last colour get the first again, with other marks."""
    families = list(dict.fromkeys(report["arms"][name]["family"] for name in ordered(report)))
    forms: dict[str, list[str]] = {form(baseline_family(report)): []}
    for family in families:
        forms.setdefault(form(family), []).append(family)
    found = {}
    for name, arm in report["arms"].items():
        place = list(forms).index(form(arm["family"]))
        again, tone = divmod(place - 1, TONES - 1) if place else (0, -1)
        mark = (forms[form(arm["family"])].index(arm["family"]) + 3 * again) % SHAPES
        found[name] = Look(tone + 1, mark, families.index(arm["family"]), arm["k"])
    return found


def form(family: str) -> str:
    """A family without its coefficient: max_cos:0.25@anchored -> max_cos@anchored."""
    head, at, options = family.partition("@")
    return head.partition(":")[0] + at + options


def baseline_family(report: Mapping[str, Any]) -> str:
    """What the others are compared with, without its k."""
    baseline = report["baseline"]
    return report["arms"][baseline]["family"] if baseline in report["arms"] else baseline


def is_baseline(report: Mapping[str, Any], name: str) -> bool:
    """Whether an arm is of the baseline's family, of whatever k."""
    return report["arms"][name]["family"] == baseline_family(report)


def ordered(report: Mapping[str, Any]) -> list[str]:
    """The arms, the baseline's first, else as the report has them."""
    return sorted(report["arms"], key=lambda name: not is_baseline(report, name))


def headline(report: Mapping[str, Any]) -> list[str]:
    """The metrics that open the page: primary outcomes, then what they cost."""
    metrics = report["metrics"]
    primary = [key for key, metric in metrics.items() if metric["role"] == "primary"]
    return primary + [key for key in COSTS if key in metrics and key not in primary]


def mean(values: Iterable[float | int | None]) -> float | None:
    there = [value for value in values if value is not None]
    return statistics.fmean(there) if there else None


def several_l0(report: Mapping[str, Any]) -> bool:
    """Whether there is a curve over L0 to draw; a spread of a twentieth counts as one L0, as in the verdicts."""
    l0 = [value for arm in report["arms"].values() if (value := mean(arm["values"]["l0"])) is not None]
    return bool(l0) and max(l0) > 1.05 * min(l0)


# --- charts


def against_l0(report: Mapping[str, Any], key: str) -> Chart | None:
    """A metric against L0, a line along the k of a family, a thin upright one over the seeds of an arm."""
    dots, lines, ladders = [], [], {}
    for name, arm in report["arms"].items():
        there = [value for value in arm["values"][key] if value is not None]
        l0, middle = mean(arm["values"]["l0"]), mean(there)
        if l0 is None or middle is None or l0 <= 0:
            continue
        dots.append(Dot(l0, middle, name, f"{name}: {middle:.4g} at L0 {l0:.3g}, {len(there)} seeds"))
        lines.append(Line(((l0, min(there)), (l0, max(there))), name, "thin"))
        ladders.setdefault(arm["family"], []).append(dots[-1])
    if not dots:
        return None
    for rungs in ladders.values():
        rungs = sorted(rungs)
        lines += [Line(((a.x, a.y), (b.x, b.y)), b.arm) for a, b in itertools.pairwise(rungs)]
    if key == "fvu":
        front = sorted((dot.x, dot.y) for dot in dots if report["arms"][dot.arm].get("pareto"))
        lines += [Line(tuple(front), "", "dashed")] if len(front) > 1 else []
    ticks = [(l0, f"{l0:.3g}") for l0 in _apart(sorted(dot.x for dot in dots))]
    return Chart(report["metrics"][key]["label"], "L0", "", dots, lines, ticks, log_x=True)


def _apart(values: Sequence[float | int]) -> list[float | int]:
    """Those that leave room for their labels on a log axis, at most six."""
    kept: list[float | int] = []
    least = max(1.05, (values[-1] / values[0]) ** (1 / 7))
    for value in values:
        if not kept or value >= kept[-1] * least:
            kept.append(value)
    return kept


def by_seed(report: Mapping[str, Any], key: str) -> Chart | None:
    """A dot per arm and seed, the seeds joined from arm to arm."""
    names = ordered(report)
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


def forest(report: Mapping[str, Any], key: str) -> Chart | None:
    """Differences from the baseline with intervals; full marks have a verdict, the band is what would go unseen."""
    found = [d for d in report["differences"] if d["metric"] == key and d["mean"] is not None]
    dots, lines = [], []
    for row, d in enumerate(found):
        interval = "" if d["low"] is None else f" [{d['low']:+.4g}, {d['high']:+.4g}]"
        told = f"{d['arm']} - {d['baseline']}: {d['mean']:+.4g}{interval}, {d['verdict']}"
        dots.append(Dot(d["mean"], -row, d["arm"], told, d["verdict"] not in ("lower", "higher")))
        if d["detectable"] is not None:
            lines.append(Line(((-d["detectable"], -row), (d["detectable"], -row)), "", "band"))
        if d["low"] is not None:
            lines.append(Line(((d["low"], -row), (d["high"], -row)), d["arm"]))
    rows = [d["arm"] for d in found]
    return (
        Chart(report["metrics"][key]["label"], "difference from the baseline", "", dots, lines, rows=rows, zero="x")
        if found
        else None
    )


def along_coefficient(report: Mapping[str, Any], key: str) -> Chart | None:
    """The difference from the baseline against the coefficient, for penalties that were given two or more."""
    curves: dict[tuple[Any, ...], list[dict[str, Any]]] = {}
    for d in report["differences"]:
        arm = report["arms"][d["arm"]]
        if d["metric"] == key and d["mean"] is not None and arm["coefficient"] > 0:
            curves.setdefault((form(arm["family"]), arm["arch"], arm["k"]), []).append(d)
    dots, lines = [], []
    for ladder in curves.values():
        at = {d["arm"]: report["arms"][d["arm"]]["coefficient"] for d in ladder}
        if len(set(at.values())) < 2:
            continue
        ladder.sort(key=lambda d: at[d["arm"]])
        lines += [
            Line(((at[a["arm"]], a["mean"]), (at[b["arm"]], b["mean"])), b["arm"])
            for a, b in itertools.pairwise(ladder)
        ]
        for d in ladder:
            x, told = at[d["arm"]], f"{d['arm']}: {d['mean']:+.4g}, {d['verdict']}"
            dots.append(Dot(x, d["mean"], d["arm"], told, d["verdict"] not in ("lower", "higher")))
            if d["low"] is not None:
                lines.append(Line(((x, d["low"]), (x, d["high"])), d["arm"], "thin"))
    if not dots:
        return None
    ticks = [(x, f"{x:g}") for x in _apart(sorted(dot.x for dot in dots))]
    label = report["metrics"][key]["label"]
    return Chart(label, "coefficient", "difference", dots, lines, ticks, log_x=True, zero="y")


def nearest_cosines(report: Mapping[str, Any], names: Sequence[str], title: str) -> Chart | None:
    """Histograms of the cosine to the nearest other decoder row, over that of random directions."""
    shares, edges = report["nearest_cos"]["arms"], report["nearest_cos"]["edges"]
    drawn = {name: shares[name] for name in names if shares.get(name)}
    if not drawn:
        return None
    null = report["nearest_cos"]["null"] or []
    # the range of all arms, so that charts beside each other can be compared
    seen = [bin for of in (*shares.values(), null) for bin, share in enumerate(of) if share and share > 5e-4]
    first, last = min(seen, default=0), max(seen, default=len(edges) - 2) + 1

    def steps(of: Sequence[float | int | None]) -> tuple[tuple[float, float], ...]:
        inside = [(float(edges[bin + side]), float(of[bin] or 0)) for bin in range(first, last) for side in (0, 1)]
        return ((float(edges[first]), 0.0), *inside, (float(edges[last]), 0.0))

    lines = [Line(steps(null), "", "area")] if null else []
    lines += [Line(steps(of), name, "step") for name, of in drawn.items()]
    return Chart(title, "cosine to the nearest other row", "share of latents", (), lines)


def nearest_panels(report: Mapping[str, Any]) -> dict[int | None, list[Chart]]:
    """Per k one chart for each penalty, beside the baseline's arm of that k."""
    panels: dict[int | None, list[Chart]] = {}
    ks = list(dict.fromkeys(arm["k"] for arm in report["arms"].values())) if report["nearest_cos"] else []
    for k in ks:
        here = [name for name in ordered(report) if report["arms"][name]["k"] == k]
        base = [name for name in here if is_baseline(report, name)]
        forms = dict.fromkeys(form(report["arms"][name]["family"]) for name in here if name not in base)
        for kind in forms or {report["baseline"]: None}:
            mine = [n for n in here if n not in base and form(report["arms"][n]["family"]) == kind]
            chart = nearest_cosines(report, base + mine, f"{kind}, k = {k}" if len(ks) > 1 else kind)
            panels.setdefault(k, []).extend([chart] if chart else [])
    return {k: charts for k, charts in panels.items() if charts}
