"""Make the report's page: one HTML file with tables, plots and an explorer. Formats, never measures.

Only means and spreads over seeds are taken here; differences, intervals and verdicts are the report's. The page is one
file that loads nothing: jinja2 escapes its text, its script is the package's own and named by its hash in the page's
policy, and data for the script lie in a block that no text can end.
"""

import base64
import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm.pages import charts
from sae_lm.pages.charts import Chart, Look, headline, is_baseline, mean, order_arms
from sae_lm.pages.explorer_data import explorer_json
from sae_lm.pages.frontier import frontier_charts, frontier_metrics, frontier_points
from sae_lm.pages.genealogy import KINDS, bars, trees, widths
from sae_lm.pages.grades import grades
from sae_lm.pages.schema import Report
from sae_lm.pages.summary import KINDS as CONCEPT_KINDS
from sae_lm.pages.summary import ROLES, differences_by_arm, further_metrics, skipped_reasons, summary_rows
from sae_lm.pages.svg import TONE_COLOURS, svg, swatch
from sae_lm.pages.templates import asset, encode_page, fill
from sae_lm.pages.text import visible
from sae_lm.runtime.files import write_whole
from sae_lm.settings import CompareSettings, command_line

REST = {"quality": "Quality", "check": "Whether the penalty did what it says", "context": "Context"}
BESIDE_HOLES = (
    "hole_rate", "main_false_alarms", "main_precision", "main_firing_rate",
    "hole_rate_at_precision", "equal_precision", "equal_false_alarms",
)  # fmt: skip
"""Metrics that holes are to be read by; a table of their own."""
PAGE_BYTES = 4_800_000
"""Of the page, at most; what does not fit are events of the explorer."""
TABLE_ROWS = 1500
"""Rows of a table on the page, at most."""


