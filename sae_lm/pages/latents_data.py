"""Put a survey of latents into the data of its page: one head, and chunks of latents and of contexts.

The head names everything once: the SAEs, the tokens in use, the concepts' bars, and the columns of the index. Chunks
``a-0``, ``b-0``, ... hold what the cards of some latents of the first and the second SAE show, ``c-0``, ... the
contexts that lines are from, as token ids. A line of a card is binary: where it is, how strongly the latent fires
there, and what it does around; see `lines` and pages/latents.js, which reads it.
"""

import base64
import math
import struct
from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from sae_lm.data.characters import pieces
from sae_lm.data.store import Store
from sae_lm.metrics.concept_owners import as_json
from sae_lm.metrics.latent_labels import CONCEPT, PLACE, TOKEN, WORD, Labels, Rules
from sae_lm.metrics.latent_statistics import BINS, BINS_PER_OCTAVE, QUANTILE_BINS, quantile_groups
from sae_lm.metrics.latent_survey import Survey, SurveyedSae, surroundings
from sae_lm.pages.text import visible

BEFORE, AFTER = 24, 8
"""Tokens of a line before and after the one it is about."""
RANDOM, PER_BIN = 5, 5
"""Lines of the random group and of each quantile."""
TOP_TOKENS, SEARCHED_TOKENS = 8, 3
"""Tokens a latent fires on most: on its card, and in the index's search."""
LATENTS_PER_CHUNK, CONTEXTS_PER_CHUNK = 256, 512
STRIPE_LEVELS = 255


class PageData(NamedTuple):
    head: dict[str, Any]
    chunks: dict[str, Any]
    """name -> what it holds"""


class Names:
    """Numbers for the page, from 0, in the order in which things are first named."""

    def __init__(self) -> None:
        self.number: dict[int, int] = {}

    def __call__(self, of: int) -> int:
        return self.number.setdefault(of, len(self.number))


class Card(NamedTuple):
    """The lines of one latent."""

    rows: list[int]
    """row numbers, each once"""
    groups: list[list[int]]
    """random, the quantiles from the lowest, top, near misses: places in ``rows``"""
    instead: list[tuple[int, float]]
    """of the near misses"""


def page_data(store: Store, survey: Survey, chosen: Sequence[Sequence[int]]) -> PageData:
    """chosen: the latents of each SAE that get a card."""
    tokens, contexts = Names(), Names()
    chunks: dict[str, Any] = {}
    for side, (of, latents) in enumerate(zip(survey.saes, chosen, strict=True)):
        cards = [card(of, latent) for latent in latents]
        packed = lines(survey, side, latents, cards, contexts, store.manifest.recipe.context_size)
        for first in range(0, len(latents), LATENTS_PER_CHUNK):
            some = range(first, min(len(latents), first + LATENTS_PER_CHUNK))
            chunks[f"{'ab'[side]}-{first // LATENTS_PER_CHUNK}"] = {
                str(latents[i]): entry(of, latents[i], cards[i], packed[i], tokens) for i in some
            }
    numbers = list(contexts.number)
    for first in range(0, len(numbers), CONTEXTS_PER_CHUNK):
        some = numbers[first : first + CONTEXTS_PER_CHUNK]
        chunks[f"c-{first // CONTEXTS_PER_CHUNK}"] = [context_entry(store, survey, number, tokens) for number in some]
    head = {
        "size": store.manifest.recipe.context_size,
        "before": BEFORE,
        "after": AFTER,
        "bins": [BINS, BINS_PER_OCTAVE],
        "rows": len(survey.token_id),
        "perChunk": [LATENTS_PER_CHUNK, CONTEXTS_PER_CHUNK],
        "saes": [sae_entry(store, survey, side, chosen[side], tokens) for side in range(len(survey.saes))],
        "concepts": [
            {
                "name": visible(concept.name),
                "r": _short(concept.direction.correlation),
                "rows": concept.rows,
                "bars": [_bar(bar, tokens) for bar in concept.bars],
            }
            for concept in survey.concepts
        ],
    }
    head["tokens"] = [visible(store.token_text(token)) for token in tokens.number]  # last: now all are named
    return PageData(head, chunks)


def _bar(bar: Any, tokens: Names) -> dict[str, Any]:
    packed = as_json(bar)
    for segment in packed["segments"]:
        segment[2] = tokens(segment[2])
        segment[3], segment[4] = _short(segment[3]), _short(segment[4])
    return packed | {"main_recall": _short(packed["main_recall"])}


