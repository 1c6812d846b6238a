"""Draw charts for a paper, as PNG and SVG by matplotlib."""

import math
import textwrap
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm.pages.charts import (
    Chart,
    Line,
    Look,
    against_l0,
    along_coefficient,
    by_seed,
    forest,
    headline,
    ladder_metrics,
    looks,
    nearest_panels,
    several_l0,
)
from sae_lm.pages.frontier import frontier_charts
from sae_lm.pages.schema import Report
from sae_lm.pages.svg import DASHES, GREY, MARK_SHAPES, TONE_COLOURS, panel, shorten_middle
from sae_lm.pages.text import visible
from sae_lm.runtime.files import write_whole

LETTERS = 14
"""Of a legend, in an inch."""
SUFFIXES = ("png", "svg")
FIGURES: dict[str, Callable[[Report], list[Chart | None]]] = {
    "fvu_l0": lambda report: [against_l0(report, key) for key in ladder_metrics(report) if several_l0(report)],
    "seeds": lambda report: [by_seed(report, key) for key in headline(report) if not several_l0(report)],
    "frontier": frontier_charts,
    "differences": lambda report: [forest(report, key) for key in headline(report)],
    "coefficients": lambda report: [along_coefficient(report, key) for key in headline(report)],
    "nearest_cos": lambda report: [chart for panel in nearest_panels(report).values() for chart in panel],
}
"""File name for a paper -> its charts."""


def write_figures(report: Report, folder: Path) -> list[Path]:
    """``fvu_l0``, ``seeds``, ``frontier``, ``differences``, ``coefficients`` and ``nearest_cos`` as PNG (300 dpi) and
    SVG; the files written.

    What the report has no numbers for is left out, ``fvu_l0`` with one L0, ``seeds`` with several. No state of
    matplotlib is changed.
    """
    written = []
    for name, charts in FIGURES.items():
        drawn = [chart for chart in charts(report) if chart is not None]
        for suffix in SUFFIXES if drawn else ():
            written.append(folder / f"{name}.{suffix}")
            families = {name: arm["family"] for name, arm in report["arms"].items()}
            write_whole(written[-1], painter(drawn, looks(report), families, suffix))
    return written


def figure_paths(folder: Path) -> list[Path]:
    """Of all figures that a report may have."""
    return [folder / f"{name}.{suffix}" for name in FIGURES for suffix in SUFFIXES]


