"""Format plain text for a terminal: aligned columns, and the report as text."""

import textwrap
from collections.abc import Sequence

from sae_lm.pages.charts import headline, order_arms
from sae_lm.pages.difference_entries import DifferenceEntry
from sae_lm.pages.schema import Report
from sae_lm.pages.summary import (
    ROLES,
    differences_by_arm,
    further_metrics,
    number_of_seeds,
    skipped_reasons,
    summary_rows,
)
from sae_lm.pages.text import number, signed, spread, visible

WIDTH = 120


SHORT = {"not distinguishable": "n.d.", "L0 not matched": "L0 differs"}
"""Verdicts as the terminal's columns have room for."""


TERMINAL_FINDINGS = 12
"""Findings in the terminal, at most."""


def columns(
    labels: Sequence[str], cells: Sequence[Sequence[str]], *, heads: bool = True, left: bool = False
) -> list[str]:
    """Lines of a table in aligned columns; where they do not fit the width they go on in a block below, labels repeated.

    labels: of the rows. cells: one list per column, as long as the labels. heads: the first row is a head, above a
    rule, and in as many lines as it needs. left: cells begin at the left; else they end at the right.
    """
    labels = [visible(label) for label in labels]
    cells = [[visible(cell) for cell in column] for column in cells]
    first_row = int(heads)
    body = [max([len(cell) for cell in column[first_row:]], default=1) for column in cells]
    titles = [
        textwrap.wrap(column[0] if heads else "", max(14, width)) or [""]
        for column, width in zip(cells, body, strict=True)
    ]
    widths = [max(width, *map(len, title)) for width, title in zip(body, titles, strict=True)]
    margin = max(map(len, labels))
    lines, first = [], 0

    def line(label: str, texts: Sequence[str], block: range) -> str:
        padded = [
            text.ljust(widths[c]) if left else text.rjust(widths[c]) for text, c in zip(texts, block, strict=True)
        ]
        return "  ".join([label.ljust(margin), *padded]).rstrip()

    while first < len(cells):
        last, total = first, margin
        while last < len(cells) and (last == first or total + 2 + widths[last] <= WIDTH):
            total += 2 + widths[last]
            last += 1
        block, deep = range(first, last), max(len(titles[column]) for column in range(first, last))
        for row in range(-deep, 0) if heads else ():
            texts = [titles[c][row] if -row <= len(titles[c]) else "" for c in block]
            lines.append(line(labels[0] if row == -1 else "", texts, block))
        lines += ["-" * total] * heads
        for row, label in enumerate(labels[first_row:], first_row):
            lines.append(line(label, [cells[c][row] for c in block], block))
        lines += [""] * (last < len(cells))
        first = last
    return lines


def text_table(report: Report) -> str:
    """The report as plain text of at most 120 columns, unless a single column is wider."""
    arms, metrics, findings = order_arms(report), report["metrics"], report["findings"]
    lines = [*_wrap("; ".join(f"{term} {fact}" for term, fact in summary_rows(report))), "", *_wrap(report["answer"])]
    if report["registered"]:
        for claim in report["registered"]["claims"]:
            lines += _wrap(f"registered: {claim['sentence']} {claim['answer'][:1].upper()}{claim['answer'][1:]}.")
    lines += [""] * bool(report["partial"]) + [
        line for sentence in report["partial"] for line in _wrap(f"note: {sentence}")
    ]
    lines += ["", *(line for finding in findings[:TERMINAL_FINDINGS] for line in _wrap(finding))]
    if len(findings) > TERMINAL_FINDINGS:
        lines += [f"... and {len(findings) - TERMINAL_FINDINGS} more in the report's findings"]
    keys = headline(report)
    keys += [key for role in ROLES[:3] for key in further_metrics(report, role)]
    outcomes = [
        [
            metrics[key]["label"],
            *(spread(report["arms"][arm]["values"][key]) for arm in arms),
            *(number(metrics.get(key)) for metrics in report["controls"].values()),
        ]
        for key in keys
    ]
    title = f"mean{' ± sd' * (len(report['seeds']) > 1)} over {number_of_seeds(report)}"
    lines += ["", *columns([title, *arms, *(f"{name} (control)" for name in report["controls"])], outcomes)]
    differences = differences_by_arm(report)
    if differences:
        compared = [
            [metrics[key]["label"], *(_difference_text(metrics.get(key)) for metrics in differences.values())]
            for key in headline(report)
        ]
        lines += ["", *columns(["paired difference [95%]", *differences], compared)]
        verdicts = {difference["verdict"] for difference in report["differences"]}
        lines += [f"{short}: {verdict}" for verdict, short in SHORT.items() if verdict in verdicts]
    if report["grades"]:
        grades = report["grades"]
        lines += ["", *(line for order in grades["orders"] for line in _wrap(f"control: {order['sentence']}"))]
        lines += [line for remark in grades["remarks"] for line in _wrap(f"control: {remark}")]
    used = [concept for concept in report["concepts"] if concept["skipped"] is None]
    names = ", ".join(f"{c['name']} ({number(c['probe_f1'], 2)}, {c['test_words']})" for c in used) or "none"
    lines += ["", *_wrap(f"concepts used (probe F1, words tested), {len(used)} of {len(report['concepts'])}: {names}")]
    reasons = "; ".join(f"{count} ({reason})" for reason, count in skipped_reasons(report).most_common())
    return "\n".join(lines + (_wrap(f"skipped: {reasons}") if reasons else []))


def _wrap(text: str) -> list[str]:
    return textwrap.wrap(visible(text), WIDTH, subsequent_indent="    ")


def _difference_text(d: DifferenceEntry | None) -> str:
    if d is None or d["mean"] is None:
        return "-"
    interval = "" if d["low"] is None else f" [{signed(d['low'])}, {signed(d['high'])}]"
    return f"{signed(d['mean'])}{interval} {SHORT.get(d['verdict'], d['verdict'])}"
