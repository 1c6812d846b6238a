"""report -> a table to read in a terminal, and a page with plots; formats, never measures.

Only means and spreads over seeds are taken here; differences, intervals and verdicts are the report's. The page
is one file without scripts that loads nothing; jinja2 escapes its text and matplotlib that of the plots.
"""

import html
import io
import re
import shlex
import statistics
import textwrap
import warnings
from collections import Counter
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from sae_lm.files import write_whole
from sae_lm.settings import CompareSettings

WIDTH = 120
PRIMARY = dict.fromkeys(("hole_rate", "absorption_fraction", "absorption_full", "splits", "fvu"), "less is better")
PRIMARY |= {"ce_recovered": "more is better"}
"""Primary outcomes, in the order of the page, and which way is better."""
MARKS = {"lower": "▼", "higher": "▲", "not distinguishable": "≈", "L0 not matched": "≠"}
SHORT = {"not distinguishable": "n.d.", "L0 not matched": "L0 differs"}
"""Verdicts as the terminal's columns have room for; "no claim (...)" loses its brackets."""
LOOKS = list(zip(("#3b7fc4", "#d9662b", "#2a9d74", "#b5679f", "#a8891a"), "os^Dv", "●■▲◆▼", strict=True))
"""Per arm: colour, matplotlib's marker, the same as a character; legible on white and on black; 25 pairs differ."""
GREY = "#858585"


def text_table(report: dict[str, Any]) -> str:
    """The report as plain text of at most 120 columns, unless a single column is wider."""
    training, store, seeds, metrics = report["training"], report["store"], len(report["seeds"]), report["metrics"]
    facts = (
        f"{store['recipe']['model']['id']}, {training['hook']}: d_sae {training['d_sae']:,}, k {training['k']}",
        f"each SAE saw {training['tokens']:,} rows drawn from {training['held_out_from_row']:,}; "
        f"{store['held_out_rows']:,} further rows are held out; {seeds} seed{'s' * (seeds != 1)} per arm",
    )
    lines = [*map(visible, facts), "", *(line for finding in report["findings"] for line in _wrap(finding))]
    columns = [[arm, *(spread(report["arms"][arm][key]) for key in metrics)] for arm in _arms(report)]
    columns.append(["random SAE", *(number(report["control"].get(key)) for key in metrics)])
    lines += ["", *_columns([f"mean{' ± sd' * (seeds > 1)} over seeds", *metrics.values()], columns)]
    columns = [
        [f"{arm} - {report['baseline']}", *(_difference_text(of.get(key)) for key in metrics)]
        for arm, of in _differences(report).items()
    ]
    if columns:
        lines += ["", *_columns(["paired difference [95% interval]", *metrics.values()], columns)]
        told = {difference["verdict"] for difference in report["differences"]}
        lines += [f"{short}: {verdict}" for verdict, short in SHORT.items() if verdict in told]
    used, skipped = _concepts(report)
    names = ", ".join(f"{c['name']} ({number(c['probe_f1'], 2)}, {c['types']})" for c in used) or "none"
    lines += ["", *_wrap(f"concepts used (probe F1, token types), {len(used)} of {len(report['concepts'])}: {names}")]
    reasons = "; ".join(f"{count} ({reason})" for reason, count in skipped.most_common())
    return "\n".join(lines + (_wrap(f"skipped: {reasons}") if skipped else []))


