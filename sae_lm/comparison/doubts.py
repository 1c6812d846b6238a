"""Say what speaks against a verdict on absorption, beside an arm's sentence, the answer, a registered claim, and at equal FVU.

Holes can be fewer at false alarms that are not equal on the words where they are counted, for main latents that fire
where the probe alone is wrong, and at thresholds that no SAE has. A fraction can be lower because of its gates.
"""

from collections.abc import Callable, Mapping
from typing import TypedDict

from sae_lm.comparison.outcomes import TWINS
from sae_lm.metrics.statistics import FEWEST_SEEDS, LEVEL, Difference
from sae_lm.pages.difference_entries import DifferenceEntry, Verdict

CLAIMS = ("lower", "higher")
"""Verdicts that say something."""
Differences = Mapping[str, DifferenceEntry]
"""Metric -> one arm's difference."""
FRACTION, WITHOUT_GATES, HOLES_REACHED = "absorption_fraction", "absorption_fraction_ungated", "equal_hole_rate_reached"
UNGATED = {FRACTION: WITHOUT_GATES, TWINS[FRACTION]: TWINS[WITHOUT_GATES]}
"""The fraction by each ranking of main latents, and the same without its gates."""
HOLES, ALARMS, PRECISION = "equal_hole_rate", "equal_false_alarms", "equal_precision"
FOUND = {HOLES: "equal_hole_rate_found", FRACTION: "absorption_fraction_found"}
"""Either figure of absorption -> the same over the concepts alone that the SAEs have latents for."""
REACHED = (HOLES_REACHED, TWINS[HOLES_REACHED])
"""Holes over the concepts whose false alarms every SAE reaches, by each ranking."""
DOUBTED_BY = (ALARMS, PRECISION, *REACHED, *UNGATED.values(), *(m for of in FOUND.values() for m in (of, TWINS[of])))
"""What doubts are read off, beside the primary outcomes by both rankings."""


OF_FIGURE = {
    **dict.fromkeys((HOLES, TWINS[HOLES], *REACHED), HOLES),
    **dict.fromkeys((*UNGATED, *UNGATED.values()), FRACTION),
}
"""Metric on which a claim may be -> the figure of absorption whose doubts it has."""


class Told(TypedDict):
    """What is known of a difference; a `DifferenceEntry` is one."""

    verdict: Verdict
    mean: float | None
    low: float | None
    high: float | None


def doubts(metrics: Mapping[str, Told]) -> list[str]:
    """What could make the verdicts on holes and on the fraction."""
    return list(dict.fromkeys(_doubts_of_holes(metrics) + _doubts_of_fraction(metrics)))


def doubts_of_one(metric: str, way: Verdict, read: Callable[[str], Difference]) -> list[str]:
    """What could make a verdict on holes or on the fraction, where a metric's difference is read as asked."""
    figure = OF_FIGURE.get(metric)
    if figure is None or way not in CLAIMS:
        return []
    metrics = {key: _told(read(key)) for key in (HOLES, *UNGATED, *DOUBTED_BY)}
    # the verdict is as corrected, and by both rankings where both are asked for
    metrics[figure] = {**_told(read(metric)), "verdict": way}
    return _doubts_of_holes(metrics) if figure == HOLES else _doubts_of_fraction(metrics)


def _told(difference: Difference) -> Told:
    mean, p = difference.mean, difference.p
    verdict: Verdict = "no claim"
    if mean is not None and p is not None and difference.seeds >= FEWEST_SEEDS:
        verdict = "not distinguishable" if p > LEVEL else "lower" if mean < 0 else "higher"
    return {"verdict": verdict, "mean": mean, "low": difference.low, "high": difference.high}


def _doubts_of_holes(metrics: Mapping[str, Told]) -> list[str]:
    """False alarms that are not equal on test words, and firing where the probe alone says yes, which no false alarm
    counts; concepts whose false alarms are not reached."""
    holes, alarms, precision = (metrics[key] for key in (HOLES, ALARMS, PRECISION))
    way, found = alarms["verdict"], []
    if way in CLAIMS and holes["verdict"] in (*CLAIMS, "equivalent") and way != holes["verdict"]:
        found.append(f"false alarms on the words where holes are counted are {way} by {abs(alarms['mean'] or 0):.3f}")
    if holes["verdict"] == precision["verdict"] == "lower":
        found.append(f"precision there is lower by {abs(precision['mean'] or 0):.3f}")
    return found + _doubts_of_reach(metrics) + _doubts_of_found(metrics, HOLES)


def _doubts_of_fraction(metrics: Mapping[str, Told]) -> list[str]:
    return _doubts_of_gates(metrics) + _doubts_of_found(metrics, FRACTION)


def _doubts_of_found(metrics: Mapping[str, Told], figure: str) -> list[str]:
    """Where a figure is told apart, and not over the concepts alone that the SAEs have latents for, by the ranking of main
    latents that is worse. These are few: so their interval is given, which tells no effect from no power."""
    said, of_found = metrics[figure]["verdict"], FOUND[figure]
    if said not in CLAIMS:
        return []
    if metrics[of_found]["mean"] is None:
        return ["main latents tell none of the concepts, so that absorbed and never learned look alike"]
    what = "holes differ" if figure == HOLES else "the fraction differs"
    found = list[tuple[float, str]]()
    for key in (of_found, TWINS[of_found]):
        d = metrics[key]
        if d["mean"] is not None and d["verdict"] not in (said, "no claim"):
            interval = "" if d["low"] is None or d["high"] is None else f" [{d['low']:+.3f}, {d['high']:+.3f}]"
            told = f"{what} by {d['mean']:+.3f}{interval}{', ranked by F1' * (key != of_found)}"
            against = d["mean"] if said == "lower" else -d["mean"]
            found.append((against, f"over the concepts that main latents tell {told}"))
    return [max(found)[1]] if found else []


def _doubts_of_gates(metrics: Mapping[str, Told]) -> list[str]:
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


def _doubts_of_reach(metrics: Mapping[str, Told]) -> list[str]:
    """Where holes are told apart, and not over the concepts alone at which every SAE reaches the false alarms."""
    said = metrics[HOLES]["verdict"]  # at thresholds below 0 no SAE fires
    for key in REACHED:
        d = metrics[key]
        if said in CLAIMS and d["mean"] is not None and d["verdict"] not in (said, "no claim"):
            told = f"{d['verdict']} ({d['mean']:+.3f}{', ranked by F1' * (key == REACHED[1])})"
            return [f"over the concepts whose false alarms every SAE reaches holes are {told}"]
    return []
