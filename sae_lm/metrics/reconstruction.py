"""Sparsity and faithfulness of an SAE on held-out rows: L0, FVU, dead and dense latents, shrinkage."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.metrics.codes import active, decode_active
from sae_lm.sae.model import SAE

DENSE, FAIRLY_DENSE = 0.1, 0.01
"""A latent that fires on more than this share of tokens counts as dense; SAEBench core reports both."""
ROUNDING = 1e-12
"""Variance, relative to the mean square, that counts as none."""


class Quality(NamedTuple):
    rows: int
    """tokens measured; special tokens are not among them"""
    l0: float
    """mean number of latents above 0 per token"""
    fvu: float
    """mean ||x - x_hat||^2 over mean ||x - mean x||^2: fraction of variance unexplained"""
    nmse: float
    """mean ||x - x_hat||^2 over mean ||x||^2"""
    dead: float
    """share of latents that never fired on these rows; falls as rows grow"""
    dense: float
    """share of latents that fired on more than 10% of these rows"""
    l2_ratio: float
    """mean ||x_hat|| / ||x||: below 1 is shrinkage"""
    mse: float
    """mean over rows of ||x - x_hat||^2, summed over dimensions"""
    bias: float
    """relative reconstruction bias, E||x_hat||^2 / E<x, x_hat> (2404.16014, equation 10): 1 is unbiased, below 1 is shrinkage"""
    dense_firings: float
    """share of all firings that are on latents firing on more than 10% of these rows"""
    dense_1: float
    """share of latents that fired on more than 1% of these rows"""
    dense_1_firings: float
    """share of all firings that are on latents firing on more than 1% of these rows"""


class PerRow(NamedTuple):
    """What the noise of L0 and FVU is taken from; on the CPU."""

    squared_error: Float[Tensor, " rows"]
    """||x - x_hat||^2, float64"""
    firings: Int[Tensor, " rows"]
    """latents above 0, int32"""


@torch.no_grad()
def quality(sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> tuple[Quality, Bool[Tensor, " d_sae"], PerRow]:
    """Stream over activations; sums in float64, each ratio divided once at the end. Also: which latents fired, and
    two numbers for each row.

    FVU's mean is per dimension over all rows: 1 - FVU is SAELens' explained variance (evals.py). Two numbers of
    SAEBench 0.6.0 (evals/core/main.py) are wrong and not copied. Its ``explained_variance`` takes (E||x||^2 / d)^2
    for ||E x||^2, squaring before it averages, so that it changes with the unit of x. Its ``mse`` is divided by the
    tokens of the batch once more, so that it falls as batches grow.
    """
    n, fired = 0, torch.zeros(sae.config.d_sae, dtype=torch.float64)
    total = torch.zeros(sae.config.d_in, dtype=torch.float64)
    squares = ratios = along = rebuilt = 0.0
    errors, counts = [torch.zeros(0, dtype=torch.float64)], [torch.zeros(0, dtype=torch.int32)]
    for x in batches:
        x = x.to(sae.W_dec)
        values, latent = active(sae, x)
        x_hat = decode_active(sae, values, latent, x)
        n += len(x)
        fired += torch.bincount(latent[values > 0], minlength=sae.config.d_sae).double().cpu()
        exact, guess = x.double(), x_hat.double()
        square, guess_square = exact.square().sum(1), guess.square().sum(1)
        total += exact.sum(0).cpu()
        squares += float(square.sum())
        errors.append((exact - guess).square().sum(1).cpu())
        counts.append((values > 0).sum(1, dtype=torch.int32).cpu())
        along += float((exact * guess).sum())
        rebuilt += float(guess_square.sum())
        ratios += float((guess_square.sqrt() / square.sqrt().clamp_min(1e-12)).sum())
    per_row = PerRow(torch.cat(errors), torch.cat(counts))
    if n == 0:
        return Quality(0, *[float("nan")] * (len(Quality._fields) - 1)), fired > 0, per_row
    squared_error = float(per_row.squared_error.sum())
    firings, frequency = float(fired.sum()), fired / n
    measured = Quality(
        rows=n,
        l0=firings / n,
        fvu=_ratio(squared_error / n, _variance(squares / n, total / n)),
        nmse=_ratio(squared_error, squares),
        dead=float((fired == 0).double().mean()),
        dense=float((frequency > DENSE).double().mean()),
        l2_ratio=ratios / n,
        mse=squared_error / n,
        bias=_ratio(rebuilt, along),
        dense_firings=_ratio(float(fired[frequency > DENSE].sum()), firings),
        dense_1=float((frequency > FAIRLY_DENSE).double().mean()),
        dense_1_firings=_ratio(float(fired[frequency > FAIRLY_DENSE].sum()), firings),
    )
    return measured, fired > 0, per_row


def _variance(square: float, mean: Tensor) -> float:
    """0 where it is below what rounding leaves of the mean square: rows that are all alike have none."""
    variance = square - float(mean.square().sum())
    return variance if variance > ROUNDING * square else 0.0


def _ratio(part: float, whole: float) -> float:
    """NaN where the whole is not positive."""
    return part / whole if whole > 0 else float("nan")


def share_of(part: float, whole: float) -> float:
    """NaN where the whole is 0; it may be negative: zeros at the hook can be better than the model."""
    return part / whole if whole else float("nan")
