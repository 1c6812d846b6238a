"""Ask of a difference whether it would hold for other concepts too, and whether it rests on one of them.

An interval over seeds takes the concepts as given. Here both are drawn: a sample has seeds with replacement and
concepts with replacement (the pigeonhole bootstrap, Owen 2007), and its mean is studentised by the standard error of
a mean over two crossed factors, sqrt((MS_seeds + MS_concepts - MS_rest) / (seeds * concepts)).

How often 95% intervals hold the mean over all seeds and concepts, measured in tests/benchmarks/coverage_crossed.py
(800 trials; to within 1.6 points). Each column has the studentised interval, the percentile one, and Student's t over
seeds. The variances of seeds, of concepts and of both together are: concepts .02, 1, .3; both .1, 1, 1; seeds 1, 0, 0;
skewed as concepts, but exponential:

    seeds x concepts   concepts            both                seeds               skewed
     3 x 8             95.2  92.0  75.9    94.8  93.6  88.6    98.2  72.4  95.4    91.2  87.5  73.9 %
     3 x 16            94.1  92.6  78.2    93.6  93.8  90.0    98.9  71.8  94.5    93.5  91.9  76.1
     6 x 16            93.8  93.1  51.8    94.9  94.1  79.1    94.5  85.6  93.9    93.5  92.1  52.1
     6 x 40            94.8  94.5  63.2    94.8  94.2  85.9    95.9  88.2  95.1    92.2  91.5  64.9
    10 x 16            95.2  93.4  44.8    95.5  95.6  70.6    95.4  90.4  96.1    92.0  90.0  41.0

The percentile interval is too short where little varies but the seeds. Student's over seeds, which is what decides on
the given concepts, says nothing of others. With three seeds that alone vary the studentised one is endless, or nearly
so, since a ninth of its samples hold one seed only.
"""

import math
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from jaxtyping import Float

from sae_lm.metrics.statistics import LEVEL
from sae_lm.runtime.seeds import derive

Matrix = Float[np.ndarray, "seeds concepts"]
SAMPLES, BEYOND = 5000, 10
"""Bootstrap samples of seeds and concepts; as many more as leave so many beyond each end of an interval."""
FEWEST_CONCEPTS = 5
"""Below this nothing is said of other concepts."""


def crossed_interval(differences: Matrix, level: float = LEVEL) -> tuple[float, float] | None:
    """The interval of the mean for other seeds and other concepts, 95% by default; None where it has no end.

    differences: finite, of two seeds and two concepts at least.
    """
    x = np.asarray(differences, dtype=np.float64)
    seeds, concepts = x.shape
    of_seed, of_concept = _samples(seeds, concepts, max(SAMPLES, math.ceil(2 * BEYOND / level)))
    middle, error = crossed_mean_and_error(x, np.ones((1, seeds)), np.ones((1, concepts)))
    means, errors = crossed_mean_and_error(x, of_seed, of_concept)
    apart, lone = means - middle[0], errors <= 1e-9 * np.abs(x).max()
    ratio = np.where(lone, np.copysign(np.inf, apart), apart / np.where(lone, 1.0, errors))
    low, high = np.quantile(ratio, [level / 2, 1 - level / 2], method="inverted_cdf")
    if not np.isfinite(low) or not np.isfinite(high):
        return None
    return float(middle[0] - high * error[0]), float(middle[0] - low * error[0])


def crossed_mean_and_error(
    x: Matrix, of_seed: Float[np.ndarray, "samples seeds"], of_concept: Float[np.ndarray, "samples concepts"]
) -> tuple[Float[np.ndarray, " samples"], Float[np.ndarray, " samples"]]:
    """In each sample the mean and its standard error. of_seed, of_concept: how often each is in it."""
    seeds, concepts = x.shape
    by_seed, by_concept = of_concept @ x.T / concepts, of_seed @ x / seeds
    mean = (of_seed * by_seed).sum(1) / seeds
    square = ((of_seed @ x**2) * of_concept).sum(1)
    of_seeds = concepts * ((of_seed * by_seed**2).sum(1) - seeds * mean**2)
    of_concepts = seeds * ((of_concept * by_concept**2).sum(1) - concepts * mean**2)
    rest = square - of_seeds - of_concepts - seeds * concepts * mean**2
    parts = np.maximum([of_seeds / (seeds - 1), of_concepts / (concepts - 1)], 0)
    # the estimate may fall below either factor's own, and below 0
    both = np.maximum(parts.sum(0) - np.maximum(rest, 0) / ((seeds - 1) * (concepts - 1)), parts.max(0))
    return mean, np.sqrt(both / (seeds * concepts))


@lru_cache(maxsize=8)
def _samples(seeds: int, concepts: int, samples: int) -> tuple[np.ndarray, np.ndarray]:
    draw = np.random.default_rng(derive("crossed", seeds, concepts))
    counts = [draw.multinomial(n, [1 / n] * n, size=samples).astype(np.float64) for n in (seeds, concepts)]
    return counts[0], counts[1]


class WithoutOne(NamedTuple):
    """A mean difference when each concept in turn is left out."""

    means: Float[np.ndarray, " concepts"]
    p: Float[np.ndarray, " concepts"]
    """two-sided, Student's t over seeds; NaN where all seeds are equal"""
    most: int
    """the concept whose omission moves the mean most"""


def without_one(differences: Matrix) -> WithoutOne:
    """differences: finite, of two seeds and two concepts at least."""
    from scipy.stats import t  # a second's import

    x = np.asarray(differences, dtype=np.float64)
    seeds, concepts = x.shape
    left = (x.sum(1, keepdims=True) - x) / (concepts - 1)
    means, error = left.mean(0), left.std(0, ddof=1) / np.sqrt(seeds)
    lone = error <= 1e-12 * np.abs(x).max()
    p = np.where(lone, np.nan, 2 * t.sf(np.abs(means) / np.where(lone, 1.0, error), seeds - 1))
    return WithoutOne(means, p, int(np.abs(means - x.mean()).argmax()))
