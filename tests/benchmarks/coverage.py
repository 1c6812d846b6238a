"""How often 95% intervals over n paired seeds hold the true mean: Student's t against three bootstraps.

    python tests/benchmarks/coverage.py

Prints, for each number of seeds and each shape of the differences, the share of 4,000 trials in which each
interval holds the mean, and its width in units of Student's. Degenerate resamples (all equal) have no
studentised value; they are taken as infinitely far out, which is the kinder reading.
"""

import numpy as np
from scipy.stats import norm, t

TRIALS, RESAMPLES = 4000, 1000
SHAPES = {
    "normal": lambda draw, size: draw.standard_normal(size),
    "t with 3 degrees": lambda draw, size: draw.standard_t(3, size),
    "exponential - 1": lambda draw, size: draw.exponential(size=size) - 1,
    "uniform": lambda draw, size: draw.uniform(-1, 1, size),
}


def student(x: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    reach = t.ppf(0.975, x.shape[1] - 1) * x.std(1, ddof=1) / np.sqrt(x.shape[1])
    return x.mean(1) - reach, x.mean(1) + reach


def _resampled(x: np.ndarray, draw: np.random.Generator) -> np.ndarray:
    """[trials, resamples, n]"""
    chosen = draw.integers(x.shape[1], size=(len(x), RESAMPLES, x.shape[1]))
    return np.take_along_axis(x[:, None], chosen, 2)


def percentile(x: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    low, high = np.quantile(_resampled(x, draw).mean(2), [0.025, 0.975], axis=1)
    return low, high


def bca(x: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """Bias-corrected and accelerated (Efron 1987)."""
    n, means = x.shape[1], np.sort(_resampled(x, draw).mean(2), axis=1)
    middle = x.mean(1)
    below = ((means < middle[:, None]).mean(1) + (means <= middle[:, None]).mean(1)) / 2
    bias = norm.ppf(np.clip(below, 1 / RESAMPLES, 1 - 1 / RESAMPLES))
    left_out = (x.sum(1, keepdims=True) - x) / (n - 1)
    away = left_out.mean(1, keepdims=True) - left_out
    acceleration = (away**3).sum(1) / (6 * (away**2).sum(1) ** 1.5)
    ends = []
    for share in (0.025, 0.975):
        z = bias + norm.ppf(share)
        at = norm.cdf(bias + z / (1 - acceleration * z))
        ends.append(means[np.arange(len(x)), np.clip((at * RESAMPLES).astype(int), 0, RESAMPLES - 1)])
    return ends[0], ends[1]


def studentised(x: np.ndarray, draw: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    n, samples = x.shape[1], _resampled(x, draw)
    middle, error = x.mean(1), x.std(1, ddof=1) / np.sqrt(n)
    apart = samples.mean(2) - middle[:, None]
    spread = samples.std(2, ddof=1) / np.sqrt(n)
    with np.errstate(divide="ignore", invalid="ignore"):
        ratio = np.where(spread > 1e-12, apart / spread, np.sign(apart) * np.inf)
    ratio = np.sort(ratio, axis=1)
    low, high = ratio[:, int(0.025 * RESAMPLES)], ratio[:, int(0.975 * RESAMPLES)]
    return middle - high * error, middle - low * error


INTERVALS = {"t": student, "percentile": percentile, "BCa": bca, "studentised": studentised}


def coverage(n: int, shape: str) -> dict[str, tuple[float, float]]:
    """Interval -> (share of trials in which it holds 0, median width over the median width of t)."""
    draw = np.random.default_rng(0)
    x = SHAPES[shape](draw, (TRIALS, n))
    out, unit = {}, 1.0
    for name, interval in INTERVALS.items():
        ends = [interval(part, draw) for part in np.array_split(x, 10)]
        low, high = (np.concatenate(end) for end in zip(*ends, strict=True))
        width = float(np.median(high - low))
        unit = width if name == "t" else unit
        out[name] = float(((low <= 0) & (high >= 0)).mean()), width / unit
    return out


if __name__ == "__main__":
    print(f"{'seeds':>5}  {'differences':<17}" + "".join(f"{name:>20}" for name in INTERVALS))
    for n in (3, 6, 10):
        for shape in SHAPES:
            found = coverage(n, shape)
            cells = "".join(f"{f'{100 * held:.1f}% (x {width:.2f})':>20}" for held, width in found.values())
            print(f"{n:>5}  {shape:<17}{cells}", flush=True)
