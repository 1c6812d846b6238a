"""The A/B toy: two features often on together, three latents, and which penalty undoes "A and B".

An SAE that pays L1 saves by giving "A and B" a latent of its own: the pair then costs sqrt(2) instead
of 1 + 1. LessWrong, 'Do sparse autoencoders find "true features"?', comment by L. Riggs, asks whether a
penalty on cosines undoes it. Two parts, both with the truth known:

- `exact_construction`: three latents made by hand in two dimensions, and what each penalty says of them;
- `run`: the same trained in 20 dimensions, arms with and without a penalty, paired by seed.

How far it holds, as seeds of 24 that learn the composite: no penalty 24, abs_cos:0.05 on the decoder 0,
on the encoder 24. With Gaussian noise of sd .05 on every coordinate of the input: 14, 0, 11; of sd .1:
0, 0, 0, for noise takes away what the composite saves. Started at random directions that fire on "both":
15, 0, 16; at any random directions: 10, 5, 8, for then latents die and A and B can be found by luck.
"""

from typing import Literal, NamedTuple

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from sae_lm.sae.penalties import PENALTIES, Arm, abs_cos, max_cos, unit_rows

# ---- exact: A = (0, 1), B = (1, 0); latents "A and not B", "A and B", "B and not A" ------------------
EXACT_INPUTS = torch.tensor([[0.0, 1.0], [1.0, 1.0], [1.0, 0.0]])
"""[inputs, d_in]: A, both, B."""
EXACT_W_ENC = torch.tensor([[-1.0, 1.0, 1.0], [1.0, 1.0, -1.0]])
"""[d_in, d_sae]: columns (-1, 1), (1, 1), (1, -1)."""
EXACT_B_ENC = torch.tensor([0.0, -1.0, 0.0])
EXACT_W_DEC = EXACT_INPUTS
"""[d_sae, d_in]: each latent writes the input it stands for."""

# ---- trained ----------------------------------------------------------------------------------------
D_IN = 20
NUM_LATENTS = 3
INPUTS = torch.tensor([[0.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 1.0]])
"""[inputs, features]: nothing, A alone, B alone, both; an active feature has size 1."""
PROBABILITIES = torch.tensor([0.4, 0.15, 0.15, 0.3])
VARIANCE = 0.495
"""Squared error of predicting the mean: A and B are each on with .45, so 2 * .45 * .55."""
L1 = 0.05
LEARNING_RATE = 0.01
STEPS = 4000
"""The baseline needs them: at 1000 steps 20 of 24 seeds have learned the composite, here 24."""
START_NOISE = 1.0
"""Norm of the noise on a latent's first direction, which is an input of norm 1 or sqrt(2)."""
FIRING = 0.05
"""Activation above which a latent counts as firing; a feature of size 1 is coded as 1 - L1 / 2."""
COMPOSITE_COSINE = 0.9
"""A decoder row this close to (A + B) / sqrt(2) is the composite; A itself stands at .71."""
FEATURE_COSINE = 0.99

MEANING = """\
Read: paid to be sparse, the SAE gives "A and B" a latent of its own. The idea under test predicts that
it does so without a penalty and with one on the encoder, whose rows can turn apart into directions the
data leave empty while the codes stay; and that a penalty on the decoder undoes it, if not too strong."""


class ToyArm(NamedTuple):
    """What is added to the loss. Coefficients count in squared error, where the mean costs .495: half the
    units of training on activations, so .05 here is .1 there."""

    arm: Arm
    on: Literal["decoder", "encoder"]
    """Rows of W_dec, or rows of W_enc.T: the control."""


ARMS = (
    ToyArm(Arm("none", 0.0), "decoder"),
    ToyArm(Arm("abs_cos", 0.05), "decoder"),
    ToyArm(Arm("abs_cos", 1.0), "decoder"),
    ToyArm(Arm("abs_cos", 3.0), "decoder"),
    ToyArm(Arm("max_cos", 0.25), "decoder"),
    ToyArm(Arm("abs_cos", 0.05), "encoder"),
    ToyArm(Arm("abs_cos", 0.2), "encoder"),  # four times as much, so that "too weak" is no answer
    ToyArm(Arm("max_cos", 0.25), "encoder"),
)


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


