"""The penalty on similar directions of latents that fire on the same tokens (co-activation)."""

from collections.abc import Iterator
from typing import NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.runtime.device import to_device
from sae_lm.sae.directions import Evaluated, of_directions, sums_by
from sae_lm.sae.sparse import Codes

MAX_WIDTH = 128
"""Active latents of one token compared with each other, at most, in an estimate."""
PAIRS_AT_ONCE = 1 << 22
"""Cosines that are held at a time: 16 MiB in float32. A token that has more pairs is looked at alone."""


def coactive(
    rows: Float[Tensor, "m d"],
    generator: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    anchored: bool = False,
    sample: int | None = None,
) -> Float[Tensor, ""]:
    """Sum over ordered pairs i != j of P(i and j fire on one token) cos(row_i, row_j)^2, over L0 = sum of P(i fires).

    This project's own; P is the batch's. It is what an active latent has in common with the others that are on,
    and costs O(sum over tokens of k^2 d) whatever m is: for each token the Gram matrix of its k active rows, padded to
    twice its width at most, and of few tokens at a time. Directions that are never used together may be as similar
    as they like. Random directions score about (L0 - 1) / d. A coefficient carries over between widths and, through
    the L0 below the sum, between sparsities: one of 3 of 96 latents cost as much FVU at 16 of 2048.

    anchored: of each pair the row that fires more often stands still, the gradient is the other's alone, and the
        pair counts once: a specific latent gives way to a general one. measured where the truth is known
        (`sae-lm demo toy`: 80 features of two levels in 32 dimensions, 3 of 96 latents), a coefficient of .7 brings
        the share of a child's inputs on which its parent's latent is silent from .61 to .35 for .021 FVU with TopK
        (6 seeds; `max_cos` pays .040 for as much); with BatchTopK .4 brings it from .17 to .03 for .004 (16 seeds).
    codes: the batch's, whose ``firing_frequency`` says for ``anchored`` which fires more often; an entry of value 0 has not fired.
    sample: an estimate from about this many pairs of entries: tokens drawn from ``generator`` without
        replacement and, on tokens with more active latents than the mean, that many of them. Value and
        gradient have the exact ones as expectation. None: exact.
    """
    assert codes is not None

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        value, latents, pulls = unit.new_zeros(()), [], []
        for active in _active_latents(codes, generator, sample, unit.dtype):
            latent = active.latent.flatten()
            directions = unit.index_select(0, latent).view(*active.latent.shape, -1)
            gram = torch.bmm(directions, directions.mT)  # [tokens, width, width]
            gram *= active.weight
            if anchored:
                gram *= active.firing_frequency[:, None, :] > active.firing_frequency[:, :, None]
            value += gram.square().sum()
            if wanted:
                gram *= active.weight
                latents.append(latent)
                pulls.append(torch.bmm(gram, directions).flatten(0, 1))
        if not pulls:
            return Evaluated(value, torch.zeros_like(unit) if wanted else None)
        latent, pull = (each[0] if len(each) == 1 else torch.cat(each) for each in (latents, pulls))
        slots = torch.arange(len(latent), device=unit.device)
        return Evaluated(value, sums_by(latent, len(unit), pull, slots), 2.0 if anchored else 4.0)

    return of_directions(rows, evaluate)


class _Active(NamedTuple):
    """Latents that are on together, padded to one number per token."""

    latent: Int[Tensor, "tokens width"]
    firing_frequency: Float[Tensor, "tokens width"]
    weight: Float[Tensor, "tokens width width"]
    """root of what the pair's cos^2 counts in the penalty; 0 for padding and a latent
    with itself"""


def _active_latents(
    codes: Codes, generator: torch.Generator | None, sample: int | None, dtype: torch.dtype
) -> Iterator[_Active]:
    """All that are on, of some tokens at a time, or a sample in one."""
    if not len(codes.latent):
        return
    batch, device = len(codes.starts) - 1, codes.starts.device
    counts = codes.starts.diff()
    fired = (codes.value > 0).sum().clamp_min(1).to(dtype)
    if sample is None:
        for width, token in _alike(counts):
            slot = torch.arange(width, device=device).expand(len(token), -1)
            yield _among(codes, token, slot, slot < counts[token, None], 1 / fired)
        return
    width = min(max(2, -(-len(codes.latent) // batch)), MAX_WIDTH)
    token = to_device(torch.randperm(batch, generator=generator)[: max(1, sample // width**2)], device)
    slot = torch.arange(width, device=device).expand(len(token), -1)
    count = counts[token, None]
    spread = to_device(torch.rand(slot.shape, generator=generator), device)
    # more entries than slots: each slot takes any of them, so every ordered pair of entries is equally likely
    crowded = count > width
    pick = torch.where(crowded, (spread * count).long(), slot)
    counted = torch.where(crowded, count.to(dtype) ** 2 / (width * (width - 1)), 1.0)
    yield _among(codes, token, pick, (pick < count) | crowded, counted / (fired / batch * len(token)))


def _alike(counts: Int[Tensor, " batch"]) -> Iterator[tuple[int, Int[Tensor, " tokens"]]]:
    """The tokens that have a pair, those of counts within a factor of two together, and the largest of these counts."""
    size = (counts - 1).clamp_min(0).float().frexp().exponent  # the logarithm of the count, rounded up
    for each in size[size > 0].unique().tolist():
        tokens = (size == each).nonzero().flatten()
        width = int(counts[tokens].max())
        for some in tokens.split(max(1, PAIRS_AT_ONCE // width**2)):
            yield width, some


def _among(
    codes: Codes,
    token: Int[Tensor, " tokens"],
    pick: Int[Tensor, "tokens width"],
    filled: Bool[Tensor, "tokens width"],
    counted: Float[Tensor, "*one_or_each"],
) -> _Active:
    """The entries of some tokens that were picked by their places in these. counted: a pair's share in the penalty."""
    entry = (codes.starts[token, None] + pick).clamp_max(len(codes.latent) - 1)
    on = filled & (codes.value[entry] > 0)
    pairs = on[:, :, None] & on[:, None, :] & (pick[:, :, None] != pick[:, None, :])
    latent = codes.latent[entry]
    return _Active(latent, codes.firing_frequency[latent], pairs * counted.sqrt()[..., None])
