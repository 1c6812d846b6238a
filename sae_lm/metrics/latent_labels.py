"""Labels of latents without a language model: the token, word or concept whose presence their firing tells best.

A rule is what a row may have: one token, one word in any spelling (case and spaces aside), a concept of tokens, or a
concept of places. Beside each rule a latent is a yes-or-no guess; of all rules the one is taken whose correlation with
the latent's firing (phi, Matthews) is highest. Precision is P(rule | fires), recall P(fires | rule).

Near misses of a latent are rows that have its rule and on which it is silent. What fired instead is the latent that
writes most along the silent one's decoder row, on that row.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.sparse
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.concepts.rows import labels_in_context
from sae_lm.concepts.token_labels import GivenLabels, label_table, spelled
from sae_lm.concepts.word_forms import FORMS, form_of
from sae_lm.data.store import Store
from sae_lm.metrics.latent_statistics import LatentStatistics, row_priority
from sae_lm.metrics.stored_codes import StoredCodes
from sae_lm.sae.directions import unit_rows

TOKEN, WORD, CONCEPT, PLACE = range(4)
"""Kinds of rules; of equally good ones the first kind."""
FEW = 5
"""Rows on which a latent must fire to be given a label."""
LOOKED_AT = 1000
"""Rows with a rule, drawn at random, that are searched for near misses."""
PLACE_ROWS = 131_072
"""Rows whose places are read at once, so that memory stays bounded."""


class Rules(NamedTuple):
    """What rows may have, apart from being a token."""

    words: list[str]
    word_of: np.ndarray
    """[d_vocab]: each token's word, -1 for a token without a letter or digit"""
    concepts: list[str]
    table: np.ndarray
    """[d_vocab, concepts] bool"""
    place_names: list[str]
    places: np.ndarray
    """[rows, places] bool"""


class Labels(NamedTuple):
    """Per latent its best rule; kind -1 where it fires on too few rows or nothing goes with it."""

    kind: np.ndarray
    which: np.ndarray
    """token id, number of the word, of the concept, of the place"""
    phi: np.ndarray
    precision: np.ndarray
    recall: np.ndarray


class NearMisses(NamedTuple):
    """Per latent and near miss [d_sae, n]; row -1 where there are fewer."""

    row: np.ndarray
    instead: np.ndarray
    """the latent that writes most along the silent one's decoder row; -1 where none writes along it"""
    share: np.ndarray
    """what that latent writes along it, over what the silent one writes on average where it fires"""


def read_rules(store: Store, start: int, given: GivenLabels | None = None) -> Rules:
    """The rules of a store's rows from ``start`` on. given: a user's concepts, as further ones."""
    vocabulary = store.vocabulary
    types = store.tokens(start)["token_id"].unique().tolist()
    table, names, _ = label_table(vocabulary, types, given)
    inflected = np.zeros((len(vocabulary), len(FORMS)), bool)
    for token in types:
        form = form_of(vocabulary[token])
        inflected[token] = [form is not None and form.form == name for name in FORMS]
    numbers: dict[str, int] = {}
    spelt = [spelled(text) for text in vocabulary]
    word_of = [numbers.setdefault(word, len(numbers)) if any(c.isalnum() for c in word) else -1 for word in spelt]
    labels: list[dict[str, Tensor]] = []
    first = start
    while first < len(store):
        tokens = store.tokens(first, min(len(store), first + PLACE_ROWS))
        if first + len(tokens["context"]) < len(store) and int(tokens["context"][0]) != int(tokens["context"][-1]):
            whole = int((tokens["context"] != tokens["context"][-1]).sum())  # the last context may go on
            tokens = {name: column[:whole] for name, column in tokens.items()}
        labels.append(labels_in_context(store, tokens))
        first += len(tokens["context"])
    place_names = list(labels[0])
    places = [torch.cat([part[name] for part in labels]).numpy() for name in place_names]
    concepts = np.concatenate([table.numpy(), inflected], 1)
    return Rules(list(numbers), np.array(word_of), [*names, *FORMS], concepts, place_names, np.stack(places, 1))


def best_rules(statistics: LatentStatistics, rules: Rules) -> Labels:
    """Each latent's best rule; see the head of this module."""
    n, fires = statistics.rows, statistics.fires.astype(np.float64)
    of_tokens = scipy.sparse.csr_array(statistics.tokens.astype(np.float64))
    known = np.flatnonzero(rules.word_of >= 0)
    to_word = scipy.sparse.csr_array(
        (np.ones(len(known)), (known, rules.word_of[known])), shape=(len(rules.word_of), len(rules.words))
    )
    token_rows = statistics.token_rows.astype(np.float64)
    table = rules.table.astype(np.float64)
    best = [
        _best_of_sparse(of_tokens, fires, token_rows, n),
        _best_of_sparse(scipy.sparse.csr_array(of_tokens @ to_word), fires, token_rows @ to_word, n),
        _best_of_dense(of_tokens @ table, fires, token_rows @ table, n),
        _best_of_dense(statistics.places.astype(np.float64), fires, statistics.place_rows.astype(np.float64), n),
    ]
    phi = np.stack([of_kind[1] for of_kind in best])
    kind = phi.argmax(0)  # of equals the first
    every = np.arange(len(fires))
    which, hits, has = (np.stack([of_kind[part] for of_kind in best])[kind, every] for part in (0, 2, 3))
    highest = phi[kind, every]
    kind = np.where((statistics.fires >= FEW) & (highest > 0), kind, -1)
    with np.errstate(invalid="ignore", divide="ignore"):
        return Labels(kind, which.astype(np.int64), highest, hits / fires, hits / has)


