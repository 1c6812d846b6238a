"""SAE x activations -> sparse codes: for each token the latents that fire and how strongly."""

from collections.abc import Iterable
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.sae.model import SAE


class Codes(NamedTuple):
    """Firing latents of n tokens, padded with value 0 to the width of the fullest token.

    Strengths are z_i ||d_i||, so that they do not depend on how norms are shared between encoder
    and decoder; with unit decoder rows they are the latents' activations.
    """

    strength: Float[Tensor, "n width"]
    latent: Int[Tensor, "n width"]
    d_sae: int

    def columns(self, latents: list[int]) -> Float[Tensor, "n chosen"]:
        """Dense strengths of a few latents."""
        out = torch.zeros(len(self.latent), len(latents))
        for column, latent in enumerate(latents):
            out[:, column] = (self.strength * (self.latent == latent)).sum(1)
        return out

    def take(self, rows: Tensor) -> "Codes":
        """The codes of some tokens: a mask or row numbers."""
        return Codes(self.strength[rows], self.latent[rows], self.d_sae)


@torch.no_grad()
def encode_sparse(sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]]) -> Codes:
    """Encode batch by batch, keeping what fires; no [n, d_sae] tensor is held."""
    norms = sae.W_dec.norm(dim=1)
    parts = []
    for x in batches:
        z = sae.encode(x.to(sae.W_dec)) * norms
        width = max(1, int((z > 0).sum(1).max())) if len(z) else 1
        strength, index = z.topk(width, dim=1, sorted=False)
        parts.append((strength.float().cpu(), index.cpu()))
    width = max((strength.shape[1] for strength, _ in parts), default=1)
    pad = [(torch.nn.functional.pad(s, (0, width - s.shape[1])), i) for s, i in parts]
    strengths = [s for s, _ in pad] or [torch.zeros(0, 1)]
    indices = [torch.nn.functional.pad(i, (0, width - i.shape[1])) for _, i in pad]
    return Codes(torch.cat(strengths), torch.cat(indices or [torch.zeros(0, 1, dtype=torch.long)]), sae.config.d_sae)
