"""Test which of two families has less of a primary outcome at one cost in FVU and equal L0.

Each family is held against one, the matryoshka SAEs' without a penalty where they are among the arms, else the
first that is no control held at its start. Both are read off their curves (`sae_lm.comparison.frontier`) at one cost, seed by seed, and paired by seed.
The costs: those of the settings, and for each pair the greatest that both reach, unless that would be the same test
again. Nothing is read far from what was trained (`frontier.untrained`). What decides is p of Student's t (of
both rankings of main latents, where both are asked for) after Holm's correction over all that is tested here.

How often the 95% interval holds the difference of the curves through the true means, where the noise of a point's
cost is a tenth, a third or all of the way to the next point; measured in tests/benchmarks/coverage_crossed.py (800
trials). In brackets the share of trials in which both curves held the cost at every seed, so that it was read at all:

    seeds     .1            .3            1
     3        94.1 (100)    95.6 (100)    94.8 (92) %
     6        94.4 (100)    95.1 (100)    93.9 (84)
    10        94.1 (100)    96.0 (100)    94.7 (75)
"""

import math
from collections.abc import Collection, Iterator, Sequence
from functools import partial
from typing import NamedTuple

import numpy as np

from sae_lm.comparison.both_rankings import alone, joint, needed
from sae_lm.comparison.doubts import CLAIMS, doubts_of_one
from sae_lm.comparison.frontier import UNTRAINED, Curve, interval, untrained
from sae_lm.comparison.outcomes import BY_F1, METRICS, PRIMARY
from sae_lm.metrics.statistics import (
    FEWEST_SEEDS,
    LEVEL,
    MOST_SEEDS,
    Difference,
    holm,
    paired_difference,
)
from sae_lm.pages.difference_entries import EqualFvuEntry, Verdict
from sae_lm.penalties.arms import Arm

SAME_COST = 0.02
"""Relative difference up to which two costs are one."""


class _Test(NamedTuple):
    curve: Curve
    reference: Curve
    cost: float
    metric: str
    difference: Difference
    by_f1: Difference
    """by the other ranking of main latents; without values where one alone was asked for"""
    unreached: str | None
    """why there is nothing to read"""


def compare_at_equal_fvu(
    all_curves: Sequence[Curve], costs: Sequence[float], undertrained: Collection[Arm] = ()
) -> list[EqualFvuEntry]:
    """One entry for each family that is not the reference, cost and primary outcome that has values.

    undertrained: arms whose SAEs are not trained yet; what is read off theirs, or is from theirs, is marked.
    """
    tests = list(_tests(all_curves, costs))
    tested = [place for place, test in enumerate(tests) if test.difference.seeds >= FEWEST_SEEDS]
    p = holm([joint(tests[place].difference, tests[place].by_f1).p or 0.0 for place in tested])
    corrected = dict(zip(tested, p, strict=True))
    return [_entry(test, corrected.get(place), len(tested), undertrained) for place, test in enumerate(tests)]


def reference_of(of_rung: Sequence[Curve]) -> Curve:
    """What the others of one L0 are held against."""

    def is_nested(arm: Arm) -> bool:
        return arm.penalty == "none" and arm.arch == "matryoshka" and not arm.is_held

    nested = [curve for curve in of_rung if all(map(is_nested, curve.family.arms))]
    free = [curve for curve in of_rung if not any(arm.is_held for arm in curve.family.arms)]
    return [*nested, *free, *of_rung][0]


def _tests(all_curves: Sequence[Curve], costs: Sequence[float]) -> Iterator[_Test]:
    by_rung: dict[Arm, list[Curve]] = {}
    for curve in all_curves:
        by_rung.setdefault(curve.rung, []).append(curve)
    for of_rung in by_rung.values():
        reference = reference_of(of_rung)
        for curve in of_rung:
            for cost in _costs(curve, reference, costs) if curve is not reference else ():
                for metric in PRIMARY:
                    known = [np.isfinite(c.change[metric]).all(0) for c in (curve, reference)]
                    if (known[0] & known[1]).any():
                        yield _test(curve, reference, cost, metric)


def _costs(curve: Curve, reference: Curve, costs: Sequence[float]) -> list[float]:
    """Those asked for, and the greatest that both reach at every seed where that is another test."""
    least, most = max(c.reach[0] for c in (curve, reference)), min(c.reach[1] for c in (curve, reference))
    pair = (curve, reference)

    def says_the_same(cost: float) -> bool:
        """Two costs on one line from the origin are one test: each seed's difference is so many times the other's."""
        on_lines = all(c.segment(cost) == c.segment(most) and c.segment(cost).begin == c.rung for c in pair)
        known = least <= cost <= most and untrained(pair, cost) is None
        return math.isclose(most, cost, rel_tol=SAME_COST) or (on_lines and known)

    further = most > max(least, 0) and not any(says_the_same(cost) for cost in costs)
    return [*costs, *([most] if further else [])]


