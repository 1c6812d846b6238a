"""The penalty on latents that lie near a more general one and fire without it: what full absorption looks like.

Where a specific latent has absorbed a general one ("snake" the "animal" of every snake), its decoder row holds a part
of the general direction, and the general latent is silent whenever it fires. Such a pair is never on together:
`coactive`, which counts pairs that are, sees partial absorption and is blind to the full kind. With P(j) how often the
specific latent fires, P(i | j) how often the general one is on then, and cos their rows' cosine,

    coactive, anchored    P(j) P(i | j) cos^2          on together, one direction said twice
    silent                P(j) (1 - P(i | j)) cos^2    the general one silent, its direction carried by the other

so that the two are halves of one penalty, the cosine weighed by how often the specific latent fires. The price is that
siblings, specific latents that share a meaning and exclude each other, are parted too.

What it cannot do: a latent that is off has no gradient, so this penalty takes the general direction out of the specific
row and leaves it to the loss to switch the general latent on. measured on Chanin's toy (ReLU, 3 seeds, 1500 steps): a
coefficient of 1 brings the cosine of the child's row with the parent from .71 to .59 and the holes from 1 to .67 for
.005 FVU, where `coactive` (.3, anchored) and `align` (.03) bring them to 0 and .03 for nothing.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.sae.directions import Evaluated, of_directions
from sae_lm.sae.nearest import RECHECKED_CANDIDATES, NearestRows
from sae_lm.sae.sparse import Codes

NEAREST = RECHECKED_CANDIDATES
"""More general rows that a row is held against."""
TOKENS_AT_ONCE = 128
"""Tokens whose codes are written out at a time, on a processor: 1 MiB at 8192 latents."""


def silent(
    rows: Float[Tensor, "m d"],
    generator: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    neighbours: NearestRows | None = None,
    matmul_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Sum over rows j and their `NEAREST` nearest i among rows that fire more often of P(j fires and i does not)
    relu(cos(row_i, row_j))^2, over L0 = sum of P(j fires). The gradient is row j's alone: the general row stands still.

    This project's own. P is the batch's, so nothing but the neighbours is kept from one time to the next, and value
    and gradient have those of all tokens as expectation. As in `coactive` a coefficient carries over between widths
    and sparsities.

    codes: the batch's; ``firing_frequency`` says which fires more often, an entry of value 0 has not fired.
    neighbours: ranked, `NEAREST` of them looked at; None: all are searched. Of several parts each has a few candidates,
        and the nearest of these are taken.
    """
    assert codes is not None
    neighbours = neighbours or NearestRows(1, True, matmul_dtype, per_part=NEAREST)
    assert neighbours.ranked

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        nearest, cosine = neighbours.update_several(unit, codes.firing_frequency)
        cosine = cosine.clamp_min(0)
        apart = fires_without(codes, nearest).to(unit.dtype)
        fired = (codes.value > 0).sum().clamp_min(1).to(unit.dtype)
        strength = apart * cosine / fired
        along = (strength * cosine).sum(1, keepdim=True)
        value = along.sum()
        if not wanted:
            return Evaluated(value)
        pulls = torch.nn.functional.embedding_bag(nearest, unit, mode="sum", per_sample_weights=strength)
        return Evaluated(value, pulls, 2.0, along)

    return of_directions(rows, evaluate)


@torch.no_grad()
def fires_without(codes: Codes, others: Int[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """On how many tokens of the batch each latent fires and each of its others does not."""
    m, batch = len(others), len(codes.starts) - 1
    fires = codes.value > 0
    at_once = TOKENS_AT_ONCE if others.is_cpu else batch
    on: Bool[Tensor, " at_once*m"] = torch.zeros(min(at_once, batch) * m, dtype=torch.bool, device=others.device)
    counts = torch.zeros(others.shape, device=others.device)
    edges = codes.starts[::at_once].tolist()
    for first, last in zip(edges, [*edges[1:], len(codes.latent)], strict=True):
        if first == last:
            continue
        latent = codes.latent[first:last][fires[first:last]]
        token = torch.searchsorted(codes.starts, torch.arange(first, last, device=others.device), right=True)
        token = (token - 1)[fires[first:last]] % at_once * m
        on[token + latent] = True
        without = ~on[token[:, None] + others[latent]]
        counts.index_add_(0, latent, without.to(counts.dtype))  # whole numbers: exact in any order
        on[token + latent] = False
    return counts