def card(of: SurveyedSae, latent: int) -> Card:
    """Which rows the card of a latent shows."""
    sample = of.statistics.sample
    there = sample.row[latent] >= 0
    drawn, values = sample.row[latent][there], sample.value[latent][there]
    quantile = quantile_groups(values)
    groups = [drawn[:RANDOM].tolist(), *(drawn[quantile == q][:PER_BIN].tolist() for q in range(QUANTILE_BINS))]
    groups.append(of.statistics.top.rows_of(latent).tolist())
    missed = of.near_misses.row[latent]
    groups.append(missed[missed >= 0].tolist())
    rows = Names()
    placed = [[rows(row) for row in group] for group in groups]
    instead = zip(of.near_misses.instead[latent].tolist(), of.near_misses.share[latent].tolist(), strict=True)
    return Card(list(rows.number), placed, [(other, _short(share)) for other, share in instead][: len(groups[-1])])


def lines(
    survey: Survey, side: int, latents: Sequence[int], cards: Sequence[Card], contexts: Names, size: int
) -> list[str]:
    """Of each card its lines, one after the other, in base64.

    A line is uint32 number of its context on the page x context size + position; float32 activation; then for the
    latent, and on a page of two SAEs for its match, uint8 n and n times (int8 offset, uint8 level): the tokens around on
    which it fires, level in 255ths of the latent's largest activation, at least 1. Little-endian.
    """
    latent = np.repeat(np.asarray(latents, np.int64), [len(of.rows) for of in cards])
    row = np.array([row for of in cards for row in of.rows], np.int64)
    at = row - survey.start
    number = np.array([contexts(context) for context in survey.context[at].tolist()], np.int64)
    place = number * size + survey.position[at]
    sides = [(side, latent)]
    if survey.matches is not None:
        other = (survey.matches.of_left, survey.matches.of_right)[side].latent
        sides.append((1 - side, other[latent]))
    stripes, value = [], np.zeros(len(row), np.float32)
    for which, of_latent in sides:
        of = survey.saes[which]
        around = surroundings(survey, of.codes, of.statistics.fires, of_latent, row, BEFORE, AFTER)
        largest = np.repeat(of.statistics.largest[of_latent], np.diff(around.indptr))
        level = np.clip(np.rint(around.value / largest * STRIPE_LEVELS), 1, STRIPE_LEVELS).astype(np.uint8)
        pairs = np.stack([around.offset.astype(np.int8).view(np.uint8), level], 1).tobytes()
        stripes.append((around.indptr.tolist(), pairs))
        if which == side:
            here = around.offset == 0
            value[np.repeat(np.arange(len(row)), np.diff(around.indptr))[here]] = around.value[here]
    out, i = [], 0
    for of in cards:
        packed = bytearray()
        for _ in of.rows:
            packed += struct.pack("<If", place[i], value[i])
            for starts, pairs in stripes:
                packed.append(starts[i + 1] - starts[i])
                packed += pairs[2 * starts[i] : 2 * starts[i + 1]]
            i += 1
        out.append(base64.b64encode(packed).decode())
    return out


def entry(of: SurveyedSae, latent: int, shown: Card, packed: str, tokens: Names) -> dict[str, Any]:
    """What the card of a latent shows beside the columns of the index."""
    statistics = of.statistics
    filled = np.flatnonzero(statistics.histogram[latent])
    low, high = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 0)
    out: dict[str, Any] = {
        "h": [low, *statistics.histogram[latent, low:high].tolist()],
        "t": [[tokens(t), hits, int(statistics.token_rows[t])] for t, hits in _most_tokens(of, latent, TOP_TOKENS)],
        "d": _pairs(of.by_decoder.latent[latent], of.by_decoder.cosine[latent]),
        "e": _pairs(of.by_encoder.latent[latent], of.by_encoder.cosine[latent]),
        "f": [
            [
                int(other),
                *(
                    _short(float(part[latent, n]))
                    for part in (of.cofiring.phi, of.cofiring.given_this, of.cofiring.given_other)
                ),
            ]
            for n, other in enumerate(of.cofiring.latent[latent])
            if other >= 0
        ],
        "g": shown.groups,
        "m": [list(pair) for pair in shown.instead],
        "x": packed,
    }
    if of.promoted is not None:
        for key, ids, logits in (("p", *of.promoted[:2]), ("s", *of.promoted[2:])):
            out[key] = [
                [tokens(t), _short(v)] for t, v in zip(ids[latent].tolist(), logits[latent].tolist(), strict=True)
            ]
    return out


