"""Arms with made-up values, for tests of what may be claimed of them."""

from sae_lm.comparison import verdicts
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.outcomes import METRICS
from sae_lm.penalties.arms import parse_arm

NAN = float("nan")
FOUND = {
    f"{key}{by}": f"{key}_found{by}" for key in ("equal_hole_rate", "absorption_fraction") for by in ("", "_by_f1")
}
"""Figure of absorption -> the same over the concepts that main latents tell."""


def arms_of(**metrics):
    """{arm: {metric: values}} from {metric: {arm: values}}; the rest is NaN. Over found concepts all is as over all of them,
    if nothing else is said."""
    metrics = {found: metrics[key] for key, found in FOUND.items() if key in metrics} | metrics
    names = dict.fromkeys(arm for of in metrics.values() for arm in of)
    seeds = len(next(iter(next(iter(metrics.values())).values())))
    return {parse_arm(arm): {key: metrics.get(key, {}).get(arm, [NAN] * seeds) for key in METRICS} for arm in names}


def compare_arms(values, baseline, margin=None):
    l0 = {arm: metrics["l0"] for arm, metrics in values.items()}
    return verdicts.compare_arms(values, match_arms([*values], parse_arm(baseline), l0), margin)


def claim(difference):
    return difference["verdict"], difference["reason"]


def entry(differences, arm, metric):
    (found,) = (d for d in differences if (d["arm"], d["metric"]) == (arm, metric))
    return found


def shifted(by, noise=(0.001, -0.002, 0.0015, -0.0005, 0.0, 0.001), start=0.5):
    """Six seeds: a baseline that varies from seed to seed, and what is lower or higher than it by about as much."""
    return [start + 0.05 * seed + by + error for seed, error in enumerate(noise)]


BASE = shifted(0.0, noise=[0.0] * 6)