def write_html(report: dict[str, Any], path: Path) -> None:
    """The report as one HTML file."""
    arms = _arms(report)
    looks = {arm: (LOOKS[i % 5][0], *LOOKS[(i + i // 5) % 5][1:]) for i, arm in enumerate(arms)}
    primary, rest = [k for k in PRIMARY if k in report["metrics"]], [k for k in report["metrics"] if k not in PRIMARY]
    render(
        "report.html.jinja",
        path,
        report=report,
        others=arms[1:],
        groups={"Primary outcomes": primary, "Everything else": rest},
        better=PRIMARY,
        differences=_differences(report),
        looks=looks,
        paired={key: plot for key in primary if (plot := _paired_plot(report, key, looks))},
        by_concept={
            title: plot
            for key, title in (("hole_rate", "Hole rate"), ("fraction", "Absorption, fraction"))
            if (plot := _concept_plot(report, key, title, looks))
        },
        trade=_trade_plot(report, looks),
        per_concept=_per_concept(report),
        concepts=_concepts(report),
        command=_command(report["settings"]),
    )


def render(template: str, path: Path, **values: Any) -> None:
    """Fill a template that lies beside this file, everything escaped, and write the page whole."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"number": number, "signed": signed, "spread": spread, "visible": visible}
    environment.globals["marks"] = MARKS
    page = environment.get_template(template).render(**values)
    write_whole(path, lambda part: part.write_bytes(page.encode("utf-8", "backslashreplace")) and None)


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
    mean = number(statistics.fmean(there)) if there else "-"
    return f"{mean} ± {number(statistics.stdev(there), len(mean.partition('.')[2]))}" if len(there) > 1 else mean


def visible(text: object) -> str:
    """Text on one line in which every character shows: line breaks, controls and marks that reorder text too."""
    signs = {"\n": "↵", "\t": "⇥", "\u00a0": " ", "\u3000": " "}
    return "".join(signs.get(c) or (c if c.isprintable() else f"⟨{ord(c):04X}⟩") for c in str(text))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(visible(text), WIDTH, subsequent_indent="    ")


def _arms(report: dict[str, Any]) -> list[str]:
    """The arms, baseline first."""
    return sorted(report["arms"], key=lambda arm: arm != report["baseline"])


def _differences(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Arm -> metric -> its difference from the baseline."""
    found = report["differences"]
    return {arm: {d["metric"]: d for d in found if d["arm"] == arm} for arm in _arms(report)[1:]}


def _difference_text(d: dict[str, Any] | None) -> str:
    if d is None or d["mean"] is None:
        return "-"
    interval = "" if d["low"] is None else f"[{signed(d['low'])}, {signed(d['high'])}]"
    verdict = SHORT.get(d["verdict"], d["verdict"].partition(" (")[0])
    return f"{signed(d['mean']):>7} {interval:>18} {verdict:<10}"


def _columns(labels: list[str], columns: list[list[str]]) -> list[str]:
    """Aligned columns, the label column repeated in front of each block that fits the width."""
    shown = [[visible(cell) for cell in column] for column in [labels, *columns]]
    widths = [max(map(len, column)) for column in shown]
    lines, first = [], 1
    while first < len(shown):
        last, total = first, widths[0]
        while last < len(shown) and (last == first or total + 2 + widths[last] <= WIDTH):
            total += 2 + widths[last]
            last += 1
        for row in range(len(labels)):
            cells = [f"{shown[0][row]:<{widths[0]}}", *(f"{shown[c][row]:>{widths[c]}}" for c in range(first, last))]
            lines.append("  ".join(cells).rstrip())
            if row == 0:
                lines.append("-" * total)
        lines += [""] * (last < len(shown))
        first = last
    return lines


def _concepts(report: dict[str, Any]) -> tuple[list[dict[str, Any]], Counter[str]]:
    """The concepts used, and how many were skipped for each kind of reason (its first number left out)."""
    skipped = [c["skipped"] for c in report["concepts"] if c["skipped"]]
    kinds = Counter(re.sub(r"\s?\b[\d.,]+(?=\s)", "", reason, count=1).strip() for reason in skipped)
    return [c for c in report["concepts"] if not c["skipped"]], kinds


def _per_concept(report: dict[str, Any]) -> list[dict[str, Any]]:
    """One row per concept and arm: under each key a list of values, one per seed."""
    keys = ("splits", "main_f1", "hole_rate", "fraction", "full", "recovered", "candidates", "types", "latents")
    rows: dict[tuple[str, str], dict[str, Any]] = {}
    for entry in sorted(report["per_concept"], key=lambda e: e["seed"]):
        name = entry["concept"], entry["arm"]
        row = rows.setdefault(name, {"concept": name[0], "arm": name[1], **{key: [] for key in keys}})
        for key in keys:
            row[key].append(entry.get(key))
    concepts, arms = [c["name"] for c in report["concepts"]], [*_arms(report), "random"]
    return sorted(rows.values(), key=lambda row: (concepts.index(row["concept"]), arms.index(row["arm"])))


def _command(settings: dict[str, Any]) -> str:
    """The command that makes the report again: what differs from the defaults."""
    words = ["sae-lm", "compare", str(settings["runs"])]
    for key, field in CompareSettings.model_fields.items():
        if key != "runs" and settings.get(key) is not None and settings[key] != field.default:
            words += ["--" + key.replace("_", "-"), str(settings[key])]
    return shlex.join(words)


def _svg(height: float, alt: str, draw: Callable[[Any], None]) -> str:
    """Call ``draw(axes)``; the drawing as SVG that stands inside the page, as wide as a phone, named ``alt``."""
    import matplotlib
    from matplotlib.backends.backend_svg import FigureCanvasSVG
    from matplotlib.figure import Figure

    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sae_lm", "text.parse_math": False, "font.size": 8}
    style |= {"axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": GREY}
    style |= dict.fromkeys(("figure.facecolor", "axes.facecolor"), "none")  # the page's colour, light or dark
    with matplotlib.rc_context(style), warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # characters that the layout's font lacks: the reader's has them
        figure = Figure(figsize=(3.5, height), layout="constrained")
        axes = figure.subplots()
        axes.tick_params(color=GREY, length=3)
        axes.grid(axis="x", color=GREY, alpha=0.25, linewidth=0.6)
        draw(axes)
        out = io.StringIO()
        FigureCanvasSVG(figure).print_svg(out, metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = re.sub(r'<g id="[^"]*">', "<g>", out.getvalue().partition("<svg")[2])  # ids would repeat from plot to plot
    return f'<svg role="img" aria-label="{html.escape(visible(alt))}"' + svg


def _numbers(values: Iterable[float | int | None]) -> str:
    return ", ".join(number(value, 3) for value in values)


def _there(points: Iterable[tuple[float | int | None, float | int | None]]) -> Any:
    """x and y of the points that have both, for ``axes.plot(*...)``."""
    kept = [point for point in points if None not in point]
    return [x for x, _ in kept], [y for _, y in kept]


def _paired_plot(report: dict[str, Any], key: str, looks: dict[str, Any]) -> str | None:
    """One dot per arm and seed, a line through the dots of each seed."""
    values = {arm: report["arms"][arm][key] for arm in looks}
    if all(value is None for of in values.values() for value in of):
        return None

    def draw(axes: Any) -> None:
        for of_seed in zip(*values.values(), strict=True):
            axes.plot(*_there(zip(of_seed, range(len(values)), strict=True)), color=GREY, linewidth=0.8)
        for place, (arm, of) in enumerate(values.items()):
            axes.plot(*_there((value, place) for value in of), looks[arm][1], color=looks[arm][0], markersize=5)
        axes.set_yticks(range(len(values)), [f"{visible(arm):.22}" for arm in values])
        axes.set_ylim(len(values) - 0.5, -0.5)
        axes.margins(x=0.1)
        axes.locator_params(axis="x", nbins=5)

    told = "; ".join(f"{arm}: {_numbers(of)}" for arm, of in values.items())
    return _svg(0.65 + 0.3 * len(values), f"{report['metrics'][key]} per seed. {told}", draw)


def _concept_plot(report: dict[str, Any], key: str, title: str, looks: dict[str, Any]) -> str | None:
    """A band per concept, the arms under each other in it: dots are seeds, the tick is their mean."""
    rows = [row for row in _per_concept(report) if any(value is not None for value in row[key])]
    names, arms = (list(dict.fromkeys(row[of] for row in rows)) for of in ("concept", "arm"))
    if not rows:
        return None

    def draw(axes: Any) -> None:
        for row in rows:
            colour, marker, _ = looks.get(row["arm"], (GREY, "x", ""))
            place = names.index(row["concept"]) + 0.7 * ((arms.index(row["arm"]) + 0.5) / len(arms) - 0.5)
            x, y = _there((value, place) for value in row[key])
            axes.plot(x, y, marker, color=colour, markersize=3.5)
            axes.plot(statistics.fmean(x), place, "|", color=colour, markersize=9)
        for edge in range(1, len(names)):
            axes.axhline(edge - 0.5, color=GREY, alpha=0.25, linewidth=0.6)
        axes.set_yticks(range(len(names)), [f"{visible(name):.22}" for name in names])
        axes.set_ylim(len(names) - 0.5, -0.5)
        axes.set_xlim(left=0)

    told = "; ".join(f"{row['concept']}, {row['arm']}: {_numbers(row[key])}" for row in rows)
    return _svg(0.5 + len(names) * (0.1 + 0.11 * len(arms)), f"{title} per concept and seed. {told}", draw)


def _trade_plot(report: dict[str, Any], looks: dict[str, Any]) -> str | None:
    """Each run's FVU against how near its decoder rows lie; a line where as many random directions lie."""
    points = {a: _there(zip(report["arms"][a]["nearest_cos"], report["arms"][a]["fvu"], strict=True)) for a in looks}
    nulls = [value for arm in looks for value in report["arms"][arm]["nearest_cos_null"] if value is not None]
    if not any(x for x, _ in points.values()):
        return None

    def draw(axes: Any) -> None:
        for arm, runs in points.items():
            axes.plot(*runs, looks[arm][1], color=looks[arm][0], markersize=5.5)
        if nulls:
            middle = statistics.fmean(nulls)
            axes.axvspan(min(nulls), max(nulls), color=GREY, alpha=0.15, linewidth=0)
            axes.axvline(middle, color=GREY, linestyle="--", linewidth=1)
            axes.annotate("random", (middle, 1), xycoords=("data", "axes fraction"), ha="center", va="bottom")
        axes.grid(axis="y", color=GREY, alpha=0.25, linewidth=0.6)
        axes.set(xlabel="cosine to the nearest other decoder row", ylabel="fraction of variance unexplained")
        axes.margins(0.12)

    told = "; ".join(f"{arm}: FVU {_numbers(y)} at cosine {_numbers(x)}" for arm, (x, y) in points.items())
    return _svg(2.8, f"Variance unexplained against nearest-neighbour cosine. {told}; random: {_numbers(nulls)}", draw)
