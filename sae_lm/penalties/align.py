"""The penalty on the angle between a latent's encoder and decoder: where absorption makes the two disagree, it shows.

Take a general direction p and a specific one c, orthonormal, and full absorption of strength delta: the specific latent
writes c + delta p, so the general one must be silent beside it and reads p - delta c. Then for both latents the cosine
of encoder and decoder is 1 / sqrt(1 + delta^2): .71 at delta 1. Every product of one's encoder with the other's decoder
is 0, so a penalty on those pairs sees nothing. In superposition an encoder also turns away from its decoder to cancel
interference, and this penalty taxes that. It pulls on the encoder of a latent that is off, as no penalty on the
decoder does.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.sae.directions import Evaluated, of_directions, row_products, unit_rows
from sae_lm.sae.sparse import Codes


def align(
    rows: Float[Tensor, "m d"],
    generator: torch.Generator | None = None,
    codes: Codes | None = None,
    *,
    encoder: Float[Tensor, "m d"],
) -> Float[Tensor, ""]:
    """Mean over latents of 1 - cos(encoder row, decoder row), in [0, 2]; differentiable for both.

    It needs no pairs, costs O(m d), and is 0 for an SAE whose encoder is its decoder transposed, up to norms. A row
    of zeros counts as orthogonal and gets no gradient.
    """
    return _one_sided(rows, encoder.detach()) + _one_sided(encoder, rows.detach(), 0.0)


def _one_sided(rows: Tensor, others: Tensor, share: float = 1.0) -> Tensor:
    """``share`` of the penalty as value, its whole gradient for ``rows``."""

    def evaluate(unit: Tensor, wanted: bool) -> Evaluated:
        target = unit_rows(others).to(unit.dtype)
        cosine = row_products(unit, target)
        value = (1 - cosine).mean() * share
        return Evaluated(value, target, -1 / len(unit), cosine) if wanted else Evaluated(value)

    return of_directions(rows, evaluate)