def write_html(report: Report, path: Path, latents: str | None = None) -> None:
    """The report as one HTML file of at most 5 MB; where events of the explorer had to go, the page says so.

    latents: a page of latents that lies beside it, to be linked to.
    """
    arms, styles, metrics = order_arms(report), charts.looks(report), report["metrics"]
    keys, primary = headline(report), [key for key in metrics if metrics[key]["role"] == "primary"]
    ks = sorted({arm["k"] for arm in report["arms"].values()}, key=lambda k: (k is None, k))
    several = charts.several_l0(report)
    script = asset("report.js")
    drawn = _plots(report, keys, styles)
    absent = {key for key, plots in drawn.items() if not plots and key != "curves"}
    page = fill(
        "report.html.jinja",
        report=report,
        latents=latents,
        arms=arms,
        baselines=[name for name in arms if is_baseline(report, name)],
        ks=ks,
        several_l0=several,
        swatches={name: swatch(look) for name, look in styles.items()},
        legend=_legend(report, styles),
        summary=summary_rows(report),
        sections=[
            (name, title)
            for name, title in _sections(several, bool(report["grades"]))
            if _DRAWN.get(name, name) not in absent
        ],
        groups={
            "headline": keys,
            "rest": _further_tables(report),
        },
        differences=differences_by_arm(report),
        points=frontier_points(report),
        of_points=frontier_metrics(report),
        primary=primary,
        statistics=_statistics(report, keys + primary),
        other_concepts={(entry["arm"], entry["metric"]): entry for entry in report["other_concepts"]},
        per_concept=_per_concept(report),
        sweep=_sweep(report),
        grades=grades(report),
        concept_kinds=_concept_kinds(report),
        skipped=skipped_reasons(report),
        kinds=(*KINDS, "lost"),
        bars=bars,
        trees=trees(report),
        widths=widths(report),
        command=visible(command_line(CompareSettings(**report["settings"]))),
        tones=TONE_COLOURS,
        style=asset("report.css"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **drawn,
    )
    # texts are escaped, so that the mark is not among them
    before, mark, after = page.partition('<script type="application/json" id="data">')
    room = PAGE_BYTES - len(encode_page(page))
    content = encode_page(before + mark + explorer_json(report, room) + after)
    write_whole(path, lambda temporary: temporary.write_bytes(content) and None)


_DRAWN = {"differences": "forests", "geometry": "nearest"}
"""Section -> its plots, where they are called otherwise."""


def _sections(several_l0: bool, controls: bool) -> list[tuple[str, str]]:
    first = [("outcomes", "Outcomes"), ("curves", "Against L0" if several_l0 else "Seeds")]
    middle = [("frontier", "Frontier"), ("coefficients", "Coefficients"), ("differences", "Differences")]
    middle += [("geometry", "Geometry")]
    middle += [("splitting", "Splitting"), ("absorption", "Absorption"), ("statistics", "Statistics")]
    middle += [("controls", "Controls")] * controls
    return [*first, *middle, ("concepts", "Concepts"), ("method", "Method")]


# --- of the page


def _plots(report: Report, keys: Sequence[str], styles: Mapping[str, Look]) -> dict[str, Any]:
    """What is drawn -> its plots; of the cosines one list for each k."""

    def captioned(panels: Sequence[Chart | None]) -> list[tuple[str, str, str]]:
        return [(chart.title, "", svg(chart, styles, _alt(chart))) for chart in panels if chart is not None]

    curves = (
        _drawn(report, charts.ladder_metrics(report), charts.against_l0, styles)
        if charts.several_l0(report)
        else _drawn(report, keys, charts.by_seed, styles)
    )
    return {
        "curves": curves,
        "frontier": captioned(frontier_charts(report)),
        "coefficients": _drawn(report, keys, charts.along_coefficient, styles),
        "forests": _drawn(report, keys, charts.forest, styles),
        "nearest": {k: captioned(panel) for k, panel in charts.nearest_panels(report).items()},
    }


def _drawn(report: Report, keys: Sequence[str], chart_of: Any, styles: Mapping[str, Look]) -> list[Any]:
    """Of each metric that there is something to draw of: label, which way is better, plot."""
    drawn = [(key, chart_of(report, key)) for key in keys]
    return [
        (chart.title, f"{better} is better" if better else "", svg(chart, styles, _alt(chart)))
        for key, chart in drawn
        if chart is not None
        for better in [report["metrics"][key]["better"]]
    ]


def _alt(chart: Chart) -> str:
    axes = f", {chart.y_label or 'value'} against {chart.x_label}" if chart.x_label else ""
    return f"Plot of {visible(chart.title)}{axes}. Its numbers stand in the tables."


def _legend(report: Report, styles: Mapping[str, Look]) -> list[tuple[str, Look, str]]:
    """One entry per family: name, look, mark."""
    families = {report["arms"][name]["family"]: styles[name] for name in order_arms(report)}
    return [(family, look, swatch(look)) for family, look in families.items()]


def _statistics(report: Report, first: Sequence[str]) -> dict[str, Any]:
    """Rows of the table of differences, those of the metrics ``first`` before the others."""
    metrics = [key for key in report["metrics"] if key in first] + [k for k in report["metrics"] if k not in first]
    rows = [d for d in report["differences"] if d["metric"] in metrics]
    rows.sort(key=lambda d: metrics.index(d["metric"]))
    return {
        "rows": rows[:TABLE_ROWS],
        "left_out": len(rows[TABLE_ROWS:]),
        "roles": sorted({report["metrics"][d["metric"]]["role"] for d in rows}, key=ROLES.index),
        "verdicts": sorted({d["verdict"] for d in rows}),
    }


def _further_tables(report: Report) -> dict[str, list[str]]:
    """Title -> metrics of the tables that are folded: what holes are read by, then the rest by its role."""
    further = {role: further_metrics(report, role) for role in REST}
    beside = [key for key in BESIDE_HOLES if any(key in keys for keys in further.values())]
    tables = {"Holes as they are, and how often main latents fire": beside}
    tables |= {title: [key for key in further[role] if key not in beside] for role, title in REST.items()}
    return {title: keys for title, keys in tables.items() if keys}


def _concept_kinds(report: Report) -> list[dict[str, Any]]:
    """Differences by kind of concept, where there are two kinds or more."""
    entries = report["kinds"] if len({entry["kind"] for entry in report["kinds"]}) > 1 else []
    return [{**entry, "called": CONCEPT_KINDS.get(entry["kind"], entry["kind"])} for entry in entries]


def _per_concept(report: Report) -> dict[str, Any]:
    """One row per concept and arm, with a list of values under each key, one per seed."""
    keys = (
        "splits",
        "main_f1",
        "equal_hole_rate",
        "hole_rate",
        "false_alarms",
        "fraction",
        "full",
        "recovered",
        "candidates",
    )
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in sorted(report["per_concept"], key=lambda e: e["seed"]):
        name = entry["concept"], entry["arm"]
        row = rows.setdefault(name, {"concept": name[0], "arm": name[1], "which": [], **{key: [] for key in keys}})
        row["which"].append(" ".join(map(str, entry.get("latents", ()))))
        for key in keys:
            row[key].append(entry.get(key))
    concepts = list(dict.fromkeys(concept for concept, _ in rows))
    arms = order_arms(report)
    ordered = sorted(rows.values(), key=lambda r: (concepts.index(r["concept"]), (*arms, r["arm"]).index(r["arm"])))
    for row in ordered:
        row["latents"] = visible("; ".join(row["which"]), 90)
    return {"rows": ordered[:TABLE_ROWS], "left_out": len(ordered[TABLE_ROWS:]), "concepts": concepts}


def _sweep(report: Report) -> dict[str, Any]:
    """Per arm the fraction of raw activations under other gates, mean over concepts, at the seed that was swept."""
    by_arm: dict[str, dict[tuple[float, float], list[float | None]]] = {}
    for entry in report["per_concept"]:
        for gate in entry.get("sweep") or ():
            if gate["centred"]:
                continue
            fractions = by_arm.setdefault(entry["arm"], {})
            fractions.setdefault((gate["cos"], gate["share"]), []).append(gate["fraction"])
    gates = sorted({gate for fractions in by_arm.values() for gate in fractions})
    rows = {arm: [mean(fractions.get(gate, [])) for gate in gates] for arm, fractions in by_arm.items()}
    return {"gates": gates, "rows": rows}
