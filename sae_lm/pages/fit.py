"""Show how an SAE fits activations, as a table in text or in HTML."""

from typing import TYPE_CHECKING

from sae_lm.pages.terminal import columns
from sae_lm.pages.text import visible
from sae_lm.runtime.html import facts_html, table_html

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
            *(f"{what}: {fact}" for what, fact in _facts(check)),
        ]
    )


def fit_html(check) -> str:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    rows = [[visible(_name(reading)), *_cells(reading)] for reading in shown(check.fit.readings)]
    facts = [(visible(what), visible(fact)) for what, fact in _facts(check)]
    about = [("SAE", visible(repr(check.sae))), ("activations", f"{check.rows:,} at {visible(check.hook)}")]
    remarks = [("remark", visible(remark)) for remark in check.remarks]
    return facts_html(visible(check.verdict), [*about, *remarks, *facts]) + table_html(("tried", *HEADS), rows)


def shown(readings: "list[Reading]") -> "list[Reading]":
    """As loaded, then the best that were tried."""
    tried = sorted(readings[1:], key=lambda reading: (reading.fvu != reading.fvu, reading.fvu))
    return [readings[0], *tried[: MOST - 1]]


def _name(reading: "Reading") -> str:
    return "; ".join(reading.changes) or "as it was loaded"


def _cells(reading: "Reading") -> list[str]:
    quality = reading.quality
    return [f"{quality.fvu:.3f}", f"{quality.l0:.4g}", f"{quality.dead:.0%}", f"{quality.l2_ratio:.3f}"]


def _facts(check) -> list[tuple[str, str]]:  # pyright: ignore[reportMissingParameterType, reportUnknownParameterType]
    facts = [(what, f"claimed {claimed}, measured {got}") for what, claimed, got, _ in check.claims]
    if check.losses:
        losses = check.losses
        told = f"{losses.clean:.3f} nats, with the SAE {losses.spliced:.3f}, with zeros {losses.ablated:.3f}"
        facts.append(("cross-entropy", f"{told} ({losses.recovered:.1%} recovered)"))
    return [*facts, *(("how it was loaded", sentence) for sentence in check.sae.provenance)]
