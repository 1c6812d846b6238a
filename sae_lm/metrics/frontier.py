"""FVU against L0 -> which arms may be compared, with what, and which are worth having.

Almost every figure of an SAE moves with its L0, so arms are compared at equal L0 (within 5%), or an arm is compared
with what its baseline would have at the arm's L0: interpolated between the rungs of a ladder, seed by seed, linearly
in log L0. That straight line lies beside the true curve, by more the further apart the rungs: a difference much
smaller than that between rungs is not to be trusted, which is why interpolated ones are flagged. Beyond the ladder
nothing is guessed.
"""

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple

TOLERANCE = 0.05
"""Relative difference of L0 up to which arms count as equals."""


class Match(NamedTuple):
    """What an arm is compared with."""

    how: str
    """matched, interpolated or not matched"""
    name: str
    """the rung of equal L0, or the nearest"""
    l0: tuple[float, ...]
    """the arm's L0, per seed"""
    ladder: Mapping[str, Sequence[float]]
    """rung -> L0 per seed"""

    def baseline(self, values: Mapping[str, Sequence[float]]) -> list[float]:
        """A metric of the rungs, per seed -> what the arm is compared with, per seed; NaN where it is not known."""
        if self.how != "interpolated":
            return list(values[self.name])
        return [
            interpolate(l0, [(self.ladder[rung][seed], values[rung][seed]) for rung in self.ladder])
            for seed, l0 in enumerate(self.l0)
        ]


def match(l0: Sequence[float], ladder: Mapping[str, Sequence[float]], prefer: str | None = None) -> Match:
    """Find an arm's counterpart among the baseline's rungs, one rung or more.

    prefer: the rung to take where its L0 is equal (the one of the same k); else the nearest of equal L0.
    """

    def apart(rung: str) -> float:
        return abs(math.log(fmean(l0) / fmean(ladder[rung]))) if min(fmean(l0), fmean(ladder[rung])) > 0 else math.inf

    nearest = min(ladder, key=apart)
    for rung in (prefer, nearest):
        if (
            rung is not None
            and rung in ladder
            and abs(fmean(l0) - fmean(ladder[rung])) <= TOLERANCE * fmean(ladder[rung])
        ):
            return Match("matched", rung, tuple(l0), ladder)
    spans = [(min(of), max(of)) for of in zip(*ladder.values(), strict=True)]
    inside = all(low <= mine <= high for mine, (low, high) in zip(l0, spans, strict=True))
    return Match("interpolated" if inside else "not matched", nearest, tuple(l0), ladder)


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


def pareto(points: Mapping[str, tuple[float, float]]) -> set[str]:
    """Arms by (L0, FVU) -> those than which no other has a lower FVU at an L0 that is lower or equal (within 5%)."""
    return {
        arm
        for arm, (l0, fvu) in points.items()
        if math.isfinite(fvu) and not any(other < fvu and at <= l0 * (1 + TOLERANCE) for at, other in points.values())
    }
