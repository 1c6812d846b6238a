"""Sparse codes of an SAE: for each token the latents that fire, how strongly, and what they decode to."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING, NamedTuple

import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from sae_lm.sae.model import SAE
from sae_lm.training.selection import largest

if TYPE_CHECKING:
    from scipy.sparse import csr_array

DENSE_DECODE_RATIO = 8
"""A code fuller than one latent in so many is decoded by a dense product, which is faster then."""
MOST_RANKED = 128
"""Pre-activations of a token that are kept in order; measured: with 600 it takes longer than to make them all again."""


class Ranked(NamedTuple):
    """Of n tokens the largest pre-activations, those that fire and the next, in descending order; on the CPU."""

    values: Float[Tensor, "n width"]
    latents: Int[Tensor, "n width"]
    """int32"""


@dataclass(frozen=True)
class TokenCodes:
    """Firing latents of n tokens, one token's entries after another's: as many as fire, however full one token is.

    Strengths are z_i ||d_i||, so that they do not depend on how norms are shared between encoder
    and decoder; with unit decoder rows they are the latents' activations. Values of entries, as some methods take
    them, stand beside these.
    """

    strength: Float[Tensor, " entries"]
    """above 0"""
    latent: Int[Tensor, " entries"]
    """int32, all different within a token"""
    starts: Int[Tensor, " tokens_and_one"]
    """entries of token i are starts[i] to starts[i + 1]; int64"""
    d_sae: int
    ranked: Ranked | None = None
    """where `encode_sparse` was asked for it; not of some of the tokens"""

    def __len__(self) -> int:
        """Tokens."""
        return len(self.starts) - 1

    @property
    def token(self) -> Int[Tensor, " entries"]:
        """Which token each entry is of, int64; made anew each time it is asked for."""
        return torch.arange(len(self)).repeat_interleave(self.starts.diff())

    def columns(self, latents: list[int]) -> Float[Tensor, "n chosen"]:
        """Dense strengths of a few latents, all different."""
        place = torch.full((self.d_sae,), -1, dtype=torch.int32)
        place[latents] = torch.arange(len(latents), dtype=torch.int32)
        column = place.index_select(0, self.latent)
        entry = (column >= 0).nonzero().flatten()
        out = torch.zeros(len(self), len(latents))
        out[self.token_of(entry), column[entry].long()] = self.strength[entry]
        return out

    def take(self, tokens: Tensor) -> "TokenCodes":
        """The codes of some tokens: a mask or numbers, in any order."""
        counts, first = self.starts.diff()[tokens], self.starts[:-1][tokens]
        starts = _starts(counts)
        entry = torch.arange(int(starts[-1])) + (first - starts[:-1]).repeat_interleave(counts)
        return TokenCodes(self.strength[entry], self.latent[entry], starts, self.d_sae)

    def firing_frequency(self) -> Float[Tensor, " d_sae"]:
        """Share of the tokens on which each latent fires, float64."""
        return torch.bincount(self.latent, minlength=self.d_sae).double() / max(1, len(self))

    def mean_strength(self) -> Float[Tensor, " d_sae"]:
        """Each latent's mean strength over all tokens, float64."""
        return torch.bincount(self.latent, self.strength.double(), self.d_sae) / max(1, len(self))

    def token_of(self, entry: Int[Tensor, " chosen"]) -> Int[Tensor, " chosen"]:
        """Which token some entries are of."""
        return torch.searchsorted(self.starts, entry, right=True) - 1

    def sums(self, values: Float[Tensor, " chosen"], entry: Int[Tensor, " chosen"]) -> Float[Tensor, " n"]:
        """Of each token the sum of the values of some entries; 0 where it has none."""
        return values.new_zeros(len(self)).index_add_(0, self.token_of(entry), values)

    def largest(self, values: Float[Tensor, " entries"]) -> tuple[Float[Tensor, " n"], Int[Tensor, " n"]]:
        """Of each token its entries' largest value, and the first entry that has it; -infinity and -1 where nothing fires."""
        token = self.token
        top = values.new_full((len(self),), -torch.inf).scatter_reduce_(0, token, values, "amax")
        entry = _first(values == top.index_select(0, token), token, len(self))
        return top, torch.where(entry < len(values), entry, -1)

    def top_sums(
        self, values: Float[Tensor, " chosen"], entry: Int[Tensor, " chosen"], count: int
    ) -> Float[Tensor, " n"]:
        """Of each token the sum of the largest values of some entries, all above 0; so many of them at most."""
        rest, token, total = values.clone(), self.token_of(entry), values.new_zeros(len(self))
        for _ in range(count):
            top = values.new_zeros(len(self)).scatter_reduce_(0, token, rest, "amax")
            total += top
            taken = _first((rest == top.index_select(0, token)) & (rest > 0), token, len(self))
            rest[taken[taken < len(rest)]] = 0
        return total

    def matrix(self) -> "csr_array":
        """Strengths [tokens, latents] of scipy, sharing their memory."""
        from scipy.sparse import csr_array

        return csr_array((self.strength.numpy(), self.latent.numpy(), self.starts.numpy()), (len(self), self.d_sae))


