"""How often a comparison would tell arms apart that do not differ, with its rules and without them.

    python tests/benchmarks/false_claims.py

Worlds whose truth is known are drawn; the code that decides is the package's own. First, two families of arms on one
curve of holes against FVU, whose gains flatten: how often they are told apart at one cost, where nothing was trained
near it and where something was (`sae_lm.comparison.frontier.untrained`). Second, differences that have no mean over
concepts: in how many reports that claim something of the given concepts a claim is said to hold for other concepts,
by intervals of 95% and by those corrected for all that was tested (`sae_lm.comparison.other_concepts`).
"""

import sys
from collections.abc import Sequence

import numpy as np
from scipy import stats

from sae_lm.comparison.families import Family
from sae_lm.comparison.frontier import Curve, untrained
from sae_lm.metrics.crossed import crossed_interval
from sae_lm.metrics.statistics import LEVEL, holm
from sae_lm.penalties.arms import parse_arm

SEEDS = 8
METRIC = "equal_hole_rate"
GAIN, BEND = -0.05, 0.002
"""The curve all arms lie on: GAIN * (1 - exp(-FVU / BEND)), as steep as abs_cos' and coactive's on SmolLM2."""
PAIRS = {
    "ends of one line each, equal": ([0.0025], [0.0025], 0.002),
    "... 5% apart": ([0.0025], [0.0025 * 1.05], 0.002),
    "... 10% apart": ([0.0025], [0.0025 * 1.1], 0.002),
    "... 25% apart": ([0.0025], [0.0025 * 1.25], 0.002),
    "a tenth before a lone first point": ([0.002, 0.0052], [0.0052], 0.0047),
    "a twenty-fifth before it": ([0.002, 0.0052], [0.0052], 0.005),
    "twice the cost, in the middle": ([0.002, 0.004], [0.0029, 0.0058], 0.0029),
    "2.75 times the cost, in the middle": ([0.002, 0.0055], [0.0036, 0.0065], 0.0036),
    "... near the end": ([0.002, 0.0055], [0.0023, 0.0065], 0.005),
    "one line beside a ladder, far from both": ([0.0022, 0.0062], [0.0049], 0.003),
}
"""What two families' points cost, and the cost at which they are held against each other."""
SPREADS = ((0.004, 0.0002), (0.008, 0.0002), (0.012, 0.0002), (0.004, 0.0004), (0.008, 0.0004))
"""Standard deviations between seeds, of holes and of FVU; on SmolLM2 some .01 and .0002."""
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


def told_apart(
    costs: Sequence[float], others: Sequence[float], at: float, holes_sd: float, cost_sd: float, worlds: int
) -> tuple[float, float]:
    """How often t over seeds tells them apart where both curves hold the cost, and where the rule compares them too;
    in percent, NaN where it compares none."""
    apart, read, with_rule, compared = 0, 0, 0, 0
    for world in range(worlds):
        draw = np.random.default_rng(world)
        pair = [curve("abs_cos", costs, holes_sd, cost_sd, draw), curve("max_cos", others, holes_sd, cost_sd, draw)]
        of_seed = pair[0].read(METRIC, at) - pair[1].read(METRIC, at)
        if np.isfinite(of_seed).all():
            claimed, let_through = bool(stats.ttest_1samp(of_seed, 0).pvalue < LEVEL), untrained(pair, at) is None
            apart, read = apart + claimed, read + 1
            with_rule, compared = with_rule + (claimed and let_through), compared + let_through
    return 100 * apart / max(1, read), 100 * with_rule / compared if compared > worlds // 10 else float("nan")


def said_of_other_concepts(worlds: int) -> tuple[int, int, int]:
    """Reports with a claim; those that say of one that it holds for other concepts, by intervals of 95% and corrected.

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
        plain += any(leaves_out_zero(x, LEVEL) for x in claims)
        corrected += any(leaves_out_zero(x, LEVEL / TESTS) for x in claims)
    return claiming, plain, corrected


def leaves_out_zero(differences: np.ndarray, level: float) -> bool:
    ends = crossed_interval(differences, level)
    return ends is not None and not ends[0] <= 0 <= ends[1]


def main(worlds: int = 400, reports: int = 100) -> None:
    print(f"two families on one curve, {SEEDS} seeds: told apart without the rule (with it), in % of worlds")
    print(f"  spread of holes, FVU between seeds: {', '.join(map(str, SPREADS))}")
    for name, (costs, others, at) in PAIRS.items():
        cells = []
        for holes_sd, cost_sd in SPREADS:
            apart, with_rule = told_apart(costs, others, at, holes_sd, cost_sd, worlds)
            cells.append(f"{apart:4.0f} ({with_rule:.0f})")
        print(f"  {name:<48}", "   ".join(cells), flush=True)
    claiming, plain, corrected = said_of_other_concepts(reports)
    print(f"no mean over concepts, {TESTS} differences a report, {reports} reports: {claiming} claim something;")
    print(f"  said to hold for other concepts: {plain} by intervals of 95%, {corrected} by corrected ones")


if __name__ == "__main__":
    main(*[int(number) for number in sys.argv[1:]])
