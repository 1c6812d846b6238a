"""Ask whether an outcome hangs on some of the concepts: those with weak probes or without latents, or one kind of them.

A probe that is often wrong sees concepts that are not there, and main latents that stay silent are then right. So
outcomes are given over the concepts with a clear probe alone as well, and how far holes go with weak probes. Where no
factor brings main latents to the false alarms of all, holes are counted at a threshold that no SAE has; so holes are
given without these concepts too. Where no latents tell a concept, others carry its direction, whether it was absorbed or
never learned: outcomes are given over the concepts that are found alone. Kinds of concepts are compared because what holds for spelling need not hold for
places; the differences of each kind are not corrected for their number, and decide nothing.
"""

import math
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any

from sae_lm.comparison.evaluate import concept_means
from sae_lm.comparison.evaluation_set import Candidates
from sae_lm.comparison.matching import Matching
from sae_lm.comparison.outcomes import METRICS, PRIMARY
from sae_lm.comparison.runs import Key
from sae_lm.concepts.probes import Probe
from sae_lm.metrics.statistics import FEWEST_SEEDS, mean_of_known, paired_difference
from sae_lm.pages.difference_entries import KindEntry
from sae_lm.pages.summary import KINDS
from sae_lm.pages.text import signed
from sae_lm.penalties.arms import Arm

CLEAR = 0.85
"""F1 of a clear probe on unseen words."""
FOUND = 0.7
"""F1 of the main latents of a concept that the SAEs have latents for, mean over the baseline's SAEs."""
MAIN_F1 = ("main_f1", "main_f1_by_f1")
"""Keys of that F1, by each ranking of main latents."""
FEWEST_RANKED = 3
"""Concepts that a rank correlation needs."""
OUTCOME = "equal_hole_rate"
"""The key of a concept's figures that weak probes are asked about."""
OF_CLEAR = {OUTCOME: "equal_hole_rate_clear", "fraction": "absorption_fraction_clear", "splits": "splits_clear"}
"""Key of a concept's figures -> the metric that is its mean over clear concepts."""
OF_REACHED = {
    "reached": ("equal_hole_rate", "equal_hole_rate_reached"),
    "reached_by_f1": ("equal_hole_rate_by_f1", "equal_hole_rate_reached_by_f1"),
}
"""Key that says whether false alarms are reached -> key of the holes there, and the metric that is their mean."""

OF_FOUND = {
    "equal_hole_rate": "equal_hole_rate_found",
    "equal_hole_rate_by_f1": "equal_hole_rate_found_by_f1",
    "fraction": "absorption_fraction_found",
    "fraction_by_f1": "absorption_fraction_found_by_f1",
}
"""Key of a concept's figures -> the metric that is its mean over the concepts that are found."""
OfSaes = Mapping[Key, Sequence[Mapping[str, Any]]]
"""SAE -> the figures of each concept in use, in one order."""


def subset_figures(per_concept: Sequence[Mapping[str, Any]], candidates: Sequence[Candidates]) -> dict[str, float]:
    """One SAE's means over concepts with a clear probe, and the rank correlation of probe F1 and holes over all; NaN
    where there are too few concepts. Both in the same order."""
    scores = [of.probe.f1 for of in candidates]
    clear = [figures for figures, score in zip(per_concept, scores, strict=True) if score >= CLEAR]
    means = {
        metric: mean_of_known([figures.get(key, math.nan) for figures in clear]) for key, metric in OF_CLEAR.items()
    }
    return means | {"probe_rank": rank_correlation(scores, [figures.get(OUTCOME, math.nan) for figures in per_concept])}


def common_subset_figures(per_concept: OfSaes, ladder: Sequence[Arm]) -> dict[Key, dict[str, float]]:
    """Of each SAE the means over concepts that are chosen for all SAEs together; NaN without any. ladder: the baseline's rungs."""
    reached, found = reached_figures(per_concept), found_figures(per_concept, ladder)
    return {key: reached[key] | found[key] for key in per_concept}


def reached_figures(per_concept: OfSaes) -> dict[Key, dict[str, float]]:
    """Of each SAE the mean of holes over the concepts alone whose false alarms every SAE here reaches; NaN without any."""
    found: dict[Key, dict[str, float]] = {key: {} for key in per_concept}
    for reached, (holes, metric) in OF_REACHED.items():
        common = [all(of.get(reached) for of in concept) for concept in zip(*per_concept.values(), strict=True)]
        for key, concepts in per_concept.items():
            known = [of.get(holes, math.nan) for of, there in zip(concepts, common, strict=True) if there]
            found[key][metric] = mean_of_known(known)
    return found


def found_concepts(per_concept: OfSaes, ladder: Sequence[Arm]) -> list[bool]:
    """Whether main latents of the baseline's SAEs tell each concept, by the ranking that finds the better ones.

    An F1 has the recall in it, which is what holes take away: so these concepts have few holes, and which they are must
    not depend on the arms that are compared.
    """
    of_baseline = [concepts for (arm, _), concepts in per_concept.items() if arm in ladder]
    by_concept = list(zip(*of_baseline, strict=True))
    return [any(mean_of_known([of.get(key, math.nan) for of in one]) >= FOUND for key in MAIN_F1) for one in by_concept]


def found_figures(per_concept: OfSaes, ladder: Sequence[Arm]) -> dict[Key, dict[str, float]]:
    """Of each SAE the means of holes and fraction over the concepts that are found; NaN without any."""
    found = found_concepts(per_concept, ladder)
    return {
        key: {metric: _mean_where(found, True, [concepts], figure) for figure, metric in OF_FOUND.items()}
        for key, concepts in per_concept.items()
    }


