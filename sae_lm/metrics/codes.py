"""Sparse codes of an SAE: for each token the latents that fire, how strongly, and what they decode to."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.sae.model import SAE
from sae_lm.training.selection import largest

DENSE_DECODE_RATIO = 8
"""A code fuller than one latent in so many is decoded by a dense product, which is faster then."""


class TokenCodes(NamedTuple):
    """Firing latents of n tokens, padded with value 0 to the width of the fullest token.

    Strengths are z_i ||d_i||, so that they do not depend on how norms are shared between encoder
    and decoder; with unit decoder rows they are the latents' activations.
    """

    strength: Float[Tensor, "n width"]
    latent: Int[Tensor, "n width"]
    d_sae: int

    def columns(self, latents: list[int]) -> Float[Tensor, "n chosen"]:
        """Dense strengths of a few latents, all different."""
        place = torch.full((self.d_sae,), len(latents))
        place[latents] = torch.arange(len(latents))
        out = torch.zeros(len(self.latent), len(latents) + 1)
        return out.scatter_add_(1, place[self.latent], self.strength)[:, :-1]  # the last gathers all others

    def take(self, rows: Tensor) -> "TokenCodes":
        """The codes of some tokens: a mask or row numbers."""
        return TokenCodes(self.strength[rows], self.latent[rows], self.d_sae)

    def firing_frequency(self) -> Float[Tensor, " d_sae"]:
        """Share of the tokens on which each latent fires, float64."""
        fires = torch.bincount(self.latent[self.strength > 0], minlength=self.d_sae)
        return fires.double() / max(1, len(self.latent))

    def mean_strength(self) -> Float[Tensor, " d_sae"]:
        """Each latent's mean strength over all tokens, float64."""
        sums = torch.bincount(self.latent.flatten(), self.strength.flatten().double(), self.d_sae)
        return sums / max(1, len(self.latent))


@torch.no_grad()
def active(sae: SAE, x: Float[Tensor, "n d_in"]) -> tuple[Float[Tensor, "n width"], Int[Tensor, "n width"]]:
    """``sae.encode(x)`` by its entries: activations and their latents, padded with value 0."""
    if sae.config.architecture == "topk":
        pre = sae.pre_activations(x)
        at = largest(pre, sae.config.k or 0)
        return _values(pre, at).relu(), at % pre.shape[1]
    z = sae.encode(x)
    at = z.view(-1).nonzero().flatten()
    row = at // z.shape[1]
    firing = torch.bincount(row, minlength=len(z))
    width = max(1, int(firing.max())) if len(z) else 1
    to = row * width + torch.arange(len(at), device=z.device) - (firing.cumsum(0) - firing)[row]
    values, latent = z.new_zeros(len(z), width), at.new_zeros(len(z), width)
    values.view(-1)[to] = _values(z, at)
    latent.view(-1)[to] = at % z.shape[1]
    return values, latent


def _values(z: Tensor, at: Tensor) -> Tensor:
    return z.view(-1).index_select(0, at.flatten()).view_as(at)


@torch.no_grad()
def decode_active(
    sae: SAE, values: Float[Tensor, "n width"], latent: Int[Tensor, "n width"], x: Float[Tensor, "n d_in"] | None = None
) -> Float[Tensor, "n d_in"]:
    """What ``sae.decode`` makes of the dense code (and of x); reads the rows of the latents that fire and no others."""
    if latent.shape[1] * DENSE_DECODE_RATIO > sae.config.d_sae:
        return sae.decode(values.new_zeros(len(values), sae.config.d_sae).scatter_add_(1, latent, values), x)
    bags = torch.nn.functional.embedding_bag(latent, sae.W_dec, per_sample_weights=values, mode="sum")
    return sae.restore(bags + sae.b_dec, x)


@torch.no_grad()
def encode_sparse(sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> TokenCodes:
    """Encode batch by batch, keeping what fires; no [n, d_sae] tensor is held."""
    norms = sae.W_dec.norm(dim=1)
    parts = []
    for x in batches:
        values, latent = active(sae, x.to(sae.W_dec))
        parts.append(((values * norms[latent]).float().cpu(), latent.cpu()))
    width = max((strength.shape[1] for strength, _ in parts), default=1)
    pad = [(torch.nn.functional.pad(s, (0, width - s.shape[1])), i) for s, i in parts]
    strengths = [s for s, _ in pad] or [torch.zeros(0, 1)]
    indices = [torch.nn.functional.pad(i, (0, width - i.shape[1])) for _, i in pad]
    return TokenCodes(
        torch.cat(strengths), torch.cat(indices or [torch.zeros(0, 1, dtype=torch.long)]), sae.config.d_sae
    )


@torch.no_grad()
def mean_square_strength(sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Float[Tensor, " d_sae"]:
    """E[z_i^2] ||d_i||^2, float64: what each latent contributes to the reconstruction, in squared activation.

    It does not depend on how norms are shared between encoder and decoder. Where a latent's decoder row is at its best
    for its code, it is also by how much the squared error grows when the latent alone is left out.
    """
    total, rows = torch.zeros(sae.config.d_sae, dtype=torch.float64), 0
    for x in batches:
        values, latent = active(sae, x.to(sae.W_dec))
        total += torch.bincount(latent.flatten(), values.flatten().double().square(), sae.config.d_sae).cpu()
        rows += len(x)
    return total * sae.W_dec.double().square().sum(1).cpu() / max(1, rows)
