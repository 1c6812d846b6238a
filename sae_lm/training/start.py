"""The weights that training starts from, and how control arms hold directions there.

Trained SAEs have to beat SAEs whose directions are left as they were drawn ("Sanity Checks for Sparse Autoencoders",
2602.14111): decoder rows that are frozen, or held within a cosine of their start, or a frozen encoder. A random
decoder is also as incoherent as a penalty on cosines could wish, so it is the control of those penalties. All else is
trained as ever, with the same weights at first as every arm of the seed: biases, b_dec and thresholds move too.
"""

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.penalties.arms import Arm
from sae_lm.training.convergence import random_start
from sae_lm.training.objective import Weights

CACHED_ROWS = 512
"""Decoder rows that are worked on at a time. measured on taking out the radial gradient at 8192 x 512 on one core: 3.5 ms,
all at once 5 ms, or 13 ms while others use the memory."""

ROUNDING = 1e-6
"""Of 1 less a squared cosine, in single precision."""


def first_weights(arch: str, seed: int, d_sae: int, start: Float[Tensor, " d_in"], device: str) -> Weights:
    """Encoder and decoder rows are equal random directions of norm 1, biases 0 but for b_dec, which is ``start``."""
    rows = random_start(seed, d_sae, len(start)).to(device)
    return Weights(
        encoder=rows.clone(),
        b_enc=torch.zeros(d_sae, device=device),
        W_dec=rows.clone(),
        b_dec=start.float().to(device).clone(),
        log_threshold=torch.zeros(d_sae, device=device) if arch == "jumprelu" else None,
    )


def frozen(arm: Arm) -> set[str]:
    """Names of the `Weights` that an arm leaves as they start: they have no gradient and nothing in a checkpoint."""
    return {name for name, held in (("encoder", arm.encoder), ("W_dec", arm.decoder)) if held == "frozen"}


@torch.no_grad()
def keep_near(rows: Float[Tensor, "*some m d"], start: Float[Tensor, "*some m d"], cosine: float) -> None:
    """Bring each unit row whose cosine with its start is below ``cosine`` to the nearest row where it is not.

    In place. That row lies on the great circle through both: cosine * start + sin * the direction of what of the row
    is orthogonal to the start, of norm 1 again. Others keep their bits. Of Adam nothing is changed: its moments are
    averages of gradients, which are true of whatever row they were taken at.
    """
    piece = CACHED_ROWS if rows.is_cpu and rows.dim() == 2 else rows.shape[0]
    for part, first in zip(rows.split(piece), start.split(piece), strict=True):
        now = (part * first).sum(-1, keepdim=True)
        beyond = now < cosine
        across = 1 - now.square()  # squared norm of what is orthogonal; an opposite row has no nearest: it goes home
        stretch = torch.where(across > ROUNDING, ((1 - cosine**2) / across.clamp_min(ROUNDING)).sqrt(), 0)
        share = torch.where(across > ROUNDING, cosine - stretch * now, 1)
        part.mul_(torch.where(beyond, stretch, 1)).addcmul_(first, torch.where(beyond, share, 0))
