"""Test differences between paired runs: how large, how sure, and how many seeds it would take to be surer.

Runs of one seed share initial weights and batches, so arms are compared seed by seed. The interval and the p value
that decide are Student's t over the differences. How often 95% intervals hold the true mean, measured in
tests/benchmarks/coverage.py at 3, 6 and 10 seeds:

    differences      t                     percentile bootstrap   BCa                    studentised bootstrap
    normal           95.3  94.9  94.7 %    75.1  86.8  89.8 %     72.8  86.6  90.2 %     (endless)  94.8  94.8 %
    skewed (exp.)    87.5  88.7  90.6 %    68.6  80.7  86.5 %     67.4  83.1  88.2 %     (endless)  93.4  94.4 %

Percentile and BCa claim too much at any of these; the studentised bootstrap is as good as t, better where differences
are skewed, and a sixth wider at six seeds, but has no ends at three. It stands beside t, as does the exact sign-flip
p, which assumes symmetry alone and cannot fall below 2 / 2^n: at five seeds no difference whatever reaches .05 by it.
"""

import math
from collections.abc import Iterable, Sequence
from functools import lru_cache
from statistics import fmean
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int, Real
from torch import Tensor

from sae_lm.runtime.seeds import derive

FEWEST_SEEDS = 3
"""Below this no claim is made."""
LEVEL, POWER = 0.05, 0.8
"""Chance of a claim where there is no difference; of finding one that is there."""
MOST_SEEDS = 1000
"""Where more than these would be needed, no number is given."""
RESAMPLES = 10_000
"""Bootstrap samples of the seeds."""
MOST_FLIPS = 16
"""Seeds up to which every pattern of signs is gone through; beyond, 2^16 random ones."""
ROUNDING = 1e-9
"""Spread of differences, relative to the values they are of, that counts as none."""


class Difference(NamedTuple):
    """One metric of one arm less the baseline's. None: it cannot be known."""

    per_seed: list[float]
    """NaN for seeds that either lacks"""
    mean: float | None
    low: float | None
    """95% interval of the mean, Student's t over seeds; None below two seeds and where all differences are equal:
    these say nothing of their spread"""
    high: float | None
    p: float | None
    """two-sided, of the same t; where all differences are equal, the sign flip's"""
    p_sign_flip: float | None
    """exact, two-sided: share of the patterns of signs with a mean as far from 0; at least 2 / 2^n"""
    bootstrap_low: float | None
    """95% interval by the studentised bootstrap over seeds; None where it has no end, as with three seeds"""
    bootstrap_high: float | None
    spread: float | None
    """standard deviation of the differences"""

    @property
    def seeds(self) -> int:
        return sum(map(math.isfinite, self.per_seed))

    def untested(self) -> "Difference":
        """The mean alone: for values of which one is not independent of the next."""
        return Difference(self.per_seed, self.mean, *[None] * 7)


def paired_difference(arm: Sequence[float], baseline: Sequence[float]) -> Difference:
    """Compare runs seed by seed; seeds without a number (NaN) in either are left out."""
    per_seed = [a - b for a, b in zip(arm, baseline, strict=True)]
    deltas = [delta for delta in per_seed if math.isfinite(delta)]
    n = len(deltas)
    if n == 0:
        return Difference(per_seed, *[None] * 8)
    mean = math.fsum(deltas) / n
    if n == 1:
        return Difference(per_seed, mean, *[None] * 7)
    spread = math.sqrt(math.fsum((delta - mean) ** 2 for delta in deltas) / (n - 1))
    flip, size = sign_flip(deltas), max(abs(v) for v in (*arm, *baseline) if math.isfinite(v))
    if spread <= ROUNDING * size:
        return Difference(per_seed, mean, None, None, flip, flip, None, None, 0.0)
    from scipy.stats import ttest_1samp  # a second's import

    test = ttest_1samp(deltas, 0.0)
    low, high = test.confidence_interval(1 - LEVEL)
    ends = bootstrap(deltas) or (None, None)
    return Difference(per_seed, mean, float(low), float(high), float(test.pvalue), flip, *ends, spread)  # pyright: ignore[reportAttributeAccessIssue]


def sign_flip(deltas: Sequence[float]) -> float:
    """Exact two-sided p of a mean of 0, were each difference as likely as its negative.

    Not scipy's permutation_test. Measured with scipy 1.17: 20 times slower at 3 and 6 seeds, 60 times at 10, so that
    a comparison of 150 arms in 30 metrics would take 1, 3 and 15 seconds longer. And where the sum is 0 but for
    rounding, it leaves out patterns that tie: p .91 for 1.
    """
    n = len(deltas)
    if n <= MOST_FLIPS:
        signs = 1.0 - 2.0 * (np.arange(2**n)[:, None] >> np.arange(n) & 1)
    else:
        signs = np.random.default_rng(derive("sign flip")).choice([-1.0, 1.0], (2**MOST_FLIPS, n))
        signs[0] = 1.0  # what was seen is one of the patterns
    sums, observed = np.abs(signs @ np.array(deltas)), abs(math.fsum(deltas))
    return float((sums >= observed - ROUNDING * np.abs(deltas).sum()).mean())


