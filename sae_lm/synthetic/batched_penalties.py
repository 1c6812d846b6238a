"""The penalties of many small SAEs at once, as dense products: what the trainer's penalties are for one.

The trainer's own penalties (sae_lm.penalties) take one dictionary and hold no [d_sae, d_sae] matrix. Here dictionaries are
tiny and many, and a matrix of cosines for each is the fast way: one batched product for all. They are equal to
the trainer's in value and gradient, which the tests check.
"""

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.penalties.silent import NEAREST
from sae_lm.sae.directions import unit_rows
from sae_lm.sae.nearest import NO_COSINE


def penalties(
    penalty: str,
    rows: Float[Tensor, "*runs m d"],
    firing_frequency: Float[Tensor, "*runs m"],
    coactivation: Float[Tensor, "*runs m m"] | None = None,
    margin: Float[Tensor, "#arms 1 1"] | None = None,
    anchored: bool = False,
    norms: Float[Tensor, "*runs m"] | None = None,
    encoder: Float[Tensor, "*runs m d"] | None = None,
) -> Float[Tensor, "*runs"]:
    """The penalty of each dictionary; the definitions are those of sae_lm.penalties.

    firing_frequency: share of inputs on which each latent fires. coactivation: share of inputs on which two latents
    fire, for ``coactive`` and ``silent``; the diagonal is how often each fires on this batch. margin: per arm, the
    first of the leading dimensions. norms: of activations, for ``c2r``, whose gradient flows through them. encoder:
    for ``align``.
    """
    unit = unit_rows(rows)
    if penalty == "align":
        assert encoder is not None
        return 1 - (unit * unit_rows(encoder)).sum(-1).mean(-1)
    anchored = anchored or penalty == "silent"
    cosines = unit @ (unit.detach() if anchored else unit).mT
    m = rows.shape[-2]
    others = ~torch.eye(m, dtype=torch.bool, device=rows.device)
    counted = others & (firing_frequency.unsqueeze(-2) > firing_frequency.unsqueeze(-1)) if anchored else others
    if penalty == "max_cos":
        nearest = cosines.masked_fill(~counted, NO_COSINE).amax(-1)
        return (nearest - (0.0 if margin is None else margin)).clamp_min(0).square().mean(-1)
    if penalty == "c2r":
        assert norms is not None
        nearest, where = cosines.masked_fill(~counted, NO_COSINE).max(-1)
        of_nearest = (norms.detach() if anchored else norms).gather(-1, where)
        return ((norms + of_nearest) * nearest.clamp_min(0).square()).mean(-1)
    if penalty == "silent":
        assert coactivation is not None
        nearest, where = cosines.masked_fill(~counted, NO_COSINE).topk(min(NEAREST, m), dim=-1)
        fires = coactivation.diagonal(dim1=-2, dim2=-1)
        apart = fires[..., None] - coactivation.gather(-1, where)
        return (apart * nearest.clamp_min(0).square()).sum((-2, -1)) / fires.sum(-1).clamp_min(1e-8)
    if penalty == "abs_cos":
        cosines = cosines.abs()
        excess = cosines if margin is None else (cosines - margin[..., None]).clamp_min(0)
        return _sum(excess, counted) / (m * (m - 1))
    if penalty == "sq_cos":
        return _sum(cosines.square(), counted) / (m * (m - 1))
    if penalty == "freq_cos":
        weight = firing_frequency.unsqueeze(-1) * firing_frequency.unsqueeze(-2)
        return _sum(weight * cosines.square(), counted) / firing_frequency.sum(-1).clamp_min(1e-8)
    assert penalty == "coactive" and coactivation is not None
    if margin is not None:
        cosines = (cosines.abs() - margin[..., None]).clamp_min(0)
    l0 = coactivation.diagonal(dim1=-2, dim2=-1).sum(-1)
    return _sum(coactivation * cosines.square(), counted) / l0.clamp_min(1e-8)


def _sum(values: Float[Tensor, "*runs m m"], counted: Bool[Tensor, "*some m m"]) -> Float[Tensor, "*runs"]:
    return (values * counted).sum((-2, -1))