class Saes(NamedTuple):
    """One SAE per arm and seed, trained side by side. No decoder bias: the toy's origin is known to be 0."""

    W_enc: Float[Tensor, "arms seeds d_in d_sae"]
    b_enc: Float[Tensor, "arms seeds 1 d_sae"]
    W_dec: Float[Tensor, "arms seeds d_sae d_in"]  # rows of norm 1


class Learned(NamedTuple):
    """What a batch of SAEs has learned, one entry per arm and seed."""

    composite: Bool[Tensor, "arms seeds"]
    """A latent that fires on "both" has a decoder row with cos > .9 to (A + B) / sqrt(2)."""
    recovered: Bool[Tensor, "arms seeds"]
    """For A and for B a latent fires exactly when the feature is on and its decoder row has cos > .99 to
    it; and there is no composite."""
    num_alive: Int[Tensor, "arms seeds"]  # latents, of 3, that fire on any input
    decoder_abs_cos: Float[Tensor, "arms seeds"]  # mean |cos| of all 3 rows, dead ones included
    encoder_abs_cos: Float[Tensor, "arms seeds"]
    fvu: Float[Tensor, "arms seeds"]  # expected squared error over VARIANCE; the mean has 1


class ToyResult(NamedTuple):
    """What `run` found and `table` prints."""

    exact: ExactConstruction
    arms: tuple[ToyArm, ...]
    learned: Learned


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


def run(seeds: int = 6, arms: tuple[ToyArm, ...] = ARMS, steps: int = STEPS) -> ToyResult:
    """Train every arm on every seed and judge what was learned.

    Arms of one seed share features, start and data. Each step sees the whole distribution, four inputs
    weighted by their probability, so an arm differs from the baseline by its penalty and nothing else.
    """
    starts = [_start(torch.Generator().manual_seed(seed)) for seed in range(seeds)]
    features = torch.stack([features for features, _ in starts])
    first = torch.stack([rows for _, rows in starts]).expand(len(arms), -1, -1, -1)
    saes = Saes(
        W_enc=first.mT.clone().requires_grad_(),
        b_enc=torch.zeros(len(arms), seeds, 1, NUM_LATENTS, requires_grad=True),
        W_dec=first.clone().requires_grad_(),
    )
    # Adam works element by element, so summing the losses trains each SAE as if it were alone.
    optimizer = torch.optim.Adam(list(saes), lr=LEARNING_RATE)
    for _ in range(steps):
        optimizer.zero_grad()
        _loss(saes, INPUTS @ features, arms).backward()
        optimizer.step()
        with torch.no_grad():  # or rows grow and codes shrink until L1 costs nothing
            saes.W_dec.div_(saes.W_dec.norm(dim=-1, keepdim=True))
    return ToyResult(exact_construction(), arms, judge(saes, features))


@torch.no_grad()
def judge(saes: Saes, features: Float[Tensor, "seeds 2 d_in"]) -> Learned:
    """Rule from the four inputs, which are all there are.

    A decoder row alone proves nothing: A's row may belong to a latent for "A and not B", or to one that
    never fires. So the latent of a feature must fire exactly when the feature is on, and a composite when
    both are.
    """
    inputs = INPUTS @ features
    codes = encode(saes, inputs)  # [arms, seeds, inputs, d_sae]
    fires = codes > FIRING
    is_composite = torch.einsum("asmd,sd->asm", saes.W_dec, unit_rows(features.sum(1))) > COMPOSITE_COSINE
    composite = (is_composite & fires[..., 3, :]).any(-1)
    right_row = torch.einsum("asmd,sfd->asfm", saes.W_dec, features) > FEATURE_COSINE
    on = INPUTS.T.bool()[:, :, None]  # [features, inputs, 1]
    right_code = (fires.unsqueeze(-3) == on).all(-2)  # [arms, seeds, features, d_sae]
    errors = (codes @ saes.W_dec - inputs).square().sum(-1)
    decoder_abs_cos, encoder_abs_cos = (
        torch.stack([abs_cos(one) for one in rows.flatten(0, 1)]).view(composite.shape)
        for rows in (saes.W_dec, saes.W_enc.mT)
    )
    return Learned(
        composite=composite,
        recovered=(right_row & right_code).any(-1).all(-1) & ~composite,
        num_alive=fires.any(-2).sum(-1),
        decoder_abs_cos=decoder_abs_cos,
        encoder_abs_cos=encoder_abs_cos,
        fvu=(errors * PROBABILITIES).sum(-1) / VARIANCE,
    )


