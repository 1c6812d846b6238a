"""The store's format: the fields of manifest.json, version 2.

A store is a folder of safetensors files and one JSON manifest, no pickle::

    manifest.json                       written last, atomically: its presence is the commit
    vocabulary.json                     list of strings: the text of each token id
    token_bytes.json                    token id -> bytes in hexadecimal, of tokens that are part of a character; absent without
    stats.safetensors                   per hook HOOK: "HOOK/mean" [width] float64, "HOOK/mean_squared_norm" [] float64,
        "HOOK/norm_quantiles" [len(QUANTILES)] float64 (shares 0, .01, .05, .25, .5, .75, .95, .99, 1 of the rows),
        "HOOK/non_finite" [] int64, rows that hold a NaN or an infinity: 0, since those end caching
    tokens/00000.safetensors            one file per shard, numbered from 0:
        blocks [contexts, context_size] int32   all ids the model saw, special tokens and padding included
        token_id, document, position, context [rows] int32
    HOOK/00000.safetensors              one folder per hook, one file per shard:
        rows [rows, width]              the store's dtype
        sum [width], sum_squared_norm []  float64, over the shard's rows; non_finite [] int64
        norm_bins [n] int32, norm_counts [n] int64  histogram of the rows' Euclidean norms (sae_lm.data.norms)

Row r of a tokens file and of each hook file of that shard are the same token; ``position`` counts
from 0 within its context, ``context`` from 0 within the store, ``document`` from 0 within the text.
Special tokens (BOS, separators, marks of chats) and padding, which is separators as well, are in ``blocks`` and have
no row (unless the recipe keeps special ones; padding never has one), nor have attention sinks where the
recipe drops them. ``rows`` is exact: the last context of the store may have rows for its first
positions only.

While a store is being written there is a folder ``progress`` in place of the manifest: ``recipe.json``
and a record ``00000.json`` for each shard whose files are whole.

Keys of the manifest are the fields of ``Manifest`` below. ``sha256`` is the checksum of the manifest's own
bytes with 64 zeros in that place. File names are relative, and never leave the store's folder. A reader
refuses other format versions by name.
"""

import hashlib
import json
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError, model_serializer

from sae_lm.errors import StoreError
from sae_lm.runtime.files import json_bytes, read_json, write_json

FORMAT_VERSION = 2
MANIFEST = "manifest.json"
PROGRESS = "progress"
RECIPE = f"{PROGRESS}/recipe.json"
QUANTILES = (0.0, 0.01, 0.05, 0.25, 0.5, 0.75, 0.95, 0.99, 1.0)
ZEROS = "0" * 64
LARGEST = 2**48
"""No count may be larger: it would be a mistake, and memory is asked for by such numbers."""
_MODEL = {"id": str, "revision": str | None, "architecture": str, "dtype": str, "n_layers": int, "d_vocab": int}
_TEXT = {"id": str, "split": str | None, "column": str | None, "fingerprint": str | None,
         "chat_template_sha256": str, "chat_day": str}  # fmt: skip
"""Key of a recipe's facts -> what a reader takes it for, where it is there: a store made by hand may lack it."""


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", protected_namespaces=())


class FileRecord(_Part):
    bytes: int
    sha256: str


class ShardRecord(_Part):
    rows: int
    contexts: int
    special_tokens: int
    """tokens of these contexts that are special (BOS, separators, other special ones), padding not counted"""
    padding: int
    """positions of these contexts behind a document's end"""
    sinks: int
    """tokens of these contexts that have no row because their norm is an attention sink's"""
    last_document: int
    """index of the last document that these contexts hold"""
    next: tuple[int, int]
    """where in the text the next shard begins (sae_lm.data.tokens.Position)"""
    files: dict[str, FileRecord]
    """relative path -> size and checksum"""


class Recipe(_Part):
    """Everything the rows depend on. Two stores of one recipe hold the same rows."""

    model: dict[str, Any]
    """id, revision, architecture, dtype, processing, n_layers, d_model, d_vocab, files_sha256 (of a local model)"""
    tokenizer_sha256: str
    text: dict[str, Any]
    """id, split, column, fingerprint; of chats chat_template_sha256, and chat_day where the template writes a date"""
    forward: str
    """whose forward pass, which attention: ``huggingface sdpa``, ``bridge eager``"""
    context_size: int
    pack: bool
    """contexts cross from one document into the next; else each document begins one, and the rest is padding"""
    repeat: bool
    """the text is begun again when it ends"""
    keep_special: bool
    """special tokens have rows as well"""
    drop_sinks: float | None
    """multiple of a hook's median norm beyond which a token has no row, or null"""
    bos: int | None
    """id that begins every context, or null"""
    separator: int | None
    """id after each document, or null"""
    other_special: tuple[int, ...] = ()
    """further ids that are special where a document spells them; not written where there are none"""
    dtype: Literal["float32", "bfloat16", "float16"]
    hooks: dict[str, int]
    """canonical hook name -> width"""
    tokens: int
    """rows asked for"""
    shard_contexts: int

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: Callable[[Any], dict[str, Any]]) -> dict[str, Any]:
        content = serialize(self)
        if not content.get("other_special"):  # as stores had it before there was such a field
            content.pop("other_special", None)
        return content