def at_entries(values: Shaped[Tensor, " entries"], entry: Int[Tensor, " n"]) -> Shaped[Tensor, " n"]:
    """The values at some entries, as `TokenCodes.largest` gives them; 0 for -1."""
    return torch.cat([values, values.new_zeros(1)])[entry]


def firing_codes(strength: Float[Tensor, "n width"], latent: Int[Tensor, "n width"], d_sae: int) -> TokenCodes:
    """The codes of tokens whose latents are given in a row each, filled up with strength 0. On the CPU."""
    fires = strength > 0
    return TokenCodes(
        strength[fires].float().cpu(), latent[fires].to(torch.int32).cpu(), _starts(fires.sum(1).cpu()), d_sae
    )


def _first(chosen: Bool[Tensor, " entries"], token: Int[Tensor, " entries"], n: int) -> Int[Tensor, " n"]:
    """Of each token the first chosen entry; their number where none is."""
    at = chosen.nonzero().flatten()
    return torch.full((n,), len(chosen)).scatter_reduce_(0, token[at], at, "amin")


def _starts(counts: Int[Tensor, " n"]) -> Int[Tensor, " n_and_one"]:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


@torch.no_grad()
def active(sae: SAE, x: Float[Tensor, "n d_in"]) -> tuple[Float[Tensor, "n width"], Int[Tensor, "n width"]]:
    """``sae.encode(x)`` by its entries: activations and their latents, padded with value 0."""
    if sae.config.architecture == "topk":
        pre = sae.pre_activations(x)
        at = largest(pre, sae.config.k or 0)
        return _values(pre, at).relu(), at % pre.shape[1]
    if sae.config.architecture == "jumprelu":  # what fires is looked for before anything is written
        z = sae.pre_activations(x)
        at = (z > sae.threshold.clamp_min(0)).view(-1).nonzero().flatten()
    else:
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
def encode_sparse(sae: SAE, batches: Iterable[Float[Tensor, "_ d_in"]], runners_up: int = 0) -> TokenCodes:
    """Encode batch by batch, keeping what fires; no [n, d_sae] tensor is held.

    runners_up: of a topk SAE, keep also so many pre-activations that are next to fire (`TokenCodes.ranked`), unless
    these and k are more than `MOST_RANKED`.
    """
    norms, d_sae = sae.W_dec.norm(dim=1), sae.config.d_sae
    parts = [TokenCodes(torch.zeros(0), torch.zeros(0, dtype=torch.int32), torch.zeros(1, dtype=torch.int64), d_sae)]
    ranked: list[Ranked] = []
    for x in batches:
        if runners_up and sae.config.architecture == "topk" and (sae.config.k or 0) + runners_up <= MOST_RANKED:
            values, latent = _ranked(sae, x.to(sae.W_dec), runners_up)
            ranked.append(Ranked(values.float().cpu(), latent.to(torch.int32).cpu()))
            values, latent = values[:, : sae.config.k].relu(), latent[:, : sae.config.k]
        else:
            values, latent = active(sae, x.to(sae.W_dec))
        parts.append(firing_codes(values * norms[latent], latent, d_sae))
    strength, latent = (torch.cat([getattr(part, name) for part in parts]) for name in ("strength", "latent"))
    starts = _starts(torch.cat([part.starts.diff() for part in parts]))
    every = Ranked(*map(torch.cat, zip(*ranked, strict=True))) if ranked else None
    return TokenCodes(strength, latent, starts, d_sae, every)


def _ranked(sae: SAE, x: Tensor, runners_up: int) -> tuple[Tensor, Tensor]:
    pre = sae.pre_activations(x)
    at = largest(pre, min((sae.config.k or 0) + runners_up, pre.shape[1]))
    values, order = _values(pre, at).sort(dim=1, descending=True)
    return values, at.gather(1, order) % pre.shape[1]


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
