"""batches -> one arm's weights: initialisation, loss, penalty, optimizer step, dead-latent counts.

Activations come scaled so that predicting their mean costs 1 in expectation; the loss is then a
fraction of variance unexplained, and a penalty's coefficient means the same on every model. The
scale is folded back into the biases when the SAE is made.
"""

from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.penalties import PENALTIES, Arm, nearest_row
from sae_lm.sae.topk import TopK, auxk
from sae_lm.seeds import derive

CLIP_NORM = 1.0
"""Largest gradient norm of a step, over all weights together."""


class Hyperparameters(NamedTuple):
    """What all arms of a comparison share."""

    k: int
    steps: int
    lr: float
    warm_up: float
    decay: float
    penalty_every: int
    penalty_start: float
    penalty_on: str
    aux_coefficient: float
    aux_k: int
    dead_after: int
    matmul: torch.dtype


def default_lr(d_sae: int) -> float:
    """2e-4 / sqrt(d_sae / 2^14): figure 3 of Gao et al. 2024 (2406.04093), as dictionary_learning applies it."""
    return 2e-4 / (d_sae / 2**14) ** 0.5


def learning_rate(step: int, h: Hyperparameters) -> float:
    """Linear warm-up over the first share of steps, constant, linear decay to 0 over the last share."""
    rise = (step + 1) / max(1.0, h.warm_up * h.steps)
    fall = (h.steps - step) / max(1.0, h.decay * h.steps)
    return h.lr * min(1.0, rise, fall)


class ArmTraining:
    """One SAE in training. Weights of one seed start equal in every arm.

    W_enc is [d_in, d_sae] but stored column by column, so that gathering a latent's encoder
    direction and its sparse gradient are contiguous.
    """

    def __init__(
        self, arm: Arm, seed: int, d_sae: int, start: Float[Tensor, " d_in"], h: Hyperparameters, device: str
    ) -> None:
        """start: the initial b_dec, the mean activation in scaled units."""
        self.arm, self.seed, self.h = arm, seed, h
        rows = torch.randn(d_sae, len(start), generator=torch.Generator().manual_seed(derive("weights", seed)))
        rows = (rows / rows.norm(dim=1, keepdim=True)).to(device)
        self.W_dec = rows.clone().requires_grad_()
        self.W_enc = rows.clone().T.requires_grad_()
        self.b_enc = torch.zeros(d_sae, device=device, requires_grad=True)
        self.b_dec = start.float().to(device).clone().requires_grad_()
        self.weights = [self.W_enc, self.b_enc, self.W_dec, self.b_dec]
        self.optimizer = torch.optim.Adam(self.weights, lr=h.lr, betas=(0.9, 0.999), eps=1e-8, fused=True)
        self.rows_since_fired = torch.zeros(d_sae, dtype=torch.long, device=device)
        self.penalty_draws = torch.Generator().manual_seed(
            derive("penalty", seed)
        )  # its own, so no other draw depends on the arm
        self.parts: dict[str, Tensor] = {}

    def step(self, x: Float[Tensor, "batch d_in"], step: int) -> None:
        """One optimizer step on one batch of scaled activations."""
        x_hat, z, index = TopK.apply(x, *self.weights, self.h.k, self.h.matmul)  # pyright: ignore[reportGeneralTypeIssues]
        error = x - x_hat
        fvu = error.square().sum() / len(x)
        loss = fvu
        self.parts["fvu"] = fvu.detach()
        dead = (self.rows_since_fired >= self.h.dead_after).nonzero().flatten()
        if self.h.aux_coefficient and len(dead):
            centred = x - self.b_dec.detach()
            aux = auxk(error.detach(), centred, self.W_enc, self.b_enc, self.W_dec, dead, self.h.aux_k)
            self.parts["aux"] = aux.detach()
            loss = loss + self.h.aux_coefficient * aux
        if self._penalty_is_due(step):
            rows = self.W_dec if self.h.penalty_on == "decoder" else self.W_enc.T
            penalty = PENALTIES[self.arm.penalty](rows, self.penalty_draws)
            self.parts["penalty"] = penalty.detach()
            loss = loss + self.arm.coefficient * self.h.penalty_every * penalty
        loss.backward()
        self._update(learning_rate(step, self.h))
        self.rows_since_fired += len(x)
        self.rows_since_fired[index[z > 0]] = 0  # selected at 0 is not fired

    def _penalty_is_due(self, step: int) -> bool:
        if self.arm.coefficient == 0 or step < self.h.penalty_start * self.h.steps:
            return False
        return step % self.h.penalty_every == 0

    @torch.no_grad()
    def _update(self, lr: float) -> None:
        """Adam step that leaves decoder rows at unit norm; the radial gradient is taken out first."""
        gradient = self.W_dec.grad
        assert gradient is not None
        gradient -= (gradient * self.W_dec).sum(1, keepdim=True) * self.W_dec
        torch.nn.utils.clip_grad_norm_(self.weights, CLIP_NORM)
        self.optimizer.param_groups[0]["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.W_dec /= self.W_dec.norm(dim=1, keepdim=True)

    @torch.no_grad()
    def log(self, step: int) -> dict[str, Any]:
        """Figures of the last step; penalty and AuxK as of the last step that had them. Raises SaeError when the loss is no longer finite."""
        facts = {name: float(value) for name, value in self.parts.items()}
        if not all(map(torch.isfinite, self.parts.values())):
            raise SaeError(
                f"arm {self.arm.name}, seed {self.seed}: the loss became NaN or infinite by step {step}; "
                "lower --lr or the arm's coefficient (finished SAEs are kept)"
            )
        nearest = (self.W_dec * self.W_dec[nearest_row(self.W_dec)]).sum(1)
        return {
            "arm": self.arm.name,
            "seed": self.seed,
            "step": step,
            **facts,
            "dead": int((self.rows_since_fired >= self.h.dead_after).sum()),
            "nearest_cos": float(nearest.mean()),
            "lr": learning_rate(step, self.h),
        }

    @torch.no_grad()
    def finish(self, scale: float, metadata: dict[str, Any]) -> SAE:
        """The trained SAE for raw activations: with x' = x / scale, biases take the factor scale."""
        config = SaeConfig(
            architecture="topk", d_in=len(self.b_dec), d_sae=len(self.b_enc), k=self.h.k, metadata=metadata
        )
        weights = {
            "W_enc": self.W_enc.cpu(),
            "b_enc": self.b_enc.cpu() * scale,
            "W_dec": self.W_dec.cpu(),
            "b_dec": self.b_dec.cpu() * scale,
        }
        return SAE(config, {name: value.detach() for name, value in weights.items()})
