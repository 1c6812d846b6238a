"""The penalty on each row's cosine to its nearest, weighed by how strongly the two latents are used (C2R)."""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.penalties.max_cos import pull_apart
from sae_lm.sae.directions import Evaluated, of_directions, sums_by
from sae_lm.sae.nearest import NearestRows, nearest_in_chunks
from sae_lm.sae.sparse import Codes

PUBLISHED_BATCH, PUBLISHED_LATENTS = 2048, 65_536
"""Of C2R's published runs. Norms over a batch grow as the root of its size and, since a wider dictionary shares out the
same activation, fall as the root of the width."""


def c2r(
    rows: Float[Tensor, "m d"],
    generator: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    norms: Float[Tensor, " m"] | None = None,
    anchored: bool = False,
    chunk: int | None = None,
    neighbours: NearestRows | None = None,
    matmul_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Mean over rows i of (n_i + n_j) relu(cos(row_i, row_j))^2, where j is the nearest other row of i.

    C2R, 2606.30609, as its authors' code has it, with alpha = 1: n is the L2 norm of a latent's activations over the
    batch, brought to `PUBLISHED_BATCH` rows and `PUBLISHED_LATENTS` latents, so that a coefficient (5 was published)
    weighs as much beside the loss at any batch size and width. The sum of norms acts where either latent is used, be
    it without the other.

    The authors' gradient flows through the activations too, and so does this one: the value is differentiable for
    ``norms`` where they require it. `activation_pull` carries that on to the activations.

    differs: the nearest is sought among all rows unless ``chunk`` is given; the published code seeks in random
        chunks of 8192. The gradient is taken every tenth step and used at each, where theirs is added five-fold
        at every fifth.
    norms: `activation_norms` of the codes, which is what they are without.
    anchored: the neighbour is sought among rows that fire more often and stands still, in direction and activation.
        This project's own.
    chunk, neighbours, matmul_dtype: as in `max_cos`.
    """
    assert codes is not None
    m = len(rows)
    norms = activation_norms(codes) if norms is None else norms
    used = norms.detach().to(torch.float64 if rows.dtype == torch.float64 else torch.float32)
    neighbours = neighbours or NearestRows(1, anchored, matmul_dtype)
    assert neighbours.ranked == anchored
    by_norm: list[Tensor] = []  # derivative of the penalty for each norm

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        if chunk is not None and chunk < m:
            nearest, cosine = nearest_in_chunks(unit, chunk, generator, matmul_dtype)
        else:
            nearest, cosine = neighbours.update(unit, codes.firing_frequency if anchored else None)
        excess = cosine.clamp_min(0)
        squares, weight = excess.square(), used + used[nearest]
        met = 0 if anchored else sums_by(nearest, m, squares[:, None], torch.arange(m, device=unit.device))[:, 0]
        by_norm.append((squares + met) / m)
        value = (weight * squares).mean()
        return pull_apart(value, unit, nearest, cosine, weight * excess, anchored) if wanted else Evaluated(value)

    value = of_directions(rows, evaluate)
    if norms.requires_grad:  # adds 0, and the gradient
        value = value + ((norms - norms.detach()) * by_norm[0]).sum()
    return value


@torch.no_grad()
def activation_norms(codes: Codes) -> Float[Tensor, " m"]:
    """L2 norm of each latent's activations, brought to the published batch and width; 0 for one that is silent."""
    m, batch = len(codes.firing_frequency), len(codes.starts) - 1
    entries = torch.arange(len(codes.latent), device=codes.latent.device)
    squares = sums_by(codes.latent, m, codes.value.square()[:, None], entries)[:, 0]
    return (squares * scale(batch, m)).sqrt()


def scale(batch: int, d_sae: int) -> float:
    """What brings a squared norm to the published batch and width."""
    return PUBLISHED_BATCH / batch * d_sae / PUBLISHED_LATENTS


def activation_pull(by_norm: Float[Tensor, " m"], squares: Float[Tensor, " m"], batch: int) -> Float[Tensor, " m"]:
    """What the gradient for an activation is, over that activation, for each latent: dP/dn_i * dn_i/da_bi / a_bi.

    by_norm: derivative of the penalty for each of the `activation_norms`.
    squares: sum of each latent's squared activations over the batch; a latent where it is 0 has no gradient.
    """
    factor = scale(batch, len(squares))
    norms = (squares * factor).sqrt()
    return torch.where(norms > 0, by_norm * factor / norms.clamp_min(1e-12), 0)
