"""Prepare for the page where latents come from: bars, trees, and what became of narrower SAEs."""

from collections.abc import Mapping
from typing import Any

from sae_lm.pages.charts import mean
from sae_lm.pages.schema import Report, WidthsEntry

KINDS = ("kept", "split", "merged", "absorbed", "novel")
"""Kinds of latents in a genealogy that are parts of one SAE; "lost" ones are of the other."""
TREE_LINES = 3000
"""Lines of trees on the page, at most."""


def bars(counts: Mapping[str, int]) -> str:
    """Shares of the kinds as a bar; the numbers stand beside it."""
    whole = sum(counts.get(kind, 0) for kind in KINDS) or 1
    out, at = ['<svg class="shares" viewBox="0 0 144 12" preserveAspectRatio="none" aria-hidden="true">'], 0.0
    for kind in KINDS:
        width = 144 * counts.get(kind, 0) / whole
        title = f"<title>{kind}: {counts.get(kind, 0):,}</title>"
        out.append(f'<rect class="kind-{kind}" x="{at:.1f}" y="0" width="{width:.1f}" height="12">{title}</rect>')
        at += width
    return "".join([*out, "</svg>"])


def trees(report: Report) -> dict[str, Any]:
    """The trees of every pair that there is room for: each pair has the same number of lines."""
    pairs = [pair for pair in report["genealogy"] if pair["trees"]]
    room, shown = TREE_LINES // max(1, len(pairs)), []
    for pair in pairs:
        lines, kept = 0, []
        for tree in pair["trees"]:
            lines += len(tree["children"])
            kept += [tree] if lines <= room else []
        shown.append((pair, kept))
    return {
        "pairs": [(pair, kept) for pair, kept in shown if kept],
        "shown": sum(len(kept) for _, kept in shown),
        "all": sum(len(pair["trees"]) for pair in pairs),
    }


def widths(report: Report) -> dict[str, Any]:
    """Per arm, means over seeds of what became of a narrower SAE's latents."""
    by_arm: dict[str, list[WidthsEntry]] = {}
    for entry in report["widths"]:
        by_arm.setdefault(entry["arm"], []).append(entry)
    thresholds = [point["threshold"] for point in report["widths"][0]["curve"]] if by_arm else []
    rows = [
        {
            "arm": arm,
            "from_latents": entries[0]["from_latents"],
            "to_latents": entries[0]["to_latents"],
            "ratios": [mean(e["curve"][place]["split_ratio"] for e in entries) for place in range(len(thresholds))],
            "novel": [mean(e["curve"][place]["novel"] for e in entries) for place in range(len(thresholds))],
            "stitched": [e["stitched_novel"] for e in entries],
            **{key: mean(e["novelty"][key] if e["novelty"] else None for e in entries) for key in ("threshold", "auc")},
        }
        for arm, entries in by_arm.items()
    ]
    return {
        "thresholds": thresholds,
        "rows": rows,
        "same_seed": any(e["seed"] == e["to_seed"] for e in report["widths"]),
    }
