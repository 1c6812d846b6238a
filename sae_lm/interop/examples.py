"""The contexts that latents fire on, as lists of tokens and activations: what dashboards of others are made of."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from sae_lm.data.store import Store
from sae_lm.data.tokens import lengths
from sae_lm.errors import SaeError
from sae_lm.metrics.latent_statistics import LatentStatistics, latent_statistics
from sae_lm.metrics.stored_codes import StoredCodes, store_codes
from sae_lm.sae.model import SAE

AT_ONCE = 128
"""Latents of one file, at most: what the services take in one call."""
BARS = 50
"""Of the histogram of a latent's activations, of equal width from 0 to the largest."""
EMPTY = "\u2205"
"""Stands for a token without text: services refuse an empty string."""


class Encoded(NamedTuple):
    """Some rows at the end of a store, encoded and counted."""

    store: Store
    codes: StoredCodes
    statistics: LatentStatistics
    token_id: np.ndarray
    """[rows], as context and position"""
    context: np.ndarray
    position: np.ndarray
    blocks: np.ndarray
    """[contexts, pos] token ids of the rows' contexts, special tokens and padding included"""
    ends: np.ndarray
    """[contexts] where padding begins"""


class Example(NamedTuple):
    """One context around a row."""

    tokens: list[str]
    """as they stand in the text, those without rows (BOS, separators, sinks) included"""
    values: list[float]
    """a latent's activation on each; 0 on a token without a row"""
    centre: int
    """which of the tokens is the row's"""


class Shown(NamedTuple):
    """What is shown of one latent."""

    latent: int
    top: list[Example]
    """strongest first, each from another context"""
    drawn: list[Example]
    """around rows drawn at random among those it fires on"""
    bars: np.ndarray
    """[BARS] how many of its activations are in each bar"""


def encode(store: Store, hook: str, sae: SAE, tokens: int, contexts: int, folder: Path) -> Encoded:
    """Encode the last ``tokens`` rows, from the first whole context on. folder: where codes are kept for another call.

    contexts: how many best contexts are kept of each latent.
    """
    start = max(0, len(store) - tokens)
    columns = store.tokens(max(0, start - 1))
    if start:
        of = columns["context"]
        skip = 1 + int((of[1:] == of[0]).sum()) if len(of) > 1 and of[1] == of[0] else 1
        columns = {name: column[skip:] for name, column in columns.items()}
        start = start - 1 + skip
    token_id, context, position = (columns[name].numpy() for name in ("token_id", "context", "position"))
    if not len(token_id):
        raise SaeError(f"the last {tokens:,} rows of store {store.path} hold no whole context; search more, --tokens")
    codes = store_codes(store, hook, sae, start, len(store), folder)
    places = np.zeros((len(token_id), 0), bool)
    d_vocab = max(len(store.vocabulary), int(token_id.max()) + 1)
    statistics = latent_statistics(codes, sae.config.d_sae, start, token_id, context, d_vocab, places, contexts)
    blocks = store.blocks(int(context[0]), int(context[-1]) + 1).numpy()
    ends = lengths(blocks, store.manifest.recipe)
    return Encoded(store, codes, statistics, token_id, context, position, blocks, ends)


def firing(encoded: Encoded, wanted: Sequence[int] | None) -> list[int]:
    """The latents asked for, or all, that fire. Raises SaeError where none does."""
    fires = encoded.statistics.fires > 0
    latents = [latent for latent in (range(len(fires)) if wanted is None else wanted) if fires[latent]]
    if not latents:
        raise SaeError(f"none of the latents fires on the {len(encoded.token_id):,} rows searched; give more, --tokens")
    return latents


def shown(encoded: Encoded, latents: Sequence[int], before: int, after: int) -> Iterator[list[Shown]]:
    """Latents, `AT_ONCE` at a time: one pass over the stored codes for each so many. Windows stay in their context.

    before, after: tokens shown on either side of the row, at most.
    """
    for first in range(0, len(latents), AT_ONCE):
        yield _batch(encoded, list(latents[first : first + AT_ONCE]), before, after)


class _Window(NamedTuple):
    """Positions ``first`` to ``last`` of a context, and the rows from ``low`` to ``high`` that stand there."""

    first: int
    last: int
    low: int
    high: int


def _windows(encoded: Encoded, rows: np.ndarray, before: int, after: int) -> dict[int, _Window]:
    """Row, counted from the first that is encoded -> what is shown around it. Padding is not."""
    out = {}
    for row in rows.tolist():
        context, position = encoded.context[row], int(encoded.position[row])
        first = max(0, position - before)
        last = min(int(encoded.ends[context - encoded.context[0]]), position + after + 1)
        begin, end = np.searchsorted(encoded.context, [context, context + 1])
        low, high = begin + np.searchsorted(encoded.position[begin:end], [first, last])
        out[row] = _Window(first, last, int(low), int(high))
    return out


def _batch(encoded: Encoded, latents: list[int], before: int, after: int) -> list[Shown]:
    statistics, start = encoded.statistics, encoded.codes.start
    best = np.concatenate([kept.row[latents].ravel() for kept in (statistics.top, statistics.sample)])
    windows = _windows(encoded, np.unique(best[best >= 0]) - start, before, after)
    rows = np.unique(np.concatenate([np.arange(window.low, window.high) for window in windows.values()]))
    acts = encoded.codes.gather(start + rows).matrix(encoded.codes.d_sae).tocsc()[:, latents].tocsc()
    bars = _bars(encoded, latents)

    def example(column: np.ndarray, row: int) -> Example:
        first, last, low, high = windows[row - start]
        ids = encoded.blocks[encoded.context[row - start] - encoded.context[0], first:last].tolist()
        values = np.zeros(last - first, column.dtype)
        place = np.searchsorted(rows, low)
        values[encoded.position[low:high] - first] = column[place : place + high - low]
        texts = [encoded.store.token_text(token) or EMPTY for token in ids]
        return Example(texts, values.tolist(), int(encoded.position[row - start]) - first)

    out = []
    for number, latent in enumerate(latents):
        column = acts[:, [number]].toarray()[:, 0]
        top, drawn = (
            [example(column, int(row)) for row in kept.rows_of(latent)] for kept in (statistics.top, statistics.sample)
        )
        out.append(Shown(latent, top, drawn, bars[number]))
    return out


def _bars(encoded: Encoded, latents: list[int]) -> np.ndarray:
    place = np.full(encoded.codes.d_sae, -1, np.int64)
    place[latents] = np.arange(len(latents))
    largest = encoded.statistics.largest
    bars = np.zeros(len(latents) * BARS, np.int64)
    for part in encoded.codes.parts():
        inside = place[part.latent] >= 0
        latent, value = part.latent[inside], part.value[inside]
        bar = np.minimum((value / largest[latent] * BARS).astype(np.int64), BARS - 1)
        bars += np.bincount(place[latent] * BARS + bar, minlength=len(bars))
    return bars.reshape(len(latents), BARS)
