"""Which latents are a concept's? Rankings of candidates for main latents, where the truth is known.

    python tests/benchmarks/rankings.py [SEEDS] [STEPS]

SAEs of the toy *told* are trained with every arm (six seeds, 1500 steps by default), and `compare`'s figures are taken
of them once with each ranking, with one main latent a concept. Printed is the rank correlation over arms of each figure
with what is true of them, with 95% over samples of the seeds.
"""

import sys
from statistics import fmean

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.splitting import firing_f1, l1_probe
from sae_lm.synthetic import suite, tool_figures

Weights = Float[Tensor, "d_sae concepts"]
Labels = Bool[Tensor, "n concepts"]
LONGER = 300
"""Epochs."""
TRUTH = ("hole", "absorbed", "gap")


def longer_probe(codes: TokenCodes, labels: Labels, seed: int) -> Weights:
    """The L1 probe after so many epochs, where the published one has 50."""
    return l1_probe(codes, labels, seed, LONGER)


def mean_difference(codes: TokenCodes, labels: Labels, _: int) -> Weights:
    """How much more strongly a latent fires with the concept, on average, as in SAEBench's sparse probes."""
    positive, count = labels.double(), labels.sum(0).clamp_min(1)
    with_concept = torch.from_numpy(codes.matrix().T @ positive.numpy())
    rest = codes.mean_strength()[:, None] * len(codes) - with_concept
    return with_concept / count - rest / (len(codes) - count).clamp_min(1)


def correlation(codes: TokenCodes, labels: Labels, seed: int) -> Weights:
    """Of a latent's strength and the label."""
    matrix, share = codes.matrix(), labels.double().mean(0)
    squares = torch.from_numpy(matrix.multiply(matrix).sum(0)).reshape(-1, 1) / len(codes)
    spread = (squares - codes.mean_strength()[:, None] ** 2).clamp_min(1e-12).sqrt()
    return mean_difference(codes, labels, seed) * (share * (1 - share)).sqrt() / spread


RANKED_BY = {
    "l1_probe": l1_probe,
    f"l1_probe, {LONGER} epochs": longer_probe,
    "f1": firing_f1,
    "mean difference": mean_difference,
    "correlation": correlation,
}


def main(seeds: int = 6, steps: int = 1500, arms: int = 0) -> None:
    """arms: so many of the list alone; 0 all."""
    found: dict[str, dict[str, dict[str, list[float]]]] = {}

    def told_by_each(by_arm, baseline, sets):
        for name, rank_by in RANKED_BY.items():
            found[name] = tool_figures.told(by_arm, baseline, sets, rank_by)
        return found["l1_probe"]

    (told,) = (experiment for experiment in suite.EXPERIMENTS if experiment.key == "told")
    told = told._replace(recipe=told.recipe._replace(steps=steps), long=told.long[: arms or None])
    own, suite.told = suite.told, told_by_each
    try:
        (result,) = suite.run(True, seeds, [told])["experiments"]
    finally:
        suite.told = own
    truth = {key: {name: arm["values"][key] for name, arm in result["arms"].items()} for key in TRUTH}
    print(f"rank correlation over {len(result['arms'])} arms with true {', '.join(TRUTH)}; the figure of no penalty")
    for name, of_arms in found.items():
        print(name)
        for figure in tool_figures.FIGURES:
            said = {arm: of_arms[arm][figure] for arm in of_arms}
            ranks = [tool_figures.agreement(truth[key], said, {}) for key in TRUTH]
            cells = [f"{one.rank:+.2f} [{one.low:+.2f}, {one.high:+.2f}]" for one in ranks]
            print(f"  {figure:<16}", *cells, f" {fmean(said['none']):.3f}", flush=True)


if __name__ == "__main__":
    main(*[int(number) for number in sys.argv[1:]])
