"""How often a comparison would tell arms apart that do not differ, with its rules and without them.

    python tests/benchmarks/false_claims.py [WORLDS] [REPORTS]

Worlds are drawn whose truth is known. First, two families of arms on one curve of holes against FVU, whose gains flatten.
They are read off straight lines by the package's own code, and Student's t over seeds tells them apart at .05,
uncorrected: in 5% by chance. `sae_lm.comparison.frontier.untrained` refuses those that lie far from what was trained.
For each kind of place on a line a grid is drawn: costs, ratios of costs and places, up to the rule's limits.
Second, differences that have no mean over concepts: in how many reports that claim something of the given concepts a
crossed interval of such a claim leaves out 0, at 95% and corrected for all that was tested, as `compare` asks for
before it says that a claim holds for other concepts.
"""

import sys
from collections.abc import Iterator, Sequence
from itertools import product
from statistics import median
from typing import NamedTuple

import numpy as np
from scipy import stats

from sae_lm.comparison.families import Family
from sae_lm.comparison.frontier import Curve, untrained
from sae_lm.comparison.other_concepts import holds_for_others
from sae_lm.metrics.statistics import LEVEL, holm
from sae_lm.penalties.arms import parse_arm

SEEDS = 8
METRIC = "equal_hole_rate"
GAIN, BEND = -0.05, 0.002
"""The curve all arms lie on: GAIN * (1 - exp(-FVU / BEND)), as steep as abs_cos' and coactive's on SmolLM2."""
Case = tuple[list[float], list[float], float]
"""What the arms of two families cost, and the cost at which these are held against each other."""
SPREADS = ((0.007, 0.0002), (0.014, 0.0002), (0.021, 0.0002), (0.014, 0.0004))
"""Standard deviations over seeds, of an arm's change of holes and of its FVU. On SmolLM2 .014 to .021 and .0002."""
COSTS = (0.0015, 0.0025, 0.005, 0.01)


def two_lines() -> Iterator[Case]:
    """One arm each, the second up to a tenth costlier."""
    for cost, ratio, part in product(COSTS, (1.0, 1.05, 1.09), (0.3, 0.6, 0.9)):
        yield [cost], [cost * ratio], part * cost


def near_a_lone_arm() -> Iterator[Case]:
    """The last twentieth of a line from the baseline, beside a ladder."""
    for cost, before in product(COSTS, (0.01, 0.03, 0.045)):
        yield [cost], [0.7 * cost, 1.4 * cost], (1 - before) * cost


def two_ladders() -> Iterator[Case]:
    """Two arms each, up to 2.15 times apart."""
    for cost, ratio, later, part in product(COSTS[:3], (1.6, 2.15), (1.15, 1.4), (0.2, 0.5, 0.9)):
        low, high = cost * later, cost * ratio
        yield [cost, cost * ratio], [low, low * ratio], low + part * (high - low)


def far_from_all() -> Iterator[Case]:
    """A line from the baseline beside a ladder, read in its middle; ladders four times apart; two unequal lines."""
    for cost in COSTS:
        yield [2.2 * cost], [cost, 2.8 * cost], 1.4 * cost
        yield [cost, 4 * cost], [1.5 * cost, 2.5 * cost], 2 * cost
        yield [cost], [1.25 * cost], 0.9 * cost


KINDS = {
    "two lines from the baseline": two_lines,
    "near a lone arm": near_a_lone_arm,
    "two ladders": two_ladders,
    "far from what was trained": far_from_all,
}
TESTS, CONCEPTS = 9, 40
"""Differences in a report, concepts each is a mean of."""


