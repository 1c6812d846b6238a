"""charts -> pictures: small SVG that follows the page's colours, PNG and SVG for a paper by matplotlib."""

import html
import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_lm.charts import (
    Chart,
    Line,
    Look,
    against_l0,
    along_coefficient,
    by_seed,
    forest,
    headline,
    looks,
    nearest_panels,
    several_l0,
)
from sae_lm.files import write_whole

TONES = (
    ("#1b1f24", "#eceff3"),
    ("#0b62b8", "#79b8f3"),
    ("#b84a00", "#f3a163"),
    ("#0a7550", "#5fcaa0"),
    ("#8a36a0", "#d59ae2"),
    ("#7d6200", "#d9ba54"),
    ("#00717e", "#5ccbd6"),
    ("#b8254a", "#f58fa3"),
    ("#4a4fb0", "#a5a9f5"),
)
"""Colours on white and on black; as text on the page each has a contrast of 4.5 or more."""
SHAPES = (
    ("o", "m-3.6 0a3.6 3.6 0 1 0 7.2 0a3.6 3.6 0 1 0-7.2 0z"),
    ("s", "m-3.2-3.2h6.4v6.4h-6.4z"),
    ("^", "m0-4.2l4 7h-8z"),
    ("D", "m0-4.4l4.4 4.4l-4.4 4.4l-4.4-4.4z"),
    ("v", "m0 4.2l4-7h-8z"),
    ("P", "m-1.3-4h2.6v2.7h2.7v2.6h-2.7v2.7h-2.6v-2.7h-2.7v-2.6h2.7z"),
)
"""Marks: matplotlib's name, SVG's path from its middle on."""
DASHES = ((), (5, 2), (2, 2), (7, 2, 2, 2), (1, 2), (9, 3))
"""Of a step line, by mark: lengths on and off."""
WIDTH, LETTER = 360, 6.9
"""Of a plot on the page, and of a letter in it, in its pixels."""
GREY = "#808080"
SUFFIXES = ("png", "svg")
FIGURES: dict[str, Callable[[Mapping[str, Any]], list[Chart | None]]] = {
    "fvu_l0": lambda report: [against_l0(report, key) for key in headline(report) if several_l0(report)],
    "seeds": lambda report: [by_seed(report, key) for key in headline(report) if not several_l0(report)],
    "differences": lambda report: [forest(report, key) for key in headline(report)],
    "coefficients": lambda report: [along_coefficient(report, key) for key in headline(report)],
    "nearest_cos": lambda report: [chart for of in nearest_panels(report).values() for chart in of],
}
"""File name for a paper -> its charts."""


