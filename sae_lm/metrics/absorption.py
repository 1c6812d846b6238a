"""codes x concept -> where the concept's latents are silent and another carries it: feature absorption.

Candidates are rows of unseen token types that have the concept and whose probe says so. The scores
are those of SAEBench 0.6.0 (feature_absorption_calculator.py), with latent strengths z_i ||d_i|| so
that decoders of any norm give the same. A penalty on decoder cosines can push an absorber under the
cosine gates while the hole stays; therefore the hole rate, which sees no geometry, stands beside
them, and "less absorption" needs both to fall.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.metrics.codes import Codes

SILENT = 1e-8
"""Summed strength of the main latents below which they count as silent."""
COS_FULL, COS_FRACTION = 0.025, 0.1
"""Least cosine of an absorbing latent with the probe, for the full and the fractional score."""
SHARE = 0.4
"""Least share of the activation's projection on the probe that absorbing latents must carry."""
ABSORBERS = 3
"""Absorbing latents summed in the fractional score."""


class Scores(NamedTuple):
    """Per candidate row."""

    full: Bool[Tensor, " n"]
    fraction: Float[Tensor, " n"]
    silent: Bool[Tensor, " n"]
    absorber: Tensor
    """[n] latent with the largest projection on the probe"""


def absorption_scores(
    codes: Codes,
    x: Float[Tensor, "n d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
    probe: Float[Tensor, " d_in"],
    main: list[int],
) -> Scores:
    """full: all main latents silent, and one other carries at least SHARE of x's projection on the probe.
    fraction: the part of the projection carried by the top absorbers instead of the main latents, 0 to 1."""
    p = probe / probe.norm()
    cosine = (W_dec @ p) / W_dec.norm(dim=1).clamp_min(1e-12)
    along = codes.strength * cosine[codes.latent]
    whole = x @ p
    is_main = torch.isin(codes.latent, torch.tensor(main))
    silent = (codes.strength * is_main).sum(1) < SILENT
    top, slot = along.max(1)
    absorber = codes.latent.gather(1, slot[:, None])[:, 0]
    full = silent & (cosine[absorber] >= COS_FULL) & (whole > 0) & (top >= SHARE * whole)

    carried = (along * is_main).sum(1)
    others = torch.where(is_main | (cosine[codes.latent] < COS_FRACTION), 0, along).clamp_min(0)
    absorbed = others.topk(min(ABSORBERS, others.shape[1]), dim=1).values.sum(1)
    part = torch.minimum(absorbed, whole - carried)
    fraction = torch.where(carried <= 0, torch.ones_like(part), (part / (part + carried)).clamp(0, 1))
    none = (whole <= 0) | (carried >= whole) | (absorbed < SHARE * whole)
    return Scores(full, torch.where(none, torch.zeros_like(part), fraction), silent, absorber)


class Absorption(NamedTuple):
    """One concept's scores, averaged within token types first, so that frequent tokens do not decide."""

    candidates: int
    types: int
    full: float
    fraction: float
    hole_rate: float
    """share of candidates on which all main latents are silent"""
    recovered: float
    """on those holes, projection of x_hat - b_dec on the probe over that of x - b_dec; NaN without holes"""


def absorption(
    codes: Codes,
    x: Float[Tensor, "n d_in"],
    token_id: Tensor,
    W_dec: Float[Tensor, "d_sae d_in"],
    b_dec: Float[Tensor, " d_in"],
    probe: Float[Tensor, " d_in"],
    main: list[int],
) -> Absorption | None:
    """Scores of one concept on its candidate rows; None without candidates or main latents."""
    if not len(x) or not main:
        return None
    scores = absorption_scores(codes, x, W_dec, probe, main)
    unit = probe / probe.norm()
    gain = (W_dec @ unit) / W_dec.norm(dim=1).clamp_min(1e-12)
    rebuilt = (codes.strength * gain[codes.latent]).sum(1)
    actual = (x - b_dec) @ unit
    holes = scores.silent & (actual > 0)
    recovered = float(rebuilt[holes].sum() / actual[holes].sum()) if holes.any() else float("nan")
    return Absorption(
        candidates=len(x),
        types=len(token_id.unique()),
        full=_type_mean(scores.full, token_id),
        fraction=_type_mean(scores.fraction, token_id),
        hole_rate=_type_mean(scores.silent, token_id),
        recovered=recovered,
    )


def _type_mean(values: Tensor, token_id: Tensor) -> float:
    """Mean over token types of the mean over their rows."""
    _, types = token_id.unique(return_inverse=True)
    sums = torch.zeros(int(types.max()) + 1, dtype=torch.float64).index_add_(0, types, values.double())
    return float((sums / torch.bincount(types)).mean())
