"""Measure what each SAE costs the language model: its cross-entropy on held-out text with the SAE in place."""

import math
import warnings
from collections.abc import Callable, Sequence
from functools import partial
from itertools import accumulate
from typing import Any, NamedTuple

import torch

from sae_lm.comparison.evaluate import BootstrapValues
from sae_lm.comparison.evaluation_set import SAMPLES
from sae_lm.comparison.kept import Kept, Part
from sae_lm.comparison.runs import Key, Loaded, Runs
from sae_lm.data.recipe import model_of
from sae_lm.data.store import Store
from sae_lm.errors import SaeError, SaeLmWarning
from sae_lm.lm.device_map import input_device
from sae_lm.metrics.language_model import CrossEntropy, HeldOutText, cross_entropies, looks_ahead
from sae_lm.metrics.statistics import resamples
from sae_lm.runtime.device import imitation
from sae_lm.runtime.progress import Progress
from sae_lm.settings import CompareSettings


class LanguageModel(NamedTuple):
    name: str
    bridge: Any
    """a TransformerBridge"""


def boot_model(settings: CompareSettings, store: Store, device: str) -> LanguageModel:
    """The language model the store was cached from. Raises SaeError where it is another one."""
    from sae_lm.lm.bridge import boot
    from sae_lm.lm.capture import describe_model
    from sae_lm.lm.source import find_model

    recorded = store.manifest.recipe.model
    if settings.model is None and recorded["id"] != "embedded" and recorded["revision"] is None:
        raise SaeError(
            f"the store was cached from a local model folder named {recorded['id']!r}; give its path with --model, "
            "or --model none to leave out the cross-entropy"
        )
    name, revision = model_of(store.manifest.recipe, store.path, settings.model)
    dtype = getattr(torch, recorded["dtype"])
    source = find_model(name, revision)
    placed: dict[str, Any] = {"device_map": settings.device_map} if settings.device_map else {}
    model = boot(source, dtype=dtype, **(placed or {"device": device}))
    if slow := imitation(
        dtype, input_device(model), "the store was cached in it; give fewer --ce-contexts or --model none"
    ):
        warnings.warn(slow, SaeLmWarning, stacklevel=2)
    booted = describe_model(source, model.original_model.config, dtype)
    for key, what in (("d_model", "width"), ("d_vocab", "vocabulary"), ("files_sha256", "checksum of the weights")):
        unknown = key == "files_sha256" and recorded[key] is None  # of a hub's model, which may lie in a folder now
        if booted[key] != recorded[key] and not unknown:
            raise SaeError(
                f"model {name!r} has {what} {booted[key]}, the store was cached from one with {recorded[key]}; "
                "give the same model with --model"
            )
    return LanguageModel(name, model)


def if_causal(model: LanguageModel | None, store: Store) -> LanguageModel | None:
    """The model, or None with a warning where it looks ahead, so that nothing is of the next token."""
    if model is not None and looks_ahead(model.bridge, store.blocks(0, 1)[0]):
        warnings.warn(
            "this language model's predictions change with tokens that come after them, as a BERT's do: cross-entropy and "
            "the cost of removed absorbers, which are of the next token, are left out",
            SaeLmWarning,
            stacklevel=2,
        )
        return None
    return model


class CrossEntropies(NamedTuple):
    """Those of all SAEs."""

    figures: dict[Key, dict[str, float]]
    bootstrap_values: dict[Key, BootstrapValues]
    shared: dict[str, Any]
    """what they have in common, as the report has it"""


def measure_cross_entropies(
    settings: CompareSettings, store: Store, runs: Runs, model: LanguageModel, kept: Kept, device: str
) -> CrossEntropies:
    """Cross-entropies on held-out contexts.

    Tokens that have no row are left alone and predict nothing that counts: SAEs never saw their like, and FVU and L0
    are of the others.
    """
    hook, first = runs.training["hook"], runs.training["held_out_from_context"]
    mean = store.moments(hook, runs.training["held_out_from_row"]).mean.float()
    stop = min(store.manifest.contexts, first + settings.ce_contexts)
    blocks = store.blocks(first, stop)
    text = HeldOutText(blocks, store.special(blocks) | store.rowless(first, stop), hook, mean)
    loaded, every = Loaded(runs.by_key, device), list(runs.by_key.values())
    size = max(1, min(CONTEXTS, len(blocks) // BLOCKS))
    split = text.split(size)
    ends = list(accumulate(len(block.blocks) * len(every) for block in split))
    with Progress("in the language model", len(blocks) * len(every), "context") as bar:
        of_blocks = [
            Part(
                f"cross-entropies of block {number}", every, partial(_of_block, model, block, loaded, size, bar.update)
            )
            for number, block in enumerate(split)
        ]
        if kept.processes > 1:
            loaded.load()
        by_block = list(kept.each(of_blocks, lambda done: bar.reach(ends[done - 1])))
    parts = {key: [CrossEntropy(*of_saes[place]) for of_saes in by_block] for place, key in enumerate(runs.by_key)}
    pooled = {key: pooled_entropy(of_blocks) for key, of_blocks in parts.items()}
    one = next(iter(pooled.values()))
    shared = {"tokens": one.tokens, "clean": one.clean, "ablated": one.ablated, "mean_ablated": one.mean_ablated}
    return CrossEntropies(
        {key: entropy_figures(of_sae) for key, of_sae in pooled.items()},
        {key: entropy_bootstrap(of_blocks, settings.seed) for key, of_blocks in parts.items()},
        {"model": model.name, **shared},
    )


def _of_block(
    model: LanguageModel, block: HeldOutText, loaded: Loaded, size: int, told: Callable[[int], None]
) -> list[CrossEntropy]:
    return [*cross_entropies(model.bridge, block, loaded, size, told).values()]


BLOCKS, CONTEXTS = 12, 16
"""For the noise of the cross-entropy: blocks of contexts, at least; contexts in each, at most."""


def pooled_entropy(parts: Sequence[CrossEntropy], weight: Sequence[float] | None = None) -> CrossEntropy:
    """All blocks' tokens together; weight: how often each block counts."""
    tokens = [part.tokens * w for part, w in zip(parts, weight or [1.0] * len(parts), strict=True)]
    counted = [(part, n) for part, n in zip(parts, tokens, strict=True) if n]
    total = math.fsum(tokens)

    def mean(key: str) -> float:
        return math.fsum(getattr(part, key) * n for part, n in counted) / total if total else math.nan

    return CrossEntropy(sum(part.tokens for part in parts), *(mean(key) for key in CrossEntropy._fields[1:]))


def entropy_figures(pooled: CrossEntropy) -> dict[str, float]:
    return {
        "ce_spliced": pooled.spliced,
        "ce_recovered": pooled.recovered,
        "ce_recovered_from_mean": pooled.recovered_from_mean,
        "kl": pooled.kl_spliced,
        "kl_recovered": pooled.kl_recovered,
    }


def entropy_bootstrap(parts: Sequence[CrossEntropy], seed: int) -> BootstrapValues:
    """The figures in each sample of the blocks; none of a single block."""
    if len(parts) < 2:
        return {}
    sampled = [entropy_figures(pooled_entropy(parts, w)) for w in resamples(len(parts), SAMPLES, seed).tolist()]
    return {key: torch.tensor([sample[key] for sample in sampled], dtype=torch.float64) for key in sampled[0]}
