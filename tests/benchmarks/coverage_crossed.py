"""How often 95% intervals hold the truth: over seeds and concepts crossed, and of two curves read at one cost.

    python tests/benchmarks/coverage_crossed.py

Prints three tables. First, the share of trials in which the studentised crossed bootstrap of `sae_lm.metrics.crossed`
holds the mean over all seeds and concepts, beside the percentile one and Student's t over seeds alone. Second, the
same share for the difference of two curves at one FVU (`sae_lm.comparison.frontier`). Third, how often the
equivalence test claims a difference that is the margin itself (it may in 5%), and one that is 0.
"""

import numpy as np
from scipy.stats import t

from sae_lm.comparison.frontier import interpolate
from sae_lm.metrics.crossed import crossed_mean_and_error
from sae_lm.metrics.equivalence import equivalence_p

TRIALS, SAMPLES = 800, 600
VARIANCES = {
    "concepts": (0.02, 1.0, 0.3),
    "both": (0.1, 1.0, 1.0),
    "seeds": (1.0, 0.0, 1e-4),
    "skewed": (0.02, 1.0, 0.3),
}
"""Of seeds, of concepts, of both together."""
NOISES = (0.1, 0.3, 1.0)
"""Of a point's cost, in steps between points."""
CURVES = (np.array([0.0, -0.05, -0.08, -0.095]), np.array([0.0, -0.03, -0.055, -0.075]))


def crossed_coverage(seeds: int, concepts: int, kind: str) -> list[float]:
    """Of the studentised interval, the percentile interval, Student's t over seeds."""
    draw = np.random.default_rng(0)
    of_seed, of_concept, rest = np.sqrt(VARIANCES[kind])
    held = np.zeros(3)
    for _ in range(TRIALS):
        by_concept = draw.exponential(size=(1, concepts)) - 1 if kind == "skewed" else draw.normal(size=(1, concepts))
        x = (
            of_seed * draw.normal(size=(seeds, 1))
            + of_concept * by_concept
            + rest * draw.normal(size=(seeds, concepts))
        )
        counts = [draw.multinomial(n, [1 / n] * n, size=SAMPLES).astype(float) for n in x.shape]
        mean, error = crossed_mean_and_error(x, np.ones((1, seeds)), np.ones((1, concepts)))
        means, errors = crossed_mean_and_error(x, *counts)
        ratios = (means - mean) / np.maximum(errors, 1e-12)
        low, high = np.quantile(ratios, [0.025, 0.975])
        ends = [(mean - high * error, mean - low * error), np.quantile(means, [0.025, 0.975])]
        of_seeds = x.mean(1)
        reach = t.ppf(0.975, seeds - 1) * of_seeds.std(ddof=1) / np.sqrt(seeds)
        ends.append((mean - reach, mean + reach))
        held += [bool(low <= 0 <= high) for low, high in ends]
    return [float(share) for share in 100 * held / TRIALS]


def equal_fvu_coverage(seeds: int, noise: float) -> tuple[float, float]:
    """Of t over seeds, and the share of trials in which both curves hold the cost at every seed."""
    draw, costs, at = np.random.default_rng(0), np.arange(4) * 0.004, 0.006
    truth = interpolate(at, costs, CURVES[0]) - interpolate(at, costs, CURVES[1])
    held, read = 0, 0
    for _ in range(TRIALS):
        differences = []
        for _ in range(seeds):
            heights = []
            for curve in CURVES:
                x = costs + noise * 0.004 * draw.normal(size=4) * (costs > 0)
                heights.append(interpolate(at, x, curve + 0.01 * draw.normal(size=4) * (costs > 0)))
            differences.append(heights[0] - heights[1])
        if np.isfinite(differences).all():
            reach = t.ppf(0.975, seeds - 1) * np.std(differences, ddof=1) / np.sqrt(seeds)
            held, read = held + (abs(np.mean(differences) - truth) <= reach), read + 1
    return 100 * held / max(1, read), 100 * read / TRIALS


def equivalence_claims(seeds: int, spread: float) -> tuple[float, float]:
    """Shares in which a difference of the margin, and one of 0, are claimed to be within it."""
    draw = np.random.default_rng(0)
    x = spread * draw.normal(size=(TRIALS, seeds))
    return tuple(  # pyright: ignore[reportReturnType]
        100 * float(np.mean([(equivalence_p([*row], 0.02) or 0) <= 0.05 for row in x + true])) for true in (0.02, 0.0)
    )


if __name__ == "__main__":
    print("seeds x concepts: studentised, percentile, t over seeds")
    for seeds, concepts in ((3, 8), (3, 16), (6, 16), (6, 40), (10, 16)):
        cells = [
            f"{kind} " + " ".join(f"{share:.1f}" for share in crossed_coverage(seeds, concepts, kind))
            for kind in VARIANCES
        ]
        print(f"{seeds:>3} x {concepts:<3}", "   ".join(cells), flush=True)
    print("at equal FVU: t over seeds (share of trials read), by noise of the cost")
    for seeds in (3, 6, 10):
        cells = [
            f"{noise}: {held:.1f} ({read:.0f})" for noise in NOISES for held, read in [equal_fvu_coverage(seeds, noise)]
        ]
        print(f"{seeds:>3}", "   ".join(cells), flush=True)
    print("claims of equivalence at the margin of .02 and at 0, by spread of the paired differences")
    for seeds in (3, 6, 10):
        cells = [
            f"{spread}: {a:.1f} {b:.1f}"
            for spread in (0.005, 0.01, 0.02)
            for a, b in [equivalence_claims(seeds, spread)]
        ]
        print(f"{seeds:>3}", "   ".join(cells), flush=True)