def _most_tokens(of: SurveyedSae, latent: int, count: int) -> list[tuple[int, int]]:
    """(token, rows) of those a latent fires on most."""
    counted = of.statistics.tokens
    start, stop = counted.indptr[latent : latent + 2].tolist()
    pairs = zip(counted.indices[start:stop].tolist(), counted.data[start:stop].tolist(), strict=True)
    return sorted(pairs, key=lambda pair: (-pair[1], pair[0]))[:count]


def _pairs(latents: np.ndarray, values: np.ndarray) -> list[list[int | float]]:
    return [[latent, _short(value, 2)] for latent, value in zip(latents.tolist(), values.tolist(), strict=True)]


def context_entry(store: Store, survey: Survey, number: int, tokens: Names) -> list[Any]:
    """[number, first row on the page's rows, [[position, document]...] where one begins, positions without a row, characters of
    several tokens as [first, last, text], ids of the page in base64, as uint16 where all fit, else uint32]."""
    ids = store.blocks(number, number + 1)[0].tolist()
    low, high = np.searchsorted(survey.context, [number, number + 1])
    position = survey.position[low:high]
    columns = store.tokens(survey.start + int(low), survey.start + int(high))
    document = columns["document"].tolist()
    begins = [i for i, of in enumerate(document) if i == 0 or of != document[i - 1]]
    spread = [
        [piece.first, piece.last, visible(piece.text)]
        for piece in pieces(ids, store.vocabulary, store.partial_tokens)
        if piece.last - piece.first > 1
    ]
    named = np.array([tokens(token) for token in ids], "<u4")
    kind = "<u2" if len(tokens.number) <= 2**16 else "<u4"
    return [
        int(number),
        survey.start + int(low),
        [[int(position[i]), document[i]] for i in begins],
        sorted(set(range(len(ids))) - set(position.tolist())),
        spread,
        base64.b64encode(named.astype(kind).tobytes()).decode(),
    ]


def sae_entry(store: Store, survey: Survey, side: int, chosen: Sequence[int], tokens: Names) -> dict[str, Any]:
    """The columns of one SAE's index; those of latents without a card are left out."""
    of = survey.saes[side]
    statistics, labels = of.statistics, of.labels
    names: dict[str, int] = {}
    which = [names.setdefault(label_text(store, survey.rules, labels, latent), len(names)) for latent in chosen]
    tops = []
    for latent in chosen:
        tops.append([tokens(token) for token, _ in _most_tokens(of, latent, SEARCHED_TOKENS)])
    columns: dict[str, Any] = {
        "latent": [int(latent) for latent in chosen],
        "count": statistics.fires[list(chosen)].tolist(),
        "max": _shorts(statistics.largest[list(chosen)], 4),
        "label": which,
        "phi": _shorts(labels.phi[list(chosen)]),
        "precision": _shorts(labels.precision[list(chosen)]),
        "recall": _shorts(labels.recall[list(chosen)]),
        "near": _shorts(of.by_decoder.cosine[list(chosen), 0])
        if of.by_decoder.cosine.shape[1]
        else [None] * len(which),
        "top": tops,
    }
    if survey.matches is not None:
        match = (survey.matches.of_left, survey.matches.of_right)[side]
        columns |= {
            "match": match.latent[list(chosen)].tolist(),
            "cos": _shorts(match.cosine[list(chosen)]),
            "corr": _shorts(match.correlation[list(chosen)]),
            "status": [match.status[latent] for latent in chosen],
        }
    return {
        "name": visible(of.name),
        "d_sae": of.codes.d_sae,
        "alive": int((statistics.fires > 0).sum()),
        "logits": of.promoted is not None,
        "cofiringRows": of.cofiring.rows,
        "labels": list(names),
        "columns": columns,
    }


def label_text(store: Store, rules: Rules, labels: Labels, latent: int) -> str:
    """A latent's best rule in words; an empty text for a latent without one."""
    kind, which = labels.kind[latent], labels.which[latent]
    if kind == TOKEN:
        return f"token “{visible(store.token_text(int(which)))}”"
    if kind == WORD:
        return f"word “{visible(rules.words[which])}”"
    return visible({CONCEPT: rules.concepts, PLACE: rules.place_names}[int(kind)][which]) if kind >= 0 else ""


def _short(value: float, digits: int = 3) -> float:
    return float(f"{value:.{digits}g}")


def _shorts(values: np.ndarray, digits: int = 3) -> list[float | None]:
    return [_short(value, digits) if math.isfinite(value) else None for value in values.tolist()]
