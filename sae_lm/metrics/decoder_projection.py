"""Tell whether an SAE's L0 is right from how activations project on its decoder rows."""

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.sae.model import SAE

PROJECTIONS = 1 << 23
"""Projections sorted at once, at most: 32 MiB in float32."""


@torch.no_grad()
def nth_decoder_projection(sae: SAE, x: Float[Tensor, "rows d_in"], n: int) -> float:
    """The projection of x - b_dec on decoder directions that n latents per row exceed on average (s_n^dec).

    Rows are taken as the SAE normalises them. It is the (n * rows + 1)-th largest of all rows' projections together.
    From "Sparse but Wrong" (2508.16560, appendix; ``nth_decoder_projection`` in its code): where L0 is too low or too high, decoder rows mix features, and a row then
    projects on latents that are not there; of SAEs that differ in L0 alone, the one with the right L0 has the least.
    n has to be larger than any L0 compared, and the same for all SAEs. differs: of rows of any norm the direction is
    taken, which for unit rows is the same.

    Raises AssertionError where n is not between 1 and the number of latents.
    """
    directions = sae.W_dec / sae.W_dec.norm(dim=1, keepdim=True).clamp_min(1e-12)
    assert 1 <= n <= len(directions), f"n is {n}, expected 1 to {len(directions)}"
    x = sae.normalise(x[: max(1, PROJECTIONS // len(directions))])
    along = ((x - sae.b_dec) @ directions.T).flatten().cpu().numpy()
    place = len(along) - min(len(along), n * len(x) + 1)
    return float(np.partition(along, place)[place])
