"""figures of all arms and seeds -> differences from the baseline, verdicts, findings, the answer; measures nothing.

Rules. Each arm is compared with the baseline at equal L0 (sae_lm.comparison.matching), seed by seed. What decides is
the p value of Student's t over seeds (sae_lm.metrics.statistics has why); for primary outcomes after Holm's
correction. The family that is corrected for: every primary outcome of every arm that is compared at all, that is,
with three seeds or more and at equal or interpolated L0. Other metrics are not corrected: their verdicts describe,
and one in twenty is chance. "Less absorption" needs both its hole rate and its fraction to be lower, because a
penalty on cosines can lower the fraction alone (sae_lm.metrics.absorption).
"""

from collections.abc import Mapping
from typing import Any

from sae_lm.comparison.matching import Match, Values, counterpart, ladder_of
from sae_lm.comparison.outcomes import METRICS, NOT_OUTCOMES, NOT_TESTED, PRIMARY
from sae_lm.metrics.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    MOST_SEEDS,
    Difference,
    detectable,
    holm,
    paired_difference,
    seeds_needed,
)


def compare_arms(values: Values, baseline: str) -> list[dict[str, Any]]:
    """One entry for each arm that is not the baseline's and each metric: the report's "differences"."""
    found: list[tuple[str, str, Match, Difference]] = []
    for arm in values:
        if arm in ladder_of(baseline, list(values), baseline):
            continue
        matched = counterpart(arm, values, baseline)
        for key in METRICS:
            if key in NOT_OUTCOMES:
                continue
            rungs = {rung: values[rung][key] for rung in matched.ladder}
            others = list(values[matched.name][key]) if key == "l0" else matched.baseline(rungs)
            difference = paired_difference(values[arm][key], others)
            found.append((arm, key, matched, difference.untested() if key in NOT_TESTED else difference))
    tested = [
        (arm, key)
        for arm, key, matched, d in found
        if key in PRIMARY and d.seeds >= FEWEST_SEEDS and matched.how != "not matched"
    ]
    p = {(arm, key): d.p for arm, key, _, d in found if (arm, key) in set(tested)}
    corrected = dict(zip(tested, holm([p[test] or 0.0 for test in tested]), strict=True))
    return [_entry(arm, key, matched, d, corrected) for arm, key, matched, d in found]


def _entry(
    arm: str, key: str, matched: Match, d: Difference, corrected: Mapping[tuple[str, str], float]
) -> dict[str, Any]:
    # what Holm's first step asks for: a primary outcome is to be found even where no other is
    level = LEVEL / max(1, len(corrected)) if key in PRIMARY else LEVEL
    known = d.mean is not None and d.spread is not None and d.seeds >= FEWEST_SEEDS
    needed = seeds_needed(d.mean, d.spread, level) if known else None  # pyright: ignore[reportArgumentType]
    p_holm = corrected.get((arm, key))
    return {
        "arm": arm,
        "baseline": "/".join(matched.ladder) if matched.how == "interpolated" and key != "l0" else matched.name,
        "metric": key,
        **d._asdict(),
        "p_holm": p_holm,
        "detectable": d.spread * detectable(d.seeds, level) if known and d.spread else None,
        "seeds_needed": needed,
        "l0": matched.how,
        "verdict": _verdict(key, matched.how, d, p_holm, needed),
    }


def _verdict(key: str, how: str, d: Difference, p_holm: float | None, needed: int | None) -> str:
    if not d.seeds:
        return "no claim (no values)"
    if d.seeds < FEWEST_SEEDS:
        return f"no claim (< {FEWEST_SEEDS} seeds)"
    if how == "not matched" and key != "l0":
        return "L0 not matched"
    if key in NOT_TESTED:
        return "no claim (pairs of seeds overlap)"
    p = p_holm if key in PRIMARY else d.p
    if p is not None and d.mean is not None and p <= LEVEL:
        return "lower" if d.mean < 0 else "higher"
    if d.mean == 0 and d.spread == 0:
        return "not distinguishable (equal)"
    return f"not distinguishable (needs {f'about {needed}' if needed else f'over {MOST_SEEDS}'} seeds)"


# --- words