class Panel(NamedTuple):
    """Where a chart's values lie: limits with margins, ticks with their labels."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


# --- painting


def panel(chart: Chart) -> Panel:
    """Limits with margins and ticks. A chart on a log axis has x above 0."""
    solid = [line for line in chart.lines if line.style != "band"]
    xs = [p[0] for line in solid for p in line.points] + [dot.x for dot in chart.dots] + [0.0] * (chart.zero == "x")
    ys = [p[1] for line in solid for p in line.points] + [dot.y for dot in chart.dots] + [0.0] * (chart.zero == "y")
    x_scale = math.log10 if chart.log_x else float
    x = _widened([x_scale(value) for value in xs], 0.04 if any(line.style == "step" for line in solid) else 0.08)
    x_ticks = [(x_scale(at), label) for at, label in chart.x_ticks] or ticks(*x, 5)
    if chart.rows:
        return Panel(x, (0.5 - len(chart.rows), 0.5), x_ticks, [(-row, name) for row, name in enumerate(chart.rows)])
    low, high = _widened(ys, 0.08)
    low = 0.0 if any(line.style == "area" or line.style == "step" for line in solid) else low
    return Panel(x, (low, high), x_ticks, ticks(low, high, 5))


def _widened(values: Sequence[float | int], by: float) -> tuple[float, float]:
    low, high = float(min(values)), float(max(values))
    room = (high - low) * by or abs(high) * 0.1 or 0.1
    return low - room, high + room


def ticks(low: float | int, high: float | int, most: int) -> list[tuple[float, str]]:
    """Round numbers between two limits: steps of 1, 2 or 5 times a power of ten, as small as ``most`` allows."""
    rough = (high - low) / most
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * (1 - 1e-9))
    digits = max(0, -math.floor(math.log10(step) + 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [(number * step, f"{number * step:.{digits}f}") for number in range(first, last + 1)]


def visible(text: object, most: int = 0) -> str:
    """Text on one line in which every character shows: line breaks, controls and marks that reorder text too.
    ``most``: characters, the last one an ellipsis where there were more; 0 for all."""
    signs = {"\n": "↵", "\t": "⇥", "\u00a0": " ", "\u3000": " "}
    line = "".join(signs.get(c) or (c if c.isprintable() else f"⟨{ord(c):04X}⟩") for c in str(text))
    return line if not most or len(line) <= most else line[: most - 1] + "…"


def svg(chart: Chart, styles: Mapping[str, Look], alt: str) -> str:
    """The chart as an SVG element that takes colours from the page's variables --t0, --t1, ...; all text escaped."""
    frame = panel(chart)
    most = 22 if chart.rows else 12
    left = 10 + LETTER * max([len(_fitted(label, most)) for _, label in frame.y_ticks], default=0)
    left, right, top = max(left, 30), WIDTH - 12, 8
    height = 20 * len(chart.rows) + 34 if chart.rows else 216
    bottom = height - (20 if not chart.x_label else 34)

    def x_of(value: float | int) -> float:
        value = math.log10(value) if chart.log_x else value
        return left + (right - left) * _within((value - frame.x[0]) / (frame.x[1] - frame.x[0]))

    def y_of(value: float | int) -> float:
        return bottom - (bottom - top) * _within((value - frame.y[0]) / (frame.y[1] - frame.y[0]))

    out = [f'<svg viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{escape(alt)}"><g class="axis">']
    for at, label in frame.x_ticks:
        x = left + (right - left) * (at - frame.x[0]) / (frame.x[1] - frame.x[0])
        if left - 1 <= x <= right + 1:
            zero = ' class="zero"' if chart.zero == "x" and at == 0 else ""
            out.append(f'<path{zero} d="M{x:.1f} {top}V{bottom}"/>')
            out.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{escape(label)}</text>')
    for at, label in frame.y_ticks:
        y, zero = y_of(at), ' class="zero"' if chart.zero == "y" and at == 0 else ""
        if not chart.rows:
            out.append(f'<path{zero} d="M{left:.1f} {y:.1f}H{right}"/>')
        title = f"<title>{escape(visible(label))}</title>" if len(visible(label)) > most else ""
        out.append(
            f'<text x="{left - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{escape(_fitted(label, most))}{title}</text>'
        )
    if chart.x_label:
        middle = (left + right) / 2
        out.append(f'<text x="{middle:.1f}" y="{height - 4}" text-anchor="middle">{escape(chart.x_label)}</text>')
    out.append("</g>")
    for line in sorted(chart.lines, key=lambda line: _DEPTH.index(line.style)):
        path = "M" + "L".join(f"{x_of(x):.1f} {y_of(y):.1f}" for x, y in line.points)
        look = styles.get(line.arm)
        dash = DASHES[look.mark] if look and line.style == "step" else ()
        dashes = f' stroke-dasharray="{" ".join(map(str, dash))}"' if dash else ""
        out.append(f'<path class="{line.style}{_classes(look)}"{_switch(look)}{dashes} d="{path}"/>')
    for dot in chart.dots:
        look = styles[dot.arm]
        out.append(
            f'<path class="dot{" hollow" * dot.hollow}{_classes(look)}"{_switch(look)} '
            f'd="M{x_of(dot.x):.1f} {y_of(dot.y):.1f}{SHAPES[look.mark][1]}"><title>{escape(visible(dot.told))}</title></path>'
        )
    return "".join([*out, "</svg>"])


_DEPTH = ("area", "band", "thin", "dashed", "solid", "step")


def _fitted(text: str, most: int) -> str:
    """What differs between names of arms is at both ends, so that the middle goes."""
    line = visible(text)
    return line if len(line) <= most else f"{line[: most - 8]}…{line[-7:]}"


def escape(text: str) -> str:
    return html.escape(text, quote=True)


def _within(share: float | int) -> float:
    return min(1.0, max(0.0, share))


def _classes(look: Look | None) -> str:
    return f" t{look.tone}" if look else ""


def _switch(look: Look | None) -> str:
    return f' data-family="{look.family}" data-k="{look.k}"' if look else ""


def swatch(look: Look) -> str:
    """An arm's mark alone, for a legend."""
    return (
        f'<svg class="swatch" viewBox="0 0 12 12" aria-hidden="true"><path class="dot t{look.tone}" '
        f'd="M6 6{SHAPES[look.mark][1]}"/></svg>'
    )


# --- for a paper


def write_figures(report: Mapping[str, Any], folder: Path) -> list[Path]:
    """``fvu_l0``, ``seeds``, ``differences``, ``coefficients`` and ``nearest_cos`` as PNG (300 dpi) and SVG; the files
    written.

    What the report has no numbers for is left out, ``fvu_l0`` with one L0, ``seeds`` with several. No state of
    matplotlib is changed.
    """
    written = []
    for name, charts in FIGURES.items():
        drawn = [chart for chart in charts(report) if chart is not None]
        for suffix in SUFFIXES if drawn else ():
            written.append(folder / f"{name}.{suffix}")
            write_whole(written[-1], _painter(drawn, looks(report), report, suffix))
    return written


