"""Repair a damaged store: cache the damaged shards again, and only those.

A shard's tokens are enough to run the model on it again. The text is read where these are damaged themselves.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import save_file

from sae_lm.data.characters import FILE as PARTIAL
from sae_lm.data.characters import partial_tokens, write_partial
from sae_lm.data.integrity import check_files
from sae_lm.data.manifest import MANIFEST, Recipe, read_manifest, shard_file, shard_of, write_manifest
from sae_lm.data.recipe import model_of, recorded_text, settings_of, text_revision
from sae_lm.data.shards import rows_wanted
from sae_lm.data.store import Store
from sae_lm.data.tokens import START, Block, lengths, vocabulary
from sae_lm.data.writer import Job, ShardMaker, file_record, open_writer, statistics
from sae_lm.errors import StoreError
from sae_lm.fields import DeviceMap
from sae_lm.lm.source import find_model, load_tokenizer
from sae_lm.runtime.differences import differences, in_words
from sae_lm.runtime.files import refuse_links_out, write_json, write_whole


def repair(
    store: Path,
    model: str | None = None,
    text: str | None = None,
    device: str = "auto",
    device_map: DeviceMap | None = None,
) -> list[str]:
    """Write the damaged files of a store anew and return a line for each.

    model, text: where they are now; needed if the store was cached from local ones, whose paths it does not
    record, and if they are needed for what is damaged: the text for tokens, the model for rows, its tokenizer for
    the vocabulary. Raises StoreError where they are not the ones it was cached from. Values computed by other hardware
    or versions may differ by rounding; the manifest then takes the new checksums, and the line says so.
    """
    manifest = read_manifest(store)
    recipe = manifest.recipe
    damaged = sorted(check_files(store, manifest).damaged)
    if not damaged:
        return []
    refuse_links_out(store, [*damaged, "stats.safetensors", MANIFEST], StoreError)
    lines = []
    if shards := sorted({index for name in damaged if (index := shard_of(name)) is not None}):
        opened = Store(store, manifest)
        from_text = [number for number in shards if _stored_job(opened, number, damaged) is None]
        named = text if from_text else recipe.text.get("id")
        settings = settings_of(manifest, store, model=model, text=named, device=device)
        settings = settings.model_copy(update={"device_map": device_map})
        source: dict[str, Any] = (
            {"text_revision": text_revision(recipe), "recorded": recipe.text}
            if from_text
            else {"text": recorded_text(recipe)}
        )
        with open_writer(settings, **source, other_special=recipe.other_special) as maker:
            _check_source(store, recipe, maker.recipe)
            for job in _jobs(opened, maker, shards, from_text, damaged):
                folders = [name.split("/")[0] for name in damaged if shard_of(name) == job.number]
                lines += _repair_shard(opened, maker, job, folders)
    for name in ("vocabulary.json", PARTIAL):
        if name in damaged:
            tokenizer = load_tokenizer(find_model(*model_of(recipe, store, model)))
            words = vocabulary(tokenizer, recipe.model["d_vocab"])
            if name == PARTIAL:
                write_partial(store, partial_tokens(tokenizer, words))
            else:
                write_json(store / name, words)
            manifest.files[name] = file_record(store / name)  # a later version may name some tokens otherwise
            lines.append(f"{name}: written again")
    if "stats.safetensors" in damaged or lines:
        stats = statistics(store, recipe, len(manifest.shards))
        write_whole(store / "stats.safetensors", lambda temporary: save_file(stats, temporary))
        manifest.files["stats.safetensors"] = file_record(store / "stats.safetensors")
    if "stats.safetensors" in damaged:
        lines.append("stats.safetensors: written again")
    write_manifest(store, manifest)
    return lines


def _check_source(store: Path, recipe: Recipe, here: Recipe) -> None:
    """Raise StoreError where model or text are not those of the store. A local one may have another name now."""
    theirs, ours = recipe.model_dump(), here.model_dump()
    for part, checksum in (("model", "files_sha256"), ("text", "fingerprint")):
        if ours[part].get(checksum) and ours[part].get(checksum) == theirs[part].get(checksum):
            ours[part]["id"] = theirs[part].get("id")
    if differing := differences(theirs, ours):
        raise StoreError(
            f"{store} was cached from something else: {in_words(differing)}; give the model and the text that it "
            "was cached from with --model and --text"
        )


def _jobs(
    store: Store, maker: ShardMaker, shards: list[int], from_text: list[int], damaged: list[str]
) -> Iterator[Job]:
    """The shards to be cached again: those whose tokens are whole, then those that are tokenized anew."""
    for number in sorted({*shards} - {*from_text}):
        if job := _stored_job(store, number, damaged):
            yield job
    if from_text:
        records = {index: record for index, record in enumerate(store.manifest.shards) if index not in from_text}
        for job in maker.jobs(records):
            yield job
            if job.number == from_text[-1]:
                return


def _stored_job(store: Store, number: int, damaged: list[str]) -> Job | None:
    """A shard by its tokens in the store; None where they are damaged, or do not tell all that the model was run on."""
    if shard_file("tokens", number) in damaged:
        return None
    manifest, recipe = store.manifest, store.manifest.recipe
    record, first = manifest.shards[number], store.first_context[number]
    if recipe.drop_sinks and number == len(manifest.shards) - 1:
        return None  # its batches may have held contexts that the store left out
    ids = store.blocks(first, first + record.contexts)
    if not len(ids) or int(ids.min()) < 0 or int(ids.max()) >= recipe.model["d_vocab"]:
        return None  # which the model has no embedding for: the text tells what is wrong
    ends = lengths(ids.numpy(), recipe)
    if int((recipe.context_size - ends).sum()) != record.padding:
        return None  # a document spells separators at its end
    marks = store.special(ids).numpy()
    blocks = [
        Block(context, np.zeros_like(context), special, int(length), START)
        for context, special, length in zip(ids.numpy(), marks, ends, strict=True)
    ]
    return Job(number, first, blocks, rows_wanted(blocks, recipe))


def _repair_shard(store: Store, maker: ShardMaker, job: Job, folders: list[str]) -> list[str]:
    """Write a shard's files in ``folders`` again, put their checksums into the manifest, and return a line for each.

    Raises StoreError, before anything is written, where the rows would not be those that its tokens tell of.
    """
    path, stored, sink_norms = Path(store.path), store.manifest.shards[job.number], store.manifest.sink_norms
    if "tokens" not in folders:
        # not by norms: a token barely beyond the limit may be below it here, and all rows behind it would be others
        job, sink_norms = _with_stored_rows(store, job), {}
    shard, rows = maker.run(job, sink_norms, lambda add, *arguments: add(*arguments), limit=stored.rows)
    if rows < stored.rows:
        raise StoreError(
            f"{path}: shard {job.number} would have {rows} rows, the store says {stored.rows}; the text or the model "
            "is not the one it was cached from"
        )
    if "tokens" in folders:
        name = shard_file("tokens", job.number)
        with tempfile.TemporaryDirectory() as aside:
            made = shard.write(Path(aside), stored.rows, ["tokens"], stored.contexts).files[name]
        if made.sha256 != stored.files[name].sha256:
            raise _otherwise(store, name)
    record = shard.write(path, stored.rows, folders, stored.contexts)
    lines = []
    for name, file in record.files.items():
        same = file.sha256 == stored.files[name].sha256
        stored.files[name] = file
        changed = ", to other bytes than before (other hardware or versions?); the store has a new checksum"
        lines.append(f"{name}: cached again" + ("" if same else changed))
    return lines


def _with_stored_rows(store: Store, job: Job) -> Job:
    """The job with the rows that the store has of this shard, whose tokens are whole."""
    number = job.number
    first, contexts = store.first_context[number], store.manifest.shards[number].contexts
    ids = [block.ids for block in job.blocks[:contexts]]
    if len(ids) < contexts or not np.array_equal(np.stack(ids), store.blocks(first, first + contexts).numpy()):
        raise _otherwise(store, shard_file("tokens", number))
    columns = store.tokens(store.first_row[number], store.first_row[number + 1], ("context", "position"))
    kept = np.zeros_like(job.wanted)
    kept[columns["context"].numpy() - first, columns["position"].numpy()] = True
    return job._replace(wanted=kept)


def _otherwise(store: Store, name: str) -> StoreError:
    or_a_sink = ", or here a token is a sink that was none, or the reverse" if store.manifest.sink_norms else ""
    return StoreError(
        f"{store.path}: {name} comes out otherwise than before; the text is not the one it was cached from{or_a_sink}"
    )
