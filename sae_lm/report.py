"""report -> a table to read in a terminal, and a page with plots; formats, never measures.

Only means and spreads over seeds are taken here; differences, intervals and verdicts are the report's. The page is one
file that loads nothing: jinja2 escapes its text, its script is the package's own and named by its hash in the page's
policy, and data for the script lie in a block that no text can end.
"""

import base64
import hashlib
import re
import shlex
import statistics
import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm import charts
from sae_lm.charts import Chart, Look, headline, is_baseline, mean, ordered
from sae_lm.events import embedded
from sae_lm.figures import TONES, svg, swatch, visible, write_figures
from sae_lm.files import write_whole
from sae_lm.origins import KINDS, bars, trees, widths
from sae_lm.settings import CompareSettings

__all__ = ["number", "render", "signed", "spread", "text_table", "visible", "write_figures", "write_html"]

WIDTH = 120
MARKS = {"lower": "▼", "higher": "▲", "not distinguishable": "≈", "L0 not matched": "≠"}
SHORT = {"not distinguishable": "n.d.", "L0 not matched": "L0 differs"}
"""Verdicts as the terminal's columns have room for, brackets left out."""
ROLES = ("primary", "quality", "check", "context")
REST = {"quality": "Quality", "check": "Whether the penalty did what it says", "context": "Context"}
PAGE_BYTES = 4_800_000
"""Of the page, at most; what does not fit are events of the explorer."""
TABLE_ROWS, TERMINAL_FINDINGS = 1500, 12
"""Rows of a table on the page, findings in the terminal, at most."""


def text_table(report: Mapping[str, Any]) -> str:
    """The report as plain text of at most 120 columns, unless a single column is wider."""
    arms, metrics, told = ordered(report), report["metrics"], report["findings"]
    lines = [*_wrap("; ".join(f"{term} {fact}" for term, fact in _facts(report))), "", *_wrap(report["answer"])]
    lines += [""] * bool(report["partial"]) + [line for said in report["partial"] for line in _wrap(f"partial: {said}")]
    lines += ["", *(line for finding in told[:TERMINAL_FINDINGS] for line in _wrap(finding))]
    if len(told) > TERMINAL_FINDINGS:
        lines += [f"... and {len(told) - TERMINAL_FINDINGS} more in the report's findings"]
    keys = headline(report)
    keys += [key for role in ROLES[:3] for key in _further(report, role)]
    columns = [
        [
            metrics[key]["label"],
            *(spread(report["arms"][arm]["values"][key]) for arm in arms),
            *(number(of.get(key)) for of in report["controls"].values()),
        ]
        for key in keys
    ]
    title = f"mean{' ± sd' * (len(report['seeds']) > 1)} over {_seeds(report)}"
    lines += ["", *_columns([title, *arms, *(f"{name} (control)" for name in report["controls"])], columns)]
    differences = _differences(report)
    if differences:
        columns = [
            [metrics[key]["label"], *(_difference_text(of.get(key)) for of in differences.values())]
            for key in headline(report)
        ]
        lines += ["", *_columns(["paired difference [95%]", *differences], columns)]
        heads = {difference["verdict"].partition(" (")[0] for difference in report["differences"]}
        lines += [f"{short}: {verdict}" for verdict, short in SHORT.items() if verdict in heads]
    used = [concept for concept in report["concepts"] if concept["skipped"] is None]
    names = ", ".join(f"{c['name']} ({number(c['probe_f1'], 2)}, {c['types']})" for c in used) or "none"
    lines += ["", *_wrap(f"concepts used (probe F1, token types), {len(used)} of {len(report['concepts'])}: {names}")]
    reasons = "; ".join(f"{count} ({reason})" for reason, count in _skipped(report).most_common())
    return "\n".join(lines + (_wrap(f"skipped: {reasons}") if reasons else []))


