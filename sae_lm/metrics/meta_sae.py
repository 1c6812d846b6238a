"""Composition: are latents made of shared parts? The variance of decoder rows that a few meta-latents explain.

A meta-SAE is trained on decoder rows as if they were activations (Leask et al. 2025; Bussmann et al. 2025, 2503.17547);
OrtSAE (2509.22033) calls what it explains the composition rate. Lower means more atomic latents, and lowest are
directions that share nothing: read it beside the value for random rows, and only between dictionaries of equal
size. The recipe is that of SAEBench 0.6.0 (evals/meta_structure) down to initialisation and clipping, which it
takes from SAELens; the random numbers are not.
"""

from functools import lru_cache
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.runtime.seeds import derive
from sae_lm.sae.directions import unit_rows
from sae_lm.sae.sparse import SparseCode
from sae_lm.training.objective import Weights, batch_result
from sae_lm.training.selection import largest_of_batch

WIDTH_RATIO, K = 4, 4
"""Rows per meta-latent, and meta-latents per row in the mean."""
STEPS, BATCH, LR = 1500, 1024, 5e-4
START_NORM, CLIP_NORM = 0.1, 1.0
"""Norm of a meta-latent's rows before the first step, and the largest norm of a gradient."""


class Composition(NamedTuple):
    composition_rate: float
    composition_null: float
    """the rate of as many random directions"""


def composition(W_dec: Float[Tensor, "d_sae d_in"], alive: Bool[Tensor, " d_sae"], seed: int) -> Composition:
    """The rate of a decoder's alive rows, and beside it the null without which it cannot be read."""
    null = composition_null(int(alive.sum()), W_dec.shape[1], seed, device=str(W_dec.device))
    return Composition(composition_rate(W_dec, alive, seed), null)


def composition_rate(
    W_dec: Float[Tensor, "d_sae d_in"],
    alive: Bool[Tensor, " d_sae"],
    seed: int,
    steps: int = STEPS,
) -> float:
    """Explained variance of the alive decoder rows' directions under a meta-SAE trained on them; 0 to 1.

    Rows are taken at unit norm, since decoders may share norms with encoders as they like. Fewer than 2 K alive
    latents give NaN. Fewer steps are faster and give other rates: compare at equal steps only.
    """
    rows = unit_rows(W_dec[alive])
    if len(rows) < 2 * K:
        return float("nan")
    return explained_variance(rows, meta_reconstruction(rows, train_meta(rows, seed, steps)))


def composition_null(n: int, d_in: int, seed: int, steps: int = STEPS, device: str = "cpu") -> float:
    """The rate of about n random directions, which share nothing.

    n is rounded to two digits, so that SAEs of about as many alive latents share one null, which takes as long as a
    rate. Measured in 64 dimensions: .627, .629 and .627 at 950, 1000 and 1050 directions.
    """
    return _null(round(n, 2 - len(str(n))), d_in, seed, steps, device)


@lru_cache(maxsize=64)
def _null(n: int, d_in: int, seed: int, steps: int, device: str) -> float:
    generator = torch.Generator().manual_seed(derive("composition null", seed))
    rows = torch.randn(n, d_in, generator=generator).to(device)
    return composition_rate(rows, torch.ones(n, dtype=torch.bool), seed, steps)


@torch.no_grad()
def explained_variance(rows: Float[Tensor, "n d_in"], reconstruction: Float[Tensor, "n d_in"]) -> float:
    """1 - sum of squared errors / sum of squared distances to the mean row; NaN where all rows are equal."""
    rows = rows.double()
    spread = float((rows - rows.mean(0)).square().sum())
    return 1 - float((rows - reconstruction.double()).square().sum()) / spread if spread else float("nan")


@torch.no_grad()
def train_meta(rows: Float[Tensor, "n d_in"], seed: int, steps: int = STEPS) -> Weights:
    """A BatchTopK SAE of n / WIDTH_RATIO latents on batches drawn from rows with replacement.

    Decoder rows have a norm of their own: which latents a row gets is decided by pre * ||d||, while
    x_hat = sum of pre * d, so that a latent's strength is the same however its norm is shared.
    """
    device, generator = rows.device, torch.Generator().manual_seed(derive("composition", seed))
    width = max(-(-len(rows) // WIDTH_RATIO), K)
    start = START_NORM * unit_rows(2 * torch.rand(width, rows.shape[1], generator=generator) - 1).to(device)
    zeros = torch.zeros(width, device=device), torch.zeros(rows.shape[1], device=device)
    weights = Weights(encoder=start.clone(), b_enc=zeros[0], W_dec=start.clone(), b_dec=zeros[1])
    named = {name: weight for name, weight in weights._asdict().items() if weight is not None}
    optimizer = torch.optim.Adam(named.values(), lr=LR, fused=True)
    for _ in range(steps):
        x = rows[torch.randint(len(rows), (BATCH,), generator=generator).to(device)]
        centred = x - weights.b_dec
        result = batch_result(centred, _meta_code(centred, weights), weights)
        for name, weight in named.items():
            weight.grad = getattr(result.gradient, name)
        torch.nn.utils.clip_grad_norm_(list(named.values()), CLIP_NORM)
        optimizer.step()
    return weights


def _meta_code(centred: Tensor, weights: Weights) -> SparseCode:
    """The K strongest entries per row in the mean over these rows."""
    norms = weights.W_dec.norm(dim=1)
    encoder, bias = weights.encoder * norms[:, None], weights.b_enc * norms
    positions, _ = largest_of_batch(centred, encoder, bias, K * len(centred), torch.float32)
    return SparseCode(positions, len(centred), len(encoder))


@torch.no_grad()
def meta_reconstruction(rows: Float[Tensor, "n d_in"], weights: Weights) -> Float[Tensor, "n d_in"]:
    """Rows through a meta-SAE, the K strongest per row in the mean over all of them."""
    centred = rows - weights.b_dec
    code = _meta_code(centred, weights)
    return rows - batch_result(centred, code, weights).residual
