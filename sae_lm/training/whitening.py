"""Whiten the rows that the encoder's gradient is taken with, so that encoder rows learn alike in all directions.

An encoder row's gradient is a sum of the rows of a batch. A residual stream varies far more in a few directions than
in the others, and so would each step, whichever latent takes it. Gradients are zero with whitened rows where they are
with the rows themselves: only the way there changes. Benchmarks are in tests/benchmarks/README.md.
"""

import math
from collections.abc import Sequence
from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.data.store import Store

ROWS, ROWS_PER_DIMENSION = 32_768, 8
"""Training rows that the covariance is taken from, whichever are more."""
SHARDS, TOGETHER = 8, 64
"""... of about so many shards, if these have them, since a store may come from the hub shard by shard; and so many rows
in a stretch."""
SHRINKAGE = 0.01
"""Share of the mean variance that is added to every direction's, at least. measured on SmolLM2: .01 and .1 end alike."""


def whitening_matrix(store: Store, hook: str, stop: int, mean: Float[Tensor, " d_in"]) -> Float[Tensor, "d_in d_in"]:
    """The inverse root of the covariance of rows before ``stop``; whitened rows have their mean variance.

    mean: of these rows, in the store's units.
    """
    stretches = _stretches(store.first_row, stop, max(ROWS, ROWS_PER_DIMENSION * len(mean)))
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for first, last in stretches:
        centred = store.rows(hook, first, last).double() - mean
        centred = centred[centred.isfinite().all(1)]  # one that is not stops training at its batch, which is named
        covariance.addmm_(centred.T, centred)
    return inverse_root(covariance, sum(last - first for first, last in stretches))


def inverse_root(covariance: Float[Tensor, "d_in d_in"], rows: int) -> Float[Tensor, "d_in d_in"]:
    """Of a covariance of so many rows, in whatever units, in units of its mean variance: bfloat16.

    In float64 and then rounded it is the same to the bit, whatever the number of threads.
    """
    variances, directions = torch.linalg.eigh(covariance.double())
    if not variances.any():  # the sampled rows all lie at the mean: no direction is known to vary more than another
        variances = torch.ones_like(variances)
    variances = variances.clamp_min(0) / variances.mean()
    shrinkage = max(SHRINKAGE, len(covariance) / rows)
    return (directions * (variances + shrinkage).rsqrt() @ directions.T).bfloat16()


def _stretches(first_row: Sequence[int], stop: int, rows: int) -> list[tuple[int, int]]:
    """First and last row of about so many rows before ``stop``: of some shards, drawn among all of their stretches."""
    spans = [(first, min(last, stop)) for first, last in pairwise(first_row) if first < stop]
    needed = max(SHARDS, math.ceil(rows * len(spans) / stop))
    spans = spans[:: max(1, len(spans) // needed)]
    every = [(row, min(row + TOGETHER, last)) for first, last in spans for row in range(first, last, TOGETHER)]
    order = torch.randperm(len(every), generator=torch.Generator().manual_seed(0))
    before = torch.tensor([last - first for first, last in every])[order].cumsum(0)
    return [every[i] for i in order[: int((before < rows).sum()) + 1].sort().values.tolist()]
