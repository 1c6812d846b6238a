"""token ids in the store -> labelled concepts, and a linear probe for each.

A concept is a property of the token a row belongs to (capitalised, a digit, ends in -ing, ...), read
off the token's text. Rows are split by token TYPE, so that a probe cannot pass by remembering
tokens: types are hashed into train, validation and test. A concept is used only if it has enough
types and its probe finds it on unseen types; those that are not say why.
"""

import hashlib
import string
from collections.abc import Callable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.data.store import Store
from sae_lm.seeds import derive

TRAIN, VALIDATION, TEST = 0, 1, 2
PROBE_L2 = 1e-3
"""Weight of 0.5 ||w||^2 beside the mean balanced loss, rows scaled to mean squared norm d_in."""
PROBE_ITERATIONS = 200
SEARCHED_ROWS, SAMPLED_ROWS = 4_000_000, 200_000
"""Rows looked through for occurrences, from the store's end; rows kept, at most."""


def _word(text: str) -> str:
    return text.strip()


def _suffix(ending: str) -> Callable[[str], bool]:
    return lambda text: len(_word(text)) > len(ending) + 1 and _word(text).isalpha() and _word(text).endswith(ending)


def _first_letter(letter: str) -> Callable[[str], bool]:
    return lambda text: _word(text).isalpha() and _word(text)[0].lower() == letter


LABELS: dict[str, Callable[[str], bool]] = {
    "leading space": lambda text: text.startswith(" ") and bool(_word(text)),
    "capitalised": lambda text: _word(text)[:1].isupper() and _word(text)[1:].islower(),
    "all capitals": lambda text: len(_word(text)) > 1 and _word(text).isalpha() and _word(text).isupper(),
    "digit": lambda text: any(character.isdigit() for character in text),
    "punctuation": lambda text: bool(_word(text)) and all(c in string.punctuation for c in _word(text)),
    **{f"ends in -{ending}": _suffix(ending) for ending in ("ing", "ed", "ly", "s", "er", "ion")},
    **{f"first letter {letter}": _first_letter(letter) for letter in string.ascii_lowercase},
}
"""Concept name -> whether a token's text has it."""


class ConceptRows(NamedTuple):
    """Rows sampled for the concepts, shared by every SAE of a comparison."""

    x: Float[Tensor, "n d_in"]
    token_id: Int[Tensor, " n"]
    labels: Bool[Tensor, "n concepts"]
    part: Int[Tensor, " n"]
    """TRAIN, VALIDATION or TEST, a function of the token type"""
    names: list[str]


class Probe(NamedTuple):
    """A linear probe of one concept on activations."""

    name: str
    types: int
    """positive token types among the rows"""
    rows: int
    """positive rows"""
    f1: float
    """on test types"""
    weight: Float[Tensor, " d_in"]
    """direction in the space of raw activations"""
    bias: float
    skipped: str | None
    """why the concept is not used, or None"""


def type_part(token_id: int, seed: int) -> int:
    """64% of token types train, 16% validation, 20% test, by hash."""
    draw = hashlib.sha256(f"{seed},{token_id}".encode()).digest()[0] / 256
    return TRAIN if draw < 0.64 else VALIDATION if draw < 0.80 else TEST


def sample_rows(store: Store, hook: str, start: int, per_type: int, seed: int) -> ConceptRows:
    """At most ``per_type`` random occurrences of every token type in the rows from ``start`` on.

    Of very large stores the last rows are searched, and of very many occurrences a random part is kept.
    """
    start = max(start, len(store) - SEARCHED_ROWS)
    ids = store.tokens(start)["token_id"].long()
    generator = torch.Generator().manual_seed(derive("concept rows", seed))
    shuffled = torch.randperm(len(ids), generator=generator)
    by_type = shuffled[ids[shuffled].argsort(stable=True)]
    sorted_ids = ids[by_type]
    first = torch.searchsorted(sorted_ids, sorted_ids)
    chosen = by_type[torch.arange(len(ids)) - first < per_type]
    chosen = chosen[torch.randperm(len(chosen), generator=generator)[:SAMPLED_ROWS]].sort().values
    token_id = ids[chosen]
    types = {int(token): store.vocabulary[int(token)] for token in token_id.unique()}
    labels = torch.zeros(len(store.vocabulary), len(LABELS), dtype=torch.bool)
    part = torch.zeros(len(store.vocabulary), dtype=torch.long)
    for token, text in types.items():
        labels[token] = torch.tensor([has(text) for has in LABELS.values()])
        part[token] = type_part(token, seed)
    x = store.gather(hook, start + chosen).float()
    return ConceptRows(x, token_id, labels[token_id], part[token_id], list(LABELS))


def fit_probes(rows: ConceptRows, min_types: int, gate: float) -> list[Probe]:
    """L2-regularised, class-balanced logistic regression for all concepts at once (L-BFGS)."""
    types = [len(rows.token_id[rows.labels[:, c]].unique()) for c in range(len(rows.names))]
    scale = float(rows.x.square().mean().sqrt())
    weight, bias = logistic(rows.x[rows.part == TRAIN] / scale, rows.labels[rows.part == TRAIN])
    test = rows.part == TEST
    predicted = rows.x[test] / scale @ weight + bias > 0
    probes = []
    for c, name in enumerate(rows.names):
        score = f1(predicted[:, c], rows.labels[test, c])
        skipped = None
        if types[c] < min_types:
            skipped = f"{types[c]} token types, fewer than {min_types}"
        elif any(len(rows.labels[rows.part == part, c].unique()) < 2 for part in (TRAIN, VALIDATION, TEST)):
            skipped = "no examples on both sides in train, validation and test types"
        elif score < gate:
            skipped = f"probe F1 {score:.2f} on unseen types, below {gate:g}"
        positive = int(rows.labels[:, c].sum())
        probes.append(Probe(name, types[c], positive, score, weight[:, c] / scale, float(bias[c]), skipped))
    return probes


def logistic(
    x: Float[Tensor, "n d"], labels: Bool[Tensor, "n concepts"]
) -> tuple[Float[Tensor, "d concepts"], Float[Tensor, " concepts"]]:
    """Weights and biases; positives and negatives of each concept weigh the same in total."""
    positive = labels.sum(0).clamp_min(1)
    negative = (~labels).sum(0).clamp_min(1)
    importance = torch.where(labels, 0.5 / positive, 0.5 / negative)
    weight = torch.zeros(x.shape[1], labels.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=PROBE_ITERATIONS, line_search_fn="strong_wolfe")
    target = labels.float()

    def closure() -> Tensor:
        optimizer.zero_grad()
        losses = torch.nn.functional.binary_cross_entropy_with_logits(x @ weight + bias, target, importance)
        loss = losses * target.numel() + PROBE_L2 / 2 * weight.square().sum()
        loss.backward()
        return loss

    optimizer.step(closure)  # pyright: ignore[reportArgumentType]
    return weight.detach(), bias.detach()


def f1(predicted: Bool[Tensor, " n"], actual: Bool[Tensor, " n"]) -> float:
    """2 TP / (2 TP + FP + FN); 0 where nothing is positive."""
    hits = int((predicted & actual).sum())
    wrong = int((predicted != actual).sum())
    return 2 * hits / (2 * hits + wrong) if hits else 0.0
