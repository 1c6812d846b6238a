"""Decide what may be claimed: the difference of each arm from its baseline, and a verdict with its reason.

Rules. Each arm is compared with the baseline at equal L0 (sae_lm.comparison.matching), seed by seed. What decides is
the p value of Student's t over seeds (sae_lm.metrics.statistics has why); for primary outcomes after Holm's
correction. The family that is corrected for: every primary outcome of every arm that is compared at all, that is,
with three seeds or more and at equal or interpolated L0. Primary outcomes that are shares are tested for equivalence
too (sae_lm.metrics.equivalence), corrected by Holm's method over these: what is neither lower nor higher and within
the margin is "equivalent". Other metrics are not corrected: their verdicts describe, and where nothing differs one in
twenty is lower or higher by chance.
"Less absorption" needs both its hole rate at equal false alarms and its fraction to be lower: a penalty on cosines can
lower the fraction alone (sae_lm.metrics.absorption), and main latents that fire more often the plain hole rate
(sae_lm.metrics.false_alarms). Where main latents are ranked twice a primary outcome is claimed that holds by both rankings
(sae_lm.comparison.both_rankings). Verdicts are of the statistics alone; that the SAEs behind one are not trained yet is a
mark of its own (sae_lm.comparison.undertrained).
"""

from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType
from typing import NamedTuple

from sae_lm.comparison.both_rankings import alone, equivalent, joint, needed, unseen
from sae_lm.comparison.matching import Match, Matching, Values
from sae_lm.comparison.outcomes import BY_F1, METRICS, NOT_OUTCOMES, NOT_TESTED, PRIMARY
from sae_lm.comparison.undertrained import find_undertrained, taints
from sae_lm.metrics.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    MOST_SEEDS,
    Difference,
    holm,
    paired_difference,
)
from sae_lm.pages.difference_entries import DifferenceEntry, Verdict
from sae_lm.penalties.arms import Arm

Test = tuple[Arm, str]
"""An arm and a metric."""
Pair = tuple[Difference, Difference]
"""A difference, and that of the other ranking of main latents, without values where one alone was asked for."""


def compare_arms(
    values: Values,
    matching: Matching,
    margin: float | None = None,
    by_concept: Mapping[Test, Sequence[float]] = MappingProxyType({}),
    not_tested: Collection[str] = NOT_TESTED,
) -> list[DifferenceEntry]:
    """One entry for each arm that is not the baseline's and each metric: the report's "differences".

    margin: within which a share counts as equivalent; None: no test for equivalence. by_concept: differences per seed
    that are not those of the means, as some concepts lack a value in one SAE (`over_common_concepts`). not_tested:
    metrics whose values are not independent over seeds.
    """
    paired = _paired(values, matching, by_concept, not_tested)
    none = paired_difference([], [])
    pairs = {test: (paired[test], paired[test[0], BY_F1[test[1]]] if test[1] in PRIMARY else none) for test in paired}
    p = {
        (arm, key): joint(*pair).p or 0.0
        for (arm, key), pair in pairs.items()
        if key in PRIMARY and pair[0].seeds >= FEWEST_SEEDS and matching.matches[arm].how != "not matched"
    }
    corrected = dict(zip(p, holm(list(p.values())), strict=True))
    equivalence = _Equivalence(margin, _equivalence({test: pairs[test] for test in p}, margin))
    undertrained = find_undertrained(values)
    return [
        _entry(
            test,
            matching.matches[test[0]],
            pair,
            corrected,
            equivalence,
            taints(test[0], matching, undertrained),
            "pairs of seeds overlap" if test[1] in not_tested else alone(*pair),
        )
        for test, pair in pairs.items()
    ]


