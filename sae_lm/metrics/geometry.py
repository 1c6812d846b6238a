"""decoder -> how near its rows are to each other, beside what random directions give.

A manipulation check, not a result: a random decoder scores best. Definitions: OrtSAE equation 6
(mean over latents of the signed cosine to the nearest other), over the whole dictionary, exact.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.sae.penalties import abs_cos, nearest_row, unit_rows
from sae_lm.seeds import derive


class Geometry(NamedTuple):
    nearest_cos: float
    """mean over alive latents of the cosine to the nearest other alive latent"""
    nearest_cos_all: float
    """the same over all latents; dead ones need not move to look orthogonal"""
    nearest_cos_null: float
    """the same for as many random directions as there are alive latents"""
    mean_abs_cos: float
    """mean |cos| over all pairs; random directions give about sqrt(2 / (pi d_in))"""
    near_duplicates: float
    """share of alive latents whose nearest has cosine > 0.9"""


def nearest_cosines(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, " n"]:
    """Signed cosine of each row to its nearest other row."""
    unit = unit_rows(rows.float())
    return (unit * unit[nearest_row(unit)]).sum(1)


@torch.no_grad()
def geometry(W_dec: Float[Tensor, "d_sae d_in"], alive: Bool[Tensor, " d_sae"], seed: int) -> Geometry:
    """alive: latents that fired on the evaluation rows. Fewer than two alive latents give NaN."""
    rows = W_dec[alive]
    if len(rows) < 2:
        nan = float("nan")
        return Geometry(nan, float(nearest_cosines(W_dec).mean()), nan, float(abs_cos(W_dec)), nan)
    nearest = nearest_cosines(rows)
    random = torch.randn(rows.shape, generator=torch.Generator().manual_seed(derive("null", seed)))
    return Geometry(
        nearest_cos=float(nearest.mean()),
        nearest_cos_all=float(nearest_cosines(W_dec).mean()),
        nearest_cos_null=float(nearest_cosines(random).mean()),
        mean_abs_cos=float(abs_cos(W_dec)),
        near_duplicates=float((nearest > 0.9).double().mean()),
    )
