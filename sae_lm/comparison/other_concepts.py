"""Say of each primary difference whether it holds for other concepts of the kind, and without any one of these.

Needs the values concept by concept (`Measured.per_concept`); a concept that lacks one in any SAE of a pair is left
out of that pair. The verdicts stay as they are: they are on the given concepts. Only claims are looked at for what
omission does to them: an outcome without a claim that gets one when some concept is left out has been searched for.

Intervals are 95%, one by one. That a claim would hold for other concepts is said by intervals corrected for all that
was tested (Bonferroni's), since it is asked of what passed a test on the same SAEs. Where nine differences have no
mean over concepts (8 seeds, 40 concepts of sd .05), 37 of 99 reports with a claim say so of one by intervals of 95%, 7 by
corrected ones (tests/benchmarks/false_claims.py).
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_lm.comparison.evaluate import CONCEPT_MEANS
from sae_lm.comparison.matching import Match, Matching
from sae_lm.comparison.outcomes import BY_F1, METRICS, PRIMARY
from sae_lm.comparison.runs import Key
from sae_lm.metrics.crossed import FEWEST_CONCEPTS, Matrix, WithoutOne, crossed_interval, without_one
from sae_lm.metrics.statistics import FEWEST_SEEDS, LEVEL, holm
from sae_lm.pages.difference_entries import DifferenceEntry, OtherConceptsEntry
from sae_lm.penalties.arms import Arm

PerConcept = Mapping[Key, Sequence[Mapping[str, Any]]]
"""Arm and seed -> the figures of every concept."""
BY_CONCEPT = tuple(key for key in PRIMARY if key in CONCEPT_MEANS)
"""Primary outcomes that are means over concepts."""
UNEVEN = ("recovered_on_holes", "main_precision", "equal_precision")
"""Means over concepts that not every SAE has of all."""


class _OfConcepts(NamedTuple):
    """One difference by concept."""

    known: list[str]
    """the concepts that every SAE of the pair has a value of"""
    x: Matrix
    """[seeds, concepts]"""

    @property
    def can_say(self) -> bool:
        return self.x.shape[0] >= FEWEST_SEEDS and self.x.shape[1] >= FEWEST_CONCEPTS and bool(np.ptp(self.x))


def compare_over_concepts(
    per_concept: PerConcept, seeds: Sequence[int], matches: Mapping[Arm, Match], differences: Sequence[DifferenceEntry]
) -> list[OtherConceptsEntry]:
    """One entry for each primary difference of three seeds and five concepts or more, at equal or interpolated L0.

    Where main latents are ranked twice, a claim has to hold for other concepts, and without any one, by both rankings.
    """
    arms = {arm.name: arm for arm in matches}
    tested = [d for d in differences if d["p_holm"] is not None]
    p = [d["p"] or 0.0 for d in tested]
    entries = []
    for place, d in enumerate(tested):
        if d["metric"] not in BY_CONCEPT:
            continue
        match = matches[arms[d["arm"]]]
        first, second = (
            _OfConcepts(*paired_by_concept(per_concept, seeds, arms[d["arm"]], match, metric))
            for metric in (d["metric"], BY_F1[d["metric"]])
        )
        if first.can_say:
            entries.append(_entry(d, [first, *([second] if second.can_say else [])], place, p))
    return entries


def paired_by_concept(
    per_concept: PerConcept, seeds: Sequence[int], arm: Arm, match: Match, metric: str
) -> tuple[list[str], Matrix]:
    """The concepts that every SAE of the pair has a value of, and [seeds, concepts] the arm's value less the other's."""
    key = CONCEPT_MEANS[metric]

    def of(which: Arm) -> dict[str, list[float]]:
        values: dict[str, list[float]] = {}
        for place, seed in enumerate(seeds):
            for concept in per_concept[which, seed]:
                of_concept = values.setdefault(concept["concept"], [math.nan] * len(seeds))
                of_concept[place] = float(concept.get(key, math.nan))
        return values

    own, rungs = of(arm), {rung: of(rung) for rung in match.ladder}
    rows = {}
    for concept, values in own.items():
        missing = [math.nan] * len(seeds)
        others = match.baseline({rung: values_of_rung.get(concept, missing) for rung, values_of_rung in rungs.items()})
        of_pair = np.array(values, dtype=float) - np.array(others, dtype=float)
        if np.isfinite(of_pair).all():
            rows[concept] = of_pair
    return [*rows], np.array([*rows.values()]).T if rows else np.zeros((len(seeds), 0))


def over_common_concepts(
    per_concept: PerConcept, seeds: Sequence[int], matching: Matching
) -> dict[tuple[Arm, str], list[float]]:
    """Of every arm and figure of `UNEVEN` the differences per seed, over the concepts that every SAE of the pair has it of.

    Such a figure is not known of a concept without holes, or whose main latents never fire. A mean over what each SAE
    has would be of other concepts in the arm than in the baseline. NaN where the two have no concept in common.
    """
    found: dict[tuple[Arm, str], list[float]] = {}
    for arm, match in matching.matches.items():
        for metric in UNEVEN if arm not in matching.ladder else ():
            known, x = paired_by_concept(per_concept, seeds, arm, match, metric)
            found[arm, metric] = x.mean(1).tolist() if known else [math.nan] * len(seeds)
    return found


def _entry(d: DifferenceEntry, rankings: Sequence[_OfConcepts], place: int, p: Sequence[float]) -> OtherConceptsEntry:
    """rankings: the first is what is shown. place: of the difference among all that are tested; p: of these."""
    known, x = rankings[0]
    ends, left = crossed_interval(x) or (None, None), without_one(x)
    mean = float(x.mean())
    rests_on = [_claim_rests_on(d, of.known, without_one(of.x), place, p) for of in rankings]
    return {
        "arm": d["arm"],
        "baseline": d["baseline"],
        "metric": d["metric"],
        "concepts": len(known),
        "mean": mean,
        "low": ends[0],
        "high": ends[1],
        "for_others": all(holds_for_others(of.x, LEVEL / len(p)) for of in rankings),
        "without_low": float(left.means.min()),
        "without_high": float(left.means.max()),
        "concept": known[left.most],
        "sign_changes": bool(((left.means * mean) < 0).any()),
        "claim_rests_on": list(dict.fromkeys(concept for of in rests_on for concept in of)),
    }


def holds_for_others(differences: Matrix, level: float) -> bool:
    """Whether the interval over seeds and concepts together, at this level, leaves out 0."""
    ends = crossed_interval(differences, level)
    return ends is not None and not ends[0] <= 0 <= ends[1]


def _claim_rests_on(
    d: DifferenceEntry, known: Sequence[str], left: WithoutOne, place: int, p: Sequence[float]
) -> list[str]:
    """The concepts without which a claim is none: the sign is another, or p after Holm's correction above the level.

    The other tests' p are held as they are. Where all seeds are equal without a concept, the claim is taken to stay.
    """
    if d["verdict"] not in ("lower", "higher"):
        return []
    sign = -1 if d["verdict"] == "lower" else 1
    return [
        concept
        for concept, mean, p_left in zip(known, left.means, left.p, strict=True)
        if mean * sign <= 0 or (p_left > p[place] and holm([*p[:place], float(p_left), *p[place + 1 :]])[place] > LEVEL)
    ]


# --- in words


def concept_findings(entries: Sequence[OtherConceptsEntry], differences: Sequence[DifferenceEntry]) -> list[str]:
    """Sentences on the claims that may be of these concepts only."""
    verdicts = {(d["arm"], d["metric"]): d["verdict"] for d in differences}
    claimed = [entry for entry in entries if verdicts[entry["arm"], entry["metric"]] in ("lower", "higher")]
    sentences = []
    for entry in claimed:
        if entry["claim_rests_on"]:
            without = " or ".join(entry["claim_rests_on"][:3])
            more = len(entry["claim_rests_on"]) - 3
            sentences.append(
                f"{entry['arm']}: that the {METRICS[entry['metric']].label} is "
                f"{verdicts[entry['arm'], entry['metric']]} rests on single concepts; it is no claim without {without}"
                + (f", or any of {more} others" if more > 1 else ", or one other" * more)
                + "."
            )
    narrow = [entry for entry in claimed if not entry["for_others"]]
    if narrow:
        names = ", ".join(f"{entry['arm']} ({METRICS[entry['metric']].label})" for entry in narrow[:4])
        more = f" and {len(narrow) - 4} more" if len(narrow) > 4 else ""
        sentences.append(
            f"Not shown for other concepts of the kind (corrected interval over seeds and concepts together): "
            f"{len(narrow)} of {len(claimed)} claims on primary outcomes, {names}{more}."
        )
    elif claimed and not any(entry["claim_rests_on"] for entry in claimed):
        every = "The claim" if len(claimed) == 1 else f"All {len(claimed)} claims"
        sentences.append(
            f"{every} on primary outcomes would hold for other concepts of the kind too (corrected interval over "
            "seeds and concepts together)."
        )
    return sentences