def painter(
    charts: Sequence[Chart],
    styles: Mapping[str, Look],
    families: Mapping[str, str],
    suffix: str,
    title: str = "",
    across: int = 3,
) -> Callable[[Path], None]:
    """What writes charts side by side to a file, png or svg by its suffix, with one legend of the families of arms.

    styles, families: of every arm. across: charts in a row, at most.
    """

    def paint(temporary: Path) -> None:
        import matplotlib
        from matplotlib.figure import Figure

        # text stays text in SVG, ids do not change from run to run, and a name is not mathematics
        style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "sae_lm", "text.parse_math": False}
        style |= {"font.size": 8, "axes.spines.top": False, "axes.spines.right": False, "axes.titlesize": 8}
        columns = min(across, len(charts))
        rows = -(-len(charts) // columns)
        height = max(0.17 * len(chart.rows) + 0.8 if chart.rows else 2.1 for chart in charts)
        with matplotlib.rc_context(style), warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # characters that the font lacks are drawn as boxes
            figure = Figure(figsize=(2.5 * columns + 0.3, height * rows + 0.5), layout="constrained")
            if title:
                figure.suptitle(visible(title), fontsize=9)
            axes = figure.subplots(rows, columns, squeeze=False).flatten()
            for place, (chart, axis) in enumerate(zip(charts, axes, strict=False)):
                paint_axes(axis, chart, styles)
                if chart.rows and place % columns:
                    axis.set_yticklabels([])
            for axis in axes[len(charts) :]:
                axis.set_visible(False)
            shown = {families[name]: look for name, look in styles.items() if _drawn(charts, name)}
            stepped = any(line.style == "step" for chart in charts for line in chart.lines)
            handles = [_handle(look, family, stepped) for family, look in shown.items()] + _grey_handles(charts)
            longest = max((len(handle.get_label()) for handle in handles), default=0)
            ncols = max(1, min(4, len(handles), int(LETTERS * figure.get_figwidth() / (longest + 6))))
            figure.legend(handles=handles, loc="outside lower center", ncols=ncols, frameon=False)
            metadata = {"Date": None, "Creator": None} if suffix == "svg" else {"Software": None}
            figure.savefig(temporary, format=suffix, dpi=300, metadata=metadata)

    return paint


def _drawn(charts: Sequence[Chart], arm: str) -> bool:
    return any(item.arm == arm for chart in charts for item in (*chart.dots, *chart.lines))


def _handle(look: Look, family: str, stepped: bool) -> Any:
    """An entry of the legend: a mark, or where arms are drawn as steps their dashes."""
    from matplotlib.lines import Line2D

    dashes = DASHES[look.mark] if stepped else ()
    mark = "" if stepped else MARK_SHAPES[look.mark][0]
    style = {"color": TONE_COLOURS[look.tone][0], "marker": mark, "markersize": 4, "label": visible(family, 40)}
    return Line2D([], [], dashes=dashes or (None, None), **style)


def _grey_handles(charts: Sequence[Chart]) -> list[Any]:
    from matplotlib.patches import Patch

    labels = {"area": "random directions", "band": "detectable difference"}
    styles = {line.style for chart in charts for line in chart.lines}
    return [
        Patch(color=GREY, alpha=0.3, linewidth=0, label=label) for style, label in labels.items() if style in styles
    ]


def paint_axes(axis: Any, chart: Chart, styles: Mapping[str, Look]) -> None:
    """The chart on matplotlib's axes."""
    frame = panel(chart)
    axis.set_title(textwrap.fill(visible(chart.title, 80), 40))
    axis.set(xlabel=chart.x_label, ylabel=chart.y_label)
    axis.grid(color=GREY, alpha=0.2, linewidth=0.5, axis="x" if chart.rows else "both")
    for at, draw in (("x", axis.axvline), ("y", axis.axhline)):
        if at in chart.zero:
            draw(0, color=GREY, linewidth=0.8)
    for line in chart.lines:
        _paint_line(axis, chart, line, styles.get(line.arm))
    for dot in chart.dots:
        tone, mark = TONE_COLOURS[styles[dot.arm].tone][0], MARK_SHAPES[styles[dot.arm].mark][0]
        x = math.log10(dot.x) if chart.log_x else dot.x
        face = "white" if dot.hollow else tone
        axis.plot([x], [dot.y], mark, color=tone, markerfacecolor=face, markersize=4, markeredgewidth=0.9)
    axis.set(xlim=frame.x, ylim=frame.y)
    axis.set_xticks([at for at, _ in frame.x_ticks], [label for _, label in frame.x_ticks])
    axis.set_yticks([at for at, _ in frame.y_ticks], [shorten_middle(label, 28) for _, label in frame.y_ticks])


def _paint_line(axis: Any, chart: Chart, line: Line, look: Look | None) -> None:
    xs = [math.log10(x) if chart.log_x else x for x, _ in line.points]
    ys = [y for _, y in line.points]
    tone = TONE_COLOURS[look.tone][0] if look else GREY
    if line.style == "area":
        axis.fill_between(xs, ys, color=GREY, alpha=0.3, linewidth=0)
    elif line.style == "ribbon":
        axis.fill(xs, ys, color=tone, alpha=0.12, linewidth=0)
    elif line.style == "band":
        axis.plot(xs, ys, color=GREY, alpha=0.25, linewidth=5, solid_capstyle="butt")
    else:
        dash = DASHES[look.mark] if look and line.style == "step" else (4, 2) if line.style == "dashed" else ()
        axis.plot(xs, ys, color=tone, linewidth=0.7 if line.style == "thin" else 1.1, dashes=dash or (None, None))
