"""The recipe of a store, from the settings of ``sae-lm cache`` and back to them."""

import hashlib
import json
import os
from pathlib import Path
from typing import Any

import numpy as np

from sae_lm.data.manifest import Manifest, Recipe
from sae_lm.data.readers import Listed
from sae_lm.data.text import Text
from sae_lm.data.tokenizer_checks import check_ids
from sae_lm.data.tokens import special_tokens
from sae_lm.errors import SettingsError, StoreError
from sae_lm.fields import with_home
from sae_lm.lm.capture import Forward, context_limit, describe_model, too_long
from sae_lm.lm.source import ModelSource
from sae_lm.settings import CacheSettings

SHARED = ("context_size", "pack", "repeat", "keep_special", "drop_sinks", "dtype", "tokens")
"""Fields of one name and one meaning in `CacheSettings` and in `Recipe`."""


def describe_recipe(
    settings: CacheSettings, forward: Forward, source: ModelSource, text: Text, tokenizer: Any
) -> Recipe:
    """Everything the rows depend on. Raises SettingsError for a context that is too long for the model."""
    if told := too_long(forward.config, settings.context_size):
        limit = context_limit(forward.config)
        raise SettingsError(f"context_size is {settings.context_size}, {told}; give --context-size {limit}")
    special = special_tokens(tokenizer, settings.prepend_bos)
    laid = np.array([token for token in special[:2] if token is not None])
    check_ids(laid, forward.config.vocab_size, tokenizer, "every context (BOS, or the separator of documents)")
    shared: dict[str, Any] = {name: getattr(settings, name) for name in SHARED}
    return Recipe(
        **shared,
        model=describe_model(source, forward.config, forward.dtype),
        tokenizer_sha256=_tokenizer_digest(tokenizer),
        text=text.facts(),
        forward=forward.attention,
        bos=special.bos,
        separator=special.separator,
        other_special=special.others,
        hooks=forward.hooks,
        shard_contexts=max(1, settings.shard_tokens // settings.context_size),
    )


def settings_of(
    manifest: Manifest, out: Path, *, model: str | None = None, text: str | None = None, device: str = "auto"
) -> CacheSettings:
    """Settings that cache a store of the same recipe: what `describe_recipe` makes of them is ``manifest.recipe``.

    model, text: where they are now; needed if they were local, since a store does not record paths of a machine.
    out: the store's folder. Raises StoreError where these settings are not enough, or where the store was merged.
    """
    recipe = manifest.recipe
    if "merged" in recipe.text:
        raise StoreError(f"{out} was merged from several stores; repair those and merge them again")
    missing = {"id", "revision", "dtype"} - {*recipe.model} | {"id", "split", "column", "fingerprint"} - {*recipe.text}
    if missing:
        raise StoreError(
            f"{out} does not say all that it was cached from ({', '.join(sorted(missing))}); cache it again"
        )
    name, revision = model_of(recipe, out, model)
    local_text = recipe.text["split"] is None
    if local_text and text is None:
        raise StoreError(f"{out} was cached from a local text named {recipe.text['id']!r}; give its path with --text")
    shared: dict[str, Any] = {name: getattr(recipe, name) for name in SHARED}
    return CacheSettings(
        **shared,
        model=name,
        revision=revision,
        text=text or recipe.text["id"],
        split=recipe.text["split"],
        text_column=recipe.text["column"],
        hooks=tuple(recipe.hooks),
        prepend_bos=recipe.bos is not None,
        forward="bridge" if recipe.forward.startswith("bridge") else "huggingface",
        model_dtype=recipe.model["dtype"],
        batch_size=manifest.batch_size,
        shard_tokens=recipe.shard_contexts * recipe.context_size,
        device=device,
        out=out,
    )


def model_of(recipe: Recipe, out: str | Path, model: str | None = None) -> tuple[str, str | None]:
    """Where the language model of a store is found, and its revision. model: where it is now.

    Raises StoreError where it was a local one, and is not named.
    """
    name, revision = recipe.model.get("id"), recipe.model.get("revision")
    if model is None and (name is None or (revision is None and name != "embedded")):
        raise StoreError(f"{out} was cached from a local model named {name!r}; give its folder with --model")
    name = model or str(name)
    return name, None if name == "embedded" or os.path.isdir(with_home(name)) else revision


def recorded_text(recipe: Recipe) -> Text:
    """The text of a store as the recipe knows it, without its documents."""
    facts = recipe.text
    return Text(
        facts["id"],
        facts["split"],
        facts["column"],
        facts["fingerprint"],
        Listed([]),
        template_sha256=facts.get("chat_template_sha256"),
        dated="chat_day" in facts,
    )


def text_revision(recipe: Recipe) -> str | None:
    """The commit that a text of the hub had: its fingerprint. None for the embedded text and local files."""
    on_hub = recipe.text["split"] is not None and recipe.text["id"] != "embedded"
    return recipe.text["fingerprint"] if on_hub else None


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
