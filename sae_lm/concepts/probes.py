"""Linear probes: whether a concept can be read off the rows at all, and by which direction."""

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.concepts.rows import MOMENT_ROWS, ConceptRows
from sae_lm.concepts.word_split import TEST, TRAIN, VALIDATION
from sae_lm.runtime.seeds import derive

PROBE_L2 = 1e-3
"""Weight of 0.5 ||w||^2 beside the mean balanced loss, rows scaled to mean squared norm d_in."""
PROBE_ITERATIONS = 60
"""Steps of L-BFGS at most."""
PERMUTATIONS, CHANCE = 200, 0.99
"""Permutations of the test's labels, and the share of them whose F1 a probe has to exceed."""


class Probe(NamedTuple):
    """A linear probe of one concept on activations."""

    name: str
    kind: str
    """token, csv or contextual"""
    types: int
    """positive token types among the rows"""
    words: int
    """positive words"""
    test_words: int
    """those of them on the test's side"""
    rows: int
    """positive rows"""
    f1: float
    """on test words; NaN where none was fitted"""
    permuted_f1: float
    """what its answers score by labels that mean nothing, in the best of a hundred permutations (`permuted_f1`)"""
    weight: Float[Tensor, " d_in"]
    """direction in the space of raw activations"""
    bias: float
    skipped: str | None
    """why the concept is not used, or None"""
    embedding_f1: float = math.nan
    """of a probe on the token's input embedding alone (`sae_lm.concepts.embedding`); NaN where there is none"""


def fit_probes(rows: ConceptRows, min_words: int, gate: float, seed: int = 0) -> list[Probe]:
    """L2-regularised, class-balanced logistic regressions, and what their answers score by permuted labels.

    Concepts with too few words are not fitted.
    """
    has = [rows.labels[:, c] for c in range(len(rows.names))]
    of_test = [len(rows.words[labels & (rows.subset == TEST)].unique()) for labels in has]
    reasons = [_too_few(rows, c, of_test[c], min_words) for c in range(len(rows.names))]
    fitted = [c for c, reason in enumerate(reasons) if reason is None]
    train, test = rows.subset == TRAIN, rows.subset == TEST
    weight, bias = logistic(rows.x[train], rows.labels[train][:, fitted])
    predicted, labels = rows.x[test] @ weight + bias > 0, rows.labels[test][:, fitted]
    meaningless = permuted_f1(rows, predicted, fitted, seed)
    column = {c: place for place, c in enumerate(fitted)}
    probes = []
    for c, name in enumerate(rows.names):
        score = by_chance = math.nan
        direction, offset, reason = torch.zeros(rows.x.shape[1]), 0.0, reasons[c]
        if c in column:
            place = column[c]
            score, by_chance = f1(predicted[:, place], labels[:, place]), meaningless[place]
            direction, offset = weight[:, place].clone(), float(bias[place])
            if score < gate:
                reason = f"probe F1 {score:.2f} on unseen words, below {gate:g}"
            elif score <= by_chance:
                reason = f"probe F1 {score:.2f} on unseen words, no more than by permuted labels"
        kind, types = rows.kinds[c] if rows.kinds else "token", len(rows.token_id[has[c]].unique())
        words, positive = len(rows.words[has[c]].unique()), int(has[c].sum())
        probes.append(
            Probe(name, kind, types, words, of_test[c], positive, score, by_chance, direction, offset, reason)
        )
    return probes


def _too_few(rows: ConceptRows, concept: int, test_words: int, min_words: int) -> str | None:
    """Why a concept cannot be fitted and scored, or None."""
    if test_words < min_words:
        return f"{test_words} word{'s' * (test_words != 1)} to be tested on, fewer than {min_words}"
    for side, name in ((TRAIN, "train"), (VALIDATION, "validation"), (TEST, "test")):
        labels = rows.labels[rows.subset == side, concept]
        if not labels.any() or labels.all():
            return f"no {name} word {'without' if len(labels) and labels.all() else 'with'} it"
    return None


