"""Measure one SAE: its figures on the evaluation set, and the noise of each.

Noise of the evaluation: how far a figure of one SAE would move with other held-out text. It is the spread of the
figure over bootstrap samples of the documents (of blocks of contexts, for the cross-entropy), and since all SAEs see
the same samples, that of a difference between arms as well. Noise of the training is the spread over seeds.
"""

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.comparison.evaluation_set import Candidates, EvaluationSet
from sae_lm.concepts.word_split import TEST
from sae_lm.metrics.absorption import (
    Centre,
    ConceptAtSae,
    absorption,
    control,
    fraction_scores,
    gate_sweep,
    main_latents,
    projections,
)
from sae_lm.metrics.codes import TokenCodes, encode_sparse
from sae_lm.metrics.geometry import geometry
from sae_lm.metrics.reconstruction import quality
from sae_lm.metrics.splitting import RANKERS, Ranker, Split, firing_f1, l1_probe, split_counts
from sae_lm.metrics.statistics import mean_of_known, sums_of_units
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings

ENCODED_VALUES = 1 << 23
"""Numbers in a dense batch of latents, at most: 32 MiB in float32."""
BootstrapValues = dict[str, Float[Tensor, " samples"]]
"""Metric -> its value in each bootstrap sample."""


def batch_rows(sae: SAE) -> int:
    """Rows to encode at once."""
    return max(1, ENCODED_VALUES // sae.config.d_sae)


@torch.no_grad()
def rows_decoded(sae: SAE, x: Float[Tensor, "n d_in"]) -> Float[Tensor, "n d_in"]:
    """What the SAE's decoder rebuilds of rows: the rows, or what it normalises them to. Strengths are in these units."""
    return sae.normalise(x).float().cpu() if sae.config.normalises else x


# --- on held-out rows


class HeldOut(NamedTuple):
    """One SAE on held-out rows."""

    figures: dict[str, float]
    """quality and geometry"""
    bootstrap_values: BootstrapValues
    """L0, FVU and NMSE in each sample of the documents"""
    fired: Bool[Tensor, " d_sae"]
    """which latents did"""
    nearest: Float[Tensor, " alive"]
    """cosine of each of these to the nearest other"""


def held_out_figures(sae: SAE, evaluation_set: EvaluationSet) -> HeldOut:
    """Quality of the reconstruction and geometry of the decoder."""
    reconstruction, fired, per_row = quality(sae, evaluation_set.read(batch_rows(sae)))
    fired = fired.to(sae.W_dec.device)
    shape, nearest = geometry(sae.W_dec, fired, evaluation_set.seed)
    figures = {name: float(value) for name, value in (reconstruction._asdict() | shape._asdict()).items()}
    del figures["rows"]  # how many were read is no figure of the SAE
    of_row, counts = evaluation_set.documents.of_row, evaluation_set.documents.counts.double()
    errors, firings = (counts @ sums_of_units(values, of_row, counts.shape[1]) for values in per_row)
    rows, squares, variance = evaluation_set.sums
    bootstrap_values = {"l0": firings / rows, "fvu": errors / rows / variance, "nmse": errors / squares}
    return HeldOut(figures, bootstrap_values, fired, nearest)


# --- on concepts


def sae_codes(sae: SAE, evaluation_set: EvaluationSet, runners_up: int = 0) -> list[TokenCodes]:
    """TokenCodes of every concept set; runners_up: as `encode_sparse` takes it."""
    return [
        encode_sparse(sae, concepts.rows.x.split(batch_rows(sae)) if concepts.used else (), runners_up)
        for concepts in evaluation_set.sets
    ]


def sae_splits(
    codes: Sequence[TokenCodes],
    evaluation_set: EvaluationSet,
    max_k: int,
    gain: float,
    rank_by: Ranker = l1_probe,
) -> list[Split]:
    """The main latents of every concept in use."""
    by_set = [
        split_counts(codes_of_set, concepts.rows, concepts.used, max_k, gain, evaluation_set.seed, rank_by)
        if concepts.used
        else {}
        for codes_of_set, concepts in zip(codes, evaluation_set.sets, strict=True)
    ]
    return [by_set[candidates.set][candidates.concept] for candidates in evaluation_set.candidates]


OnConcepts = tuple[list[TokenCodes], list[Split]]
"""One SAE's codes of every concept set, and its main latents of every concept in use."""


def find_main_latents(
    sae: SAE, settings: CompareSettings, evaluation_set: EvaluationSet, splits: list[Split] | None = None
) -> OnConcepts | None:
    """splits: where they are known already. None where no concept is in use."""
    if not evaluation_set.candidates:
        return None
    # a concept has at most so many main latents, which others take the places of
    codes = sae_codes(sae, evaluation_set, runners_up=settings.max_k)
    return codes, splits or sae_splits(
        codes, evaluation_set, settings.max_k, settings.split_gain, RANKERS[settings.rank_latents]
    )


def ranked_by_f1(codes: Sequence[TokenCodes], settings: CompareSettings, evaluation_set: EvaluationSet) -> list[Split]:
    """One SAE's main latents by the other ranking."""
    return sae_splits(codes, evaluation_set, settings.max_k, settings.split_gain, firing_f1)


def common_counts(splits: Sequence[Sequence[Split]]) -> list[int]:
    """Per concept, the mean splitting count of the baseline's SAEs: how many main latents every SAE gets.

    Hole rate and fraction fall with the number of main latents alone, so an arm that splits more would
    seem to absorb less if each were scored with its own number.
    """
    return [round(fmean(len(split.latents) for split in concept)) for concept in zip(*splits, strict=True)]


def concept_figures(
    sae: SAE,
    codes: Sequence[TokenCodes],
    splits: Sequence[Split],
    evaluation_set: EvaluationSet,
    common: Sequence[int],
    sweep: bool = False,
) -> tuple[list[dict[str, Any]], BootstrapValues]:
    """Splitting and absorption of every concept in use, with the common and with its own number of main latents.

    sweep: at other gates as well.
    Bootstrap values: of hole rate and fraction, means over concepts, with the common number.
    """
    per_concept, W_dec, b_dec = [], sae.W_dec.cpu(), sae.b_dec.cpu()
    frequencies = [codes_of_set.firing_frequency() for codes_of_set in codes]
    samples: dict[str, list[Tensor]] = {"hole_rate": [], "absorption_fraction": []}
    for candidates, split, k in zip(evaluation_set.candidates, splits, common, strict=True):
        codes_of_set, rows = codes[candidates.set], evaluation_set.sets[candidates.set].rows
        own, probe, main = codes_of_set.take(candidates.rows), candidates.probe.weight, split.ranking[:k]
        at_sae = ConceptAtSae(own, rows_decoded(sae, candidates.x), candidates.token_id, W_dec, probe, b_dec)
        figures: dict[str, Any] = {"concept": candidates.probe.name, "latents": split.latents, "common_k": k}
        figures |= {"splits": len(split.latents), "main_f1": split.test_f1_by_k[k - 1], "f1_by_k": split.f1_by_k}
        for suffix, latents in (("", main), ("_own_k", split.latents)):
            scores = absorption(at_sae, latents)
            figures |= {f"{key}{suffix}": value for key, value in (scores._asdict() if scores else {}).items()}
        test = rows.subset == TEST
        detector = main_latents(codes_of_set.take(test), rows.labels[test, candidates.concept], main)
        figures |= {"main_recall": detector.recall, "main_precision": detector.precision, "hubs": detector.hubs}
        random = control(at_sae, main, frequencies[candidates.set], evaluation_set.seed)
        if random:
            figures |= {"control_hole_rate": random.hole_rate, "control_fraction": random.fraction}
        if sweep:
            centre = Centre(rows_decoded(sae, rows.x).mean(0), codes_of_set.mean_strength())
            figures["sweep"] = [gate._asdict() for gate in gate_sweep(at_sae, main, centre)]
        if len(candidates.rows):
            parts = projections(at_sae, main)
            samples["hole_rate"].append(type_means(parts.silent, candidates))
            samples["absorption_fraction"].append(type_means(fraction_scores(parts), candidates))
        per_concept.append(figures)
    return per_concept, {key: torch.stack(values).nanmean(0) for key, values in samples.items() if values}


def type_means(values: Tensor, candidates: Candidates) -> Float[Tensor, " samples"]:
    """In each sample the mean over the token types in it of the means over their rows."""
    sums = torch.zeros_like(candidates.type_weight).index_add_(1, candidates.type, candidates.weight * values.float())
    present = candidates.type_weight > 0
    means = torch.where(present, sums / candidates.type_weight.clamp_min(1), 0.0).double()
    return means.sum(1) / present.sum(1)


CONCEPT_MEANS = {
    "splits": "splits",
    "main_f1": "main_f1",
    "main_recall": "main_recall",
    "main_precision": "main_precision",
    "hole_rate": "hole_rate",
    "absorption_fraction": "fraction",
    "absorption_fraction_ungated": "ungated_fraction",
    "absorption_full": "full",
    "recovered_on_holes": "recovered",
    "hole_rate_own_k": "hole_rate_own_k",
    "absorption_fraction_own_k": "fraction_own_k",
    "absorption_full_own_k": "full_own_k",
    "control_hole_rate": "control_hole_rate",
    "control_fraction": "control_fraction",
    "equal_hole_rate": "equal_hole_rate",
    "main_firing_rate": "firing_rate",
    "main_false_alarms": "false_alarms",
    "equal_precision": "equal_precision",
    "equal_false_alarms": "equal_false_alarms",
    "equal_reached": "reached",
    "hole_rate_at_precision": "hole_rate_at_precision",
    "splits_by_f1": "splits_by_f1",
    "equal_hole_rate_by_f1": "equal_hole_rate_by_f1",
    "absorption_fraction_by_f1": "fraction_by_f1",
    "absorption_fraction_ungated_by_f1": "ungated_fraction_by_f1",
}
"""Metric -> the key of a concept's figures that it is the mean of."""


def concept_means(concepts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Unweighted means over concepts; NaN where none has the figure."""
    return {
        metric: mean_of_known(concept.get(key, math.nan) for concept in concepts)
        for metric, key in CONCEPT_MEANS.items()
    }
