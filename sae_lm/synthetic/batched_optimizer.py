"""The trainer's optimizers for many small SAEs at once: every SAE takes the step that it would take alone.

``row_rms`` works row by row, so the rows of all SAEs are one long matrix to the trainer's own code. What it clips
together, the gradients of the biases, is clipped here for each SAE by itself. ``adam`` clips all of an SAE's gradients.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.training.objective import Weights
from sae_lm.training.optimizer import BETAS, CLIP_NORM, RowRms


class ManyWeights(NamedTuple):
    """The weights of all SAEs, as the trainer names them."""

    encoder: Float[Tensor, "trials seeds d_sae d_in"]
    b_enc: Float[Tensor, "trials seeds d_sae"]
    W_dec: Float[Tensor, "trials seeds d_sae d_in"]
    b_dec: Float[Tensor, "trials seeds d_in"]


class ManyRowRms:
    """The trainer's `RowRms` on the rows of all SAEs."""

    def __init__(self, weights: ManyWeights) -> None:
        self.flat = _ClippedBefore({name: _flat(weight.detach()) for name, weight in weights._asdict().items()})

    @torch.no_grad()
    def update(self, weights: ManyWeights, lr: float) -> None:
        gradients = [torch.zeros_like(weight) if weight.grad is None else weight.grad for weight in weights]
        _clip([gradients[1], gradients[3]])
        self.flat.update(Weights(*map(_flat, gradients)), None, 0, lr)


class _ClippedBefore(RowRms):
    def _clipped_norms(self, gradient: Weights) -> list[Tensor]:
        return [gradient.b_enc.new_zeros(())]


def _flat(weight: Tensor) -> Tensor:
    """Rows of all SAEs one below the other, or their biases one after the other; a view."""
    return weight.view(-1, weight.shape[-1]) if weight.ndim == 4 else weight.view(-1)


class ManyAdam:
    """Adam with each SAE's gradients clipped together."""

    def __init__(self, weights: ManyWeights) -> None:
        self.adam = torch.optim.Adam(list(weights), betas=BETAS, eps=1e-8, fused=True)

    @torch.no_grad()
    def update(self, weights: ManyWeights, lr: float) -> None:
        pull, rows = weights.W_dec.grad, weights.W_dec
        assert pull is not None
        pull.addcmul_((pull * rows).sum(-1, keepdim=True), rows, value=-1)
        _clip([weight.grad for weight in weights if weight.grad is not None])
        self.adam.param_groups[0]["lr"] = lr
        self.adam.step()
        rows /= rows.norm(dim=-1, keepdim=True)


def _clip(gradients: list[Tensor]) -> None:
    """Scale each SAE's gradients down to `CLIP_NORM` together, in place."""
    norm = torch.stack([gradient.flatten(2).norm(dim=-1) for gradient in gradients]).norm(dim=0)
    shrink = 1 / (norm / CLIP_NORM).clamp_min(1.0)
    for gradient in gradients:
        gradient *= shrink.view(*shrink.shape, *[1] * (gradient.dim() - 2))


def hold(weights: ManyWeights, fixed: Bool[Tensor, " trials"], features: int, bias: bool) -> None:
    """Take away the gradients of what shall not move: decoder rows that are the truth, b_dec where there is none."""
    assert weights.W_dec.grad is not None and weights.b_dec.grad is not None
    if fixed.any():
        weights.W_dec.grad[fixed, :, :features] = 0
    if not bias:
        weights.b_dec.grad.zero_()


def make_many(name: str, weights: ManyWeights) -> ManyRowRms | ManyAdam:
    """name: ``row_rms`` or ``adam``, as in the trainer's settings. Each takes a step by the weights' own gradients."""
    return ManyAdam(weights) if name == "adam" else ManyRowRms(weights)
