"""paired runs -> a difference with an interval and a verdict that claims no more than the seeds allow."""

import math
from collections.abc import Sequence
from typing import NamedTuple

FEWEST_SEEDS = 3
"""Below this no claim is made."""
CONFIDENCE = 0.95


class Difference(NamedTuple):
    per_seed: list[float]
    """arm minus baseline, runs paired by seed: equal initial weights and batches"""
    mean: float
    low: float | None
    """95% interval of the mean (Student's t over seeds); None with fewer than two seeds"""
    high: float | None
    verdict: str
    """lower, higher, not distinguishable, or no claim"""


def paired_difference(arm: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Compare runs seed by seed. Runs without a number (NaN) in either arm are left out."""
    deltas = [a - b for a, b in zip(arm, baseline, strict=True) if math.isfinite(a) and math.isfinite(b)]
    n = len(deltas)
    if n == 0:
        return Difference([], float("nan"), None, None, "no claim (no values)")
    mean = math.fsum(deltas) / n
    if n < 2:
        return Difference(deltas, mean, None, None, f"no claim (< {FEWEST_SEEDS} seeds)")
    spread = math.sqrt(math.fsum((d - mean) ** 2 for d in deltas) / (n - 1))
    reach = student_t(n - 1) * spread / math.sqrt(n)
    low, high = mean - reach, mean + reach
    if n < FEWEST_SEEDS:
        verdict = f"no claim (< {FEWEST_SEEDS} seeds)"
    elif high < 0:
        verdict = "lower"
    elif low > 0:
        verdict = "higher"
    else:
        verdict = "not distinguishable"
    return Difference(deltas, mean, low, high, verdict)


def student_t(degrees: int) -> float:
    """The two-sided 95% quantile of Student's t."""
    from scipy.stats import t

    return float(t.ppf(0.5 + CONFIDENCE / 2, degrees))