def encode(saes: Saes, inputs: Float[Tensor, "seeds n d_in"]) -> Float[Tensor, "arms seeds n d_sae"]:
    """Codes of every SAE for the inputs of its seed."""
    return torch.relu(inputs @ saes.W_enc + saes.b_enc)


def _start(generator: torch.Generator) -> tuple[Float[Tensor, "2 d_in"], Float[Tensor, "d_sae d_in"]]:
    """One seed's orthonormal features and first unit rows, shared by encoder and decoder.

    A row is an input drawn from the data plus noise: a row that no input switches on would never learn.
    """
    features = torch.linalg.qr(torch.randn(D_IN, 2, generator=generator)).Q.T
    drawn = torch.multinomial(PROBABILITIES[1:], NUM_LATENTS, replacement=True, generator=generator)
    noise = torch.randn(NUM_LATENTS, D_IN, generator=generator) / D_IN**0.5
    return features, unit_rows(INPUTS[1:][drawn] @ features + START_NOISE * noise)


def _loss(saes: Saes, inputs: Float[Tensor, "seeds 4 d_in"], arms: tuple[ToyArm, ...]) -> Float[Tensor, ""]:
    """Expected squared error + L1 + penalty, summed over arms and seeds."""
    codes = encode(saes, inputs)
    errors = (codes @ saes.W_dec - inputs).square().sum(-1)
    loss = ((errors + L1 * codes.sum(-1)) * PROBABILITIES).sum()
    for i, (arm, on) in enumerate(arms):
        if arm.coefficient:
            rows = saes.W_dec[i] if on == "decoder" else saes.W_enc[i].mT
            loss = loss + arm.coefficient * _penalty_of_seeds(arm.penalty, rows)
    return loss


def _penalty_of_seeds(penalty: str, rows: Float[Tensor, "seeds d_sae d_in"]) -> Float[Tensor, ""]:
    """Sum over seeds of the penalty, in one call: seeds are laid into orthogonal subspaces.

    Rows of two seeds then have cosine 0. That adds nothing to a sum of |cos|, and a nearest neighbour at
    cosine 0 costs what the clamp at 0 costs; only what the mean divides by has to be restored.
    """
    seeds, m, _ = rows.shape
    terms = {"abs_cos": lambda n: n * (n - 1), "max_cos": lambda n: n}[penalty]  # pairs, rows
    together = PENALTIES[penalty](torch.block_diag(*rows), torch.Generator())
    return together * terms(seeds * m) / terms(m)


def _cosines(rows: Float[Tensor, "n d_in"]) -> Float[Tensor, "n n-1"]:
    """Cosine of each row to every other row."""
    n = len(rows)
    unit = unit_rows(rows)
    return (unit @ unit.T)[~torch.eye(n, dtype=torch.bool)].reshape(n, n - 1)


def table(result: ToyResult) -> str:
    """The result as plain text: one line per arm, then what it means."""
    exact, learned = result.exact, result.learned
    seeds = learned.composite.shape[1]
    lines = [
        "A/B toy: features A and B, often on together; an L1 SAE with three latents",
        "",
        f"Made by hand as A&~B, A&B, ~A&B ({'no' if exact.is_one_hot else 'some'} reconstruction error):",
        "           mean |cos|   OrtSAE term (signed nearest cosine, clamped, squared)",
        f"  encoder  {exact.encoder_abs_cos:10.3f}   {exact.encoder_max_cos:11.3f}",
        f"  decoder  {exact.decoder_abs_cos:10.3f}   {exact.decoder_max_cos:11.3f}",
        "",
        f"Trained in {D_IN} dimensions, {seeds} seeds; arms of a seed share features, start and data:",
        "                             seeds that  seeds that  latents   mean |cos|  mean |cos|",
        "  penalty       on           learn A&B   recover A,B   alive      decoder     encoder      FVU",
    ]
    for i, (arm, on) in enumerate(result.arms):
        composite, recovered = (f"{int(n[i].sum())}/{seeds}" for n in (learned.composite, learned.recovered))
        lines.append(
            f"  {arm.name:14}{on if arm.coefficient else '':10}{composite:>12}{recovered:>14}"
            f"{learned.num_alive[i].float().mean():8.1f}{learned.decoder_abs_cos[i].mean():13.3f}"
            f"{learned.encoder_abs_cos[i].mean():12.3f}{learned.fvu[i].mean():9.4f}"
        )
    return "\n".join([*lines, "", MEANING])
