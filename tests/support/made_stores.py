"""Stores that no model wrote: the recipe and the manifest beside rows that were made by hand."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from sae_lm.data.manifest import FileRecord, Manifest, Recipe, ShardRecord, write_manifest
from sae_lm.data.store import Store, open_store
from sae_lm.runtime.files import sha256


def made_recipe(
    hooks: Mapping[str, int], context_size: int, tokens: int, shard_contexts: int, dtype: str, **changes: Any
) -> Recipe:
    values: dict[str, Any] = {
        "model": {"id": "made"},
        "tokenizer_sha256": "0",
        "text": {"id": "made"},
        "forward": "made",
        "pack": True,
        "repeat": False,
        "keep_special": False,
        "drop_sinks": None,
        "bos": None,
        "separator": None,
    }
    return Recipe(
        hooks=dict(hooks),
        context_size=context_size,
        tokens=tokens,
        shard_contexts=shard_contexts,
        dtype=dtype,
        **{**values, **changes},
    )


def commit_store(
    folder: Path, recipe: Recipe, shards: Sequence[ShardRecord], documents: int, names: Sequence[str] = ()
) -> Store:
    """Write the manifest of shards that are there. names: files besides, whose checksums it is to hold."""
    manifest = Manifest(
        recipe=recipe,
        rows=sum(shard.rows for shard in shards),
        contexts=sum(shard.contexts for shard in shards),
        documents=documents,
        text_ended=False,
        sink_norms={},
        batch_size=1,
        shards=list(shards),
        files={n: FileRecord(bytes=(folder / n).stat().st_size, sha256=sha256(folder / n)) for n in names},
        versions={},
    )
    write_manifest(folder, manifest)
    return open_store(folder)