def permuted_f1(
    rows: ConceptRows, predicted: Bool[Tensor, "n_test fitted"], fitted: Sequence[int], seed: int
) -> list[float]:
    """F1 of these answers on the test's rows by labels without meaning, at the quantile `CHANCE` of `PERMUTATIONS`.

    Whole words change places, for what is alike of a word's spellings would else count as often as it has of them: each
    has the labels of another, one spelling after the other. Of contextual concepts rows do, as a type has both labels.
    """
    test = rows.subset == TEST
    labels = rows.labels[test][:, fitted]
    if not len(labels) or not fitted:
        return [math.nan] * len(fitted)
    contextual = "contextual" in rows.kinds
    unit = torch.arange(len(labels)) if contextual else rows.words[test]
    spelling = unit if contextual else rows.token_id[test]
    pairs, kind = torch.stack([unit, spelling]).unique(dim=1, return_inverse=True)  # in order of their units
    said = torch.zeros(pairs.shape[1], len(fitted)).index_add_(0, kind, predicted.float())
    of_kind = torch.bincount(kind, minlength=pairs.shape[1]).float()
    label = torch.zeros(pairs.shape[1], len(fitted))
    label[kind] = labels.float()
    _, number, sizes = pairs[0].unique_consecutive(return_inverse=True, return_counts=True)
    first = sizes.cumsum(0) - sizes
    rank = torch.arange(len(number)) - first[number]
    generator = torch.Generator().manual_seed(derive("permuted labels", seed))
    scores = []
    for _ in range(PERMUTATIONS):
        other = torch.randperm(len(sizes), generator=generator)[number]
        of_other = label[first[other] + rank % sizes[other]]
        found, actual = (said * of_other).sum(0), of_kind @ of_other
        scores.append(2 * found / (said.sum(0) + actual).clamp_min(1))
    return torch.stack(scores).quantile(CHANCE, dim=0).tolist()


def logistic(
    x: Float[Tensor, "n d"], labels: Bool[Tensor, "n concepts"]
) -> tuple[Float[Tensor, "d concepts"], Float[Tensor, " concepts"]]:
    """Weights and biases; positives and negatives of each concept weigh the same in total.

    Minimises the mean balanced cross-entropy + `PROBE_L2` / 2 ||s w||^2, s the root mean square of x: L-BFGS for all
    concepts at once, in coordinates in which the rows are white. Measured on 17k rows of width 256 and 52 concepts:
    60 steps come within 7e-5 of the optimum, where 200 in the rows' own coordinates are 2e-3 above it.

    Not scikit-learn's ``LogisticRegression(solver="newton-cholesky", class_weight="balanced")``, which fits concepts
    one by one, each from a Hessian of its own. Measured on 5000 rows and 20 concepts with one thread (scikit-learn
    1.9.1, torch 2.13.0): 5.7 s against 4.2 s here at width 256, 235 s against 7.3 s at 2304, for a loss 3e-5 lower. In
    float32 its Hessian of width 2304 is too ill-conditioned: after 41 s it stops at a loss 4e-4 higher.
    """
    scale = float(x.square().mean().sqrt()) or 1.0
    mean = x.mean(0)
    moment = torch.zeros(x.shape[1], x.shape[1], dtype=torch.float64)
    for part in x.split(MOMENT_ROWS):
        moment += ((part - mean) / scale).double().T @ ((part - mean) / scale).double()
    # logits vary with the weights as x does, at a curvature of at most 1/4
    curvature = moment / (4 * max(1, len(x))) + PROBE_L2 * torch.eye(x.shape[1], dtype=torch.float64)
    lower = torch.linalg.cholesky(curvature)
    white = (
        torch.linalg.solve_triangular(lower.T, torch.eye(len(lower), dtype=torch.float64), upper=True).float() / scale
    )
    share = torch.where(labels, 0.5 / labels.sum(0).clamp_min(1), 0.5 / (~labels).sum(0).clamp_min(1))
    target = labels.float()
    free = torch.zeros(x.shape[1], labels.shape[1])
    centre = torch.zeros(labels.shape[1])
    optimizer = torch.optim.LBFGS(
        [free, centre], max_iter=PROBE_ITERATIONS, tolerance_grad=1e-7, line_search_fn="strong_wolfe"
    )

    def closure() -> Tensor:
        weight = white @ free
        logits = x @ weight + (centre - mean @ weight)
        entropies = torch.nn.functional.softplus(logits) - target * logits
        slope = (logits.sigmoid_() - target) * share
        total = slope.sum(0)
        ridge = PROBE_L2 * scale**2
        free.grad = white.T @ (x.T @ slope - mean[:, None] * total + ridge * weight)
        centre.grad = total
        return (entropies * share).sum(dtype=torch.float64) + ridge / 2 * weight.square().sum(dtype=torch.float64)

    if labels.shape[1]:
        optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    weight = white @ free
    return weight, centre - mean @ weight


def f1(predicted: Bool[Tensor, " n"], actual: Bool[Tensor, " n"]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where nothing is positive."""
    hits = int((predicted & actual).sum())
    wrong = int((predicted != actual).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0
