"""Make SAEs whose worth is known beside a trained one: a perfect one for some concepts, and spoilt copies.

A metric of absorption is worth something where it puts these in order (2605.18229 asks this of SAE benchmarks): the
oracle before the trained SAE, and that before copies that are spoilt more and more. How much absorption a metric sees is
asked with a known amount of it: a part of what the oracle's latents carry is given to latents that hardly fire elsewhere.
"""

from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from sae_lm.metrics.codes import active
from sae_lm.runtime.seeds import derive
from sae_lm.sae.model import SAE

SAME_DIRECTION = 1e-4
"""Singular value, relative to the largest, below which directions of probes count as combinations of the others."""
DAMPING, LSMR_STEPS = 0.1, 100
"""Of the oracle's least squares, in which every latent's activations are scaled to norm 1: weight that holds a decoder
row to 0, so that it carries of a concept no more than it has to; steps at most."""
PURE, FEWEST_ROWS = 0.9, 4
"""Of a latent that may absorb a concept: least share of its rows on which the probe says yes; least number of these."""


class PlantedSAE(SAE):
    """The latents of an SAE as they were, and one latent more for each probe, which nothing displaces.

    A planted latent fires exactly where its probe says yes, with x's projection on the probe's direction (raised where
    the probe says yes to negative ones). As many of the others fire as before, so that L0 grows by the planted ones.
    Where it has absorbers it is silent where one of these fires (`absorbing_saes`).
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
        self.absorbers: Bool[Tensor, "trained probes"] = torch.zeros(
            len(sae.W_dec), count, dtype=torch.bool, device=sae.W_dec.device
        )
        """trained latents that silence each planted one"""

    def encode(self, x: Float[Tensor, "*batch d_in"]) -> Float[Tensor, "*batch d_sae"]:
        z = self.trained.encode(x)
        return torch.cat([z, self.encode_planted(x, z)], -1)

    def encode_planted(
        self, x: Float[Tensor, "*batch d_in"], z: Float[Tensor, "*batch trained"] | None = None
    ) -> Float[Tensor, "*batch probes"]:
        """z: of the trained latents, where it is known."""
        count = len(self.bias)
        along = x.to(self.W_enc.dtype) @ self.W_enc[:, -count:] + self.b_enc[-count:]
        return along.clamp_min(torch.finfo(along.dtype).tiny) * (self.logits(x, z) > 0)

    def logits(
        self, x: Float[Tensor, "*batch d_in"], z: Float[Tensor, "*batch trained"] | None = None
    ) -> Float[Tensor, "*batch probes"]:
        """Of the probes, minus infinity where a latent absorbs them; a planted latent fires where its own is above 0."""
        logits = x.to(self.W_enc.dtype) @ self.weight + self.bias
        if not self.absorbers.any():
            return logits
        fires = ((self.trained.encode(x) if z is None else z) > 0).to(logits)
        return logits.masked_fill(fires @ self.absorbers.to(logits) > 0, -torch.inf)


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


@torch.no_grad()
def absorbing_saes(
    oracle: PlantedSAE,
    shares: Sequence[float],
    rows: Sequence[Sequence[Float[Tensor, "_ d_in"]]],
    probes: Sequence[Sequence[int]],
    text: Sequence[Float[Tensor, "_ d_in"]],
    seed: int,
) -> list[PlantedSAE]:
    """For each share the oracle with absorption of known size: planted latents silent on up to this share of their rows.

    What absorbs is found among the trained latents, in random order: those that fire, on at least `PURE` of their rows,
    where the probe says yes. As many of them as together fire on no more than the share of the probe's rows silence its
    planted latent wherever they fire, and their decoder rows take its part: a multiple >= 0 of the probe's direction each,
    by least squares for what the planted latent carried there. L0 falls; of x as little more is lost as multiples of the
    absorbers' activations allow. A larger share takes in the absorbers of a smaller.

    shares: ascending. rows: sets of rows, each in batches. probes: whose absorbers are chosen on which set. text: further
    rows, on which these have to be as pure, and which are in the least squares too.
    """
    order = torch.randperm(
        oracle.trained.config.d_sae, generator=torch.Generator().manual_seed(derive("absorbers", seed))
    ).numpy()
    absorbing = [_without_absorbers(oracle) for _ in shares]
    text_codes, text_planted = _coded(oracle, text)
    pure_in_text = _pure(text_codes, text_planted > 0, 0)
    for batches, of_set in zip(rows, probes, strict=True):
        if not of_set:
            continue
        codes, planted = _coded(oracle, batches)
        pure = _pure(codes, planted[:, [*of_set]] > 0, FEWEST_ROWS) & pure_in_text[:, [*of_set]]
        for place, probe in enumerate(of_set):
            most, latents = np.count_nonzero(planted[:, probe]), list[int]()
            for share, sae in zip(shares, absorbing, strict=True):
                latents = _within(codes, order[pure[order, place]], share * most, latents)
                of_both = ((codes, planted[:, probe]), (text_codes, text_planted[:, probe]))
                _absorb(sae, probe, latents, of_both)
    return absorbing


def _coded(oracle: PlantedSAE, batches: Sequence[Tensor]) -> tuple[Any, np.ndarray]:
    """Activations of the trained latents, scipy's sparse matrix [n, d_sae] by columns, and of the planted ones."""
    width, x = oracle.trained.config.d_sae, [batch.to(oracle.W_enc) for batch in batches]
    codes = _design([active(oracle.trained, batch) for batch in x], width + 1).tocsc()[:, :width]
    return codes, torch.cat([oracle.encode_planted(batch) for batch in x]).double().cpu().numpy()


