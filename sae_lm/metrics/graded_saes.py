"""Make SAEs whose worth is known beside a trained one: a perfect one for some concepts, and spoilt copies.

A metric of absorption is worth something where it puts these in order (2605.18229 asks this of SAE benchmarks): the
oracle before the trained SAE, and that before copies that are spoilt more and more.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.metrics.codes import active
from sae_lm.runtime.seeds import derive
from sae_lm.sae.model import SAE

SAME_DIRECTION = 1e-4
"""Singular value, relative to the largest, below which directions of probes count as combinations of the others."""
DAMPING, LSMR_STEPS = 0.1, 100
"""Of the oracle's least squares, in which every latent's activations are scaled to norm 1: weight that holds a decoder
row to 0, so that it carries of a concept no more than it has to; steps at most."""


class PlantedSAE(SAE):
    """The latents of an SAE as they were, and one latent more for each probe, which nothing displaces.

    A planted latent fires exactly where its probe says yes, with x's projection on the probe's direction (raised where
    the probe says yes to negative ones). As many of the others fire as before, so that L0 grows by the planted ones.
    """

    def __init__(self, sae: SAE, weight: Float[Tensor, "d_in probes"], bias: Float[Tensor, " probes"]) -> None:
        norm = weight.norm(dim=0)
        unit, lift = weight / norm, (bias / norm).clamp_min(0)
        count = len(bias)
        super().__init__(
            replace(sae.config, architecture="standard", k=None, d_sae=sae.config.d_sae + count),
            {
                "W_enc": torch.cat([sae.W_enc, unit], 1),
                "b_enc": torch.cat([sae.b_enc, lift]),
                "W_dec": torch.cat([sae.W_dec, unit.T]),
                "b_dec": sae.b_dec,
            },
        )
        self.trained, self.weight, self.bias = sae, weight, bias

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        return torch.cat([self.trained.encode(x), self.encode_planted(x)], -1)

    def encode_planted(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch probes"]:
        x = x.to(self.W_enc.dtype)
        count = len(self.bias)
        along = x @ self.W_enc[:, -count:] + self.b_enc[-count:]
        return along.clamp_min(torch.finfo(x.dtype).tiny) * (self.logits(x) > 0)

    def logits(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch probes"]:
        """Of the probes; a planted latent fires where its own is above 0."""
        return x.to(self.W_enc.dtype) @ self.weight + self.bias


@torch.no_grad()
def oracle_sae(
    sae: SAE,
    weight: Float[Tensor, "d_in probes"],
    bias: Float[Tensor, " probes"],
    batches: Iterable[Float[Tensor, "_ d_in"]],
) -> PlantedSAE:
    """A `PlantedSAE` whose planted latents carry their concepts whole, and whose others carry what that leaves.

    A planted decoder row is its probe's unit direction, so that where it fires it carries all of x's projection on it.
    Of the other decoder rows and the bias the part within the span of the probes' directions is the least-squares
    solution for what the planted latents leave there: an absorber that fires only where the concept is loses the
    concept's direction, a latent that fires elsewhere keeps what is needed there. Outside the span the decoder stays
    the trained one's.

    batches: rows that the solution is taken on. weight, bias: of probes, x @ weight + bias > 0 for yes.
    """
    from scipy.sparse.linalg import lsmr

    planted = PlantedSAE(sae, weight, bias)
    others = sae.config.d_sae
    left, size, _ = torch.linalg.svd(weight / weight.norm(dim=0), full_matrices=False)
    span = left[:, size > SAME_DIRECTION * size[0]]  # [d_in, rank]
    codes, along = [], []
    for x in batches:
        x = x.to(span)
        codes.append(active(sae, x))
        along.append((x - planted.encode_planted(x) @ planted.W_dec[others:]) @ span)
    design = _design(codes, others + 1)
    scale = np.sqrt(np.asarray(design.power(2).sum(0))[0])
    scale[scale == 0] = 1.0
    scaled = design.multiply(1 / scale).tocsr()
    target = torch.cat(along).double().cpu().numpy()
    within = [lsmr(scaled, column, damp=DAMPING, maxiter=LSMR_STEPS)[0] / scale for column in target.T]
    rows = torch.cat([sae.W_dec, sae.b_dec[None]])
    rows = rows - rows @ span @ span.T + torch.from_numpy(np.stack(within, 1)).to(rows) @ span.T
    planted.W_dec[:others] = rows[:-1]
    planted.b_dec.copy_(rows[-1])
    return planted


def _design(codes: Sequence[tuple[Tensor, Tensor]], columns: int) -> Any:
    """Activations and their latents, batch by batch -> scipy's sparse matrix [n, columns], whose last column is 1."""
    from scipy.sparse import csr_matrix

    firing = torch.cat([(value > 0).sum(1) for value, _ in codes]).cpu()
    n = len(firing)
    row = torch.cat([torch.arange(n).repeat_interleave(firing), torch.arange(n)])
    latent = torch.cat([*(latent[value > 0].cpu() for value, latent in codes), torch.full((n,), columns - 1)])
    values = torch.cat([*(value[value > 0].double().cpu() for value, _ in codes), torch.ones(n, dtype=torch.float64)])
    return csr_matrix((values.numpy(), (row.numpy(), latent.numpy())), (n, columns))


def permuted_sae(sae: SAE, share: float, seed: int) -> SAE:
    """This share of the decoder rows pass their directions on to each other, none keeps its own; norms stay.

    Of one seed, a larger share takes in the latents of a smaller. Which latents fire and how strongly is unchanged.
    """
    chosen = _chosen(sae, share, seed)
    norms = sae.W_dec.norm(dim=1, keepdim=True)
    unit = sae.W_dec / norms.clamp_min(1e-12)
    unit[chosen] = unit[chosen.roll(1)]
    return _changed(sae, W_dec=unit * norms)


def dropped_sae(sae: SAE, share: float, seed: int) -> SAE:
    """This share of the latents never fires; a topk SAE has the next largest fire in their place.

    Of one seed, a larger share takes in the latents of a smaller.
    """
    chosen = _chosen(sae, share, seed)
    W_enc, b_enc = sae.W_enc.clone(), sae.b_enc.clone()
    W_enc[:, chosen], b_enc[chosen] = 0, -1
    return _changed(sae, W_enc=W_enc, b_enc=b_enc)


def _chosen(sae: SAE, share: float, seed: int) -> Tensor:
    generator = torch.Generator().manual_seed(derive("spoilt latents", seed))
    order = torch.randperm(sae.config.d_sae, generator=generator)
    return order[: round(share * len(order))].to(sae.W_dec.device)


def _changed(sae: SAE, **weights: Tensor) -> SAE:
    return SAE(sae.config, {**dict(sae.named_parameters()), **weights})