def write_html(report: Mapping[str, Any], path: Path) -> None:
    """The report as one HTML file of at most 5 MB; where events of the explorer had to go, the page says so."""
    arms, styles, metrics = ordered(report), charts.looks(report), report["metrics"]
    keys, primary = headline(report), [key for key in metrics if metrics[key]["role"] == "primary"]
    ks = sorted({arm["k"] for arm in report["arms"].values()}, key=lambda k: (k is None, k))
    several = charts.several_l0(report)
    script = _part("report.js")
    drawn = {
        "curves": _drawn(report, keys, charts.against_l0 if several else charts.by_seed, styles),
        "coefficients": _drawn(report, keys, charts.along_coefficient, styles),
        "forests": _drawn(report, keys, charts.forest, styles),
        "nearest": {
            k: [(of.title, "", svg(of, styles, _alt(of))) for of in found]
            for k, found in charts.nearest_panels(report).items()
        },
    }
    absent = {key for key, of in drawn.items() if not of and key != "curves"}
    page = fill(
        "report.html.jinja",
        report=report,
        arms=arms,
        baselines=[name for name in arms if is_baseline(report, name)],
        ks=ks,
        several_l0=several,
        swatches={name: swatch(look) for name, look in styles.items()},
        legend=_legend(report, styles),
        facts=_facts(report),
        sections=[(name, title) for name, title in _sections(several) if _OF.get(name, name) not in absent],
        groups={
            "headline": keys,
            "rest": {title: of for role, title in REST.items() if (of := _further(report, role))},
        },
        differences=_differences(report),
        statistics=_statistics(report, keys + primary),
        per_concept=_per_concept(report),
        sweep=_sweep(report),
        skipped=_skipped(report),
        kinds=(*KINDS, "lost"),
        bars=bars,
        trees=trees(report),
        widths=widths(report),
        command=_command(report["settings"]),
        tones=TONES,
        style=_part("report.css"),
        script=script,
        script_hash="sha256-" + base64.b64encode(hashlib.sha256(script.encode()).digest()).decode(),
        **drawn,
    )
    # texts are escaped, so that the mark is not among them
    before, mark, after = page.partition('<script type="application/json" id="data">')
    room = PAGE_BYTES - len(_encoded(page))
    write_whole(path, lambda part: part.write_bytes(_encoded(before + mark + embedded(report, room) + after)) and None)


_OF = {"differences": "forests", "geometry": "nearest"}


def _sections(several_l0: bool) -> list[tuple[str, str]]:
    first = [("outcomes", "Outcomes"), ("curves", "Against L0" if several_l0 else "Seeds")]
    middle = [("coefficients", "Coefficients"), ("differences", "Differences"), ("geometry", "Geometry")]
    middle += [("splitting", "Splitting"), ("absorption", "Absorption"), ("statistics", "Statistics")]
    return [*first, *middle, ("concepts", "Concepts"), ("method", "Method")]


def render(template: str, path: Path, **values: Any) -> None:
    """Fill a template that lies beside this file, everything escaped, and write the page whole."""
    page = _encoded(fill(template, **values))
    write_whole(path, lambda part: part.write_bytes(page) and None)


