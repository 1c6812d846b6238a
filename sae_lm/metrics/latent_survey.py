"""All that a page of latents shows of one SAE, or of two on the same rows, measured in one pass over stored codes.

The parts are of `latent_statistics`, `latent_labels`, `cofiring`, `latent_matches`, `concept_owners` and
`promoted_tokens`; this puts them together and adds what latents do in the tokens around a row.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from sae_lm.concepts.token_labels import GivenLabels
from sae_lm.data.store import Store
from sae_lm.interp.promoted_tokens import PromotedTokens, promoted_tokens
from sae_lm.metrics.cofiring import Cofiring, cofiring
from sae_lm.metrics.concept_owners import LEAST_CORRELATION, Bar, Direction, concept_bars, concept_directions
from sae_lm.metrics.latent_labels import Labels, NearMisses, Rules, best_rules, near_misses, read_rules
from sae_lm.metrics.latent_matches import BothWays, match_latents
from sae_lm.metrics.latent_statistics import LatentStatistics, latent_statistics, row_priority
from sae_lm.metrics.stored_codes import StoredCodes, store_codes
from sae_lm.sae.directions import unit_rows
from sae_lm.sae.model import SAE
from sae_lm.sae.nearest import nearest_in_part

NEIGHBOURS, PROMOTED, NEAR_MISSES = 6, 10, 5
"""Shown of each latent, of each kind."""
DIRECTION_ROWS = 32_768
"""Rows of which the concepts' directions are made, at most; drawn at random."""
CONCEPT_ROWS = 100
"""Rows a concept must have for a bar."""
ENTRIES_AT_ONCE = 2**23
"""Activations of a block of latents that are in memory while what is around rows is looked up."""


class Neighbours(NamedTuple):
    """Per latent the most alike rows or columns [d_sae, n], falling."""

    latent: np.ndarray
    cosine: np.ndarray


class SurveyedSae(NamedTuple):
    name: str
    sae: SAE
    codes: StoredCodes
    statistics: LatentStatistics
    labels: Labels
    near_misses: NearMisses
    cofiring: Cofiring
    by_decoder: Neighbours
    by_encoder: Neighbours
    promoted: PromotedTokens | None


class Concept(NamedTuple):
    name: str
    direction: Direction
    rows: int
    bars: list[Bar]
    """of each SAE"""


class Survey(NamedTuple):
    start: int
    """the rows are those from here to the store's end"""
    token_id: np.ndarray
    context: np.ndarray
    position: np.ndarray
    rules: Rules
    saes: list[SurveyedSae]
    matches: BothWays | None
    """of two SAEs"""
    concepts: list[Concept]
    unread: list[str]
    """concepts that no line reads well enough, or that too few rows have"""


class Surroundings(NamedTuple):
    """What a latent does on the rows around each of some rows, as sparse lines."""

    indptr: np.ndarray
    offset: np.ndarray
    """in positions of the context; 0 is the row itself"""
    value: np.ndarray


def survey(
    store: Store,
    hook: str,
    named: Sequence[tuple[str, SAE]],
    *,
    tokens: int,
    contexts: int,
    folder: Path,
    model: Any = None,
    given: GivenLabels | None = None,
) -> Survey:
    """Measure one or two SAEs on the store's last ``tokens`` rows.

    contexts: best contexts kept of each latent. folder: where codes are kept. model: a bridge, for promoted tokens.
    """
    start = max(0, len(store) - tokens)
    columns = store.tokens(start)
    token_id, context, position = (columns[name].numpy() for name in ("token_id", "context", "position"))
    codes = [store_codes(store, hook, sae, start, len(store), folder) for _, sae in named]
    rules = read_rules(store, start, given)
    surveyed = []
    for (name, sae), of_sae in zip(named, codes, strict=True):
        d_sae = sae.config.d_sae
        statistics = latent_statistics(
            of_sae, d_sae, start, token_id, context, len(store.vocabulary), rules.places, contexts
        )
        labels = best_rules(statistics, rules)
        missed = near_misses(of_sae, statistics, labels, rules, token_id, sae.W_dec, range(d_sae), NEAR_MISSES)
        W_enc, W_dec = (weight.detach().float().cpu() for weight in (sae.W_enc, sae.W_dec))
        surveyed.append(
            SurveyedSae(
                name,
                sae,
                of_sae,
                statistics,
                labels,
                missed,
                cofiring(of_sae, NEIGHBOURS),
                _neighbours(W_dec),
                _neighbours(W_enc.T),
                None if model is None else promoted_tokens(model, W_dec, PROMOTED),
            )
        )
    matches = None
    if len(named) == 2:
        matches = match_latents(codes[0], codes[1], named[0][1].W_dec, named[1][1].W_dec)
    concepts, unread = _concepts(store, hook, start, token_id, rules, surveyed)
    return Survey(start, token_id, context, position, rules, surveyed, matches, concepts, unread)


