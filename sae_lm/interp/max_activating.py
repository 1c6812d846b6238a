"""Find the contexts of a store on which an SAE's latents fire most.

Rows are encoded chunk by chunk, whole contexts at a time; what is kept is per chosen latent a count,
a histogram and the strongest token of each of its best contexts. Memory does not grow with the rows.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.data.store import Store
from sae_lm.errors import SaeError
from sae_lm.lm.hooks import canonical_hook
from sae_lm.runtime.progress import Progress
from sae_lm.sae.model import SAE

LATENTS, BEFORE, AFTER = 20, 24, 8
"""Latents shown where none are named; tokens shown before and after the one that fires."""


CHUNK_ROWS, CHUNK_VALUES = 4096, 2**25
"""Rows encoded at once, at most; fewer where so many rows times latents would be more numbers than this."""


BINS_PER_OCTAVE, BINS = 4, 160
"""Of the histogram: from 2^-20 to 2^20, what is outside in the outermost bins."""


class SearchResult(NamedTuple):
    """What a search keeps, per chosen latent: its activations above 0 by size, and its best contexts with the
    strongest activation in each (falling, 0 where there are fewer) and the row it is on (the first of equals)."""

    histogram: Int[Tensor, "chosen bins"]
    value: Float[Tensor, "contexts chosen"]
    row: Int[Tensor, "contexts chosen"]


def fitting_hook(name: str, sae: SAE, store: Store) -> str:
    """The store's name for the hook that the SAE was trained on. Raises SaeError where the two do not fit."""
    metadata = sae.config.metadata
    hook = canonical_hook(str(metadata.get("hook_name")))
    if hook not in store.hooks:
        raise SaeError(
            f"SAE {name} is for hook {hook!r} (metadata.hook_name of its cfg.json), store {store.path} holds "
            f"{', '.join(store.hooks)}; cache the SAE's hook"
        )
    if store.hooks[hook] != sae.config.d_in:
        raise SaeError(
            f"SAE {name} takes activations of width {sae.config.d_in}, {hook} of store {store.path} has width "
            f"{store.hooks[hook]}; give the store of the model the SAE was trained on"
        )
    same_store = (metadata.get("training") or {}).get("store_id") == store.manifest.id
    model, stored = metadata.get("model_name"), str(store.manifest.recipe.model["id"])
    if model and not same_store and not _same_model(str(model), stored):
        raise SaeError(
            f"SAE {name} was trained on model {model!r}, store {store.path} holds activations of {stored!r}; "
            "give a store of the SAE's model"
        )
    return hook


def _same_model(one: str, other: str) -> bool:
    """Equal but for the owner's name; SAELens says ``gpt2-small`` where the hub says ``gpt2``."""
    one, other = (name.split("/")[-1].lower() for name in (one, other))
    return one == other or {one, other} == {"gpt2", "gpt2-small"}


def chunk_rows(store: Store, sae: SAE) -> int:
    """Rows to encode at once; always enough for a whole context and the start of the next."""
    return max(min(CHUNK_ROWS, CHUNK_VALUES // sae.config.d_sae), store.manifest.recipe.context_size + 1)


def spread_latents(store: Store, hook: str, sae: SAE, start: int) -> list[int]:
    """Up to LATENTS latents, spread evenly by index over those that fire on the first chunk."""
    x = store.rows(hook, start, min(len(store), start + chunk_rows(store, sae)))
    alive = (sae.encode(x.to(sae.W_enc)) > 0).any(0).nonzero().flatten().tolist()
    count = min(LATENTS, len(alive))
    return [alive[i * (len(alive) - 1) // max(1, count - 1)] for i in range(count)]


def search(store: Store, hook: str, sae: SAE, latents: list[int], start: int, contexts: int) -> SearchResult:
    """The strongest contexts of some latents from row ``start`` on, each context once per latent."""
    width, size = len(latents), chunk_rows(store, sae)
    histogram = torch.zeros(width, BINS, dtype=torch.long)
    value, row = torch.zeros(0, width), torch.zeros(0, width, dtype=torch.long)
    with Progress("searching", len(store) - start, "tok") as bar:
        while start < len(store):
            stop = min(len(store), start + size)
            context = store.tokens(start, stop)["context"]
            if stop < len(store):  # the last context may go on: it waits for the next chunk
                context = context[context != context[-1]]
                stop = start + len(context)
            z = sae.encode(store.rows(hook, start, stop).to(sae.W_enc))[:, latents].float().cpu()
            bins = (z.log2() * BINS_PER_OCTAVE).floor().add(BINS // 2).clamp(0, BINS - 1)
            for column in range(width):
                histogram[column] += torch.bincount(bins[z[:, column] > 0, column].long(), minlength=BINS)
            index = context.unique_consecutive(return_inverse=True)[1].long()[:, None].expand(-1, width)
            best = torch.zeros(int(index[-1, 0]) + 1, width).scatter_reduce(0, index, z, "amax")
            rows = torch.arange(start, stop)[:, None].where(z == best.gather(0, index), stop)
            first = torch.full(best.shape, stop).scatter_reduce(0, index, rows, "amin")
            # earlier chunks stand first and the sort is stable, so that equals stay in the order of the text
            value, order = torch.cat([value, best]).sort(dim=0, descending=True, stable=True)
            value, row = value[:contexts], torch.cat([row, first]).gather(0, order)[:contexts]
            bar.update(stop - start)
            start = stop
    return SearchResult(histogram, value, row)
