"""What `compare` would say of toy SAEs: its own figures, by its own code, on worlds whose truth is known.

Every parent is a concept. Its probe is fitted on inputs, as on a language model's rows; main latents, hole rate, holes
at equal false alarms and fraction are those of `sae_lm.comparison`. Nothing of the truth goes in but the labels. Beside
the truth (`sae_lm.synthetic.scores`) they say what the figures are worth: `agreement`.
"""

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.comparison.concept_subsets import rank_correlation
from sae_lm.comparison.equal_alarms import all_concept_figures, common_points, points_of_sae
from sae_lm.comparison.evaluate import common_counts, concept_means, sae_codes, sae_splits
from sae_lm.comparison.evaluation_set import ConceptSet, Documents, EvaluationSet, SampleSums, find_candidates
from sae_lm.concepts.probes import fit_probes
from sae_lm.concepts.rows import ConceptRows
from sae_lm.concepts.word_split import TEST, TRAIN, VALIDATION
from sae_lm.metrics.splitting import Ranker, l1_probe
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.synthetic.batched_training import Saes
from sae_lm.synthetic.scores import KnownInputs

ROWS = 4000
"""Inputs of each seed that are looked at. Each counts as a token type of its own."""
TRAIN_SHARE, VALIDATION_SHARE = 0.4, 0.2
GATE, MIN_TYPES, GAIN = 0.6, 50, 0.03
"""As `compare` has them by default."""
MAX_K = 1
"""Main latents of a concept. A toy's parent has four children, whose latents tell of it as well: each would add .03 to the
F1, be counted as a split, and leave no hole. A concept of a language model has hundreds, and none adds as much."""
FIGURES = {
    "told_hole": "hole_rate",
    "told_equal_hole": "equal_hole_rate",
    "told_fraction": "absorption_fraction",
    "told_full": "absorption_full",
    "told_precision": "main_precision",
}
"""Name of a figure here -> metric of `compare`."""
SAMPLES = 200
"""Of the seeds, for the interval of a rank correlation."""
TRUE = ("gap", "absorbed", "hole")
"""Figures of the truth."""


def toy_sae(saes: Saes, trial: int, seed: int, arch: str, k: int) -> SAE:
    """One of many as the SAE that the trainer would have saved."""
    architecture = {"topk": "topk", "relu": "standard"}.get(arch, "jumprelu")
    d_sae, d_in = saes.W_dec.shape[-2:]
    weights = {
        "W_enc": saes.encoder[trial, seed].T.contiguous(),
        "b_enc": saes.b_enc[trial, seed],
        "W_dec": saes.W_dec[trial, seed],
        "b_dec": saes.b_dec[trial, seed],
    }
    if architecture == "jumprelu":
        weights["threshold"] = saes.threshold[trial, seed].clamp_min(0).expand(d_sae).clone()
    of_topk = k if architecture == "topk" else None
    return SAE(SaeConfig(architecture=architecture, d_in=d_in, d_sae=d_sae, k=of_topk), weights)


def concepts_of(known: Sequence[KnownInputs]) -> list[EvaluationSet]:
    """One evaluation set per seed. In use are the parents whose probes pass at every seed."""
    parents = sorted({parent for parent, _ in known[0].pairs})
    rows, probes = [], []
    for seed, inputs in enumerate(known):
        x, sizes = inputs.x[:ROWS], inputs.sizes[:ROWS]
        draw = torch.rand(len(x), generator=torch.Generator().manual_seed(seed))
        subset = torch.full((len(x),), TEST)
        subset[draw < TRAIN_SHARE + VALIDATION_SHARE] = VALIDATION
        subset[draw < TRAIN_SHARE] = TRAIN
        names = [f"parent {parent}" for parent in parents]
        rows.append(ConceptRows(x, torch.arange(len(x)), sizes[:, parents] > 0, subset, names))
        probes.append(fit_probes(rows[-1], MIN_TYPES, GATE, seed))
    used = [c for c in range(len(parents)) if all(of_seed[c].skipped is None for of_seed in probes)]
    return [
        _evaluation_set(own, [(c, of_seed[c]) for c in used], seed)
        for seed, (own, of_seed) in enumerate(zip(rows, probes, strict=True))
    ]


