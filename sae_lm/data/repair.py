"""damaged store -> whole store: cache the damaged shards again, and only those."""

from pathlib import Path

import torch
from safetensors.torch import save_file

from sae_lm.data.integrity import check_files
from sae_lm.data.manifest import Manifest, read_manifest, shard_of, write_manifest
from sae_lm.data.partial_store import check_same
from sae_lm.data.text import open_text
from sae_lm.data.tokens import vocabulary
from sae_lm.data.writer import Job, ShardMaker, describe_recipe, file_record, statistics
from sae_lm.errors import StoreError
from sae_lm.lm.forward import open_forward
from sae_lm.lm.source import find_model, load_tokenizer
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.files import write_json, write_whole
from sae_lm.settings import CacheSettings


def repair(store: Path, model: str | None = None, text: str | None = None, device: str = "auto") -> list[str]:
    """Write the damaged files of a store anew and return a line for each.

    model, text: where they are now; needed if the store was cached from local ones, whose paths it does not
    record. Raises StoreError where they are not the ones it was cached from. Values computed by other hardware
    or versions may differ by rounding; the manifest then takes the new checksums, and the line says so.
    """
    manifest = read_manifest(store)
    damaged = sorted(check_files(store, manifest).damaged)
    shards = sorted({index for name in damaged if (index := shard_of(name)) is not None})
    if not damaged:
        return []
    settings = _settings(store, manifest, model, text, device)
    source, opened = find_model(settings.model, settings.revision), _open_text(manifest, settings)
    tokenizer = load_tokenizer(source)
    lines = []
    if shards:
        where = pick_device(settings.device)
        dtype = getattr(torch, settings.model_dtype)
        with open_forward(source, settings.hooks, kind=settings.forward, device=where, dtype=dtype) as forward:
            recipe = describe_recipe(settings, forward, source, opened, tokenizer)
            check_same(store, manifest.recipe, recipe)
            maker = ShardMaker(forward, recipe, tokenizer, opened, settings.batch_size, where)
            records = {index: record for index, record in enumerate(manifest.shards) if index not in shards}
            for job in maker.jobs(records):
                folders = [name.split("/")[0] for name in damaged if shard_of(name) == job.number]
                lines += _mend_shard(store, manifest, maker, job, folders)
                if job.number == shards[-1]:
                    break
    if "vocabulary.json" in damaged:
        write_json(store / "vocabulary.json", vocabulary(tokenizer, manifest.recipe.model["d_vocab"]))
        lines.append("vocabulary.json: written again")
    if "stats.safetensors" in damaged or lines:
        stats = statistics(store, manifest.recipe, len(manifest.shards))
        write_whole(store / "stats.safetensors", lambda part: save_file(stats, part))
        manifest.files["stats.safetensors"] = file_record(store / "stats.safetensors")
    if "stats.safetensors" in damaged:
        lines.append("stats.safetensors: written again")
    write_manifest(store, manifest)
    return lines


def _mend_shard(store: Path, manifest: Manifest, maker: ShardMaker, job: Job, folders: list[str]) -> list[str]:
    there = manifest.shards[job.number]
    shard, rows = maker.run(job, manifest.sink_norms, lambda add, *arguments: add(*arguments))
    if rows < there.rows:
        raise StoreError(
            f"{store}: shard {job.number} would have {rows} rows, the store says {there.rows}; the text or the model "
            "is not the one it was cached from"
        )
    record = shard.write(store, there.rows, only=folders)
    lines = []
    for name, file in record.files.items():
        same = file.sha256 == there.files[name].sha256
        if not same and name.startswith("tokens/"):
            raise StoreError(
                f"{store}: {name} comes out otherwise than before; the text is not the one it was cached from"
            )
        there.files[name] = file
        lines.append(
            f"{name}: cached again"
            + (
                ""
                if same
                else ", to other bytes than before (other hardware or versions?); the store has a new checksum"
            )
        )
    return lines


def _settings(store: Path, manifest: Manifest, model: str | None, text: str | None, device: str) -> CacheSettings:
    """The command that cached the store, as far as the store tells."""
    recipe = manifest.recipe
    if "merged" in recipe.text:
        raise StoreError(f"{store} was merged from several stores; repair those and merge them again")
    local_model = recipe.model["revision"] is None and recipe.model["id"] != "embedded"
    if local_model and model is None:
        raise StoreError(
            f"{store} was cached from a local model named {recipe.model['id']!r}; give its folder with --model"
        )
    local_text = recipe.text["split"] is None
    if local_text and text is None:
        raise StoreError(f"{store} was cached from a local text named {recipe.text['id']!r}; give its path with --text")
    return CacheSettings(
        model=model or recipe.model["id"],
        revision=recipe.model["revision"],
        text=text or recipe.text["id"],
        split=recipe.text["split"],
        text_column=recipe.text["column"],
        hooks=tuple(recipe.hooks),
        tokens=recipe.tokens,
        context_size=recipe.context_size,
        prepend_bos=recipe.bos is not None,
        pack=recipe.pack,
        repeat=recipe.repeat,
        keep_special=recipe.keep_special,
        drop_sinks=recipe.drop_sinks,
        forward="bridge" if recipe.forward.startswith("bridge") else "huggingface",
        dtype=recipe.dtype,
        model_dtype=recipe.model["dtype"],
        batch_size=manifest.batch_size,
        shard_tokens=recipe.shard_contexts * recipe.context_size,
        device=device,
        out=store,
    )


def _open_text(manifest: Manifest, settings: CacheSettings):
    """The text at the commit it had: the fingerprint of a hub data set is one."""
    on_hub = settings.split is not None and settings.text != "embedded"
    revision = manifest.recipe.text["fingerprint"] if on_hub else None
    return open_text(settings.text, settings.split, settings.text_column, revision)
