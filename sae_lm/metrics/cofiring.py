"""Which latents fire together, within one SAE or across two that encode the same rows, exactly or on a sample of rows.

Products of sparse codes, a block of latents at a time: memory is a block's, whatever the rows.
"""

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np

from sae_lm.metrics.latent_statistics import row_priority
from sae_lm.metrics.stored_codes import CodesPart, StoredCodes

PAIRS = 10**9
"""Products, at most: pairs of latents that fire on a row, summed over rows. Where there would be more, rows are drawn."""
BLOCK_VALUES = 2**24
"""Entries of the block of products that is held at a time."""
LEAST_SHARED = 5
"""Rows on which two latents must fire together to count as neighbours."""


class RowSample(NamedTuple):
    """The rows that products are taken over: all, or those with the lowest priorities."""

    rows: int
    limit: int
    """priority below which a row is in"""


class Cofiring(NamedTuple):
    """Per latent its neighbours [d_sae, n], falling by phi; latent -1 where there are fewer."""

    latent: np.ndarray
    phi: np.ndarray
    """correlation of the two latents' firing"""
    given_this: np.ndarray
    """P(neighbour fires | this one fires)"""
    given_other: np.ndarray
    """P(this one fires | neighbour fires)"""
    rows: int
    """over which this was counted"""


def sample_rows(left: StoredCodes, right: StoredCodes, pairs: int = PAIRS) -> RowSample:
    """All rows where their products are no more than ``pairs``; else a share of them, by `row_priority`."""
    total = 0
    for a, b in zip(left.parts(), right.parts(), strict=True):
        total += int((np.diff(a.indptr) * np.diff(b.indptr)).sum())
    limit = np.iinfo(np.int64).max
    if total <= pairs:
        return RowSample(len(left), limit)
    limit = int(limit * (pairs / total))
    every = np.arange(left.start, left.stop)
    return RowSample(int((row_priority(every) < limit).sum()), limit)


def _sampled(codes: StoredCodes, sample: RowSample) -> Iterator[CodesPart]:
    for part in codes.parts():
        if sample.rows == len(codes):
            yield part
        else:
            priority = row_priority(part.first + np.arange(len(part)))
            yield part.take(np.flatnonzero(priority < sample.limit))


def product_blocks(
    left: StoredCodes, right: StoredCodes, sample: RowSample, activations: bool
) -> Iterator[tuple[int, np.ndarray]]:
    """(first latent, block [some latents of the left, all of the right]): on how many rows both fire, or the sum of the
    products of their activations. Float64: a correlation is a small difference of these where a latent nearly always
    fires."""
    size = max(1, BLOCK_VALUES // right.d_sae)
    for first in range(0, left.d_sae, size):
        block = np.zeros((min(size, left.d_sae - first), right.d_sae))
        for a, b in zip(_sampled(left, sample), _sampled(right, sample), strict=True):
            inside = (a.latent >= first) & (a.latent < first + len(block))
            counts = np.bincount(a.entry_row[inside], minlength=len(a))
            indptr, latent = np.concatenate([[0], np.cumsum(counts)]), a.latent[inside] - np.int32(first)
            mine = CodesPart(0, indptr, latent, a.value[inside])
            values, others = (
                part.value.astype(np.float64) if activations else np.ones(len(part.value)) for part in (mine, b)
            )
            block += (mine.matrix(len(block), values).T @ b.matrix(right.d_sae, others)).toarray()
        yield first, block


def firing_counts(codes: StoredCodes, sample: RowSample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows, sum of activations, sum of their squares) of each latent, float64, over the sample."""
    out = np.zeros((3, codes.d_sae))
    for part in _sampled(codes, sample):
        value = part.value.astype(np.float64)
        for line, weights in enumerate((None, value, np.square(value))):
            out[line] += np.bincount(part.latent, weights, codes.d_sae)
    return out[0], out[1], out[2]


def cofiring(codes: StoredCodes, count: int, sample: RowSample | None = None) -> Cofiring:
    """Each latent's ``count`` neighbours by correlation of firing."""
    sample = sample or sample_rows(codes, codes)
    fires, n, count = firing_counts(codes, sample)[0], sample.rows, min(count, codes.d_sae - 1)
    latent, phi = np.full((codes.d_sae, count), -1), np.zeros((codes.d_sae, count), np.float32)
    given = np.zeros((2, codes.d_sae, count), np.float32)
    spread = np.sqrt(fires * (n - fires))
    for first, both in product_blocks(codes, codes, sample, activations=False):
        here = np.arange(first, first + len(both))
        correlation = n * both - fires[here, None] * fires
        correlation /= np.maximum(spread[here, None] * spread, 1e-12)  # of a latent that always fires both are 0
        correlation[(both < LEAST_SHARED) | (here[:, None] == np.arange(codes.d_sae))] = -1
        best = np.argpartition(-correlation, count - 1, 1)[:, :count] if count else np.zeros((len(both), 0), np.int64)
        lines = np.arange(len(both))[:, None]
        best = np.take_along_axis(best, np.lexsort((best, -correlation[lines, best])), 1)
        found = correlation[lines, best] > 0
        shared = both[lines, best]
        latent[here] = np.where(found, best, -1)
        phi[here] = correlation[lines, best]
        given[0, here] = shared / np.maximum(fires[here, None], 1)
        given[1, here] = shared / np.maximum(fires[best], 1)
    return Cofiring(latent, phi, given[0], given[1], n)