def fill(template: str, **values: Any) -> str:
    """A template that lies beside this file, filled, everything escaped."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "spread": spread, "visible": visible}
    environment.filters |= {"mean": mean, "chance": chance}
    environment.globals["marks"] = MARKS
    return environment.get_template(template).render(**values)


def number(value: float | int | None, digits: int | None = None) -> str:
    """Four digits or so, '-' for a missing number."""
    if value is None:
        return "-"
    if digits is None:
        digits = 4 if abs(value) < 1 else 3 if abs(value) < 10 else 2 if abs(value) < 100 else 1
    return f"{value:,.{digits}f}"


def signed(value: float | int | None) -> str:
    return "-" if value is None else ("+" if value >= 0 else "") + number(value)


def spread(values: Iterable[float | int | None]) -> str:
    """Mean over seeds, ± standard deviation where there are two or more; missing numbers are left out."""
    there = [value for value in values if value is not None]
    middle = number(statistics.fmean(there)) if there else "-"
    return f"{middle} ± {number(statistics.stdev(there), len(middle.partition('.')[2]))}" if len(there) > 1 else middle


def chance(p: float | int | None) -> str:
    """A p value: three digits, never 0."""
    return "-" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


# --- of both


def _facts(report: Mapping[str, Any]) -> list[tuple[str, str]]:
    """What was compared, as terms and values."""
    training, store = report["training"], report["store"]
    ks = sorted({str(arm["k"]) for arm in report["arms"].values() if arm["k"] is not None}, key=int)
    used = sum(concept["skipped"] is None for concept in report["concepts"])
    facts = [
        ("model", store["recipe"]["model"]["id"]),
        ("hook", training["hook"]),
        ("latents", f"{training['d_sae']:,}"),
        ("k", "/".join(ks) or "free"),
        ("arms", str(len(report["arms"]))),
        ("seeds", str(len(report["seeds"]))),
        ("rows trained on", f"{training['tokens']:,}"),
        ("rows held out", f"{store['held_out_rows']:,}"),
        ("concepts", f"{used} of {len(report['concepts'])}"),
        ("baseline", report["baseline"]),
    ]
    return [(term, visible(fact)) for term, fact in facts]


def _seeds(report: Mapping[str, Any]) -> str:
    return f"{len(report['seeds'])} seed{'s' * (len(report['seeds']) != 1)}"


def _differences(report: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm -> metric -> its difference from the baseline, in the order of the arms."""
    found: dict[str, dict[str, Any]] = {}
    for difference in sorted(report["differences"], key=lambda d: ordered(report).index(d["arm"])):
        found.setdefault(difference["arm"], {})[difference["metric"]] = difference
    return found


def _skipped(report: Mapping[str, Any]) -> Counter[str]:
    """How many concepts were skipped for each kind of reason (its first number left out)."""
    reasons = [concept["skipped"] for concept in report["concepts"] if concept["skipped"] is not None]
    return Counter(re.sub(r"\s?\b\d[\d.,]*(?=\s)", "", reason, count=1).strip() for reason in reasons)


def _further(report: Mapping[str, Any], role: str) -> list[str]:
    """The metrics of a role that do not open the page and have a value (some are taken only where asked for)."""
    values, opening = [arm["values"] for arm in report["arms"].values()], headline(report)
    return [
        key
        for key, metric in report["metrics"].items()
        if metric["role"] == role and key not in opening and any(mean(of[key]) is not None for of in values)
    ]


# --- of the terminal


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(visible(text), WIDTH, subsequent_indent="    ")


def _difference_text(d: Mapping[str, Any] | None) -> str:
    if d is None or d["mean"] is None:
        return "-"
    interval = "" if d["low"] is None else f" [{signed(d['low'])}, {signed(d['high'])}]"
    head = d["verdict"].partition(" (")[0]
    return f"{signed(d['mean'])}{interval} {SHORT.get(head, head)}"


def _columns(labels: list[str], columns: list[list[str]]) -> list[str]:
    """Aligned columns, their heads in as many lines as they need, the labels repeated in front of each block that
    fits the width."""
    labels = [visible(label) for label in labels]
    cells = [[visible(cell) for cell in column] for column in columns]
    body = [max([len(cell) for cell in column[1:]], default=1) for column in cells]
    heads = [textwrap.wrap(column[0], max(14, width)) or [""] for column, width in zip(cells, body, strict=True)]
    widths = [max(width, *map(len, head)) for width, head in zip(body, heads, strict=True)]
    margin = max(map(len, labels))
    lines, first = [], 0
    while first < len(cells):
        last, total = first, margin
        while last < len(cells) and (last == first or total + 2 + widths[last] <= WIDTH):
            total += 2 + widths[last]
            last += 1
        block, deep = range(first, last), max(len(heads[column]) for column in range(first, last))
        for line in range(-deep, 0):
            head = [(heads[c][line] if -line <= len(heads[c]) else "").rjust(widths[c]) for c in block]
            lines.append("  ".join([(labels[0] if line == -1 else "").ljust(margin), *head]).rstrip())
        lines.append("-" * total)
        for row, label in enumerate(labels[1:], 1):
            lines.append("  ".join([label.ljust(margin), *(cells[c][row].rjust(widths[c]) for c in block)]).rstrip())
        lines += [""] * (last < len(cells))
        first = last
    return lines


# --- of the page


def _part(name: str) -> str:
    return (Path(__file__).parent / name).read_text(encoding="utf-8")