def curve(name: str, costs: Sequence[float], holes_sd: float, cost_sd: float, draw: np.random.Generator) -> Curve:
    """A family that lies on the curve but for noise, of arms that cost so much."""
    rung, arms = parse_arm("none"), [parse_arm(f"{name}:{place + 1}") for place in range(len(costs))]
    cost, change = np.zeros((len(costs) + 1, SEEDS)), np.zeros((len(costs) + 1, SEEDS))
    for place, mean in enumerate(costs, start=1):
        cost[place] = mean + cost_sd * draw.normal(size=SEEDS)
        change[place] = GAIN * (1 - np.exp(-mean / BEND)) + holes_sd * draw.normal(size=SEEDS)
    family = Family(name, "coefficient", tuple(arms), None)
    return Curve(family, rung, [rung, *arms], cost, {METRIC: change})


class Told(NamedTuple):
    apart: float
    """percent of the worlds that t tells apart"""
    worlds: int
    """those in which both curves hold the cost at every seed"""
    apart_by_rule: float
    """the same of those in which the rule lets the two be compared"""
    compared: int


def told_apart(case: Case, spread: tuple[float, float], worlds: int) -> Told:
    costs, others, at = case
    claims: list[tuple[bool, bool]] = []
    for world in range(worlds):
        draw = np.random.default_rng(world)
        pair = [curve("abs_cos", costs, *spread, draw), curve("max_cos", others, *spread, draw)]
        of_seed = pair[0].read(METRIC, at) - pair[1].read(METRIC, at)
        if np.isfinite(of_seed).all():
            claims.append((bool(stats.ttest_1samp(of_seed, 0).pvalue < LEVEL), untrained(pair, at) is None))
    ruled = [claimed for claimed, let_through in claims if let_through]
    return Told(share([claimed for claimed, _ in claims]), len(claims), share(ruled), len(ruled))


def share(of: Sequence[bool]) -> float:
    return 100 * sum(of) / max(1, len(of))


def middle_and_worst(values: Sequence[float]) -> str:
    return f"{median(values):.0f}, {max(values):.0f}" if values else "none"


def said_of_other_concepts(worlds: int) -> tuple[int, int, int]:
    """Reports with a claim; those in which an interval of one leaves out 0, of 95% and corrected.

    What concepts do is their own (sd .05) and has no mean over concepts; so each claim is of the given ones alone.
    """
    claiming, plain, corrected = 0, 0, 0
    for world in range(worlds):
        draw = np.random.default_rng(world)
        differences = [
            0.05 * draw.normal(size=(1, CONCEPTS))
            + 0.02 * draw.normal(size=(SEEDS, CONCEPTS))
            + 0.005 * draw.normal(size=(SEEDS, 1))
            for _ in range(TESTS)
        ]
        p = holm([float(stats.ttest_1samp(x.mean(1), 0).pvalue) for x in differences])
        claims = [x for x, corrected_p in zip(differences, p, strict=True) if corrected_p <= LEVEL]
        claiming += bool(claims)
        plain += any(holds_for_others(x, LEVEL) for x in claims)
        corrected += any(holds_for_others(x, LEVEL / TESTS) for x in claims)
    return claiming, plain, corrected


def main(worlds: int = 400, reports: int = 100) -> None:
    print(f"two families on one curve, {SEEDS} seeds: percent told apart, median and worst of a grid; without the rule")
    print(f"  spread of holes, FVU: {', '.join(map(str, SPREADS))}; cases compared in a fourth of the worlds or more")
    for kind, cases in KINDS.items():
        cells = []
        for spread in SPREADS:
            found = [told_apart(case, spread, worlds) for case in cases()]
            ruled = [one.apart_by_rule for one in found if one.compared >= worlds / 4]
            free = [one.apart for one in found if one.worlds >= worlds / 4]
            cells.append(f"{middle_and_worst(ruled)}; {middle_and_worst(free)}")
        print(f"  {kind:<30}", " | ".join(cells), flush=True)
    claiming, plain, corrected = said_of_other_concepts(reports)
    print(f"no mean over concepts, {TESTS} differences a report, {reports} reports: {claiming} claim something;")
    print(f"  intervals that leave out 0: in {plain} of them at 95%, in {corrected} by corrected ones")


if __name__ == "__main__":
    main(*[int(number) for number in sys.argv[1:]])
