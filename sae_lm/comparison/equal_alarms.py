"""Bring all SAEs' main latents to the baseline's rate of false alarms, concept by concept, and count holes there.

The rate of a concept is the mean over all SAEs of the baseline, as is the number of main latents (`common_counts`), and
the baseline's own SAEs are brought to it as well: so no SAE is at an advantage for being the one the others are held
to. The rate is taken on rows of training and validation words. Factors are taken on all rows without the concept, test
words too: holes are counted on rows with it, so that no row sets a factor and is counted. On training rows alone, where
main latents are chosen, they fire wrongly less often than elsewhere, in one arm more so than in another. Why it is done,
and why by false alarms, is in `sae_lm.metrics.false_alarms`.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor

from sae_lm.comparison.evaluate import BootstrapValues, batch_rows, concept_figures, type_means
from sae_lm.comparison.evaluation_set import Candidates, EvaluationSet
from sae_lm.concepts.word_split import TEST
from sae_lm.metrics.absorption import type_mean
from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.false_alarms import (
    OperatingPoint,
    gate_ratios,
    has_gate,
    operating_point,
    points_by_count,
    threshold_at_false_alarms,
    threshold_at_precision,
)
from sae_lm.metrics.splitting import Split
from sae_lm.metrics.statistics import mean_of_known
from sae_lm.sae.model import SAE

Scale = tuple[list[int], list[OperatingPoint]]
"""Of each concept the common number of main latents, and the operating point that all are brought to."""


OF_BOTH_RANKINGS = ("splits", "main_f1", "equal_hole_rate", "reached", "fraction", "ungated_fraction")
"""Figures of a concept that are told by the other ranking of main latents too, where both are asked for."""


def absent_rows(candidates: Candidates, evaluation_set: EvaluationSet) -> Bool[Tensor, " n"]:
    """Rows of the concept's set that lack it by their label, and the probe says so too."""
    rows, probe = evaluation_set.sets[candidates.set].rows, candidates.probe
    return ~rows.labels[:, candidates.concept] & (rows.x @ probe.weight + probe.bias <= 0)


def points_of_sae(
    codes: Sequence[TokenCodes], splits: Sequence[Split], evaluation_set: EvaluationSet
) -> list[list[OperatingPoint]]:
    """Of one SAE as it is: for each concept in use its operating point with 1, 2, ... main latents, not on test words."""
    points = []
    for candidates, split in zip(evaluation_set.candidates, splits, strict=True):
        rows = evaluation_set.sets[candidates.set].rows
        known = rows.subset != TEST
        labels, absent = rows.labels[known, candidates.concept], absent_rows(candidates, evaluation_set)[known]
        points.append(points_by_count(codes[candidates.set].take(known), split.ranking, labels, absent))
    return points


def common_points(of_saes: Sequence[Sequence[Sequence[OperatingPoint]]], common: Sequence[int]) -> list[OperatingPoint]:
    """Per concept, the mean over the baseline's SAEs (`points_of_sae` of each), with the common number of main latents."""
    targets = []
    for concept, k in zip(zip(*of_saes, strict=True), common, strict=True):
        at = [points[k - 1] for points in concept]
        targets.append(OperatingPoint(*(mean_of_known([point[field] for point in at]) for field in (0, 1))))
    return targets


def equal_figures(
    sae: SAE,
    codes: Sequence[TokenCodes],
    splits: Sequence[Split],
    evaluation_set: EvaluationSet,
    common: Sequence[int],
    targets: Sequence[OperatingPoint],
) -> tuple[list[dict[str, Any]], BootstrapValues]:
    """Of every concept in use: how often main latents fire, and the holes once their false alarms are the targets'.

    Bootstrap values: of the holes, mean over concepts; the factors are held.
    """
    per_concept, samples = [], []
    ratios = _ratios_of_concepts(sae, codes, splits, evaluation_set, common)
    for place, candidates in enumerate(evaluation_set.candidates):
        rows, main = evaluation_set.sets[candidates.set].rows, splits[place].ranking[: common[place]]
        labels, absent = rows.labels[:, candidates.concept], absent_rows(candidates, evaluation_set)
        known, test = rows.subset != TEST, rows.subset == TEST
        fires = codes[candidates.set].take(test).columns(main).gt(0).any(1)
        alarms = operating_point(fires, labels[test], absent[test]).false_alarms
        figures: dict[str, Any] = {"firing_rate": float(fires.double().mean()), "false_alarms": alarms}
        ratio, target = ratios[place], targets[place]
        if math.isfinite(target.false_alarms):
            threshold = threshold_at_false_alarms(ratio[absent], target.false_alarms)
            fires = ratio > threshold
            at = operating_point(fires[test], labels[test], absent[test])
            figures |= {"gate_ratio": threshold, "equal_false_alarms": at.false_alarms, "equal_precision": at.precision}
            figures["reached"] = threshold >= 0 or not has_gate(sae)
            if len(candidates.rows):
                silent = ~fires[candidates.rows]
                figures["equal_hole_rate"] = type_mean(silent, candidates.token_id)
                samples.append(type_means(silent, candidates))
        if math.isfinite(target.precision) and len(candidates.rows):
            threshold = threshold_at_precision(ratio[known], labels[known], target.precision)
            figures["hole_rate_at_precision"] = type_mean(ratio[candidates.rows] <= threshold, candidates.token_id)
        per_concept.append(figures)
    return per_concept, {"equal_hole_rate": torch.stack(samples).nanmean(0)} if samples else {}


def all_concept_figures(
    sae: SAE,
    codes: Sequence[TokenCodes],
    splits: Sequence[Split],
    evaluation_set: EvaluationSet,
    common: Sequence[int],
    targets: Sequence[OperatingPoint],
    sweep: bool = False,
) -> tuple[list[dict[str, Any]], BootstrapValues]:
    """`concept_figures` and `equal_figures` of every concept in use, together."""
    plain, of_plain = concept_figures(sae, codes, splits, evaluation_set, common, sweep)
    equal, of_equal = equal_figures(sae, codes, splits, evaluation_set, common, targets)
    return [before | further for before, further in zip(plain, equal, strict=True)], of_plain | of_equal


def with_f1_figures(
    per_concept: list[dict[str, Any]],
    sae: SAE,
    codes: Sequence[TokenCodes],
    splits: Sequence[Split],
    evaluation_set: EvaluationSet,
    scale: Scale,
) -> list[dict[str, Any]]:
    """The figures of each concept, and `OF_BOTH_RANKINGS` by the other ranking too, of which splits and scale are."""
    further, _ = all_concept_figures(sae, codes, splits, evaluation_set, *scale)
    return [
        figures | {f"{key}_by_f1": more[key] for key in OF_BOTH_RANKINGS if key in more}
        for figures, more in zip(per_concept, further, strict=True)
    ]


def _ratios_of_concepts(
    sae: SAE,
    codes: Sequence[TokenCodes],
    splits: Sequence[Split],
    evaluation_set: EvaluationSet,
    common: Sequence[int],
) -> list[Tensor]:
    """Of each concept in use the gate ratio of every row of its set."""
    ratios: dict[int, Tensor] = {}
    for number, concepts in enumerate(evaluation_set.sets):
        places = evaluation_set.places(number)
        if places:
            main = [splits[place].ranking[: common[place]] for place in places]
            columns = gate_ratios(sae, concepts.rows.x.split(batch_rows(sae)), main, codes[number].ranked)
            ratios |= dict(zip(places, columns.unbind(1), strict=True))
    return [ratios[place] for place in range(len(evaluation_set.candidates))]