def _without_absorbers(oracle: PlantedSAE) -> PlantedSAE:
    copy = PlantedSAE(oracle.trained, oracle.weight, oracle.bias)
    copy.W_dec.copy_(oracle.W_dec)
    copy.b_dec.copy_(oracle.b_dec)
    return copy


def _pure(codes: Any, said: np.ndarray, fewest: int) -> np.ndarray:
    """[d_sae, probes] which latents fire where a probe says yes and hardly elsewhere."""
    fires = (codes > 0).astype(np.float64)
    together = fires.T @ said.astype(np.float64)
    return (together >= fewest) & (together >= PURE * np.asarray(fires.sum(0))[0][:, None])


def _within(codes: Any, candidates: np.ndarray, most: float, chosen: Sequence[int]) -> list[int]:
    """To those chosen one latent after another, where all together fire on no more rows than this."""
    chosen = [*chosen]
    covered = np.asarray((codes[:, chosen] > 0).sum(1))[:, 0] > 0
    for latent in candidates[~np.isin(candidates, chosen)].tolist():
        more = covered.copy()
        more[codes.indices[codes.indptr[latent] : codes.indptr[latent + 1]]] = True
        if more.sum() <= most:
            chosen.append(latent)
            covered = more
    return chosen


def _absorb(sae: PlantedSAE, probe: int, latents: list[int], of_rows: Iterable[tuple[Any, np.ndarray]]) -> None:
    """Let these latents silence a planted one, and take what it carried. of_rows: codes, and what it carried there."""
    from scipy.optimize import nnls

    if not latents:
        return
    strengths, carried = [], []
    for codes, planted in of_rows:
        of_latents = codes[:, latents].toarray()
        absorbed = (of_latents > 0).any(1) & (planted > 0)
        strengths.append(of_latents[absorbed])
        carried.append(planted[absorbed])
    parts, _ = nnls(np.concatenate(strengths), np.concatenate(carried))
    unit = sae.W_dec[sae.trained.config.d_sae + probe]
    sae.absorbers[latents, probe] = True
    sae.W_dec[latents] += torch.from_numpy(parts).to(unit)[:, None] * unit


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
