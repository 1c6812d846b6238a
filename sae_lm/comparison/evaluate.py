"""one SAE -> its figures; what every SAE of a comparison shares is made once (`EvaluationSet`) and the same for all.

Noise of the evaluation: how far a figure of one SAE would move with other held-out text. It is the spread of the
figure over bootstrap samples of the documents (of blocks of contexts, for the cross-entropy), and since all SAEs see
the same samples, that of a difference between arms as well. Noise of the training is the spread over seeds.
"""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from statistics import fmean
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.concepts.probes import Probe
from sae_lm.concepts.rows import TEST, ConceptRows
from sae_lm.data.store import Store
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
from sae_lm.metrics.splitting import Split, split_counts
from sae_lm.metrics.statistics import resamples, sums_of_units
from sae_lm.sae.model import SAE

ENCODED_VALUES = 1 << 23
"""Numbers in a dense batch of latents, at most: 32 MiB in float32."""
SAMPLED_ROWS = 4096
"""Held-out rows read at once where no SAE is concerned."""
HELD_BYTES = 1 << 30
"""Held-out rows of up to this size are read once for all SAEs; more are read again for each."""
DRAWS = 200
"""Bootstrap samples of documents: the spread over them has a relative error of 5%."""
Draws = dict[str, Float[Tensor, " draws"]]
"""Metric -> its value in each bootstrap sample."""


class Documents(NamedTuple):
    """Which document each of some rows is of, numbered from 0, and the samples of these documents."""

    of_row: Int[Tensor, " rows"]
    counts: Float[Tensor, "draws documents"]


class Sampled(NamedTuple):
    """What the samples of documents have, whatever the SAE; float64."""

    rows: Float[Tensor, " draws"]
    squares: Float[Tensor, " draws"]
    """sum of ||x||^2"""
    variance: Float[Tensor, " draws"]
    """mean ||x - mean x||^2"""


class ConceptSet(NamedTuple):
    """Rows, and the concepts in use on them; several sets have rows of their own."""

    rows: ConceptRows
    used: list[int]
    """columns of ``rows.labels`` that passed their gate"""


class Candidates(NamedTuple):
    """Rows of one concept on which absorption is scored: of unseen types, with the concept, and the probe says so."""

    set: int
    """number of its concept set"""
    concept: int
    """its column there"""
    probe: Probe
    rows: Int[Tensor, " n"]
    """their places among the set's rows"""
    x: Float[Tensor, "n d_in"]
    token_id: Int[Tensor, " n"]
    type: Int[Tensor, " n"]
    """token types numbered from 0"""
    weight: Float[Tensor, "draws n"]
    """how often each row's document is in each sample"""
    type_weight: Float[Tensor, "draws types"]


class EvaluationSet(NamedTuple):
    """What all SAEs are measured on."""

    read: Callable[[int], Iterator[Tensor]]
    """rows at once -> the held-out rows, batch by batch"""
    documents: Documents
    """of the held-out rows"""
    sampled: Sampled
    """of these documents"""
    sets: list[ConceptSet]
    candidates: list[Candidates]
    """one for each concept in use; lists of a concept's splits have this order"""
    seed: int


def documents(of_row: Int[Tensor, " rows"], seed: int) -> Documents:
    """Number the documents and draw samples of them."""
    numbers, of_row = of_row.unique(return_inverse=True)
    return Documents(of_row, resamples(len(numbers), DRAWS, seed))


def reader(store: Store, hook: str, start: int, stop: int) -> Callable[[int], Iterator[Tensor]]:
    """Held-out rows in the store's dtype, kept in memory where they are few."""
    few = (stop - start) * store.column_bytes(hook) <= HELD_BYTES
    kept = store.rows(hook, start, stop) if few else None

    def read(size: int) -> Iterator[Tensor]:
        if kept is not None:
            yield from kept.split(size)
            return
        for first in range(start, stop, size):
            yield store.rows(hook, first, min(stop, first + size))

    return read


