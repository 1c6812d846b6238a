"""Stores that no model wrote: the recipe and the manifest beside rows that were made by hand."""

import json
import struct
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from sae_lm.data.manifest import FileRecord, Manifest, Recipe, ShardRecord, shard_file, write_manifest
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


def hollow_store(folder: Path, hook: str, shards: int, rows: int, width: int) -> Store:
    """A store of shards of the right size and format whose rows are holes: zeros that take no disk. In bfloat16."""
    records = []
    for index in range(shards):
        files = {
            name: _hollow_file(folder / name, tensors)
            for name, tensors in {
                shard_file(hook, index): {"rows": ("BF16", [rows, width], 2)},
                shard_file("tokens", index): {"document": ("I32", [rows], 4)},
            }.items()
        }
        records.append(
            ShardRecord(rows=rows, contexts=rows // 128, special_tokens=0, padding=0, sinks=0, last_document=0,
                        next=(0, 0), files=files)
        )  # fmt: skip
    return commit_store(folder, made_recipe({hook: width}, 128, shards * rows, rows // 128, "bfloat16"), records, 1)


def _hollow_file(path: Path, tensors: Mapping[str, tuple[str, list[int], int]]) -> FileRecord:
    header, offset = {}, 0
    for name, (dtype, shape, itemsize) in tensors.items():
        end = offset + itemsize * torch.Size(shape).numel()
        header[name], offset = {"dtype": dtype, "shape": shape, "data_offsets": [offset, end]}, end
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        file.truncate(8 + len(encoded) + offset)
    return FileRecord(bytes=path.stat().st_size, sha256="")
