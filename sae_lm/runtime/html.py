"""Small pieces of HTML for notebooks: a table of terms and values, a table with a head, bars; all text is escaped."""

from collections.abc import Iterable, Sequence
from html import escape

WIDTH, HEIGHT = 240, 48
"""Of a plot, in pixels."""


def facts_html(title: str, facts: Iterable[tuple[str, str]], plot: str = "") -> str:
    """A title, one row per fact, and a plot below, which is HTML already."""
    rows = "".join(f"<tr><th style='text-align:left'>{escape(term)}</th>{_cell(value)}</tr>" for term, value in facts)
    return f"<b>{escape(title)}</b><table><tbody>{rows}</tbody></table>{plot}"


def table_html(heads: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """One row of cells below the heads for each of the rows."""
    head = "".join(f"<th>{escape(text)}</th>" for text in heads)
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in rows)
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def bars_html(caption: str, counts: Sequence[float], first: str, last: str) -> str:
    """A histogram as inline SVG: the heights of its bars, and what stands at its two ends."""
    largest, step = max([*counts, 0.0]) or 1.0, WIDTH / max(1, len(counts))
    bars = "".join(
        f"<rect x='{number * step:.1f}' y='{HEIGHT * (1 - count / largest):.1f}' width='{max(step - 1, 0.5):.1f}' "
        f"height='{HEIGHT * count / largest:.1f}' fill='currentColor' opacity='.6'/>"
        for number, count in enumerate(counts)
    )
    said = f"{caption}: {first} to {last}"
    return (
        f"<figure style='margin:.4em 0'><svg width='{WIDTH}' height='{HEIGHT}' role='img' aria-label='{escape(said)}'>"
        f"{bars}</svg><figcaption style='font-size:85%'>{escape(said)}</figcaption></figure>"
    )


def _cell(value: str) -> str:
    return f"<td style='text-align:left'>{escape(value)}</td>"
