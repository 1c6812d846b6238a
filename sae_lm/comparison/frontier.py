"""Compare families of arms at equal cost: primary outcomes against FVU at equal L0, and read off at one FVU.

An arm that removes more holes and costs more FVU is not better for that; a family of arms is, if at the same cost it
has fewer. A family is what differs in one number alone (one penalty's coefficients, or values of one option), at the
L0 of one rung of the baseline. All its differences are from that rung, whatever its architecture, so that families
lie in one plane with the baseline at (0, 0). Arms of an L0 between two rungs are in none: they would be held against
arms of another L0.

Rules. Of one seed a family's points in the order of their cost are joined by straight lines, from the origin on, or
from the arm of its own architecture without the penalty where that was trained: coefficient 0 is there. At a cost
between two points the outcome is read off the line, seed by seed, and compared with another family's of that seed by
Student's t. Nothing is read beyond a curve's ends: they must hold the cost at every seed. Bands are the same
reading along the curve. Between points the line is no SAE that was trained. Where gains flatten with cost, as those of
abs_cos and coactive did on SmolLM2, a line from the origin to a far point lies above the curve, and the family that
costs more looks worse for it. So two families are held against each other near their points, on short lines, or where
both lines begin at the origin and end at about one cost (`untrained`).
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_lm.comparison.doubts import DOUBTED_BY
from sae_lm.comparison.families import Family, families
from sae_lm.comparison.matching import Matching, Values
from sae_lm.comparison.outcomes import BY_F1, PRIMARY
from sae_lm.metrics.statistics import student_t
from sae_lm.pages.difference_entries import BandEntry, FrontierEntry, FrontierPoint, Interval
from sae_lm.pages.text import first_named
from sae_lm.penalties.arms import Arm

BAND_COSTS = 24
"""Places along a curve at which its band is read."""
ALIKE = 1.1
"""Cost over cost at which two lines from the origin end at about one."""
NEAR = 0.05
"""Part of a line before its end that is near this end."""
MOST_NAMED = 4
"""Arms that a sentence names."""
LONGEST = 2.2
"""Cost over cost of the ends of a line that may be read anywhere."""
UNTRAINED = "nothing was trained"
"""What the reason begins with why families are not compared at a cost."""
PerSeed = Float[np.ndarray, " seeds"]
Reach = tuple[float, float]
"""The least and the greatest cost that a curve has at every seed."""


class Line(NamedTuple):
    """Between two places of a curve, where nothing was trained."""

    begin: Arm
    end: Arm
    begin_cost: float
    end_cost: float


class Curve(NamedTuple):
    """A family's way from the baseline, at one L0."""

    family: Family
    rung: Arm
    """the baseline that all differences are from"""
    places: list[Arm]
    """the arms, and what the curve begins with, in the order of their mean cost"""
    cost: Float[np.ndarray, "places seeds"]
    """FVU above the rung's"""
    change: Mapping[str, Float[np.ndarray, "places seeds"]]
    """metric -> value less the rung's; NaN where it is missing"""

    @property
    def reach(self) -> Reach:
        return float(self.cost.min(0).max()), float(self.cost.max(0).min())

    def read(self, metric: str, cost: float) -> PerSeed:
        """The change of a metric at a cost, per seed; NaN where the seed's curve does not hold the cost."""
        return np.array([interpolate(cost, x, y) for x, y in zip(self.cost.T, self.change[metric].T, strict=True)])

    def between(self, cost: float) -> tuple[Arm, Arm]:
        """The places around a cost, by their means."""
        above = int(np.searchsorted(self.cost.mean(1), cost))
        above = min(max(above, 1), len(self.places) - 1)
        return self.places[above - 1], self.places[above]

    def segment(self, cost: float) -> "Line":
        """The straight line that holds a cost, by mean costs."""
        begin, end = self.between(cost)
        mean = dict(zip(self.places, self.cost.mean(1).tolist(), strict=True))
        return Line(begin, end, mean[begin], mean[end])


def interpolate(cost: float, costs: PerSeed, changes: PerSeed) -> float:
    """A curve's height at a cost, along straight lines between its points in the order of their cost; NaN beyond
    its ends, and if any point lacks its number."""
    if not (np.isfinite(costs).all() and np.isfinite(changes).all() and costs.min() <= cost <= costs.max()):
        return math.nan
    order = np.argsort(costs, kind="stable")
    return float(np.interp(cost, costs[order], changes[order]))


