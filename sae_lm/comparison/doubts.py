"""Say what speaks against a verdict on absorption, in the words of an arm's sentence and of the answer.

Holes can be fewer at false alarms that are not equal on the words where they are counted, for main latents that fire
where the probe alone is wrong, and at thresholds that no SAE has. A fraction can be lower because of its gates.
"""

from collections.abc import Mapping

from sae_lm.comparison.outcomes import TWINS
from sae_lm.pages.difference_entries import DifferenceEntry

CLAIMS = ("lower", "higher")
"""Verdicts that say something."""
Differences = Mapping[str, DifferenceEntry]
"""Metric -> one arm's difference."""
FRACTION, WITHOUT_GATES, HOLES_REACHED = "absorption_fraction", "absorption_fraction_ungated", "equal_hole_rate_reached"
UNGATED = {FRACTION: WITHOUT_GATES, TWINS[FRACTION]: TWINS[WITHOUT_GATES]}
"""The fraction by each ranking of main latents, and the same without its gates."""
REACHED = (HOLES_REACHED, TWINS[HOLES_REACHED])
"""Holes over the concepts whose false alarms every SAE reaches, by each ranking."""


def doubts(metrics: Differences) -> list[str]:
    """What could make the verdict on holes: false alarms that are not equal on test words, and firing where the probe
    alone says yes, which no false alarm counts; concepts whose false alarms are not reached. And that on the fraction."""
    holes, alarms, precision = (metrics[key] for key in ("equal_hole_rate", "equal_false_alarms", "equal_precision"))
    way, found = alarms["verdict"], []
    if way in CLAIMS and holes["verdict"] in (*CLAIMS, "equivalent") and way != holes["verdict"]:
        found.append(f"false alarms on the words where holes are counted are {way} by {abs(alarms['mean'] or 0):.3f}")
    if holes["verdict"] == precision["verdict"] == "lower":
        found.append(f"precision there is lower by {abs(precision['mean'] or 0):.3f}")
    return found + _doubts_of_reach(metrics) + _doubts_of_gates(metrics)


def _doubts_of_gates(metrics: Differences) -> list[str]:
    """Where a fraction is told apart, or shown to be the same, and without its gates it is not so, or by less than half;
    by the ranking of main latents that is worse."""
    said, found = metrics[FRACTION]["verdict"], list[tuple[float, str]]()
    for gated, ungated in UNGATED.items():
        with_gates, without = metrics[gated], metrics[ungated]
        size, left, verdict = with_gates["mean"], without["mean"], without["verdict"]
        if size is None or left is None:
            continue
        by = ", ranked by F1" * (gated == TWINS[FRACTION])
        if (said in CLAIMS and verdict != said) or (said == "equivalent" and verdict in CLAIMS):
            found.append((0.0, f"without its gates the fraction is {verdict} ({left:+.3f}{by})"))
        elif said in CLAIMS and left / size < 0.5:
            found.append((left / size, f"without its gates the fraction is {left:+.3f}, with them {size:+.3f}{by}"))
    return [min(found)[1]] if found else []


def _doubts_of_reach(metrics: Differences) -> list[str]:
    """Where holes are told apart, and not over the concepts alone at which every SAE reaches the false alarms."""
    said = metrics["equal_hole_rate"]["verdict"]  # at thresholds below 0 no SAE fires
    for key in REACHED:
        d = metrics[key]
        if said in CLAIMS and d["mean"] is not None and d["verdict"] != said:
            told = f"{d['verdict']} ({d['mean']:+.3f}{', ranked by F1' * (key == REACHED[1])})"
            return [f"over the concepts whose false alarms every SAE reaches holes are {told}"]
    return []
