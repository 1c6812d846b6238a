"""Find what each arm may be compared with: another arm of equal L0, or a line between two.

Almost every figure of an SAE moves with its L0, so arms are compared at equal L0 (within 5%), or an arm is compared
with what its baseline would have at the arm's L0: interpolated between the rungs of a ladder, seed by seed, linearly
in log L0. That straight line lies beside the true curve, by more the further apart the rungs, so these may be an octave
apart and no more. On SmolLM2 holes at k 16, 32 and 64 are .228, .233 and .287 (configs/README.md): at 32 a line from 16
to 64 is .024 too high, as much as any penalty moved them; a line over an octave of that curve is .006 off at worst.
Interpolated differences are flagged. Beyond the ladder nothing is guessed.

A rung is an arm of the baseline at one k; all rungs together are the baseline's ladder.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

from sae_lm.penalties.arms import Arm

TOLERANCE = 0.05
"""Relative difference of L0 up to which arms count as equals."""


WIDEST = 2.2
"""L0 of two rungs, one over the other, up to which a line is drawn between them: an octave, and what L0 may miss of k."""


def is_equal_l0(l0: float, other: float) -> bool:
    """Whether two mean L0 count as equal; the second is what 5% is taken of."""
    return abs(l0 - other) <= TOLERANCE * other


class Match(NamedTuple):
    """What an arm is compared with."""

    how: str
    """matched, interpolated or not matched"""
    rung: Arm
    """the rung of equal L0, or the nearest"""
    l0: tuple[float, ...]
    """the arm's L0, per seed"""
    ladder: Mapping[Arm, Sequence[float]]
    """rung -> L0 per seed"""

    @property
    def used(self) -> list[Arm]:
        """The rungs that differences are from: those around any seed's L0 where it is interpolated, else one."""
        if self.how != "interpolated":
            return [self.rung]
        ends = set()
        for seed, l0 in enumerate(self.l0):
            at = {rung: of_rung[seed] for rung, of_rung in self.ladder.items()}
            ends |= {
                max((r for r in at if at[r] <= l0), key=at.__getitem__),
                min((r for r in at if at[r] >= l0), key=at.__getitem__),
            }
        return [rung for rung in self.ladder if rung in ends]

    def baseline(self, values: Mapping[Arm, Sequence[float]]) -> list[float]:
        """A metric of the rungs, per seed -> what the arm is compared with, per seed; NaN where it is not known."""
        if self.how != "interpolated":
            return list(values[self.rung])
        return [
            interpolate(l0, [(self.ladder[rung][seed], values[rung][seed]) for rung in self.ladder])
            for seed, l0 in enumerate(self.l0)
        ]


def match(l0: Sequence[float], ladder: Mapping[Arm, Sequence[float]], prefer: Arm | None = None) -> Match:
    """Find an arm's counterpart among the baseline's rungs, one rung or more.

    prefer: the rung to take where its L0 is equal (the one of the same k); else the nearest of equal L0.
    """

    def distance(rung: Arm) -> float:
        own, other = fmean(l0), fmean(ladder[rung])
        return abs(math.log(own / other)) if min(own, other) > 0 else math.inf

    nearest = min(ladder, key=distance)
    for rung in (prefer, nearest):
        if rung is not None and rung in ladder and is_equal_l0(fmean(l0), fmean(ladder[rung])):
            return Match("matched", rung, tuple(l0), ladder)
    spans = [(min(of_seed), max(of_seed)) for of_seed in zip(*ladder.values(), strict=True)]
    inside = all(low <= value <= high for value, (low, high) in zip(l0, spans, strict=True))
    near = inside and all(
        _is_near(value, of_seed) for value, of_seed in zip(l0, zip(*ladder.values(), strict=True), strict=True)
    )
    return Match("interpolated" if near else "not matched", nearest, tuple(l0), ladder)


def _is_near(l0: float, rungs: Sequence[float]) -> bool:
    """Whether the rungs around an L0 are near enough for a line; one of them may be of equal L0."""
    below, above = max(rung for rung in rungs if rung <= l0), min(rung for rung in rungs if rung >= l0)
    return above <= WIDEST * below or is_equal_l0(l0, below) or is_equal_l0(l0, above)


def interpolate(l0: float, rungs: Sequence[tuple[float, float]]) -> float:
    """The value at an L0, between the rungs (L0, value) around it, linear in log L0; NaN outside or beside a NaN."""
    rungs = sorted(rung for rung in rungs if rung[0] > 0)
    above = bisect_left([at for at, _ in rungs], l0)
    if above < len(rungs) and rungs[above][0] == l0:
        return rungs[above][1]
    if not 0 < above < len(rungs):
        return math.nan
    (low, left), (high, right) = rungs[above - 1], rungs[above]
    share = math.log(l0 / low) / math.log(high / low)
    return left + share * (right - left)


# --- which arms an arm may be compared with


def is_rung(arm: Arm, baseline: Arm) -> bool:
    """Whether an arm is the baseline, or where the baseline names no k the baseline at some k."""
    return baseline in (arm, arm.family)


def ladder_of(arm: Arm, arms: Sequence[Arm], baseline: Arm) -> list[Arm]:
    """The arms that one arm may be compared with: its own architecture without a penalty (of a control, with nothing
    held), where that is among the arms and the baseline is such an arm too; else the baseline. All rungs of it, or the
    one that the baseline names. Of the baseline's own rungs it is these."""
    if baseline.baseline == baseline and arm.baseline != arm and arm.baseline.family != baseline.family:
        own = [other for other in arms if other.family == arm.baseline.family]
        if own:
            return own
    return [other for other in arms if is_rung(other, baseline)]


class Matching(NamedTuple):
    """What all arms are compared with, found once for the whole report."""

    ladder: list[Arm]
    """rungs of the baseline"""
    matches: dict[Arm, Match]
    """every arm, a rung too -> what its differences are taken from"""
    to_baseline: dict[Arm, Match]
    """every arm -> the same of the baseline's ladder, whatever the arm's architecture"""


def match_arms(arms: Sequence[Arm], baseline: Arm, l0: Mapping[Arm, Sequence[float]]) -> Matching:
    """Match every arm: to the rung of its own k where L0 is equal, else to that of equal L0, else between rungs.

    l0: of all arms, one per seed.
    """

    def match_to(arm: Arm, ladder: Sequence[Arm]) -> Match:
        same_k = next((rung for rung in ladder if rung.k == arm.k), None)
        return match(l0[arm], {rung: l0[rung] for rung in ladder}, same_k)

    ladder = ladder_of(baseline, arms, baseline)
    return Matching(
        ladder=ladder,
        matches={arm: match_to(arm, ladder_of(arm, arms, baseline)) for arm in arms},
        to_baseline={arm: match_to(arm, ladder) for arm in arms},
    )


# --- which are worth having


Values = Mapping[Arm, Mapping[str, Sequence[float]]]
"""Arm -> metric -> one value per seed, NaN where missing."""


def pareto(points: Mapping[Arm, tuple[float, float]]) -> set[Arm]:
    """Arms by (L0, FVU) -> those than which no other has a lower FVU at an L0 that is lower or equal (within 5%)."""
    return {
        arm
        for arm, (l0, fvu) in points.items()
        if math.isfinite(fvu) and not any(other < fvu and at <= l0 * (1 + TOLERANCE) for at, other in points.values())
    }


def frontier(values: Values) -> set[Arm]:
    """The arms on the Pareto front of mean L0 and mean FVU."""
    return pareto({arm: (fmean(metrics["l0"]), fmean(metrics["fvu"])) for arm, metrics in values.items()})
