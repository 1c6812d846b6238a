"""Merge stores of one configuration into one: files of activations as they are, tokens renumbered."""

import hashlib
import shutil
from pathlib import Path
from typing import Any

from safetensors.torch import load_file, save_file

from sae_lm.data.characters import FILE as PARTIAL
from sae_lm.data.characters import write_partial
from sae_lm.data.manifest import FileRecord, Manifest, ShardRecord, shard_file, write_manifest
from sae_lm.data.store import Store, open_store
from sae_lm.data.writer import file_record, statistics
from sae_lm.errors import SettingsError, StoreError
from sae_lm.runtime.differences import differences
from sae_lm.runtime.files import PART, sha256, write_json, write_whole
from sae_lm.runtime.locks import held_if_free
from sae_lm.settings import MergeSettings

MUST_MATCH = {"model", "tokenizer_sha256", "forward", "context_size", "pack", "keep_special", "drop_sinks", "bos", "separator", "other_special", "dtype", "hooks"}  # fmt: skip
"""Parts of the recipes that must agree. Texts and numbers of tokens may differ."""


def merge(settings: MergeSettings) -> Path:
    """Lay stores one after another in a new one and return its folder.

    Files of activations are copied byte for byte (hard links where the disk allows); documents and contexts
    are numbered on. Raises StoreError for stores that do not go together or share text, which would be in
    the result twice.
    """
    out = settings.out
    if out.exists():
        raise StoreError(f"{out} is there already; give --out a new folder")
    if len(settings.stores) < 2:
        raise SettingsError(f"merge: got {len(settings.stores)} store, expected several; name them one after another")
    stores = [open_store(path) for path in settings.stores]
    _check_they_match(stores)
    aside = out.with_name(f"{out.name}.merge{PART}")
    aside.mkdir(parents=True, exist_ok=True)
    with held_if_free(aside) as alone:
        if not alone:
            raise StoreError(f"another process is merging into {out}; wait for its end, or give another --out")
        try:
            for left in aside.iterdir():  # by a kill
                shutil.rmtree(left) if left.is_dir() else left.unlink()
            _merge_into(aside, stores)
            aside.rename(out)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
    return out


def _merge_into(temporary: Path, stores: list[Store]) -> None:
    shards: list[ShardRecord] = []
    contexts = documents = 0
    for store in stores:
        for index, record in enumerate(store.manifest.shards):
            files = _take_shard(store, index, record, temporary, len(shards), contexts, documents)
            update = {"files": files, "last_document": record.last_document + documents, "next": (0, 0)}
            shards.append(record.model_copy(update=update))
        contexts += store.manifest.contexts
        documents += store.manifest.documents
    write_manifest(temporary, _manifest(stores, shards, contexts, documents, temporary))


def _check_they_match(stores: list[Store]) -> None:
    first = _must_match(stores[0])
    for store in stores[1:]:
        differing = differences(_must_match(store), first)
        if differing:
            values = "; ".join(f"{key} is {its} and {firsts}" for key, its, firsts in differing)
            raise StoreError(
                f"{store.path} and {stores[0].path} do not go together: {values}; "
                "merge stores that differ in text and tokens alone"
            )
    for number, store in enumerate(stores):
        for earlier in stores[:number]:
            if any(_share_documents(one, other) for one in _texts(earlier) for other in _texts(store)):
                raise StoreError(
                    f"{store.path} and {earlier.path} hold rows of the same text ({store.manifest.recipe.text['id']!r}), which "
                    "would be in the result twice; leave one out"
                )


def _must_match(store: Store) -> dict[str, Any]:
    dumped = store.manifest.recipe.model_dump(include=MUST_MATCH)
    return {"other_special": (), **dumped}  # which is not written where there are none


def _share_documents(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two texts are the same one, as far as recipes tell; a store made by hand may lack any of the keys."""
    if one.get("column") != other.get("column"):
        return False
    named = one.get("id") == other.get("id")
    if one.get("split") is None or other.get("split") is None:  # local, where a copy may have another name
        same = one.get("fingerprint") == other.get("fingerprint")
        return same and (named or one.get("fingerprint") is not None)
    return named and (
        one["split"] == other["split"] or (one["id"] == "embedded" and "all" in (one["split"], other["split"]))
    )


def _texts(store: Store) -> list[dict[str, Any]]:
    """The texts of a store, with the norms beyond which each has no rows."""
    text, limits = store.manifest.recipe.text, store.manifest.sink_norms
    return text.get("merged") or [text | ({"sink_norms": limits} if limits else {})]


def _take_shard(
    store: Store, index: int, record: ShardRecord, out: Path, number: int, contexts: int, documents: int
) -> dict[str, FileRecord]:
    files = {}
    for hook in store.hooks:
        name, source = shard_file(hook, number), store.locate(shard_file(hook, index))
        (out / name).parent.mkdir(parents=True, exist_ok=True)
        try:
            (out / name).hardlink_to(source.resolve())
        except OSError:  # another disk, or one without links
            shutil.copyfile(source, out / name)
        files[name] = record.files[shard_file(hook, index)]
        _check_whole(store, shard_file(hook, index), files[name], out / name)
    whole = shard_file("tokens", index)
    _check_whole(store, whole, record.files[whole])
    tokens = load_file(store.locate(whole))
    tokens["context"] += contexts
    tokens["document"] += documents
    name = shard_file("tokens", number)
    write_whole(out / name, lambda temporary: save_file(tokens, temporary))
    return files | {name: file_record(out / name)}


def _check_whole(store: Store, name: str, record: FileRecord, copy: Path | None = None) -> None:
    """Raise StoreError where a file, or its copy, is not as it was written: what is made of it would pass for whole."""
    if sha256(copy or store.locate(name)) != record.sha256:
        raise StoreError(f"store {store.path} is damaged: {name}; run sae-lm verify {store.path} --repair")


def _manifest(stores: list[Store], shards: list[ShardRecord], contexts: int, documents: int, out: Path) -> Manifest:
    first = stores[0].manifest
    rows = sum(shard.rows for shard in shards)
    texts = [text for store in stores for text in _texts(store)]
    fingerprint = hashlib.sha256(" ".join(str(text.get("fingerprint")) for text in texts).encode()).hexdigest()
    text = {"id": " + ".join(text["id"] for text in texts), "split": None, "column": None, "fingerprint": fingerprint}
    repeat = any(store.manifest.recipe.repeat for store in stores)
    recipe = first.recipe.model_copy(update={"text": {**text, "merged": texts}, "tokens": rows, "repeat": repeat})
    for name in first.files.keys() & {"vocabulary.json", PARTIAL}:
        _check_whole(stores[0], name, first.files[name])
    write_whole(out / "stats.safetensors", lambda temporary: save_file(statistics(out, recipe, len(shards)), temporary))
    write_json(out / "vocabulary.json", stores[0].vocabulary)
    names = ["stats.safetensors", "vocabulary.json", *write_partial(out, stores[0].partial_tokens)]
    return Manifest(
        recipe=recipe,
        rows=rows,
        contexts=contexts,
        documents=documents,
        text_ended=False,
        sink_norms={},
        shards=shards,
        files={name: file_record(out / name) for name in names},
        batch_size=first.batch_size,
        versions={
            key: ", ".join(dict.fromkeys(s.manifest.versions.get(key, "unknown") for s in stores))
            for key in first.versions
        },
    )