def candidates(
    number: int, rows: ConceptRows, used: Sequence[tuple[int, Probe]], document: Documents
) -> list[Candidates]:
    """Of the concept set of this number. used: column and probe; document: of its rows."""
    found = []
    for c, probe in used:
        told = rows.x @ probe.weight + probe.bias > 0
        places = ((rows.part == TEST) & rows.labels[:, c] & told).nonzero().flatten()
        kinds, kind = rows.token_id[places].unique(return_inverse=True)
        weight = document.counts[:, document.of_row[places]]
        type_weight = torch.zeros(len(weight), len(kinds)).index_add_(1, kind, weight)
        x, token_id = rows.x[places], rows.token_id[places]
        found.append(Candidates(number, c, probe, places, x, token_id, kind, weight, type_weight))
    return found


def batch_rows(sae: SAE) -> int:
    """Rows to encode at once."""
    return max(1, ENCODED_VALUES // sae.config.d_sae)


# --- on held-out rows


@torch.no_grad()
def sampled(read: Callable[[int], Iterator[Tensor]], documents: Documents) -> Sampled:
    """Over the held-out rows once; the same for every SAE."""
    counts, first = documents.counts, 0
    total: Tensor = torch.zeros(())
    squares = []
    for x in read(SAMPLED_ROWS):
        weight = counts[:, documents.of_row[first : first + len(x)]]
        total = total + (weight @ x.float()).double()
        squares.append(x.double().square().sum(1))
        first += len(x)
    square, n = (
        counts.double() @ sums_of_units(of, documents.of_row, counts.shape[1])
        for of in (torch.cat(squares), torch.ones(first, dtype=torch.float64))
    )
    return Sampled(n, square, square / n - (total / n[:, None]).square().sum(1))


class HeldOut(NamedTuple):
    """One SAE on held-out rows."""

    figures: dict[str, float]
    """quality and geometry"""
    draws: Draws
    """L0, FVU and NMSE in each sample of the documents"""
    fired: Bool[Tensor, " d_sae"]
    """which latents did"""
    nearest: Float[Tensor, " alive"]
    """cosine of each of these to the nearest other"""


def held_out_figures(sae: SAE, evaluation_set: EvaluationSet) -> HeldOut:
    measured, fired, per_row = quality(sae, evaluation_set.read(batch_rows(sae)))
    fired = fired.to(sae.W_dec.device)
    shape, nearest = geometry(sae.W_dec, fired, evaluation_set.seed)
    figures = {name: float(value) for name, value in (measured._asdict() | shape._asdict()).items()}
    of_row, counts = evaluation_set.documents.of_row, evaluation_set.documents.counts.double()
    missed, firings = (counts @ sums_of_units(of, of_row, counts.shape[1]) for of in per_row)
    rows, squares, variance = evaluation_set.sampled
    draws = {"l0": firings / rows, "fvu": missed / rows / variance, "nmse": missed / squares}
    return HeldOut(figures, draws, fired, nearest)


# --- on concepts


def sae_codes(sae: SAE, evaluation_set: EvaluationSet) -> list[TokenCodes]:
    """Codes of every concept set."""
    return [
        encode_sparse(sae, of.rows.x.split(batch_rows(sae))) if of.used else _no_codes(sae)
        for of in evaluation_set.sets
    ]


def _no_codes(sae: SAE) -> TokenCodes:
    return TokenCodes(torch.zeros(0, 1), torch.zeros(0, 1, dtype=torch.long), sae.config.d_sae)


def sae_splits(codes: Sequence[TokenCodes], evaluation_set: EvaluationSet, max_k: int, gain: float) -> list[Split]:
    """The main latents of every concept in use."""
    found = [
        split_counts(mine, of.rows, of.used, max_k, gain, evaluation_set.seed) if of.used else {}
        for mine, of in zip(codes, evaluation_set.sets, strict=True)
    ]
    return [found[one.set][one.concept] for one in evaluation_set.candidates]


def common_counts(splits: Sequence[Sequence[Split]]) -> list[int]:
    """Per concept, the mean splitting count of the baseline's SAEs: how many main latents every SAE gets.

    Hole rate and fraction fall with the number of main latents alone, so an arm that splits more would
    seem to absorb less if each were scored with its own number.
    """
    return [round(fmean(len(split.latents) for split in of)) for of in zip(*splits, strict=True)]


def concept_figures(
    sae: SAE,
    codes: Sequence[TokenCodes],
    splits: Sequence[Split],
    evaluation_set: EvaluationSet,
    common: Sequence[int],
    sweep: bool = False,
) -> tuple[list[dict[str, Any]], Draws]:
    """Splitting and absorption of every concept in use, with the common and with its own number of main latents.

    sweep: at other gates as well.
    Draws: hole rate and fraction, means over concepts, with the common number.
    """
    told, W_dec, b_dec = [], sae.W_dec.cpu(), sae.b_dec.cpu()
    frequencies = [of_set.firing_frequency() for of_set in codes]
    draws: dict[str, list[Tensor]] = {"hole_rate": [], "absorption_fraction": []}
    for found, split, k in zip(evaluation_set.candidates, splits, common, strict=True):
        of_set, rows = codes[found.set], evaluation_set.sets[found.set].rows
        mine, probe, main = of_set.take(found.rows), found.probe.weight, split.ranking[:k]
        at_sae = ConceptAtSae(mine, found.x, found.token_id, W_dec, probe, b_dec)
        figures: dict[str, Any] = {"concept": found.probe.name, "latents": split.latents, "common_k": k}
        figures |= {"splits": len(split.latents), "main_f1": split.test_f1_by_k[k - 1], "f1_by_k": split.f1_by_k}
        for suffix, latents in (("", main), ("_own_k", split.latents)):
            scores = absorption(at_sae, latents)
            figures |= {f"{key}{suffix}": value for key, value in (scores._asdict() if scores else {}).items()}
        test = rows.part == TEST
        detector = main_latents(of_set.take(test), rows.labels[test, found.concept], main)
        figures |= {"main_recall": detector.recall, "main_precision": detector.precision, "hubs": detector.hubs}
        random = control(at_sae, main, frequencies[found.set], evaluation_set.seed)
        if random:
            figures |= {"control_hole_rate": random.hole_rate, "control_fraction": random.fraction}
        if sweep:
            centre = Centre(rows.x.mean(0), of_set.mean_strength())
            figures["sweep"] = [gate._asdict() for gate in gate_sweep(at_sae, main, centre)]
        if len(found.rows):
            parts = projections(at_sae, main)
            draws["hole_rate"].append(type_means(parts.silent, found))
            draws["absorption_fraction"].append(type_means(fraction_scores(parts), found))
        told.append(figures)
    return told, {key: torch.stack(of).nanmean(0) for key, of in draws.items() if of}


def type_means(values: Tensor, found: Candidates) -> Float[Tensor, " draws"]:
    """In each sample the mean over the token types in it of the means over their rows."""
    sums = torch.zeros_like(found.type_weight).index_add_(1, found.type, found.weight * values.float())
    there = found.type_weight > 0
    means = torch.where(there, sums / found.type_weight.clamp_min(1), 0.0).double()
    return means.sum(1) / there.sum(1)


CONCEPT_MEANS = {
    "splits": "splits",
    "main_f1": "main_f1",
    "main_recall": "main_recall",
    "hole_rate": "hole_rate",
    "absorption_fraction": "fraction",
    "absorption_full": "full",
    "recovered_on_holes": "recovered",
    "hole_rate_own_k": "hole_rate_own_k",
    "absorption_fraction_own_k": "fraction_own_k",
    "absorption_full_own_k": "full_own_k",
    "control_hole_rate": "control_hole_rate",
    "control_fraction": "control_fraction",
}
"""Metric -> the key of a concept's figures that it is the mean of."""


def concept_means(concepts: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Unweighted means over concepts; NaN where none has the figure."""
    out = {}
    for metric, key in CONCEPT_MEANS.items():
        values = [of[key] for of in concepts if math.isfinite(of.get(key, math.nan))]
        out[metric] = fmean(values) if values else math.nan
    return out


# --- in the language model
