"""Which latents are a concept's? Rankings of candidates for main latents, where the truth is known.

    python tests/benchmarks/rankings.py [SEEDS] [STEPS]

SAEs of the toy *told* are trained with every arm (six seeds, 1500 steps by default), and `compare`'s figures are taken
of them once with each ranking. Printed is the rank correlation over arms of each figure with what is true of them, and
the figures of no penalty beside its true holes.
"""

import sys

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.comparison.concept_subsets import rank_correlation
from sae_lm.metrics import splitting
from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.splitting import firing_f1, l1_probe
from sae_lm.synthetic import suite, tool_figures

Weights = Float[Tensor, "d_sae concepts"]
Labels = Bool[Tensor, "n concepts"]
LONGER = 300


def longer_probe(codes: TokenCodes, labels: Labels, seed: int) -> Weights:
    """The L1 probe after so many epochs, where the published one has 50."""
    epochs, splitting.EPOCHS = splitting.EPOCHS, LONGER
    try:
        return l1_probe(codes, labels, seed)
    finally:
        splitting.EPOCHS = epochs


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


RANKINGS = {
    "l1_probe": l1_probe,
    f"l1_probe, {LONGER} epochs": longer_probe,
    "f1": firing_f1,
    "mean difference": mean_difference,
    "correlation": correlation,
}


def main(seeds: int = 6, steps: int = 1500) -> None:
    found: dict[str, dict[str, dict[str, list[float]]]] = {}

    def told_by_each(by_arm, baseline, sets):
        for name, rank_by in RANKINGS.items():
            found[name] = tool_figures.told(by_arm, baseline, sets, rank_by)
        return found["l1_probe"]

    (told,) = (experiment for experiment in suite.EXPERIMENTS if experiment.key == "told")
    told = told._replace(recipe=told.recipe._replace(steps=steps))
    own, suite.told = suite.told, told_by_each
    try:
        (result,) = suite.run(True, seeds, [told])["experiments"]
    finally:
        suite.told = own
    means = {arm: {key: torch.tensor(result["arms"][arm]["values"][key]).mean() for key in tool_figures.TRUE}
             for arm in result["arms"]}  # fmt: skip
    print(
        f"rank correlation over {len(means)} arms with true hole, absorbed, gap; and no penalty (hole {means['none']['hole']:.3f})"
    )
    for name, of_arms in found.items():
        print(name)
        for figure in ("told_hole", "told_equal_hole", "told_fraction", "told_full"):
            said = [float(torch.tensor(of_arms[arm][figure]).mean()) for arm in means]
            ranks = [
                rank_correlation(said, [float(means[arm][key]) for arm in means]) for key in ("hole", "absorbed", "gap")
            ]
            print(f"  {figure:<16}", " ".join(f"{rank:+.2f}" for rank in ranks), f"   {said[0]:.3f}", flush=True)


if __name__ == "__main__":
    main(*[int(number) for number in sys.argv[1:]])
