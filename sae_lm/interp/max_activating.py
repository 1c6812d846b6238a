"""What is read to find what an SAE's latents fire on: which hook of a store, and how many rows at once."""

from sae_lm.data.store import Store
from sae_lm.errors import SaeError
from sae_lm.interp.value_biases import refuse_stored
from sae_lm.lm.hooks import canonical_hook
from sae_lm.sae.model import SAE

CHUNK_ROWS, CHUNK_VALUES = 4096, 2**25
"""Rows encoded at once, at most; fewer where so many rows times latents would be more numbers than this."""


def chunk_rows(store: Store, sae: SAE) -> int:
    """Rows to encode at once; always enough for a whole context and the start of the next."""
    return max(min(CHUNK_ROWS, CHUNK_VALUES // sae.config.d_sae), store.manifest.recipe.context_size + 1)


def fitting_hook(name: str, sae: SAE, store: Store) -> str:
    """The store's name for the hook that the SAE was trained on. Raises SaeError where the two do not fit."""
    metadata = sae.config.metadata
    if not metadata.get("hook_name"):
        raise SaeError(
            f"SAE {name} does not say which hook it is for, store {store.path} holds {', '.join(store.hooks)}; "
            "give sae_lm.load its hook, or run sae-lm convert with --hook first"
        )
    hook = canonical_hook(str(metadata["hook_name"]))
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
    refuse_stored(sae)
    same_store = (metadata.get("training") or {}).get("store_id") == store.manifest.id
    model, stored = metadata.get("model_name"), str(store.manifest.recipe.model["id"])
    if model and not same_store and not same_model(str(model), stored):
        raise SaeError(
            f"SAE {name} was trained on model {model!r}, store {store.path} holds activations of {stored!r}; "
            "give a store of the SAE's model"
        )
    return hook


def same_model(one: str, other: str) -> bool:
    """Equal but for the owner's name; SAELens says ``gpt2-small`` where the hub says ``gpt2``."""
    one, other = (name.split("/")[-1].lower() for name in (one, other))
    return one == other or {one, other} == {"gpt2", "gpt2-small"}
