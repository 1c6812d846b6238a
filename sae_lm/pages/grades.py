"""Lay out the SAEs whose place is known beforehand as a table: the oracle, the baseline, and its spoilt copies."""

from typing import Any

from sae_lm.pages.schema import Report

NAMES = {
    "probes": "the probes themselves",
    "oracle": "oracle",
    "told oracle": "oracle, told",
    "absorbing": "oracle, absorption planted",
    "baseline": "baseline",
    "permuted": "decoder rows permuted",
    "dropped": "latents dropped",
}
PLANTED = "planted_holes"
"""The first column: on what share of the rows that have a concept its planted latent is silent."""
FURTHER = ("main_recall", "main_precision", "l0")
"""Columns beside the outcomes that are asked for an order."""


def grades(report: Report) -> dict[str, Any]:
    """Columns (label, better, and whether it orders the SAEs; None where it is not asked) and rows (name, numbers)."""
    of = report["grades"]
    if of is None:
        return {"columns": [], "rows": []}
    ordered = {order["metric"]: order["ordered"] for order in of["orders"]}
    keys = [key for key in (*ordered, *FURTHER) if key in report["metrics"]]
    metrics = report["metrics"]
    columns = [
        {"label": metrics[key]["label"], "better": metrics[key]["better"], "ordered": ordered.get(key)} for key in keys
    ]
    return {
        "columns": [{"label": "planted holes", "better": None, "ordered": None}, *columns],
        "rows": [
            {
                "name": _name(sae["kind"], sae["share"]),
                "numbers": [sae["values"].get(key) for key in (PLANTED, *keys)],
            }
            for sae in of["saes"]
        ],
    }


def _name(kind: str, share: float) -> str:
    most = "at most " if kind == "absorbing" else ""
    return NAMES[kind] + (f", {most}{share:.0%}" if share else "")