class Manifest(_Part):
    format: Literal["sae_lm activation store"] = "sae_lm activation store"
    version: int = FORMAT_VERSION
    sha256: str = ZEROS
    recipe: Recipe
    rows: int
    contexts: int
    documents: int
    text_ended: bool
    """the text ended before `recipe.tokens` rows were there"""
    sink_norms: dict[str, float]
    """hook -> norm above which tokens have no row; empty unless the recipe drops sinks (a merged store has them by text)"""
    shards: list[ShardRecord]
    files: dict[str, FileRecord]
    """the files that belong to no shard"""
    versions: dict[str, str]
    """libraries that wrote the store; several versions where it was continued with others"""
    batch_size: int
    """contexts per forward pass of the last run; another one moves values by rounding alone"""

    @property
    def id(self) -> str:
        """Checksum of the recipe and of every file: what an SAE records as its store."""
        content = self.model_dump(mode="json", exclude={"versions", "sha256"})
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def all_files(self) -> dict[str, FileRecord]:
        merged = dict(self.files)
        for shard in self.shards:
            merged.update(shard.files)
        return merged


def write_manifest(store: Path, manifest: Manifest) -> None:
    """Commit a store: write its manifest with the checksum of the manifest itself."""
    content = manifest.model_copy(update={"sha256": ZEROS}).model_dump(mode="json")
    checksum = hashlib.sha256(json_bytes(content)).hexdigest()
    write_json(store / MANIFEST, content | {"sha256": checksum})


def manifest_is_intact(store: Path) -> bool:
    """Whether every byte of a store's manifest is as it was written."""
    content = (store / MANIFEST).read_bytes()
    stored = re.search(rb'"sha256": "([0-9a-f]{64})"', content)
    if not stored:
        return False
    blank = content[: stored.start(1)] + ZEROS.encode() + content[stored.end(1) :]
    return hashlib.sha256(blank).hexdigest() == stored[1].decode()


def read_manifest(store: Path) -> Manifest:
    """Read and check a manifest. Raises StoreError: missing, unfinished, another version, malformed, damaged."""
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
    for name in manifest.all_files():
        pure = PurePosixPath(name)
        if (
            not pure.parts
            or pure.is_absolute()
            or ".." in pure.parts
            or not name.isprintable()
            or "\\" in name
            or ":" in pure.parts[0]
        ):
            raise StoreError(f"{store / MANIFEST} names a file outside the store ({name!r}); do not trust this store")
    for shard, record in enumerate(manifest.shards):
        for folder in ("tokens", *manifest.recipe.hooks):
            if shard_file(folder, shard) not in record.files:
                raise StoreError(
                    f"{store / MANIFEST} is malformed: shard {shard} has no file of {folder}; cache the store again"
                )
    if not manifest.shards or not manifest.recipe.hooks:
        raise StoreError(f"{store / MANIFEST} is malformed: it lists no shards or no hooks; cache the store again")
    if problem := _contradiction(manifest):
        raise StoreError(f"{store / MANIFEST} is malformed: {problem}; cache the store again")
    if not manifest_is_intact(store):
        raise StoreError(f"{store / MANIFEST} is damaged: it does not match its own checksum; cache the store again")
    return manifest


def _contradiction(manifest: Manifest) -> str | None:
    """What cannot be so in a manifest, although each of its keys is of the right type; None where all can."""
    recipe, shards = manifest.recipe, manifest.shards
    numbers = {"context_size": recipe.context_size, "shard_contexts": recipe.shard_contexts, **recipe.hooks}
    for name, value in {**numbers, "rows": manifest.rows, "contexts": manifest.contexts}.items():
        if not 1 <= value <= LARGEST:
            return f"{name!r} is {value}, expected a number from 1 to {LARGEST}"
    for key in ("rows", "contexts"):
        parts = [getattr(shard, key) for shard in shards]
        if min(parts) < 0 or sum(parts) != getattr(manifest, key):
            return f"it has {getattr(manifest, key)} {key}, its shards {parts[:8]}"
    if manifest.rows > manifest.contexts * recipe.context_size:
        return f"{manifest.rows} rows in {manifest.contexts} contexts of {recipe.context_size} tokens"
    for part, facts, kinds in (("model", recipe.model, _MODEL), ("text", recipe.text, _TEXT)):
        for key, kind in kinds.items():
            if key in facts and not isinstance(facts[key], kind):
                return f"{part} has the {key} {facts[key]!r}"
    return None


def shard_file(folder: str, index: int) -> str:
    """Relative path of a shard's file: ``blocks.3.hook_out/00007.safetensors``."""
    return f"{folder}/{index:05d}.safetensors"


def shard_of(name: str) -> int | None:
    """Number of the shard that a file belongs to; None for the files of no shard."""
    parsed = re.fullmatch(r"[^/]+/(\d{5,})\.safetensors", name)
    return int(parsed[1]) if parsed else None
