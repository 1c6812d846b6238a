"""What each latent of an SAE does over many rows, in one pass: counts, histograms, tokens, and rows to show.

Memory grows with the latents and with the pairs of latent and token that occur, not with the rows.
"""

from collections.abc import Iterable, Iterator
from typing import NamedTuple

import numpy as np
import scipy.sparse

from sae_lm.metrics.stored_codes import CodesPart, StoredCodes

BINS, BINS_PER_OCTAVE = 64, 2
"""Of the histogram: from 2^-16 to 2^16, what is outside in the outermost bins."""
QUANTILE_BINS, SAMPLED = 5, 40
"""Bins with equally many activations in each, and activations drawn at random of which they are made."""
FIRST_SLICE = 4096
"""Rows looked at first; ever larger slices follow, of which ever less is among the best so far."""


class LatentStatistics(NamedTuple):
    """Of each latent, over the rows of the pass. Activations are as `SAE.encode` gives them."""

    rows: int
    fires: np.ndarray
    """[d_sae] int64: rows on which it fires"""
    total: np.ndarray
    """[d_sae] float64: sum of its activations"""
    squares: np.ndarray
    """[d_sae] float64: sum of their squares"""
    largest: np.ndarray
    """[d_sae] float32: its largest activation, 0 for a latent that never fires"""
    histogram: np.ndarray
    """[d_sae, BINS] int64: activations above 0 by size"""
    sample: "Lowest"
    """per latent `SAMPLED` rows drawn at random among those it fires on, all of them where they are fewer"""
    top: "Lowest"
    """per latent its best contexts, each by its strongest row; of equals the first"""
    tokens: scipy.sparse.csr_array
    """[d_sae, d_vocab] int64: rows on which a latent fires, by token"""
    token_rows: np.ndarray
    """[d_vocab] int64: rows of each token"""
    places: np.ndarray
    """[d_sae, labels] int64: rows on which a latent fires that have each label of a place"""
    place_rows: np.ndarray
    """[labels] int64: rows that have it"""


def row_priority(row: np.ndarray) -> np.ndarray:
    """A number that looks random, from 0 to 2^63 - 1, of each row number; the same in every run.

    The rows with the lowest are a random sample, whatever the order and the batches they come in. The mixing is
    splitmix64's (Steele, Lea & Flood 2014, Fast splittable pseudorandom number generators).
    """
    with np.errstate(over="ignore"):
        x = (np.asarray(row).astype(np.uint64) + np.uint64(1)) * np.uint64(0x9E3779B97F4A7C15)
        x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return ((x ^ (x >> np.uint64(31))) >> np.uint64(1)).astype(np.int64)


class Lowest:
    """Per group the rows with the lowest keys, of equals the lower rows; filled bit by bit, in any order.

    key [groups, size] rising along a line, row [groups, size] -1 where there are fewer, value and context alike.
    """

    def __init__(self, groups: int, size: int, key_type: type, one_per_context: bool = False) -> None:
        most = np.inf if np.issubdtype(key_type, np.floating) else np.iinfo(key_type).max
        self.key = np.full((groups, size), most, key_type)
        self.row = np.full((groups, size), -1, np.int64)
        self.value = np.zeros((groups, size), np.float32)
        self.context = np.full((groups, size), -1, np.int64)
        self.one_per_context = one_per_context

    def add(self, group: np.ndarray, key: np.ndarray, row: np.ndarray, value: np.ndarray, context: np.ndarray) -> None:
        size = self.key.shape[1]
        fits = np.flatnonzero(key <= self.key[group, -1])
        if not len(fits):
            return
        group, columns = group[fits], [part[fits] for part in (key, row, value, context)]
        touched = np.unique(group)
        old = self.row[touched] >= 0
        group = np.concatenate([np.repeat(touched, old.sum(1)), group])
        held = (self.key, self.row, self.value, self.context)
        key, row, value, context = (
            np.concatenate([of[touched][old], new]) for of, new in zip(held, columns, strict=True)
        )
        if self.one_per_context:
            order = np.lexsort((row, key, context, group))
            order = order[_first_of(group[order], context[order])]
            group, key, row, value, context = (part[order] for part in (group, key, row, value, context))
        order = np.lexsort((row, key, group))
        group = group[order]
        starts = np.flatnonzero(_first_of(group))
        rank = np.arange(len(group)) - np.repeat(starts, np.diff(np.append(starts, len(group))))
        keep = rank < size
        to, order = (group[keep], rank[keep]), order[keep]
        for of, new in zip(held, (key, row, value, context), strict=True):
            of[to] = new[order]

    def rows_of(self, group: int) -> np.ndarray:
        """Row numbers of one group, the lowest keys first."""
        return self.row[group][self.row[group] >= 0]


