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

from sae_lm.errors import SaeError, SettingsError
from sae_lm.penalties.arms import Arm, parse_arm

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


Values = Mapping[str, Mapping[str, Sequence[float]]]
"""Arm -> metric -> one value per seed, NaN where missing."""


def read_arm(name: str) -> Arm:
    """Parse the name of a trained arm. Raises SaeError where it is not one."""
    try:
        return parse_arm(name)
    except SettingsError:
        raise SaeError(
            f"{name!r} is not an arm of sae-lm train; expected one as none, max_cos:0.25, none@k=16"
        ) from None


def family(name: str) -> str:
    """An arm's name without its k: the rungs of a ladder have one family."""
    return read_arm(name)._replace(k=None).name


def ladder_of(arm: str, arms: Sequence[str], baseline: str) -> list[str]:
    """The arms that one arm may be compared with: its own architecture without a penalty, where that is among the
    arms and the baseline is no penalty; else the baseline. All rungs of it, or the one that the baseline names."""
    wanted, mine = read_arm(baseline), read_arm(arm)
    if wanted.penalty == "none" and mine.penalty != "none" and mine.arch != wanted.arch:
        own = [other for other in arms if read_arm(other)._replace(k=None) == mine.baseline._replace(k=None)]
        if own:
            return own
    if baseline in arms:
        return [other for other in arms if family(other) == baseline] if wanted.k is None else [baseline]
    return [other for other in arms if family(other) == baseline]


def counterpart(arm: str, values: Values, baseline: str) -> Match:
    """What an arm is compared with: the rung of its own k where L0 is equal, else of equal L0, else between rungs."""
    return match_rung(arm, ladder_of(arm, list(values), baseline), {name: of["l0"] for name, of in values.items()})


def match_rung(arm: str, ladder: Sequence[str], l0: Mapping[str, Sequence[float]]) -> Match:
    """The same on a given ladder. l0: of all arms, per seed."""
    same_k = next((rung for rung in ladder if read_arm(rung).k == read_arm(arm).k), None)
    return match(l0[arm], {rung: l0[rung] for rung in ladder}, same_k)


def frontier(values: Values) -> set[str]:
    """The arms on the Pareto front of mean L0 and mean FVU."""
    return pareto({arm: (fmean(of["l0"]), fmean(of["fvu"])) for arm, of in values.items()})
