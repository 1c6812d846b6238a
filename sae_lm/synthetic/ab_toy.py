"""The A/B toy: two features often on together, three latents, and which penalty undoes "A and B".

An SAE that pays L1 saves by giving "A and B" a latent of its own: the pair then costs sqrt(2) instead
of 1 + 1. LessWrong, 'Do sparse autoencoders find "true features"?', comment by L. Riggs, asks whether a
penalty on cosines undoes it. Two parts, both with the truth known: `exact_construction`, three latents made by hand in
two dimensions and what each penalty says of them; and `WORLD` with its `judge`, for SAEs trained in 20 dimensions.

How far it holds, as seeds of 24 that learn the composite (measured with an earlier training step, same world):
no penalty 24, abs_cos on the decoder 0, on the encoder 24. With Gaussian noise of sd .05 on every coordinate of the
input: 14, 0, 11; of sd .1: 0, 0, 0, for noise takes away what the composite saves. Started at random directions that
fire on "both": 15, 0, 16; at any random directions: 10, 5, 8, for then latents die and A and B can be found by luck.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.penalties.max_cos import max_cos
from sae_lm.penalties.pairwise import abs_cos
from sae_lm.sae.directions import unit_rows
from sae_lm.synthetic.worlds import World

# ---- exact: A = (0, 1), B = (1, 0); latents "A and not B", "A and B", "B and not A" ------------------
EXACT_INPUTS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
"""[inputs, d_in]: A, both, B."""
EXACT_W_ENC = torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, -1.0]])
"""[d_in, d_sae]: columns (-1, 1), (1, 1), (1, -1)."""
EXACT_B_ENC = torch.tensor([0.0, -1.0, 0.0])
EXACT_W_DEC = EXACT_INPUTS
"""[d_sae, d_in]: each latent writes the input it stands for."""

# ---- trained ----------------------------------------------------------------------------------------
WORLD = World(
    d_in=20,
    parent=(None, 0),  # A, and B given A: the way in which worlds say that two are often on together
    probability=(0.45, 2 / 3),
    stray=(0.0, 3 / 11),
    listed=True,
)
"""Nothing .4, A alone .15, B alone .15, both .3; an active feature has size 1."""
FIRING = 0.05
"""Activation above which a latent counts as firing; a feature of size 1 is coded as a little less."""
COMPOSITE_COSINE = 0.9
"""A decoder row this close to (A + B) / sqrt(2) is the composite; A itself stands at .71."""
FEATURE_COSINE = 0.99


class ExactConstruction(NamedTuple):
    """Cosines of the exact construction: rows i, j != i, cos = cos_sim(row_i, row_j).

    Encoder pairs 1-2 and 2-3 are orthogonal, 1-3 has cos -1. Decoder pairs 1-2 and 2-3 have cos
    1/sqrt(2), 1-3 is orthogonal; none is negative, so there signed and absolute agree.
    """

    is_one_hot: bool  # A, both, B have one-hot codes and come back from the decoder: nothing is lost
    encoder_signed_max: float  # mean_i max_j cos = 0
    encoder_max_cos: float  # OrtSAE's term, mean_i relu(max_j cos)^2 = 0: it does not see the composite
    encoder_max_abs: float  # mean_i max_j |cos| = 2/3: (1 + 0 + 1) / 3 rows
    encoder_abs_cos: float  # mean_{i != j} |cos| = 1/3: (0 + 0 + 1) / 3 pairs
    decoder_abs_cos: float  # mean_{i != j} |cos| = .471: (.707 + .707 + 0) / 3 pairs
    decoder_sq_cos: float  # mean_{i != j} cos^2 = 1/3
    decoder_signed_max: float  # mean_i max_j cos = .707
    decoder_max_cos: float  # OrtSAE's term = 1/2
    truth_abs_cos: float  # of the two latents A, B = 0: the same reconstruction for nothing


class Verdict(NamedTuple):
    """What one SAE has learned; 1.0 or 0.0, so that verdicts have means."""

    composite: float
    """a latent that fires on "both" has a decoder row with cos > .9 to (A + B) / sqrt(2)"""
    recovered: float
    """for A and for B a latent fires exactly when the feature is on and its decoder row has cos > .99 to
    it; and there is no composite"""


def exact_construction() -> ExactConstruction:
    """Measure the three hand-made latents with the project's own penalties."""
    codes = torch.relu(EXACT_INPUTS @ EXACT_W_ENC + EXACT_B_ENC)
    one_hot = torch.equal(codes, torch.eye(3)) and torch.equal(codes @ EXACT_W_DEC, EXACT_INPUTS)
    encoder, decoder = _cosines(EXACT_W_ENC.T), _cosines(EXACT_W_DEC)
    return ExactConstruction(
        is_one_hot=one_hot,
        encoder_signed_max=encoder.amax(1).mean().item(),
        encoder_max_cos=max_cos(EXACT_W_ENC.T).item(),
        encoder_max_abs=encoder.abs().amax(1).mean().item(),
        encoder_abs_cos=abs_cos(EXACT_W_ENC.T).item(),
        decoder_abs_cos=abs_cos(EXACT_W_DEC).item(),
        decoder_sq_cos=decoder.square().mean().item(),
        decoder_signed_max=decoder.amax(1).mean().item(),
        decoder_max_cos=max_cos(EXACT_W_DEC).item(),
        truth_abs_cos=abs_cos(EXACT_INPUTS[[0, 2]]).item(),
    )


def _cosines(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n n-1"]:
    """Cosine of each row to every other row."""
    n = len(rows)
    unit = unit_rows(rows)
    return (unit @ unit.T)[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)


def judge(
    codes: Float[Tensor, "n d_sae"],
    sizes: Float[Tensor, "n features"],
    features: Float[Tensor, "features d_in"],
    W_dec: Float[Tensor, "d_sae d_in"],
) -> Verdict:
    """Rule from all inputs there are, with unit decoder rows.

    A decoder row alone proves nothing: A's row may belong to a latent for "A and not B", or to one that
    never fires. So the latent of a feature must fire exactly when the feature is on, and a composite when
    both are.
    """
    fires, on = codes > FIRING, sizes > 0
    is_composite = W_dec @ unit_rows(features.sum(0)[None])[0] > COMPOSITE_COSINE
    composite = bool((is_composite & fires[on.all(1)].any(0)).any())
    right_row = W_dec @ features.T > FEATURE_COSINE  # [d_sae, features]
    right_code = (fires[:, :, None] == on[:, None, :]).all(0)
    return Verdict(float(composite), float(bool((right_row & right_code).any(0).all()) and not composite))