def _paired(
    values: Values, matching: Matching, by_concept: Mapping[Test, Sequence[float]], not_tested: Collection[str]
) -> dict[Test, Difference]:
    """Every difference, arm by arm in the order of the metrics."""
    paired: dict[Test, Difference] = {}
    for arm in values:
        if arm in matching.ladder:
            continue
        match = matching.matches[arm]
        for key in METRICS:
            if key in NOT_OUTCOMES:
                continue
            rungs = {rung: values[rung][key] for rung in match.ladder}
            others = list(values[match.rung][key]) if key == "l0" else match.baseline(rungs)
            difference = paired_difference(values[arm][key], others)
            if (arm, key) in by_concept:
                difference = paired_difference(by_concept[arm, key], [0.0] * len(by_concept[arm, key]))
            paired[arm, key] = difference.untested() if key in not_tested else difference
    return paired


class _Equivalence(NamedTuple):
    margin: float | None
    p: Mapping[Test, float]
    """corrected; of the primary outcomes that are shares"""

    def shown(self, test: Test) -> bool:
        return self.p.get(test, 1.0) <= LEVEL


def _equivalence(tested: Mapping[Test, Pair], margin: float | None) -> dict[Test, float]:
    """All are corrected for, those too that are claimed to be lower or higher: which these are is chance as well."""
    if margin is None:
        return {}
    shares = {test: equivalent(*pair, margin) for test, pair in tested.items() if METRICS[test[1]].unit == "share"}
    return dict(zip(shares, holm(list(shares.values())), strict=True))


def _entry(
    test: Test,
    match: Match,
    pair: Pair,
    corrected: Mapping[Test, float],
    equivalence: _Equivalence,
    undertrained: bool,
    why_not: str | None,
) -> DifferenceEntry:
    """why_not: the reason where it is neither lower nor higher, if that is another than its size."""
    arm, key = test
    d = joint(*pair)
    # what Holm's first step asks for: a primary outcome is to be found even where no other is
    level = LEVEL / max(1, len(corrected)) if key in PRIMARY else LEVEL
    seeds, p_holm = needed(*pair, level), corrected.get(test)
    verdict, reason = _verdict(key, match.how, d, p_holm, seeds, why_not)
    if equivalence.shown(test) and verdict in ("lower", "higher", "not distinguishable"):
        verdict = "equivalent" if verdict == "not distinguishable" else verdict
        reason = f"within ±{equivalence.margin:g}"
    return {
        "arm": arm.name,
        "baseline": match.rung.name if key == "l0" else "/".join(rung.name for rung in match.used),
        "metric": key,
        "per_seed": [*d.per_seed],
        "mean": d.mean,
        "low": d.low,
        "high": d.high,
        "p": d.p,
        "p_sign_flip": d.p_sign_flip,
        "bootstrap_low": d.bootstrap_low,
        "bootstrap_high": d.bootstrap_high,
        "spread": d.spread,
        "p_holm": p_holm,
        "p_equivalence": equivalence.p.get(test),
        "detectable": unseen(*pair, level),
        "seeds_needed": seeds,
        "l0": match.how,
        "verdict": verdict,
        "reason": reason,
        "undertrained": undertrained,
    }


def _verdict(
    key: str, how: str, d: Difference, p_holm: float | None, seeds: int | None, why_not: str | None
) -> tuple[Verdict, str | None]:
    """Also the reason where there is one to give."""
    if not d.seeds:
        return "no claim", "no values"
    if d.seeds < FEWEST_SEEDS:
        return "no claim", f"< {FEWEST_SEEDS} seeds"
    if how == "not matched" and key != "l0":
        return "L0 not matched", None
    if d.p is None and why_not:
        return "no claim", why_not
    p = p_holm if key in PRIMARY else d.p
    if p is not None and d.mean is not None and p <= LEVEL:
        return "lower" if d.mean < 0 else "higher", None
    if d.mean == 0 and d.spread == 0:
        return "not distinguishable", "equal"
    return "not distinguishable", why_not or f"needs {f'about {seeds}' if seeds else f'over {MOST_SEEDS}'} seeds"
