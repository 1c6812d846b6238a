"""What an activation store's ``manifest.json`` means. Format version 1.

A store is a folder of safetensors files and one JSON manifest, no pickle::

    manifest.json                       written last, atomically: its presence is the commit
    vocabulary.json                     list of strings: the text of each token id
    stats.safetensors                   per hook HOOK: "HOOK/mean" [width] float64, "HOOK/mean_squared_norm" [] float64
    tokens/00000.safetensors            one file per shard, numbered from 0:
        blocks [contexts, context_size] int32   all ids the model saw, special tokens included
        token_id, document, position, context [rows] int32
    HOOK/00000.safetensors              one folder per hook, one file per shard:
        rows [rows, width]              the store's dtype
        sum [width], sum_squared_norm []  float64, over the shard's rows

Row r of a tokens file and of each hook file of that shard are the same token; ``position`` counts
from 0 within its context, ``context`` and ``document`` from 0 within the store. Special tokens (BOS
and separators) are in ``blocks`` and have no row. ``rows`` is exact: the last context of the store
may have rows for its first positions only.

Keys of the manifest are the fields of ``Manifest`` below. File names are relative, and never leave
the store's folder. A reader refuses other format versions by name.
"""

import hashlib
import json
import re
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from sae_lm.errors import StoreError
from sae_lm.files import read_json, write_json

FORMAT_VERSION = 1
MANIFEST = "manifest.json"
PROGRESS = "progress.json"
"""Same content as a manifest without totals, while the store is being written; resumed from."""


_ALIASES = {"hook_resid_post": "hook_out", "hook_resid_pre": "hook_in"}


def canonical_hook(name: str) -> str:
    """``blocks.3.hook_resid_post`` -> ``blocks.3.hook_out``: residual streams have one name on disk."""
    found = re.fullmatch(r"(blocks\.\d+)\.(hook_resid_post|hook_resid_pre)", name)
    return f"{found[1]}.{_ALIASES[found[2]]}" if found else name


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FileRecord(_Part):
    bytes: int
    sha256: str


class ShardRecord(_Part):
    rows: int
    contexts: int
    special_tokens: int
    """tokens of these contexts that have no row because they are special"""
    files: dict[str, FileRecord]
    """relative path -> size and checksum"""


class Recipe(_Part):
    """Everything the rows depend on. Two stores of one recipe hold the same rows."""

    model: dict[str, Any]
    """id, revision, architecture, dtype, processing, n_layers, d_model, d_vocab, files_sha256 (of a local model)"""
    tokenizer_sha256: str
    text: dict[str, Any]
    """id, split, column, fingerprint"""
    context_size: int
    bos: int | None
    """id that begins every context, or null"""
    separator: int | None
    """id after each document, or null"""
    dtype: Literal["float32", "bfloat16", "float16"]
    hooks: dict[str, int]
    """canonical hook name -> width"""
    tokens: int
    """rows asked for"""
    shard_contexts: int


class Manifest(_Part):
    format: Literal["sae_lm activation store"] = "sae_lm activation store"
    version: int = FORMAT_VERSION
    recipe: Recipe
    rows: int
    contexts: int
    documents: int
    text_ended: bool
    """the text ended before `recipe.tokens` rows were there"""
    shards: list[ShardRecord]
    files: dict[str, FileRecord]
    """the files that belong to no shard"""
    versions: dict[str, str]
    """libraries that wrote the store"""

    @property
    def id(self) -> str:
        """Checksum of the recipe and of every file: what an SAE records as its store."""
        content = self.model_dump(mode="json", exclude={"versions"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def all_files(self) -> dict[str, FileRecord]:
        merged = dict(self.files)
        for shard in self.shards:
            merged.update(shard.files)
        return merged


def write_manifest(store: Path, manifest: Manifest) -> None:
    write_json(store / MANIFEST, manifest.model_dump(mode="json"))


def read_manifest(store: Path) -> Manifest:
    """Read and check a manifest. Raises StoreError: missing, unfinished, another version, malformed."""
    if not store.is_dir():
        raise StoreError(f"store {store} does not exist; write one with sae-lm cache --out {store}")
    if not (store / MANIFEST).exists():
        if (store / PROGRESS).exists():
            raise StoreError(
                f"store {store} is unfinished: caching was interrupted; run the same sae-lm cache command again"
            )
        raise StoreError(f"{store} is not an activation store: it has no {MANIFEST}; write one with sae-lm cache --out")
    content = read_json(store / MANIFEST, StoreError, "an activation store")
    version = content.get("version")
    if version != FORMAT_VERSION:
        raise StoreError(
            f"store {store} has format version {version!r}, this program reads {FORMAT_VERSION}; "
            "cache it again or use the version of sae_lm that wrote it"
        )
    try:
        manifest = Manifest.model_validate(content)
    except ValidationError as invalid:
        first = invalid.errors()[0]
        where = ".".join(map(str, first["loc"]))
        raise StoreError(
            f"{store / MANIFEST} is malformed at {where} ({first['msg']}); cache the store again"
        ) from None
    files = manifest.all_files()
    for shard, record in enumerate(manifest.shards):
        for folder in ("tokens", *manifest.recipe.hooks):
            if f"{folder}/{shard:05d}.safetensors" not in record.files:
                raise StoreError(
                    f"{store / MANIFEST} is malformed: shard {shard} has no file of {folder}; cache the store again"
                )
    if not manifest.shards or not manifest.recipe.hooks:
        raise StoreError(f"{store / MANIFEST} is malformed: it lists no shards or no hooks; cache the store again")
    for name in files:
        pure = PurePosixPath(name)
        if pure.is_absolute() or ".." in pure.parts or "\\" in name:
            raise StoreError(f"{store / MANIFEST} names a file outside the store ({name!r}); do not trust this store")
    return manifest
