"""Draw charts for the page, as small SVG that follows its colours."""

import html
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from sae_lm.pages.charts import (
    Chart,
    Look,
)
from sae_lm.pages.text import visible

TONE_COLOURS = (
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


MARK_SHAPES = (
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


class Panel(NamedTuple):
    """Where a chart's values lie: limits with margins, ticks with their labels."""

    x: tuple[float, float]
    y: tuple[float, float]
    x_ticks: Sequence[tuple[float, str]]
    y_ticks: Sequence[tuple[float, str]]


def panel(chart: Chart) -> Panel:
    """Limits with margins and ticks. A chart on a log axis has x above 0."""
    solid = [line for line in chart.lines if line.style not in ("band", "ribbon")]
    xs = [p[0] for line in solid for p in line.points] + [dot.x for dot in chart.dots] + [0.0] * ("x" in chart.zero)
    ys = [p[1] for line in solid for p in line.points] + [dot.y for dot in chart.dots] + [0.0] * ("y" in chart.zero)
    x_scale = math.log10 if chart.log_x else float
    x = _add_margins([x_scale(value) for value in xs], 0.04 if any(line.style == "step" for line in solid) else 0.08)
    x_ticks = [(x_scale(at), label) for at, label in chart.x_ticks] or ticks(*x, 5)
    if chart.rows:
        return Panel(x, (0.5 - len(chart.rows), 0.5), x_ticks, [(-row, name) for row, name in enumerate(chart.rows)])
    low, high = _add_margins(ys, 0.08)
    low = 0.0 if any(line.style == "area" or line.style == "step" for line in solid) else low
    return Panel(x, (low, high), x_ticks, ticks(low, high, 5))


def _add_margins(values: Sequence[float | int], by: float) -> tuple[float, float]:
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


def svg(chart: Chart, styles: Mapping[str, Look], alt: str) -> str:
    """The chart as an SVG element that takes colours from the page's variables --t0, --t1, ...; all text escaped."""
    frame = panel(chart)
    most = 22 if chart.rows else 12
    left = 10 + LETTER * max([len(shorten_middle(label, most)) for _, label in frame.y_ticks], default=0)
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
            zero = ' class="zero"' if "x" in chart.zero and at == 0 else ""
            out.append(f'<path{zero} d="M{x:.1f} {top}V{bottom}"/>')
            out.append(f'<text x="{x:.1f}" y="{bottom + 14}" text-anchor="middle">{escape(label)}</text>')
    for at, label in frame.y_ticks:
        y, zero = y_of(at), ' class="zero"' if "y" in chart.zero and at == 0 else ""
        if not chart.rows:
            out.append(f'<path{zero} d="M{left:.1f} {y:.1f}H{right}"/>')
        title = f"<title>{escape(visible(label))}</title>" if len(visible(label)) > most else ""
        out.append(
            f'<text x="{left - 6:.1f}" y="{y + 3.5:.1f}" text-anchor="end">{escape(shorten_middle(label, most))}{title}</text>'
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
            f'd="M{x_of(dot.x):.1f} {y_of(dot.y):.1f}{MARK_SHAPES[look.mark][1]}"><title>{escape(visible(dot.tooltip))}</title></path>'
        )
    return "".join([*out, "</svg>"])


_DEPTH = ("ribbon", "area", "band", "thin", "dashed", "solid", "step")


def shorten_middle(text: str, most: int) -> str:
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
        f'd="M6 6{MARK_SHAPES[look.mark][1]}"/></svg>'
    )