def _first_of(*columns: np.ndarray) -> np.ndarray:
    """Where an entry of sorted columns differs from the one before."""
    first = np.ones(len(columns[0]), bool)
    first[1:] = np.logical_or.reduce([column[1:] != column[:-1] for column in columns])
    return first


def latent_statistics(
    codes: StoredCodes | Iterable[CodesPart],
    d_sae: int,
    start: int,
    token_id: np.ndarray,
    context: np.ndarray,
    d_vocab: int,
    places: np.ndarray,
    contexts: int,
) -> LatentStatistics:
    """One pass over stored codes.

    start: the first of the rows. token_id, context: [rows] of the rows from there on. places: [rows, labels] bool, labels of the place a row
    is at. contexts: how many best contexts are kept of each latent.
    """
    count, total, squares = np.zeros(d_sae, np.int64), np.zeros(d_sae), np.zeros(d_sae)
    largest, histogram = np.zeros(d_sae, np.float32), np.zeros(d_sae * BINS, np.int64)
    sample, top = Lowest(d_sae, SAMPLED, np.int64), Lowest(d_sae, contexts, np.float32, one_per_context=True)
    tokens = scipy.sparse.csr_array((d_sae, d_vocab), dtype=np.int64)
    at_places = np.zeros((d_sae, places.shape[1]), np.int64)
    rows = 0
    for part in codes.parts() if isinstance(codes, StoredCodes) else codes:
        here = slice(part.first - start, part.first - start + len(part))
        latent, value, entry = part.latent, part.value, part.entry_row
        count += np.bincount(latent, minlength=d_sae)
        total += np.bincount(latent, value.astype(np.float64), d_sae)
        squares += np.bincount(latent, np.square(value.astype(np.float64)), d_sae)
        np.maximum.at(largest, latent, value)
        bins = np.floor(np.log2(value) * BINS_PER_OCTAVE).astype(np.int64) + BINS // 2
        histogram += np.bincount(latent.astype(np.int64) * BINS + np.clip(bins, 0, BINS - 1), minlength=d_sae * BINS)
        pairs = (np.ones(len(latent), np.int64), (latent, token_id[here][entry]))
        tokens = tokens + scipy.sparse.coo_array(pairs, shape=(d_sae, d_vocab)).tocsr()
        if places.shape[1]:
            fires = part.matrix(d_sae, np.ones(len(latent), np.float32))
            at_places += np.rint(fires.T @ places[here].astype(np.float32)).astype(np.int64)
        priority = row_priority(part.first + np.arange(len(part)))
        for some in _slices(part):
            at = entry[some]
            numbers, of_context = part.first + at.astype(np.int64), context[here][at]
            sample.add(latent[some], priority[at], numbers, value[some], of_context)
            top.add(latent[some], -value[some], numbers, value[some], of_context)
        rows += len(part)
    return LatentStatistics(
        rows, count, total, squares, largest, histogram.reshape(d_sae, BINS), sample, top, tokens,
        np.bincount(token_id, minlength=d_vocab), at_places, places.sum(0, dtype=np.int64),
    )  # fmt: skip


def _slices(part: CodesPart) -> Iterator[slice]:
    """Entries of ever more rows."""
    first, size = 0, FIRST_SLICE
    while first < len(part):
        last = min(len(part), first + size)
        yield slice(part.indptr[first], part.indptr[last])
        first, size = last, 2 * size


def quantile_groups(values: np.ndarray) -> np.ndarray:
    """Which of `QUANTILE_BINS` groups, of equally many as nearly as can be, each of some activations is in; 0 the lowest.

    Equals are told by their order.
    """
    rank = np.empty(len(values), np.int64)
    rank[np.argsort(values, kind="stable")] = np.arange(len(values))
    return rank * QUANTILE_BINS // max(1, len(values))