def _phi(hits: np.ndarray, fires: np.ndarray, has: np.ndarray, n: int) -> np.ndarray:
    """Correlation of two yes-or-no variables over n rows; -1 where one of them never varies."""
    spread = fires * (n - fires) * has * (n - has)
    return np.where(spread > 0, (n * hits - fires * has) / np.sqrt(np.maximum(spread, 1)), -1.0)


def _best_of_sparse(
    hits: scipy.sparse.csr_array, fires: np.ndarray, has: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Per latent (which, phi, hits, has) of the best of many rules of which a latent meets few."""
    latent = np.repeat(np.arange(len(fires)), np.diff(hits.indptr))
    phi = _phi(hits.data, fires[latent], has[hits.indices], n)
    order = np.lexsort((-hits.indices, phi, latent))  # the last of each latent is its best, of equals the first
    last = np.ones(len(order), bool)
    last[:-1] = latent[order][1:] != latent[order][:-1]
    chosen = order[last]
    out = (np.zeros(len(fires)), np.full(len(fires), -1.0), np.zeros(len(fires)), np.ones(len(fires)))
    for of, values in zip(out, (hits.indices, phi, hits.data, has[hits.indices]), strict=True):
        of[latent[chosen]] = values[chosen]
    return out


def _best_of_dense(
    hits: np.ndarray, fires: np.ndarray, has: np.ndarray, n: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    if not hits.shape[1]:
        return np.zeros(len(fires)), np.full(len(fires), -1.0), np.zeros(len(fires)), np.ones(len(fires))
    phi = _phi(hits, fires[:, None], has[None], n)
    which, every = phi.argmax(1), np.arange(len(fires))
    return which, phi[every, which], hits[every, which], has[which]


def rows_with(rules: Rules, token_id: np.ndarray, kind: int, which: int) -> np.ndarray:
    """[rows] bool: which rows, of these token ids, have a rule."""
    if kind == TOKEN:
        return token_id == which
    if kind == WORD:
        return (rules.word_of == which)[token_id]
    return rules.table[:, which][token_id] if kind == CONCEPT else rules.places[:, which]


@torch.no_grad()
def near_misses(
    codes: StoredCodes,
    statistics: LatentStatistics,
    labels: Labels,
    rules: Rules,
    token_id: np.ndarray,
    W_dec: Float[Tensor, "d_sae d_in"],
    latents: Sequence[int],
    count: int,
) -> NearMisses:
    """``count`` near misses at most of each of some latents: random ones of `LOOKED_AT` random rows that have the rule."""
    priority = row_priority(codes.start + np.arange(len(codes)))
    by_priority = np.argsort(priority, kind="stable")
    by_rule: dict[tuple[int, int], list[int]] = {}
    for latent in latents:
        if labels.kind[latent] >= 0:
            by_rule.setdefault((int(labels.kind[latent]), int(labels.which[latent])), []).append(latent)
    ordered = token_id[by_priority]
    in_order = Rules(*rules[:-1], places=rules.places[by_priority])
    looked_at = {rule: by_priority[np.flatnonzero(rows_with(in_order, ordered, *rule))[:LOOKED_AT]] for rule in by_rule}
    needed = np.unique(np.concatenate([np.zeros(0, np.int64), *looked_at.values()]))
    matrix = codes.gather(codes.start + needed).matrix(codes.d_sae)
    row = np.full((codes.d_sae, count), -1)
    for rule, members in by_rule.items():
        rows = looked_at[rule]
        fires = matrix[np.searchsorted(needed, rows)].tocsc()[:, members].toarray() > 0
        for column, latent in enumerate(members):
            silent = rows[~fires[:, column]][:count]
            row[latent, : len(silent)] = codes.start + silent
    instead, share = _instead(codes, statistics, torch.as_tensor(W_dec).float().cpu(), row)
    return NearMisses(row, instead, share)


def _instead(
    codes: StoredCodes, statistics: LatentStatistics, W_dec: Tensor, row: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """What fired on each row in the place of the latent that was silent, and how much of it."""
    instead, share = np.full(row.shape, -1), np.zeros(row.shape, np.float32)
    needed, place = np.unique(row[row >= 0], return_inverse=True)
    part = codes.gather(needed)
    unit, norm = unit_rows(W_dec), W_dec.norm(dim=1).numpy()
    usual = statistics.total / np.maximum(statistics.fires, 1) * norm
    for (latent, column), at in zip(np.argwhere(row >= 0), place, strict=True):
        entries = slice(part.indptr[at], part.indptr[at + 1])
        if entries.start == entries.stop:
            continue
        others = part.latent[entries]
        written = part.value[entries] * (W_dec[torch.from_numpy(others).long()] @ unit[latent]).numpy()
        most = int(written.argmax())
        if written[most] > 0:
            instead[latent, column] = others[most]
            share[latent, column] = written[most] / max(usual[latent], 1e-12)
    return instead, share
