"""Whiten the rows that the encoder's gradient is taken with, so that encoder rows learn alike in all directions.

An encoder row's gradient is a sum of the rows of a batch. A residual stream varies far more in a few directions than
in the others, and so would each step, whichever latent takes it. Gradients are zero with whitened rows where they are
with the rows themselves: only the way there changes. Benchmarks are in tests/benchmarks/README.md.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.data.store import Store

ROWS, ROWS_PER_DIMENSION = 32_768, 8
"""Training rows that the covariance is taken from, whichever are more."""
TOGETHER = 64
"""... as stretches of so many rows, whose places are drawn: a disk is read at some hundred places."""
SHRINKAGE = 0.01
"""Share of the mean variance that is added to every direction's, at least. measured on SmolLM2: .01 and .1 end alike."""


def whitening_matrix(store: Store, hook: str, stop: int, mean: Float[Tensor, " d_in"]) -> Float[Tensor, "d_in d_in"]:
    """The inverse root of the covariance of rows before ``stop``; whitened rows have their mean variance.

    mean: of these rows, in the store's units.
    """
    rows = min(stop, max(ROWS, ROWS_PER_DIMENSION * len(mean)))
    covariance = torch.zeros(len(mean), len(mean), dtype=torch.float64)
    for first in _stretches(rows, stop):
        centred = store.rows(hook, first, min(first + TOGETHER, stop)).double() - mean
        centred = centred[centred.isfinite().all(1)]  # one that is not stops training at its batch, which is named
        covariance.addmm_(centred.T, centred)
    return inverse_root(covariance, rows)


def inverse_root(covariance: Float[Tensor, "d_in d_in"], rows: int) -> Float[Tensor, "d_in d_in"]:
    """Of a covariance of so many rows, in whatever units, in units of its mean variance: bfloat16.

    In float64 and then rounded it is the same to the bit, whatever the number of threads.
    """
    variances, directions = torch.linalg.eigh(covariance.double())
    variances = variances.clamp_min(0) / variances.mean()
    shrinkage = max(SHRINKAGE, len(covariance) / rows)
    return (directions * (variances + shrinkage).rsqrt() @ directions.T).bfloat16()


def _stretches(rows: int, stop: int) -> list[int]:
    """First rows of the stretches, ascending; all of a small store."""
    if rows == stop:
        return list(range(0, stop, TOGETHER))
    draw = torch.Generator().manual_seed(0)
    return torch.randint(stop - TOGETHER, (rows // TOGETHER,), generator=draw).sort().values.tolist()