def _encoded(page: str) -> bytes:
    return page.encode("utf-8", "backslashreplace")


def _drawn(report: Mapping[str, Any], keys: Sequence[str], chart_of: Any, styles: Mapping[str, Look]) -> list[Any]:
    """Of each metric that there is something to draw of: label, which way is better, plot."""
    found = [(key, chart_of(report, key)) for key in keys]
    return [
        (chart.title, f"{better} is better" if better else "", svg(chart, styles, _alt(chart)))
        for key, chart in found
        if chart is not None
        for better in [report["metrics"][key]["better"]]
    ]


def _alt(chart: Chart) -> str:
    axes = f", {chart.y_label or 'value'} against {chart.x_label}" if chart.x_label else ""
    return f"Plot of {visible(chart.title)}{axes}. Its numbers stand in the tables."


def _legend(report: Mapping[str, Any], styles: Mapping[str, Look]) -> list[tuple[str, Look, str]]:
    """One entry per family: name, look, mark."""
    families = {report["arms"][name]["family"]: styles[name] for name in ordered(report)}
    return [(family, look, swatch(look)) for family, look in families.items()]


def _statistics(report: Mapping[str, Any], first: Sequence[str]) -> dict[str, Any]:
    """Rows of the table of differences, those of the metrics ``first`` before the others."""
    metrics = [key for key in report["metrics"] if key in first] + [k for k in report["metrics"] if k not in first]
    found = [d for d in report["differences"] if d["metric"] in metrics]
    found.sort(key=lambda d: metrics.index(d["metric"]))
    return {
        "rows": found[:TABLE_ROWS],
        "left_out": len(found[TABLE_ROWS:]),
        "roles": sorted({report["metrics"][d["metric"]]["role"] for d in found}, key=ROLES.index),
        "verdicts": sorted({d["verdict"].partition(" (")[0] for d in found}),
    }


def _per_concept(report: Mapping[str, Any]) -> dict[str, Any]:
    """One row per concept and arm, with a list of values under each key, one per seed."""
    keys = ("splits", "main_f1", "hole_rate", "fraction", "full", "recovered", "candidates")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in sorted(report["per_concept"], key=lambda e: e["seed"]):
        name = entry["concept"], entry["arm"]
        row = rows.setdefault(name, {"concept": name[0], "arm": name[1], "which": [], **{key: [] for key in keys}})
        row["which"].append(" ".join(map(str, entry.get("latents", ()))))
        for key in keys:
            row[key].append(entry.get(key))
    concepts = list(dict.fromkeys(concept for concept, _ in rows))
    arms = ordered(report)
    found = sorted(rows.values(), key=lambda r: (concepts.index(r["concept"]), (*arms, r["arm"]).index(r["arm"])))
    for row in found:
        row["latents"] = visible("; ".join(row["which"]), 90)
    return {"rows": found[:TABLE_ROWS], "left_out": len(found[TABLE_ROWS:]), "concepts": concepts}


def _sweep(report: Mapping[str, Any]) -> dict[str, Any]:
    """Per arm the fraction under other gates, mean over concepts and seeds."""
    found: dict[str, dict[tuple[float, float], list[float | None]]] = {}
    for entry in report["per_concept"]:
        for gate in entry.get("sweep") or ():
            of = found.setdefault(entry["arm"], {})
            of.setdefault((gate["cos"], gate["share"]), []).append(gate["fraction"])
    gates = sorted({gate for of in found.values() for gate in of})
    return {"gates": gates, "rows": {arm: [mean(of.get(gate, [])) for gate in gates] for arm, of in found.items()}}


def _command(settings: Mapping[str, Any]) -> str:
    """The command that makes the report again: what differs from the defaults."""
    words = ["sae-lm", "compare", visible(settings["runs"])]
    for key, field in CompareSettings.model_fields.items():
        if key != "runs" and settings.get(key) is not None and settings[key] != field.default:
            flag, value = key.replace("_", "-"), settings[key]
            words += [f"--{'' if value else 'no-'}{flag}"] if isinstance(value, bool) else [f"--{flag}", visible(value)]
    return shlex.join(words)