def untrained(pair: Sequence[Curve], cost: float) -> str | None:
    """Why two families cannot be held against each other at a cost that lies far from what was trained; or None.

    Two families on one curve whose gains flatten as -.05 (1 - exp(-FVU / .002)), 8 seeds, changes of holes that vary by
    .014 as on SmolLM2: where this compares them, t tells them apart in 5 to 7% of the worlds, in the worst of 84 cases
    in 8%, and in 13% where they vary by half of that; where it does not, in 14% on median and 88% at worst
    (tests/benchmarks/false_claims.py).
    """
    lines = [curve.segment(cost) for curve in pair]
    ends = [line.end_cost for line in lines]
    from_origin = all(line.begin == curve.rung for line, curve in zip(lines, pair, strict=True))
    if from_origin and max(ends) <= ALIKE * min(ends):
        return None  # both lines lie above their curves, by about as much
    far = [_no_line(line, curve) for line, curve in zip(lines, pair, strict=True) if _is_far(line, cost)]
    return f"{UNTRAINED} {', or '.join(far)}" if far else None


def _no_line(line: Line, curve: Curve) -> str:
    """What to train, in the words of a reason."""
    if line.begin == curve.rung:
        return f"of {curve.family.name} below {line.end.name}, which costs {line.end_cost:.3g} FVU"
    return (
        f"of {curve.family.name} between {line.begin.name} and {line.end.name}, which cost "
        f"{max(line.begin_cost, 0.0):.3g} and {line.end_cost:.3g} FVU, more than {LONGEST:g} times apart"
    )


def _is_far(line: Line, cost: float) -> bool:
    near_end = line.end_cost - cost <= NEAR * (line.end_cost - line.begin_cost)
    return not near_end and line.end_cost > LONGEST * line.begin_cost


def curves(values: Values, matching: Matching) -> list[Curve]:
    """The curve of every family, by rung; arms whose L0 is that of none are in none."""
    by_rung: dict[Arm, list[Arm]] = {rung: [] for rung in matching.ladder}
    for arm in values:
        of_arm = matching.to_baseline[arm]
        if arm not in matching.ladder and of_arm.how == "matched":
            by_rung[of_arm.rung].append(arm)
    return [
        curve
        for rung, arms in by_rung.items()
        for family in families(arms)
        if (curve := _curve(family, rung, values)) is not None
    ]


def between_rungs(matching: Matching) -> str | None:
    """A sentence on the arms that are on no curve, as their L0 lies between two rungs."""
    left_out = [arm.name for arm, match in matching.to_baseline.items() if match.how == "interpolated"]
    if not left_out:
        return None
    names = first_named(left_out, MOST_NAMED)
    return f"{names}: of an L0 between two rungs of the baseline, and so in no frontier and no comparison at equal FVU."


def _curve(family: Family, rung: Arm, values: Values) -> Curve | None:
    """None where FVU is missing, as for an SAE that never fires."""

    def change(arm: Arm, metric: str) -> list[float]:
        return [a - b for a, b in zip(values[arm][metric], values[rung][metric], strict=True)]

    places = [family.begins or rung, *family.arms]
    cost = np.array([change(arm, "fvu") for arm in places])
    if not np.isfinite(cost).all():
        return None
    order = np.argsort(cost.mean(1), kind="stable")
    metrics = [*PRIMARY, *BY_F1.values(), *DOUBTED_BY]
    of_metric = {metric: np.array([change(arm, metric) for arm in places])[order] for metric in metrics}
    return Curve(family, rung, [places[i] for i in order], cost[order], of_metric)


# --- for the report


def interval(per_seed: Sequence[float] | PerSeed) -> Interval:
    """The mean over seeds and its 95% interval by Student's t; NaN where there is none."""
    known = [float(value) for value in per_seed if math.isfinite(value)]
    n = len(known)
    mean = math.fsum(known) / n if n else math.nan
    half = student_t(n - 1) * float(np.std(known, ddof=1)) / math.sqrt(n) if n > 1 else math.nan
    return {"mean": mean, "low": mean - half, "high": mean + half}


def frontier_entry(curve: Curve) -> FrontierEntry:
    least, most = curve.reach
    metrics = [metric for metric in (*PRIMARY, *BY_F1.values()) if np.isfinite(curve.change[metric]).any()]
    points: list[FrontierPoint] = [
        {
            "arm": arm.name,
            "fvu": interval(curve.cost[place]),
            "changes": {metric: interval(curve.change[metric][place]) for metric in metrics},
        }
        for place, arm in enumerate(curve.places)
    ]
    bands: dict[str, list[BandEntry]] = {}
    if most > least and curve.cost.shape[1] > 1:
        for metric in metrics:
            read = [(float(at), curve.read(metric, float(at))) for at in np.linspace(least, most, BAND_COSTS)]
            bands[metric] = [{"fvu": at, **interval(of_seed)} for at, of_seed in read]
    return {
        "family": curve.family.name,
        "rung": curve.rung.name,
        "least_fvu": least,
        "most_fvu": most,
        "points": points,
        "bands": bands,
    }