def _neighbours(rows: torch.Tensor) -> Neighbours:
    unit = unit_rows(rows)
    cosine, latent = nearest_in_part(unit, unit, count=min(NEIGHBOURS, len(unit) - 1))
    return Neighbours(latent.numpy(), cosine.numpy())


def _concepts(
    store: Store, hook: str, start: int, token_id: np.ndarray, rules: Rules, saes: Sequence[SurveyedSae]
) -> tuple[list[Concept], list[str]]:
    names = [*rules.concepts, *rules.place_names]
    has = np.concatenate([rules.table[token_id], rules.places], 1)
    drawn = np.sort(np.argsort(row_priority(start + np.arange(len(token_id))), kind="stable")[:DIRECTION_ROWS])
    x = store.gather(hook, torch.from_numpy(start + drawn)).float()
    directions = concept_directions(x, torch.from_numpy(has[drawn]))
    rows = has.sum(0)
    read = [
        c
        for c, direction in enumerate(directions)
        if direction.correlation >= LEAST_CORRELATION and rows[c] >= CONCEPT_ROWS
    ]
    bars = []
    for of in saes:
        seen = directions
        if of.sae.config.normalises:  # its decoder writes into what it made of the rows
            seen = concept_directions(of.sae.normalise(x.to(of.sae.W_dec)).float().cpu(), torch.from_numpy(has[drawn]))
        chosen = [seen[c] for c in read]
        bars.append(concept_bars(of.codes, of.sae.W_dec, chosen, has[:, read], token_id))
    concepts = [
        Concept(names[c], directions[c], int(rows[c]), [of_sae[place] for of_sae in bars])
        for place, c in enumerate(read)
    ]
    return concepts, [name for c, name in enumerate(names) if c not in read]


def surroundings(
    survey: Survey,
    codes: StoredCodes,
    count: np.ndarray,
    latent: np.ndarray,
    row: np.ndarray,
    before: int,
    after: int,
    entries: int = ENTRIES_AT_ONCE,
) -> Surroundings:
    """What ``latent[i]`` does on the rows of ``row[i]``'s context up to ``before`` and ``after`` positions away.

    count: [d_sae] rows on which each latent fires. Latents are taken in blocks of ``entries`` activations.
    """
    order = np.argsort(latent, kind="stable")
    wanted, first_hit = np.unique(latent[order], return_index=True)
    block = np.cumsum(count[wanted]) // max(1, entries)
    lengths, offsets, values = np.zeros(len(latent), np.int64), [], []
    for number in np.unique(block):
        these = np.flatnonzero(block == number)
        stop = first_hit[these[-1] + 1] if these[-1] + 1 < len(wanted) else len(order)
        hits = order[first_hit[these[0]] : stop]
        span = len(survey.token_id) + before + after + 2  # so that what is around a row is never another latent's
        key, value = _columns(codes, wanted[these], span)
        at = row[hits] - survey.start
        base = np.searchsorted(wanted[these], latent[hits]) * span
        low, high = np.searchsorted(key, base + at - before), np.searchsorted(key, base + at + after + 1)
        each = np.repeat(np.arange(len(hits)), high - low)
        entry = np.repeat(low - np.cumsum(high - low) + (high - low), high - low) + np.arange(len(each))
        there = key[entry] - base[each]
        away = survey.position[there].astype(np.int64) - survey.position[at[each]]
        near = (survey.context[there] == survey.context[at[each]]) & (away >= -before) & (away <= after)
        lengths[hits] = np.bincount(each[near], minlength=len(hits))
        offsets.append(away[near])
        values.append(value[entry][near])
    return _in_order(order, lengths, offsets, values)


def _columns(codes: StoredCodes, latents: np.ndarray, span: int) -> tuple[np.ndarray, np.ndarray]:
    """(place of the latent among these times ``span`` plus the row from 0, activation), sorted by the first."""
    place = np.full(codes.d_sae, -1, np.int64)
    place[latents] = np.arange(len(latents))
    where, value = [], []
    for part in codes.parts():
        inside = np.flatnonzero(place[part.latent] >= 0)
        where.append((place[part.latent[inside]], part.first - codes.start + part.entry_row[inside].astype(np.int64)))
        value.append(part.value[inside])
    column, row = (np.concatenate(parts) for parts in zip(*where, strict=True))
    order = np.lexsort((row, column))
    return (column * span + row)[order], np.concatenate(value)[order]


def _in_order(
    order: np.ndarray, lengths: np.ndarray, offsets: list[np.ndarray], values: list[np.ndarray]
) -> Surroundings:
    """Lines that were made in another order, put into that of the hits."""
    made = np.concatenate([[0], np.cumsum(lengths[order])])
    start_of = np.empty(len(lengths), np.int64)
    start_of[order] = made[:-1]
    indptr = np.concatenate([[0], np.cumsum(lengths)])
    entry = np.repeat(start_of - indptr[:-1], lengths) + np.arange(indptr[-1])
    offset, value = (
        np.concatenate([np.zeros(0, kind), *parts]) for kind, parts in ((np.int64, offsets), (np.float32, values))
    )
    return Surroundings(indptr, offset[entry], value[entry])
