"""Format numbers and text as pages and tables show them."""

import statistics
from collections.abc import Iterable, Sequence


def visible(text: object, most: int = 0) -> str:
    """Text on one line in which every character shows: line breaks, controls and marks that reorder text too.
    ``most``: characters, the last one an ellipsis where there were more; 0 for all."""
    signs = {"\n": "↵", "\t": "⇥", "\u00a0": " ", "\u3000": " "}
    line = "".join(signs.get(c) or (c if c.isprintable() else f"⟨{ord(c):04X}⟩") for c in str(text))
    return line if not most or len(line) <= most else line[: most - 1] + "…"


MARKS = {"lower": "▼", "higher": "▲", "equivalent": "=", "not distinguishable": "≈", "L0 not matched": "≠"}


def k_name(k: int | None) -> str:
    """k of an arm; of architectures that have none, as another program's jumprelu, ``free``."""
    return "free" if k is None else str(k)


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
    known = [value for value in values if value is not None]
    middle = number(statistics.fmean(known)) if known else "-"
    return f"{middle} ± {number(statistics.stdev(known), len(middle.partition('.')[2]))}" if len(known) > 1 else middle


def p_value(p: float | int | None) -> str:
    """A p value: three digits, never 0."""
    return "-" if p is None else "< .001" if p < 0.001 else f"{p:.3f}"


def first_named(names: Sequence[str], most: int) -> str:
    """The first of some names, and how many more there are."""
    more = len(names) - most
    return ", ".join(names[:most]) + (f" and {more} more" if more > 0 else "")
