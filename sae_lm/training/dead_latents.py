"""Revive latents that have not fired for long: AuxK, or new directions where the SAE errs most."""

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.runtime.distributed import SINGLE, Team
from sae_lm.training.objective import Weights
from sae_lm.training.selection import largest

RELU_ENCODER_NORM = 0.2
"""Norm of a resampled ReLU latent's encoder, in means of the others' (Bricken et al. 2023)."""


@torch.no_grad()
def dead_sae(
    weights: Weights, dead: Int[Tensor, " n_dead"], matmul_dtype: torch.dtype, shift: Float[Tensor, ""] | float = 0.0
) -> Weights:
    """A copy of the dead latents alone, for `auxk`, in ``matmul_dtype``, with their pre-activations raised by ``shift``.

    shift: how far below 0 an SAE of this kind keeps silent latents (that of ReLU), so that there is something to
    learn from.
    """
    encoder, W_dec = weights.encoder[dead].to(matmul_dtype), weights.W_dec[dead].to(matmul_dtype)
    return Weights(encoder, (weights.b_enc[dead] + shift).to(matmul_dtype), W_dec, weights.b_dec)


@torch.no_grad()
def auxk(
    residual: Float[Tensor, "batch d_in"],
    centred: Float[Tensor, "batch d_in"],
    dead: Weights,
    k: int,
    team: Team = SINGLE,
    whitened: Float[Tensor, "batch d_in"] | None = None,
) -> tuple[Float[Tensor, ""], Weights]:
    """AuxK (Gao et al. 2024, 2406.04093, section A.2): let the dead latents explain the SAE's residual x - x_hat.

    Mean over the batch of |residual - z W_dec|^2 over that of |residual - mean residual|^2, where z are the k largest
    pre-activations of the dead latents (`dead_sae`), and 0 where negative. ``residual`` is a constant. ``whitened``
    stands for ``centred`` in the encoder's gradient, as in `batch_result`.

    Returns the loss and its gradient for the dead latents (none for b_dec); of a team's member those of its slice,
    whose mean over the team is the whole batch's. These are the products of a
    small dense SAE and run in its dtype; errors and losses are in that of the residual.
    """
    x, W_dec = centred.to(dead.W_dec.dtype), dead.W_dec
    pre = torch.addmm(dead.b_enc, x, dead.encoder.T)
    z = pre.relu()
    if k < len(W_dec):
        chosen = torch.zeros_like(z)
        chosen.view(-1)[largest(pre, k).flatten()] = 1
        z *= chosen
    unexplained = residual - (z @ W_dec).to(residual.dtype)
    mean = residual.mean(0)
    team.average(mean)
    scale = (residual - mean).square().sum()
    team.average(scale)
    scale.clamp_min_(1e-12)
    upstream = (unexplained * (-2 / scale)).to(W_dec.dtype)
    grad_pre = (upstream @ W_dec.T).mul_(z > 0)
    gradient = Weights(
        encoder=(grad_pre.T @ (x if whitened is None else whitened.to(x.dtype))).to(residual.dtype),
        b_enc=grad_pre.sum(0, dtype=residual.dtype),
        W_dec=(z.T @ upstream).to(residual.dtype),
        b_dec=torch.zeros_like(dead.b_dec),
    )
    return unexplained.square().sum() / scale, gradient


@torch.no_grad()
def lower_thresholds(log_threshold: Float[Tensor, " d_sae"], dead: Int[Tensor, " n_dead"]) -> None:
    """Bring a dead latent's threshold down to the others' mean, if it is above: nothing else moves it from there."""
    mean = _mean_of_others(log_threshold, dead)
    log_threshold[dead] = torch.where(mean.isfinite(), torch.minimum(log_threshold[dead], mean), log_threshold[dead])


def _mean_of_others(values: Tensor, dead: Tensor) -> Tensor:
    """NaN if there are none."""
    if len(dead) == len(values):
        return values.new_tensor(torch.nan)
    return (values.sum() - values[dead].sum()) / (len(values) - len(dead))


@torch.no_grad()
def resample(
    residual: Float[Tensor, "batch d_in"],
    centred: Float[Tensor, "batch d_in"],
    weights: Weights,
    dead: Int[Tensor, " n_dead"],
    generator: torch.Generator,
    encoder_norm: float,
) -> None:
    """Give each dead latent the direction of a row of the batch, drawn with probability as its squared loss.

    Bricken et al. 2023, "Towards Monosemanticity", appendix on neuron resampling. differs: rows are drawn from this
    batch alone; a bias (and a threshold) becomes the mean of the others', since it has a meaning only relative to theirs.
    encoder_norm: norm of the new encoder rows, in means of the others'.
    """
    # what is not finite is told where losses are logged, and here counts as no loss
    loss = residual.square().sum(1).square().nan_to_num(0.0, 0.0, 0.0).cpu()
    loss += loss.sum() == 0  # no residual: any row will do
    rows = torch.multinomial(loss, len(dead), replacement=len(dead) > int((loss > 0).sum()), generator=generator)
    directions = centred[rows.to(dead.device)]
    norms = directions.norm(dim=1, keepdim=True)
    # a row that is b_dec has no direction
    directions = torch.where(norms > 0, directions / norms.clamp_min(1e-30), weights.W_dec[dead])
    norm = _mean_of_others(weights.encoder.norm(dim=1), dead).nan_to_num(1.0)
    weights.W_dec[dead] = directions
    weights.encoder[dead] = directions * (norm * encoder_norm)
    for values in (weights.b_enc, weights.log_threshold):
        if values is not None:
            values[dead] = _mean_of_others(values, dead).nan_to_num(0.0)
