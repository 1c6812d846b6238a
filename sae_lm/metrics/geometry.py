"""Measure how near a decoder's rows are to each other, beside what random directions give.

A manipulation check, not a result: a random decoder scores best. Definitions: OrtSAE (2509.22033) equation 6,
the mean over latents of the signed cosine to the nearest other; c_dec, the mean |cos| over pairs, of 2508.16560.
Everything is over the whole dictionary, exact, and held tile by tile. Rows may have any norm; a zero row has no
direction and counts as orthogonal to all.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import scipy.integrate
import scipy.special
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.runtime.seeds import derive
from sae_lm.sae.directions import unit_rows
from sae_lm.sae.nearest import NO_COSINE, cosine_tiles, nearest_in_part

CELLS = 1 << 24
"""Cosines held at a time, at most: 64 MiB in float32."""
EDGES = tuple(i / 50 for i in range(51))
"""Bins of the histogram of nearest cosines; what is below 0 counts into the first."""
NULL_ROWS = 4096
"""Directions of the anisotropic null whose nearest is looked up: its mean then has a standard error below .001."""


class Geometry(NamedTuple):
    """Figures of one decoder; those without a suffix are over alive latents, among themselves."""

    nearest_cos: float
    """mean cosine to the nearest other"""
    nearest_cos_all: float
    """the same over all latents; dead ones need not move to look orthogonal"""
    nearest_cos_null: float
    """its expectation for as many independent uniform directions as there are alive latents"""
    nearest_cos_spread: float
    """the same for directions drawn with the second moments of the alive rows: what stands above it is owed to pairs
    of latents, and not to all of them sharing a part of the space"""
    near_half: float
    """share of latents whose nearest has cosine > .5"""
    near_duplicates: float
    """... > .9"""
    mean_abs_cos: float
    """mean |cos| over ordered pairs"""
    mean_abs_cos_null: float
    """for uniform directions, about sqrt(2 / (pi d_in))"""
    mean_sq_cos: float
    """mean cos^2 over ordered pairs"""
    mean_sq_cos_null: float
    """for uniform directions, 1 / d_in"""


class Pairs(NamedTuple):
    """What one pass over all pairs of rows gives."""

    nearest: Float[Tensor, " n"]
    """signed cosine of each of the first rows to its nearest other among these; -2 without another"""
    nearest_all: Float[Tensor, " m"]
    """of each row among all"""
    abs_cos: float
    """mean |cos| over ordered pairs of the first rows, NaN without any"""


def tile_rows(others: int, cells: int = CELLS) -> int:
    """Rows whose cosines to so many others are held at a time."""
    return max(1, cells // max(1, others))


def compare_pairs(unit: Float[Tensor, "m d_in"], n: int, cells: int = CELLS) -> Pairs:
    """All pairs of unit rows, and apart from them those of the first n; each pair's cosine is taken once."""
    first, rest = unit[:n], unit[n:]
    nearest, total = _within(first, cells)
    rest_nearest, _ = _within(rest, cells)
    across = first.new_full((len(first),), NO_COSINE)
    for start, cosines in cosine_tiles(first, rest, tile_rows(len(rest), cells)) if len(rest) else ():
        across[start : start + len(cosines)] = cosines.amax(1)
        rest_nearest = torch.maximum(rest_nearest, cosines.amax(0))
    return Pairs(
        nearest,
        torch.cat([torch.maximum(nearest, across), rest_nearest]),
        total / (n * (n - 1)) if n > 1 else float("nan"),
    )