def _mean_where(found: Sequence[bool], asked: bool, saes: Sequence[Sequence[Mapping[str, Any]]], figure: str) -> float:
    of_concepts = [pair for concepts in saes for pair in zip(concepts, found, strict=True)]
    return mean_of_known([of.get(figure, math.nan) for of, there in of_concepts if there == asked])


def found_sentence(per_concept: OfSaes, ladder: Sequence[Arm]) -> list[str]:
    """How many concepts are found, and what each rung of the baseline has there and elsewhere; nothing where all are."""
    found = found_concepts(per_concept, ladder)
    if all(found):
        return []
    told = f"Of {len(found)} concepts main latents tell {sum(found) or 'none'} with an F1 of {FOUND:g} or more"
    told += " (mean over the baseline's SAEs)"
    alike = "an absorbed concept and one that was never learned look alike to holes and fraction"
    if not any(found):
        return [f"{told}: {alike}."]
    rungs = []
    for rung in ladder:
        saes = [concepts for (arm, _), concepts in per_concept.items() if arm == rung]
        there, elsewhere = (
            [_known(_mean_where(found, asked, saes, figure)) for figure in (OUTCOME, "fraction")]
            for asked in (True, False)
        )
        rungs.append(
            f"{rung.name} has holes at equal false alarms of {there[0]} over these and {elsewhere[0]} over the others, and a "
            f"fraction of {there[1]} and {elsewhere[1]}"
        )
    return [f"{told}. {'; '.join(rungs)}. Of the others {alike}."]


def _known(mean: float) -> str:
    return f"{mean:.3f}" if math.isfinite(mean) else "(unknown)"


def rank_correlation(a: Sequence[float], b: Sequence[float]) -> float:
    """Spearman's; NaN where fewer than three pairs are known or one side is all equal."""
    from scipy.stats import spearmanr  # a second's import

    known = [(x, y) for x, y in zip(a, b, strict=True) if math.isfinite(x) and math.isfinite(y)]
    left, right = [x for x, _ in known], [y for _, y in known]
    if len(known) < FEWEST_RANKED or len(set(left)) == 1 or len(set(right)) == 1:
        return math.nan
    return float(spearmanr(left, right).statistic)  # pyright: ignore[reportAttributeAccessIssue]


def kind_of(concept: Probe) -> str:
    """token, letter, contextual or csv: first letters are a kind of their own, the usual concepts of absorption."""
    return "letter" if concept.kind == "token" and concept.name.startswith("first letter ") else concept.kind


def differences_by_kind(
    per_concept: OfSaes,
    concepts: Sequence[Probe],
    matching: Matching,
    seeds: Sequence[int],
) -> list[KindEntry]:
    """Every arm's difference from the baseline in each primary outcome, over the concepts of each kind in use.

    concepts: all, those in use have figures in ``per_concept``.
    """
    entries: list[KindEntry] = []
    kinds = {probe.name: kind_of(probe) for probe in concepts if probe.skipped is None}
    means = {kind: _means_of(kind, kinds, per_concept, matching, seeds) for kind in KINDS if kind in kinds.values()}
    compared = {arm: match for arm, match in matching.matches.items() if arm not in matching.ladder}
    for metric, kind, (arm, match) in product(PRIMARY, means, compared.items()):
        if match.how == "not matched":
            continue
        values = {one: [of_seed[metric] for of_seed in means[kind][one]] for one in (arm, *match.ladder)}
        d = paired_difference(values[arm], match.baseline(values))
        entries.append(
            {
                "arm": arm.name,
                "metric": metric,
                "kind": kind,
                "concepts": sum(own == kind for own in kinds.values()),
                "per_seed": [*d.per_seed],
                "mean": d.mean,
                "low": d.low,
                "high": d.high,
            }
        )
    return entries


def _means_of(
    kind: str,
    kinds: Mapping[str, str],
    per_concept: OfSaes,
    matching: Matching,
    seeds: Sequence[int],
) -> dict[Arm, list[dict[str, float]]]:
    """Of every arm and seed the `concept_means` over the concepts of one kind."""
    return {
        arm: [concept_means([of for of in per_concept[arm, seed] if kinds[of["concept"]] == kind]) for seed in seeds]
        for arm in matching.matches
    }


def disagreements(entries: Sequence[KindEntry]) -> list[str]:
    """A sentence for each arm and outcome that is lower for one kind and higher for another, both intervals off 0."""
    sentences = []
    for arm, metric in dict.fromkeys((entry["arm"], entry["metric"]) for entry in entries):
        sure = [entry for entry in entries if (entry["arm"], entry["metric"]) == (arm, metric)]
        known = [[value for value in entry["per_seed"] if value is not None and math.isfinite(value)] for entry in sure]
        sure = [entry for entry, values in zip(sure, known, strict=True) if len(values) >= FEWEST_SEEDS]
        lower = [_told(entry) for entry in sure if entry["high"] is not None and entry["high"] < 0]
        higher = [_told(entry) for entry in sure if entry["low"] is not None and entry["low"] > 0]
        if lower and higher:
            sentences.append(
                f"{arm}: kinds of concepts disagree. Its {METRICS[metric].label} is lower for {' and '.join(lower)}, "
                f"and higher for {' and '.join(higher)} (95% intervals, not corrected): the mean over concepts depends "
                "on which are asked."
            )
    return sentences


def _told(entry: KindEntry) -> str:
    interval = f"{signed(entry['mean'])} [{signed(entry['low'])}, {signed(entry['high'])}]"
    return f"{KINDS[entry['kind']]} ({entry['concepts']} concept{'s' * (entry['concepts'] != 1)}, {interval})"
