"""Which latent of another SAE, on the same rows, each latent of an SAE is: by direction and by activation at once.

The match of a latent is the latent of the other SAE with the highest mean of two numbers: the cosine of the decoder
rows, and the correlation of the activations over rows. Its status says what it is, seen from the other SAE, by the
rules of `sae_lm.metrics.genealogy`:

kept: it and a latent of the other are each other's nearest, at a cosine of .6 or more.
split: its nearest of the other is as near and it fires inside that, which has another as near or nearer: it is a piece.
merged: two or more latents of the other have it as their nearest and fire inside it.
absorbed: it fires inside a latent of the other whose counterpart here is mostly silent on the tokens they share.
only here: none of these.
silent: it does not fire on the rows that were looked at.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sae_lm.metrics.cofiring import RowSample, firing_counts, product_blocks, sample_rows
from sae_lm.metrics.genealogy import KEPT, Sparse, origins
from sae_lm.metrics.latent_statistics import row_priority
from sae_lm.metrics.reconstruction import ROUNDING
from sae_lm.metrics.stored_codes import StoredCodes
from sae_lm.sae.directions import unit_rows

STATUS_ROWS = 65_536
"""Rows, at most, that tell a latent's status; drawn at random."""


class Matches(NamedTuple):
    """Per latent of one SAE, what it is in the other."""

    latent: np.ndarray
    """its match"""
    cosine: np.ndarray
    """of the decoder rows"""
    correlation: np.ndarray
    """of the activations; NaN where one of the two never fires, 0 where one is the same on all rows"""
    status: list[str]


class BothWays(NamedTuple):
    of_left: Matches
    of_right: Matches
    rows: int
    """over which activations were correlated"""


def match_latents(left: StoredCodes, right: StoredCodes, W_left: Tensor, W_right: Tensor) -> BothWays:
    """Match the latents of two SAEs, both ways. W_left, W_right: their decoders [d_sae, d_in]."""
    a, b = unit_rows(W_left.float().cpu()), unit_rows(W_right.float().cpu())
    sample = sample_rows(left, right)
    count_a, mean_a, spread_a = _moments(left, sample)
    count_b, mean_b, spread_b = _moments(right, sample)
    out = [np.full((3, n), -2.0) for n in (left.d_sae, right.d_sae)]
    which = [np.zeros(n, np.int64) for n in (left.d_sae, right.d_sae)]
    for first, sums in product_blocks(left, right, sample, activations=True):
        here = slice(first, first + len(sums))
        covariance = sums / sample.rows - mean_a[here, None] * mean_b
        correlation = covariance / spread_a[here, None] / spread_b
        cosine = (a[here] @ b.T).numpy()
        score = (cosine + correlation) / 2
        best = score.argmax(1)
        lines = np.arange(len(sums))
        which[0][here] = best
        out[0][:, here] = score[lines, best], cosine[lines, best], correlation[lines, best]
        best, columns = score.argmax(0), np.arange(right.d_sae)
        higher = score[best, columns] > out[1][0]
        which[1][higher] = best[higher] + first
        found = np.stack([part[best, columns] for part in (score, cosine, correlation)])
        out[1][:, higher] = found[:, higher]
    status = _statuses(left, right, a, b)
    unknown_a, unknown_b = (count_a == 0) | (count_b == 0)[which[0]], (count_b == 0) | (count_a == 0)[which[1]]
    return BothWays(
        Matches(which[0], out[0][1], np.where(unknown_a, np.nan, out[0][2]), status[0]),
        Matches(which[1], out[1][1], np.where(unknown_b, np.nan, out[1][2]), status[1]),
        sample.rows,
    )


def _moments(codes: StoredCodes, sample: RowSample) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(rows it fires on, mean activation, its standard deviation) of each latent over the sample; infinity for none."""
    count, total, squares = firing_counts(codes, sample)
    mean, square = total / max(1, sample.rows), squares / max(1, sample.rows)
    variance = square - mean**2
    return count, mean, np.sqrt(np.where(variance > ROUNDING * square, variance, np.inf))


def _statuses(left: StoredCodes, right: StoredCodes, a: Tensor, b: Tensor) -> tuple[list[str], list[str]]:
    rows = np.arange(left.start, left.stop)
    if len(rows) > STATUS_ROWS:
        rows = np.sort(rows[np.argsort(row_priority(rows), kind="stable")[:STATUS_ROWS]])
    fires, ids, units = [], [], (a, b)
    for codes in (left, right):
        part = codes.gather(rows)
        matrix = Sparse(part.matrix(codes.d_sae, np.ones(len(part.latent), np.float32)).astype(np.float64))
        alive = np.flatnonzero(matrix.sum(0))
        fires.append(Sparse(matrix[:, alive]))
        ids.append(alive)
    found = []
    for mine, other in ((0, 1), (1, 0)):
        status = np.full(len(units[mine]), "silent", object)
        if len(ids[mine]) and len(ids[other]):
            unit = [units[side][torch.from_numpy(ids[side])] for side in (other, mine)]
            kinds, _, _ = origins(unit[0], unit[1], fires[other], fires[mine], KEPT)
            status[ids[mine]] = np.where(kinds == "novel", "only here", kinds)
        else:
            status[ids[mine]] = "only here"
        found.append(status.tolist())
    return found[0], found[1]
