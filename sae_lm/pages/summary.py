"""The facts of a report that both the page and the terminal show."""

import re
from collections import Counter
from collections.abc import Sequence

from sae_lm.pages.charts import headline, mean, order_arms
from sae_lm.pages.difference_entries import DifferenceEntry
from sae_lm.pages.schema import Report
from sae_lm.pages.text import visible

KINDS = {"token": "tokens", "letter": "first letters", "contextual": "places", "csv": "given labels"}
"""Kinds of concepts, and what their concepts are called."""
ROLES = ("primary", "quality", "check", "context")


def summary_rows(report: Report) -> list[tuple[str, str]]:
    """What was compared, as terms and values."""
    training, store = report["training"], report["store"]
    ks = sorted({str(arm["k"]) for arm in report["arms"].values() if arm["k"] is not None}, key=int)
    used = sum(concept["skipped"] is None for concept in report["concepts"])
    rows = [
        ("model", store["recipe"]["model"]["id"]),
        ("hook", training["hook"]),
        ("latents", f"{training['d_sae']:,}" if training["d_sae"] else "of several widths"),
        ("k", "/".join(ks) or "free"),
        ("arms", str(len(report["arms"]))),
        ("seeds", str(len(report["seeds"]))),
        ("rows trained on", f"{training['tokens']:,}" if "tokens" in training else "not known"),
        ("rows held out", f"{store['held_out_rows']:,}"),
        ("concepts", f"{used} of {len(report['concepts'])}"),
        ("baseline", report["baseline"]),
    ]
    return [(term, visible(fact)) for term, fact in rows]


def number_of_seeds(report: Report) -> str:
    return f"{len(report['seeds'])} seed{'s' * (len(report['seeds']) != 1)}"


def by_arm(differences: Sequence[DifferenceEntry]) -> dict[str, dict[str, DifferenceEntry]]:
    """Arm -> metric -> its difference."""
    arms: dict[str, dict[str, DifferenceEntry]] = {}
    for difference in differences:
        arms.setdefault(difference["arm"], {})[difference["metric"]] = difference
    return arms


def differences_by_arm(report: Report) -> dict[str, dict[str, DifferenceEntry]]:
    """Arm -> metric -> its difference from the baseline, in the order of the arms."""
    return by_arm(sorted(report["differences"], key=lambda d: order_arms(report).index(d["arm"])))


def skipped_reasons(report: Report) -> Counter[str]:
    """How many concepts were skipped for each kind of reason (its first number left out)."""
    reasons = [concept["skipped"] for concept in report["concepts"] if concept["skipped"] is not None]
    return Counter(re.sub(r"\s?\b\d[\d.,]*(?=\s)", "", reason, count=1).strip() for reason in reasons)


def further_metrics(report: Report, role: str) -> list[str]:
    """The metrics of a role that do not open the page and have a value (some are taken only where asked for)."""
    values, opening = [arm["values"] for arm in report["arms"].values()], headline(report)
    return [
        key
        for key, metric in report["metrics"].items()
        if metric["role"] == role and key not in opening and any(mean(metrics[key]) is not None for metrics in values)
    ]
