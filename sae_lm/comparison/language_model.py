"""Cross-entropies of all SAEs in the language model, with their noise over blocks of contexts."""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from sae_lm.comparison.evaluate import (
    DRAWS,
    Draws,
)
from sae_lm.comparison.runs import Key, Loaded, Runs
from sae_lm.data.store import Store
from sae_lm.errors import SaeError
from sae_lm.metrics.language_model import CrossEntropy, HeldOutText, Name, cross_entropies
from sae_lm.metrics.statistics import resamples
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE
from sae_lm.settings import CompareSettings


def boot_model(settings: CompareSettings, store: Store, device: str) -> tuple[str, Any]:
    """The language model the store was cached from, by name. Raises SaeError where it is another one."""
    from sae_lm.lm.bridge import boot
    from sae_lm.lm.capture import describe_model
    from sae_lm.lm.source import find_model

    recorded = store.manifest.recipe.model
    if settings.model is None and recorded["id"] != "embedded" and recorded["revision"] is None:
        raise SaeError(
            f"the store was cached from a local model folder named {recorded['id']!r}; give its path with --model, "
            "or --model none to leave out the cross-entropy"
        )
    name = settings.model or recorded["id"]
    dtype = getattr(torch, recorded["dtype"])
    source = find_model(name, recorded["revision"])
    model = boot(source, device=device, dtype=dtype)
    there = describe_model(source, model.original_model.config, dtype)
    for key, what in (("d_model", "width"), ("d_vocab", "vocabulary"), ("files_sha256", "checksum of the weights")):
        if there[key] != recorded[key]:
            raise SaeError(
                f"model {name!r} has {what} {there[key]}, the store was cached from one with {recorded[key]}; "
                "give the same model with --model"
            )
    return name, model


def all_entropies(
    settings: CompareSettings,
    store: Store,
    runs: Runs,
    model: tuple[str, Any],
    device: str,
    figures: dict[Key, dict[str, float]],
    draws: dict[Key, Draws],
) -> dict[str, Any]:
    """Cross-entropies on held-out contexts, into ``figures`` and ``draws``; what they have in common.

    Tokens that have no row are left alone and predict nothing that counts: SAEs never saw their like, and FVU and L0
    are of the others.
    """
    hook, first = runs.training["hook"], runs.training["held_out_from_context"]
    mean = store.moments(hook, runs.training["held_out_from_row"]).mean.float()
    stop = min(store.manifest.contexts, first + settings.ce_contexts)
    blocks = store.blocks(first, stop)
    text = HeldOutText(blocks, store.special(blocks) | store.rowless(first, stop), hook, mean)
    with Progress("in the language model", len(blocks) * len(runs.of), "context") as bar:
        parts = spliced_entropies(model[1], text, Loaded(runs.of, device), bar.update)
    for key, of_blocks in parts.items():
        figures[key] |= entropy_figures(pooled_entropy(of_blocks))
        draws[key] |= entropy_draws(of_blocks, settings.seed)
    one = pooled_entropy(next(iter(parts.values())))
    shared = {"tokens": one.tokens, "clean": one.clean, "ablated": one.ablated, "mean_ablated": one.mean_ablated}
    return {"model": model[0], **shared}


BLOCKS, CONTEXTS = 12, 16
"""For the noise of the cross-entropy: blocks of contexts, at least; contexts in each, at most."""


def spliced_entropies(
    model: Any, text: HeldOutText, saes: Mapping[Name, SAE], tell: Callable[[int], object]
) -> dict[Name, list[CrossEntropy]]:
    """`cross_entropies` of each block of contexts."""
    size = max(1, min(CONTEXTS, len(text.blocks) // BLOCKS))
    parts = [cross_entropies(model, part, saes, size, tell) for part in text.split(size)]
    return {name: [part[name] for part in parts] for name in saes}


def pooled_entropy(parts: Sequence[CrossEntropy], weight: Sequence[float] | None = None) -> CrossEntropy:
    """All blocks' tokens together; weight: how often each block counts."""
    share = [part.tokens * w for part, w in zip(parts, weight or [1.0] * len(parts), strict=True)]
    there = [(part, s) for part, s in zip(parts, share, strict=True) if s]
    n = math.fsum(share)

    def mean(key: str) -> float:
        return math.fsum(getattr(part, key) * s for part, s in there) / n if n else math.nan

    return CrossEntropy(sum(part.tokens for part in parts), *(mean(key) for key in CrossEntropy._fields[1:]))


def entropy_figures(pooled: CrossEntropy) -> dict[str, float]:
    return {
        "ce_spliced": pooled.spliced,
        "ce_recovered": pooled.recovered,
        "ce_recovered_from_mean": pooled.recovered_from_mean,
        "kl": pooled.kl_spliced,
        "kl_recovered": pooled.kl_recovered,
    }


def entropy_draws(parts: Sequence[CrossEntropy], seed: int) -> Draws:
    """The figures in each sample of the blocks; none of a single block."""
    if len(parts) < 2:
        return {}
    drawn = [entropy_figures(pooled_entropy(parts, w)) for w in resamples(len(parts), DRAWS, seed).tolist()]
    return {key: torch.tensor([of[key] for of in drawn], dtype=torch.float64) for key in drawn[0]}