def bootstrap(deltas: Sequence[float]) -> tuple[float, float] | None:
    """The 95% interval of the mean by the studentised bootstrap over seeds; None where it has no end.

    A sample that holds one seed only has no spread and counts as infinitely far out: with three seeds these are more
    than the tail.
    """
    x, n = np.array(deltas), len(deltas)
    samples = x[_bootstrap_indices(n)]
    apart, error = samples.mean(1) - x.mean(), samples.std(1, ddof=1) / math.sqrt(n)
    lone = error <= ROUNDING * np.abs(x).max()
    ratio = np.where(lone, np.copysign(np.inf, apart), apart / np.where(lone, 1.0, error))
    low, high = np.quantile(ratio, [LEVEL / 2, 1 - LEVEL / 2], method="inverted_cdf")
    if not math.isfinite(low) or not math.isfinite(high):
        return None
    scale = x.std(ddof=1) / math.sqrt(n)
    return float(x.mean() - high * scale), float(x.mean() - low * scale)


@lru_cache(maxsize=8)
def _bootstrap_indices(n: int) -> np.ndarray:
    return np.random.default_rng(derive("bootstrap", n)).integers(n, size=(RESAMPLES, n))


def student_t(degrees: int, level: float = LEVEL) -> float:
    """The two-sided quantile of Student's t."""
    from scipy.stats import t

    return float(t.isf(level / 2, degrees))


# --- many differences


def holm(p: Sequence[float]) -> list[float]:
    """Holm's (1979) p values: claims at p <= .05 are all true with chance .95, however the tests depend on each other."""
    order = sorted(range(len(p)), key=lambda i: p[i])
    out, highest = [0.0] * len(p), 0.0
    for done, i in enumerate(order):
        highest = max(highest, min(1.0, (len(p) - done) * p[i]))
        out[i] = highest
    return out


# --- power


@lru_cache(maxsize=4096)
def detectable(n: int, level: float = LEVEL) -> float:
    """The true difference, in standard deviations of the paired differences, that n seeds find with 80% chance."""
    from scipy.optimize import brentq

    high = 1.0
    while power(n, high, level) < POWER:
        high *= 2
    return float(brentq(lambda size: power(n, size, level) - POWER, 0.0, high, xtol=1e-6))  # pyright: ignore[reportArgumentType]


def power(n: int, size: float, level: float = LEVEL) -> float:
    """Chance that a two-sided paired t test of n seeds finds a difference of ``size`` standard deviations.

    The noncentral t is integrated over the spread that is seen: scipy's own loses its digits at few degrees
    of freedom and small levels.
    """
    from scipy.stats import chi2, norm

    degrees, shift, reach = n - 1, size * math.sqrt(n), student_t(n - 1, level)
    share = (np.arange(2000) + 0.5) / 2000
    spread = np.sqrt(chi2.ppf(share, degrees) / degrees)
    return float((norm.sf(reach * spread - shift) + norm.cdf(-reach * spread - shift)).mean())


def seeds_needed(mean: float, spread: float, level: float = LEVEL) -> int | None:
    """The fewest seeds that find a difference of this mean and spread with 80% chance; None above MOST_SEEDS.

    The mean and spread seen are themselves uncertain: an order of magnitude. Without a spread the sign flip decides:
    as many as bring its least p, 2 / 2^n, to the level.
    """
    if mean == 0:
        return None
    if spread == 0:
        return max(FEWEST_SEEDS, math.ceil(math.log2(2 / level)))
    size, low, high = abs(mean) / spread, FEWEST_SEEDS, MOST_SEEDS
    if power(high, size, level) < POWER:
        return None
    while low < high:
        middle = (low + high) // 2
        low, high = (low, middle) if power(middle, size, level) >= POWER else (middle + 1, high)
    return low


# --- noise


def resamples(units: int, samples: int, seed: int) -> Float[Tensor, "samples units"]:
    """How often each of some units (documents) is in each bootstrap sample of them."""
    generator = torch.Generator().manual_seed(derive("documents", seed))
    counts = torch.zeros(samples, units)
    chosen = torch.randint(units, (samples, units), generator=generator)
    return counts.scatter_add_(1, chosen, torch.ones_like(chosen, dtype=torch.float32))


def sums_of_units(values: Real[Tensor, " rows"], unit: Int[Tensor, " rows"], units: int) -> Float[Tensor, " units"]:
    """Float64 sums over the rows of each unit."""
    return torch.zeros(units, dtype=torch.float64).index_add_(0, unit, values.double())


def mean_of_known(values: Iterable[float | int]) -> float:
    """Mean of the finite values; NaN where there are none."""
    known = [value for value in values if math.isfinite(value)]
    return fmean(known) if known else math.nan


def spread_of(values: Sequence[float]) -> float | None:
    """Standard deviation of the finite values; None below two."""
    finite = [value for value in values if math.isfinite(value)]
    return float(np.std(finite, ddof=1)) if len(finite) > 1 else None


def pooled(spreads: Sequence[float | None]) -> float | None:
    """Root mean square of those there are."""
    known = [spread for spread in spreads if spread is not None]
    return math.sqrt(math.fsum(spread**2 for spread in known) / len(known)) if known else None