def _evaluation_set(rows: ConceptRows, used: Sequence, seed: int) -> EvaluationSet:
    documents = Documents(torch.zeros(len(rows.x), dtype=torch.long), torch.ones(1, 1))  # no noise of the evaluation
    nothing = torch.zeros(1, dtype=torch.float64)
    return EvaluationSet(
        read=lambda size: iter(rows.x.split(size)),
        documents=documents,
        sums=SampleSums(nothing, nothing, nothing),
        sets=[ConceptSet(rows, [concept for concept, _ in used])],
        candidates=find_candidates(0, rows, used, documents),
        seed=seed,
    )


def told(
    by_arm: Mapping[str, Sequence[SAE]],
    baseline: str,
    sets: Sequence[EvaluationSet],
    rank_by: Ranker = l1_probe,
) -> dict[str, dict[str, list[float]]]:
    """Arm -> figure -> one value per seed. by_arm: of each arm an SAE per seed. rank_by: as in `split_counts`."""
    codes = {arm: [sae_codes(sae, own) for sae, own in zip(saes, sets, strict=True)] for arm, saes in by_arm.items()}
    splits = {
        arm: [sae_splits(at_seed, own, MAX_K, GAIN, rank_by) for at_seed, own in zip(of_arm, sets, strict=True)]
        for arm, of_arm in codes.items()
    }
    common = common_counts(splits[baseline])
    points = [points_of_sae(*of_seed) for of_seed in zip(codes[baseline], splits[baseline], sets, strict=True)]
    targets = common_points(points, common)
    figures: dict[str, dict[str, list[float]]] = {}
    for arm, saes in by_arm.items():
        means = [
            concept_means(all_concept_figures(*of_seed, common, targets)[0])
            for of_seed in zip(saes, codes[arm], splits[arm], sets, strict=True)
        ]
        figures[arm] = {name: [mean[metric] for mean in means] for name, metric in FIGURES.items()}
    return figures


class Agreement(NamedTuple):
    """How a figure orders arms, beside a figure of the truth."""

    rank: float
    """Spearman's correlation over arms, of means over seeds"""
    low: float
    high: float
    """95% of it over samples of the seeds"""
    same: int
    """arms that differ from the baseline by both, each with its whole 95% interval, in one direction"""
    opposite: int
    missed: int
    """arms that differ in truth alone"""
    invented: int
    """arms that differ by the figure alone"""


def agreement(
    true: Mapping[str, Sequence[float]], said: Mapping[str, Sequence[float]], verdicts: Mapping[str, tuple[int, int]]
) -> Agreement:
    """true, said: arm -> one value per seed. verdicts: arm -> signs of the differences in truth and as told, 0 if neither."""
    arms = [arm for arm in true if all(map(math.isfinite, [*true[arm], *said[arm]]))]
    if not arms:
        return Agreement(math.nan, math.nan, math.nan, 0, 0, 0, 0)
    values = torch.tensor([[true[arm], said[arm]] for arm in arms], dtype=torch.float64).reshape(len(arms), 2, -1)
    seeds = values.shape[-1]
    draws = torch.randint(0, seeds, (SAMPLES, seeds), generator=torch.Generator().manual_seed(0))
    sampled = [_rank(values[..., draw]) for draw in draws]
    low, high = torch.tensor(sampled).nanquantile(torch.tensor([0.025, 0.975])).tolist()
    signs = [verdicts[arm] for arm in arms if arm in verdicts]
    return Agreement(
        rank=_rank(values),
        low=low,
        high=high,
        same=sum(a == b != 0 for a, b in signs),
        opposite=sum(a == -b != 0 for a, b in signs),
        missed=sum(a != 0 and b == 0 for a, b in signs),
        invented=sum(a == 0 and b != 0 for a, b in signs),
    )


def _rank(values: Float[Tensor, "arms both seeds"]) -> float:
    return rank_correlation(*values.mean(-1).T.tolist())