def _test(curve: Curve, reference: Curve, cost: float, metric: str) -> _Test:
    unreached = None
    for one in (curve, reference):
        least, most = one.reach
        if not least <= cost <= most and not unreached:
            ends = f"costs {least:.3g} at least" if cost < least else f"does not reach it, {max(most, 0):.3g} at most"
            unreached = f"{one.family.name} {ends}"
    unreached = unreached or untrained((curve, reference), cost)
    if unreached:
        nothing = [math.nan] * curve.cost.shape[1]
        known = paired_difference(nothing, nothing)
        return _Test(curve, reference, cost, metric, known, known, unreached)
    first, second = (_read(curve, reference, cost, key) for key in (metric, BY_F1[metric]))
    return _Test(curve, reference, cost, metric, first, second, None)


def _read(curve: Curve, reference: Curve, cost: float, metric: str) -> Difference:
    return paired_difference(*(c.read(metric, cost).tolist() for c in (curve, reference)))


def _entry(test: _Test, p_holm: float | None, tests: int, undertrained: Collection[Arm]) -> EqualFvuEntry:
    d, known = joint(test.difference, test.by_f1), test.unreached is None
    read_off = [curve.between(test.cost) if known else [] for curve in (test.curve, test.reference)]
    verdict, reason = _verdict(test, p_holm, tests)
    read = partial(_read, test.curve, test.reference, test.cost)
    return {
        "family": test.curve.family.name,
        "reference": test.reference.family.name,
        "rung": test.curve.rung.name,
        "fvu": test.cost,
        "metric": test.metric,
        "change": interval(test.curve.read(test.metric, test.cost))["mean"] if known else None,
        "reference_change": interval(test.reference.read(test.metric, test.cost))["mean"] if known else None,
        "between": [arm.name for arm in read_off[0]],
        "reference_between": [arm.name for arm in read_off[1]],
        "per_seed": [*d.per_seed],
        "mean": d.mean,
        "low": d.low,
        "high": d.high,
        "p": d.p,
        "p_holm": p_holm,
        "verdict": verdict,
        "reason": reason,
        "doubts": doubts_of_one(test.metric, verdict, read),
        "undertrained": known and any(arm in undertrained for arm in (test.curve.rung, *read_off[0], *read_off[1])),
    }


def _verdict(test: _Test, p_holm: float | None, tests: int) -> tuple[Verdict, str | None]:
    d = test.difference
    if test.unreached:
        return "no claim", test.unreached
    if d.mean is None or d.spread is None or p_holm is None:
        return "no claim", f"< {FEWEST_SEEDS} seeds"
    if p_holm <= LEVEL:
        return "lower" if d.mean < 0 else "higher", None
    if d.mean == 0 and d.spread == 0:
        return "not distinguishable", "equal"
    pair = (test.difference, test.by_f1)
    seeds = needed(*pair, LEVEL / tests)
    return "not distinguishable", alone(*pair) or f"needs {f'about {seeds}' if seeds else f'over {MOST_SEEDS}'} seeds"


# --- in words


def equal_fvu_findings(entries: Sequence[EqualFvuEntry]) -> list[str]:
    """A sentence for each family, cost and L0 with a claim; one if there is none; and what no answer is read off."""
    sentences = []
    read = [entry for entry in entries if entry["p_holm"] is not None]
    by_place: dict[tuple[str, str, float], list[EqualFvuEntry]] = {}
    for entry in read:
        if entry["verdict"] in CLAIMS:
            by_place.setdefault((entry["rung"], entry["family"], entry["fvu"]), []).append(entry)
    for (rung, family, cost), claimed in by_place.items():
        what = ", ".join(
            f"{METRICS[e['metric']].label} {e['verdict']} ({e['mean']:+.4f}{''.join(f'; but {d}' for d in e['doubts'])})"
            for e in claimed
        )
        sentences.append(
            f"At {cost:+.4f} FVU and the L0 of {rung}, {family} against {claimed[0]['reference']}: {what}"
            f"{', among undertrained SAEs' * claimed[0]['undertrained']}."
        )
    if read and not sentences:
        references = " and ".join(dict.fromkeys(entry["reference"] for entry in read))
        sentences.append(f"At equal FVU no family is told apart from {references}.")
    unread = dict.fromkeys(
        (entry["fvu"], entry["family"], entry["reference"], entry["reason"])
        for entry in entries
        if entry["reason"] and entry["reason"].startswith(UNTRAINED)
    )
    return sentences + [
        f"At {cost:+.4f} FVU {family} and {reference} are not compared: {reason}."
        for cost, family, reference, reason in unread
    ]
