"""Show how an SAE fits activations, as a table in text or in HTML."""

from html import escape
from typing import TYPE_CHECKING

from sae_lm.pages.terminal import columns
from sae_lm.pages.text import visible

if TYPE_CHECKING:
    from sae_lm.metrics.fit import Reading

MOST = 12
"""Readings shown, the best of those that were tried."""
HEADS = ("FVU", "L0", "dead", "norm ratio")


def fit_text(check) -> str:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    """``check``: a `sae_lm.commands.check.Check`."""
    readings = shown(check.fit.readings)
    cells = [[head, *values] for head, values in zip(HEADS, zip(*map(_cells, readings), strict=True), strict=True)]
    return "\n".join(
        [
            f"{check.sae!r} on {check.rows:,} activations at {visible(check.hook)}",
            "",
            check.verdict,
            *check.remarks,
            "",
            *columns(["tried", *map(_name, readings)], cells),
            "",
            *_facts(check),
        ]
    )


def fit_html(check) -> str:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    rows = "".join(
        f"<tr><td style='text-align:left'>{escape(visible(_name(reading)))}</td>"
        + "".join(f"<td>{escape(cell)}</td>" for cell in _cells(reading))
        + "</tr>"
        for reading in shown(check.fit.readings)
    )
    heads = "".join(f"<th>{escape(head)}</th>" for head in ("tried", *HEADS))
    facts = "".join(f"<li>{escape(visible(fact))}</li>" for fact in (*check.remarks, *_facts(check)))
    return (
        f"<p><b>{escape(visible(check.verdict))}</b></p><p>{escape(visible(repr(check.sae)))}, {check.rows:,} activations</p>"
        f"<table><thead><tr>{heads}</tr></thead><tbody>{rows}</tbody></table><ul>{facts}</ul>"
    )


def shown(readings: "list[Reading]") -> "list[Reading]":
    """As loaded, then the best that were tried."""
    tried = sorted(readings[1:], key=lambda reading: (reading.fvu != reading.fvu, reading.fvu))
    return [readings[0], *tried[: MOST - 1]]


def _name(reading: "Reading") -> str:
    return "; ".join(reading.changes) or "as it was loaded"


def _cells(reading: "Reading") -> list[str]:
    quality = reading.quality
    return [f"{quality.fvu:.3f}", f"{quality.l0:.4g}", f"{quality.dead:.0%}", f"{quality.l2_ratio:.3f}"]


def _facts(check) -> list[str]:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    facts = [f"{what}: claimed {claimed}, measured {got}" for what, claimed, got, _ in check.claims]
    if check.losses:
        losses = check.losses
        facts.append(
            f"cross-entropy {losses.clean:.3f} nats, with the SAE {losses.spliced:.3f}, with zeros {losses.ablated:.3f} "
            f"({losses.recovered:.1%} recovered)"
        )
    return [*facts, *(f"how it was loaded: {sentence}" for sentence in check.sae.provenance)]
