"""Quantiles of the rows' norms, from histograms whose counts add up over shards without rounding.

A norm's bin is the upper bits of its float32: exponent and six bits of mantissa, so 64 bins to the
octave and a bin never wider than 1.6% of its values.
"""

from collections.abc import Iterable, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor

SHIFT = 17
"""float32 bits that a bin leaves out, of 23 bits of mantissa."""


def norm_histogram(norms: Float[Tensor, " rows"]) -> tuple[Int[Tensor, " bins"], Int[Tensor, " bins"]]:
    """Bins that occur (int32, ascending) and how often (int64)."""
    bins, counts = (norms.float().contiguous().view(torch.int32) >> SHIFT).unique(return_counts=True)
    return bins, counts


def add_histograms(parts: Iterable[tuple[Tensor, Tensor]]) -> tuple[Int[Tensor, " bins"], Int[Tensor, " bins"]]:
    pairs = list(parts)
    bins, where = torch.cat([bins for bins, _ in pairs]).unique(return_inverse=True)
    counts = torch.zeros(len(bins), dtype=torch.int64).index_add_(0, where, torch.cat([c for _, c in pairs]))
    return bins, counts


def norm_quantiles(
    bins: Int[Tensor, " bins"], counts: Int[Tensor, " bins"], shares: Sequence[float]
) -> Float[Tensor, " shares"]:
    """The norm below which each share of the rows lies, to within half a bin (0.8%): middles of bins, float64."""
    ends = counts.cumsum(0)
    wanted = torch.tensor([max(1, round(share * int(ends[-1]))) for share in shares])
    return middles(bins)[torch.searchsorted(ends, wanted)]


def middles(bins: Int[Tensor, " bins"]) -> Float[Tensor, " bins"]:
    """The norm in the middle of each bin, float64."""
    edges = torch.stack([bins << SHIFT, (bins + 1) << SHIFT]).to(torch.int32).view(torch.float32).double()
    return edges.mean(0)