def _within(unit: Tensor, cells: int) -> tuple[Float[Tensor, " n"], float]:
    """Each row's cosine to its nearest other, -2 without one; the sum of |cos| over ordered pairs.

    Half the products of `nearest_in_part`, since each pair's cosine serves both rows. A tile is some rows
    beside themselves and all that follow: what it says of the latter is what later tiles lack.
    """
    nearest, total, start = unit.new_full((len(unit),), NO_COSINE), 0.0, 0
    while start < len(unit):
        stop = start + max(1, cells // (len(unit) - start))
        rows = unit[start:stop]
        cosines = rows @ unit[start:].T
        self_cosines, later = cosines.diagonal(), cosines[:, len(rows) :]
        self_cosines.fill_(NO_COSINE)
        nearest[start:stop] = torch.maximum(nearest[start:stop], cosines.amax(1))
        nearest[stop:] = torch.maximum(nearest[stop:], later.amax(0))
        self_cosines.zero_()
        total += _sum(cosines.abs_()) + _sum(later)
        start = stop
    return nearest, total


def _sum(values: Tensor) -> float:
    # measured: sums of rows in their own dtype, which torch adds pairwise, take a tenth of the time of float64
    return float(values.sum(1).double().sum())


def mean_sq_cos(rows: Float[Tensor, "n d_in"]) -> float:
    """Mean cos^2 over ordered pairs, through V^T V in O(n d^2): sum_ij cos^2 = ||V^T V||^2. NaN below two rows."""
    unit, n = unit_rows(rows), len(rows)
    if n < 2:
        return float("nan")
    frame = torch.zeros(unit.shape[1], unit.shape[1], dtype=torch.float64)
    squares = 0.0
    for block in unit.split(4096):
        block = block.double().cpu()
        frame += block.T @ block
        squares += float(block.square().sum(1).square().sum())
    return (float(frame.square().sum()) - squares) / (n * (n - 1))


@torch.no_grad()
def geometry(
    W_dec: Float[Tensor, "d_sae d_in"], alive: Bool[Tensor, " d_sae"], seed: int
) -> tuple[Geometry, Float[Tensor, " alive"]]:
    """Figures, and of each alive latent the cosine to its nearest (`nearest_shares` makes a histogram of it).

    alive: latents that fired on the evaluation rows. Fewer than two alive latents give NaN.

    seed: of the directions drawn for ``nearest_cos_spread``; the other nulls are exact.
    """
    n, d_in, nan = int(alive.sum()), W_dec.shape[1], float("nan")
    unit = unit_rows(torch.cat([W_dec[alive], W_dec[~alive]]))
    pairs = compare_pairs(unit, n)
    near = pairs.nearest.double()

    def above(cosine: float) -> float:
        return float((near > cosine).double().mean()) if n > 1 else nan

    shape = Geometry(
        nearest_cos=float(near.mean()) if n > 1 else nan,
        nearest_cos_all=float(pairs.nearest_all.double().mean()) if len(unit) > 1 else nan,
        nearest_cos_null=null_nearest_cos(n, d_in) if n > 1 else nan,
        nearest_cos_spread=_spread_null(unit[:n], seed) if n > 1 else nan,
        near_half=above(0.5),
        near_duplicates=above(0.9),
        mean_abs_cos=pairs.abs_cos,
        mean_abs_cos_null=math.exp(math.lgamma(d_in / 2) - math.lgamma((d_in + 1) / 2)) / math.sqrt(math.pi),
        mean_sq_cos=mean_sq_cos(unit[:n]),
        mean_sq_cos_null=1 / d_in,
    )
    return shape, pairs.nearest


def _spread_null(unit: Tensor, seed: int) -> float:
    """Mean nearest cosine of Gaussian directions with the second moments of these rows, on a sample of them."""
    moments = torch.zeros(unit.shape[1], unit.shape[1], dtype=torch.float64)
    for block in unit.split(4096):
        moments += block.double().cpu().T @ block.double().cpu()
    scale, axes = torch.linalg.eigh(moments / len(unit))
    root = (axes * scale.clamp_min(0).sqrt() @ axes.T).to(unit.dtype)
    drawn = torch.randn(unit.shape, generator=torch.Generator().manual_seed(derive("spread", seed)), dtype=unit.dtype)
    drawn = unit_rows(drawn @ root).to(unit.device)
    nearest, _ = nearest_in_part(drawn[:NULL_ROWS], drawn, tile=tile_rows(len(drawn)))
    return float(nearest.double().mean())


# --- what uniform directions give: exact, because given one of them the cosines to the others are independent


def null_nearest_shares(n: int, d_in: int, edges: Sequence[float] = EDGES) -> list[float]:
    """Expected share of n independent uniform directions with their nearest cosine in each bin; see `nearest_shares`.

    NaN below two directions, which have no nearest.
    """
    if n < 2:
        return [float("nan")] * (len(edges) - 1)
    below = nearest_below(np.array(edges[1:-1]), n, d_in)
    return np.diff(below, prepend=0.0, append=1.0).tolist()


def null_nearest_cos(n: int, d_in: int) -> float:
    """Expected cosine to the nearest of n - 1 others: the integral of 1 - P(nearest <= t) over [-1, 1], less 1.

    Taken on a grid of 1e-4, its error is below 1e-7 for d_in > 2.
    """
    grid = np.linspace(-1, 1, 20001)
    return float(scipy.integrate.trapezoid(1 - nearest_below(grid, n, d_in), grid)) - 1


def nearest_below(cosine: np.ndarray, n: int, d_in: int) -> np.ndarray:
    """P(the nearest of n - 1 uniform directions has at most this cosine to a given one) = P(one has)^(n - 1).

    (1 + cos) / 2 of two uniform directions is Beta((d - 1) / 2, (d - 1) / 2).
    """
    one = scipy.special.betainc((d_in - 1) / 2, (d_in - 1) / 2, (1 + cosine) / 2)
    return one ** (n - 1)


def nearest_shares(nearest: Float[Tensor, " n"], edges: Sequence[float] = EDGES) -> list[float]:
    """Histogram of nearest cosines: share in each bin (edge, next edge]; the outer bins are open. NaN if empty."""
    inner = torch.tensor(edges[1:-1], dtype=torch.float64)
    counts = torch.bincount(torch.bucketize(nearest.double().cpu(), inner), minlength=len(edges) - 1)
    return (counts.double() / len(nearest)).tolist()
