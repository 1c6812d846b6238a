"""Measure what becomes of absorbed tokens without their absorber: the probe's decision, and the model's next token."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.comparison.evaluate import rows_decoded
from sae_lm.comparison.evaluation_set import EvaluationSet
from sae_lm.comparison.kept import Kept, Part
from sae_lm.comparison.language_model import LanguageModel
from sae_lm.comparison.runs import Key, Run, Runs
from sae_lm.data.store import Store
from sae_lm.metrics.absorption import ConceptAtSae
from sae_lm.metrics.causal import Absorbers, find_absorbers, parts_of, removal_divergences, still_says_yes
from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.splitting import Split
from sae_lm.runtime.progress import Progress
from sae_lm.runtime.seeds import derive
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings

TOKENS = 128
"""Absorbed tokens of an SAE that the language model is run on; at most, and no more than contexts for the
cross-entropy. Each takes two passes of its own."""


class Removals(NamedTuple):
    """Absorbed tokens of one SAE, a random sample over all concepts: what is taken away there."""

    row: Int[Tensor, " n"]
    """in the store"""
    latents: Int[Tensor, "n 2"]
    """the absorber, and the other latent"""
    strength: Float[Tensor, " n"]
    """of both, as they are taken away from the activation"""


def measure_removals(
    sae: SAE,
    codes: Sequence[TokenCodes],
    splits: Sequence[Split],
    evaluation_set: EvaluationSet,
    common: Sequence[int],
) -> tuple[dict[str, float], Removals]:
    """How often the probe's decision falls, over the absorbed tokens of all concepts where another latent fires beside the
    absorber; and a sample of them. Only the number of absorbed tokens where there are none of these. codes, splits, common: as for ``concept_figures``.
    """
    W_dec = sae.W_dec.cpu()
    flips, rows, latents, strengths, absorbed = [], [], [], [], 0
    for candidates, split, k in zip(evaluation_set.candidates, splits, common, strict=True):
        own, probe = codes[candidates.set].take(candidates.rows), candidates.probe
        concept = ConceptAtSae(own, rows_decoded(sae, candidates.x), candidates.token_id, W_dec, probe.weight)
        every = find_absorbers(concept, split.ranking[:k])
        absorbed += len(every.place)
        found = Absorbers(*(of[every.other >= 0] for of in every))  # what is compared is taken from the same tokens
        x = candidates.x[found.place]
        strength = found.strength * sae.scale(candidates.x)[found.place, 0].to(found.strength)
        both = [parts_of(W_dec, latent, strength) for latent in (found.absorber, found.other)]
        flips.append(torch.stack([~still_says_yes(x, part, probe.weight, probe.bias) for part in both], 1))
        row = evaluation_set.sets[candidates.set].rows.row
        rows.append(torch.full_like(found.place, -1) if row is None else row[candidates.rows[found.place]])
        latents.append(torch.stack([found.absorber, found.other], 1))
        strengths.append(strength)
    flipped, row = torch.cat(flips).double(), torch.cat(rows)
    generator = torch.Generator().manual_seed(derive("removals", evaluation_set.seed))
    chosen = torch.randperm(len(row), generator=generator)
    chosen = chosen[row[chosen] >= 0][:TOKENS]
    sample = Removals(row[chosen], torch.cat(latents)[chosen], torch.cat(strengths)[chosen])
    if not len(flipped):
        return {"absorbed_tokens": float(absorbed)}, sample
    absorber, other = flipped.mean(0).tolist()
    return {"absorbed_tokens": float(absorbed), "absorber_flips": absorber, "other_flips": other}, sample


def measure_removal_costs(
    settings: CompareSettings,
    store: Store,
    runs: Runs,
    model: LanguageModel,
    removals: Mapping[Key, Removals],
    kept: Kept,
    device: str,
) -> dict[Key, dict[str, float]]:
    """KL divergence of the language model's next token, mean over a sample of the absorbed tokens of each SAE."""

    def cost(run: Run, sample: Removals) -> dict[str, float]:
        blocks, position = _contexts(store, sample.row)
        W_dec = run.load(device).W_dec
        removed = [parts_of(W_dec, latent.to(W_dec.device), sample.strength) for latent in sample.latents.T]
        absorber, other = removal_divergences(model.bridge, runs.training["hook"], blocks, position, removed)
        return {"absorber_kl": float(absorber.mean()), "other_kl": float(other.mean())}

    samples = {
        key: Removals(*(values[: settings.ce_contexts] for values in sample)) for key, sample in removals.items()
    }
    parts = {
        key: Part("without absorbers", [runs.by_key[key]], partial(cost, runs.by_key[key], sample))
        for key, sample in samples.items()
        if len(sample.row)
    }
    with Progress("without absorbers", len(parts), "SAE") as bar:
        return dict(zip(parts, kept.each([*parts.values()], bar.reach), strict=True))


def _contexts(store: Store, row: Int[Tensor, " n"]) -> tuple[Int[Tensor, "n pos"], Int[Tensor, " n"]]:
    """The context of each row, and the row's position in it."""
    first = int(row.min())
    columns = store.tokens(first, int(row.max()) + 1)
    context, position = (columns[name][row - first].long() for name in ("context", "position"))
    some, place = context.unique(return_inverse=True)
    blocks = torch.cat([store.blocks(number, number + 1) for number in some.tolist()])
    return blocks[place], position