def figure_paths(folder: Path) -> list[Path]:
    """Of all figures that a report may have."""
    return [folder / f"{name}.{suffix}" for name in FIGURES for suffix in SUFFIXES]


def _painter(
    charts: Sequence[Chart], styles: Mapping[str, Look], report: Mapping[str, Any], suffix: str
) -> Callable[[Path], None]:
    def paint(part: Path) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        # text stays text in SVG, ids do not change from run to run, and a name is not mathematics
        style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sae_lm", "text.parse_math": False}
        style |= {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8}
        columns = min(3, len(charts))
        rows = -(-len(charts) // columns)
        height = max(0.17 * len(chart.rows) + 0.8 if chart.rows else 2.1 for chart in charts)
        with matplotlib.rc_context(style), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # characters that the font lacks are drawn as boxes
            figure = Figure(figsize=(2.5 * columns + 0.3, height * rows + 0.5), layout="constrained")
            axes = figure.subplots(rows, columns, squeeze=False).flatten()
            for place, (chart, axis) in enumerate(zip(charts, axes, strict=False)):
                paint_axes(axis, chart, styles)
                if chart.rows and place % columns:
                    axis.set_yticklabels([])
            for axis in axes[len(charts) :]:
                axis.set_visible(False)
            arms = {report["arms"][name]["family"]: look for name, look in styles.items() if _drawn(charts, name)}
            stepped = any(line.style == "step" for chart in charts for line in chart.lines)
            handles = [_handle(look, family, stepped) for family, look in arms.items()] + _grey_handles(charts)
            figure.legend(handles=handles, loc="outside lower center", ncols=min(4, len(handles)), frameon=False)
            metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
            figure.savefig(part, format=suffix, dpi=300, metadata=metadata)

    return paint


def _drawn(charts: Sequence[Chart], arm: str) -> bool:
    return any(item.arm == arm for chart in charts for item in (*chart.dots, *chart.lines))


def _handle(look: Look, family: str, stepped: bool) -> Any:
    """An entry of the legend: a mark, or where arms are drawn as steps their dashes."""
    from matplotlib.lines import Line2D

    dashes = DASHES[look.mark] if stepped else ()
    mark = "" if stepped else SHAPES[look.mark][0]
    style = {"color": TONES[look.tone][0], "marker": mark, "markersize": 4, "label": visible(family, 40)}
    return Line2D([], [], dashes=dashes or (None, None), **style)


def _grey_handles(charts: Sequence[Chart]) -> list[Any]:
    from matplotlib.patches import Patch

    said = {"area": "random directions", "band": "detectable difference"}
    styles = {line.style for chart in charts for line in chart.lines}
    return [Patch(color=GREY, alpha=0.3, linewidth=0, label=label) for style, label in said.items() if style in styles]


def paint_axes(axis: Any, chart: Chart, styles: Mapping[str, Look]) -> None:
    """The chart on matplotlib's axes."""
    frame = panel(chart)
    axis.set_title(visible(chart.title, 40))
    axis.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axis.grid(color=GREY, alpha=0.2, linewidth=0.5, axis="x" if chart.rows else "both")
    for at, draw in (("x", axis.axvline), ("y", axis.axhline)):
        if chart.zero == at:
            draw(0, color=GREY, linewidth=0.8)
    for line in chart.lines:
        _paint_line(axis, chart, line, styles.get(line.arm))
    for dot in chart.dots:
        tone, mark = TONES[styles[dot.arm].tone][0], SHAPES[styles[dot.arm].mark][0]
        x = math.log10(dot.x) if chart.log_x else dot.x
        face = "white" if dot.hollow else tone
        axis.plot([x], [dot.y], mark, color=tone, markerfacecolor=face, markersize=4, markeredgewidth=0.9)
    axis.set(xlim=frame.x, ylim=frame.y)
    axis.set_xticks([at for at, _ in frame.x_ticks], [label for _, label in frame.x_ticks])
    axis.set_yticks([at for at, _ in frame.y_ticks], [_fitted(label, 28) for _, label in frame.y_ticks])


def _paint_line(axis: Any, chart: Chart, line: Line, look: Look | None) -> None:
    xs = [math.log10(x) if chart.log_x else x for x, _ in line.points]
    ys = [y for _, y in line.points]
    tone = TONES[look.tone][0] if look else GREY
    if line.style == "area":
        axis.fill_between(xs, ys, color=GREY, alpha=0.3, linewidth=0)
    elif line.style == "band":
        axis.plot(xs, ys, color=GREY, alpha=0.25, linewidth=5, solid_capstyle="butt")
    else:
        dash = DASHES[look.mark] if look and line.style == "step" else (4, 2) if line.style == "dashed" else ()
        axis.plot(xs, ys, color=tone, linewidth=0.7 if line.style == "thin" else 1.1, dashes=dash or (None, None))
