"""text -> store: run the model over packed contexts, fill shards, commit the manifest last.

Shards are whole contexts of one stream of blocks, and a forward batch never crosses a shard, so a
run that was killed continues after its last whole shard and ends with the same bytes.
"""

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from sae_lm.data.hub import find_model
from sae_lm.data.manifest import (
    MANIFEST,
    PROGRESS,
    FileRecord,
    Manifest,
    Recipe,
    ShardRecord,
    read_manifest,
    write_manifest,
)
from sae_lm.data.shards import check_finite, kept_positions, shard_file, write_shard
from sae_lm.data.store import open_store
from sae_lm.data.text import open_text
from sae_lm.data.tokens import Block, blocks, special_tokens, vocabulary
from sae_lm.device import pick_device
from sae_lm.errors import ModelError, SettingsError, StoreError, TextError
from sae_lm.files import read_json, sha256, write_json, write_whole
from sae_lm.progress import Progress
from sae_lm.settings import CacheSettings

if TYPE_CHECKING:
    from sae_lm.data.activations import Capture


def cache(settings: CacheSettings) -> Path:
    """Write the activation store that ``settings`` describe and return its folder.

    A whole store of the same recipe is reused, an unfinished one continued, any other content of
    the folder refused (StoreError).
    """
    _check_folder(settings.out)
    source = find_model(settings.model, settings.revision)
    text = open_text(settings.text, settings.split, settings.text_column)
    from sae_lm.data.activations import (  # seconds, so after the checks
        Capture,
        boot,
        context_limit,
        describe_model,
        load_tokenizer,
    )

    device = pick_device(settings.device)
    bridge = boot(source, device=device, dtype=getattr(torch, settings.model_dtype))
    limit = context_limit(bridge)
    if limit and settings.context_size > limit:
        raise SettingsError(
            f"context_size is {settings.context_size}, the model takes at most {limit} tokens; give --context-size {limit}"
        )
    tokenizer = load_tokenizer(source)
    special = special_tokens(tokenizer, settings.prepend_bos)
    with Capture(bridge, settings.hooks) as capture:
        seen = capture(torch.zeros(1, 2, dtype=torch.long, device=device))
        for name, value in seen.items():
            if value.ndim != 3:
                raise ModelError(
                    f"hook {name} gives a tensor of {value.ndim} dimensions, expected [batch, pos, width]; name a residual stream such as blocks.0.hook_out"
                )
        recipe = Recipe(
            model=describe_model(bridge, source),
            tokenizer_sha256=_tokenizer_digest(tokenizer),
            text={"id": text.id, "split": text.split, "column": text.column, "fingerprint": text.fingerprint},
            context_size=settings.context_size,
            bos=special.bos,
            separator=special.separator,
            dtype=settings.dtype,
            hooks={name: seen[name].shape[-1] for name in capture.names},
            tokens=settings.tokens,
            shard_contexts=max(1, settings.shard_tokens // settings.context_size),
        )
        shards = _resume(settings.out, recipe)
        if shards is None:
            print(f"{open_store(settings.out)!r} is there already; reused", flush=True)
            return settings.out
        _check_space(settings.out, recipe, sum(shard.rows for shard in shards))
        stream = blocks(text.documents(), tokenizer, special, settings.context_size)
        ended = _fill(settings, recipe, shards, stream, capture, device)
    _commit(settings.out, recipe, shards, vocabulary(tokenizer, bridge.cfg.d_vocab), ended)
    return settings.out


def _fill(
    settings: CacheSettings,
    recipe: Recipe,
    shards: list[ShardRecord],
    stream: Iterator[Block],
    capture: "Capture",
    device: str,
) -> bool:
    """Append shards until the rows are there. Returns whether the text ended first."""
    rows = sum(shard.rows for shard in shards)
    contexts = sum(shard.contexts for shard in shards)
    if shards:
        print(f"continuing after {rows:,} rows in {len(shards)} shards", flush=True)
    stream = islice(stream, contexts, None)
    with Progress("caching", recipe.tokens, "tok", rows) as bar:
        while rows < recipe.tokens:
            wanted = _enough(stream, recipe, recipe.tokens - rows)
            if not wanted:
                break
            kept = kept_positions(wanted, recipe.tokens - rows)
            values = _run(wanted, kept, recipe, capture, settings.batch_size, device, bar)
            shards.append(write_shard(settings.out, len(shards), contexts, wanted, kept, values))
            rows += shards[-1].rows
            contexts += shards[-1].contexts
            _write_progress(settings.out, recipe, shards)
    if not rows:
        raise TextError(
            f"text {settings.text!r} is empty or too short: it does not fill one context of {recipe.context_size} tokens; "
            "give more text or a smaller --context-size"
        )
    if rows < recipe.tokens:
        print(
            f"the text ended after {rows:,} of {recipe.tokens:,} rows; the store keeps what there is",
            flush=True,
        )
    return rows < recipe.tokens


def _enough(stream: Iterator[Block], recipe: Recipe, rows: int) -> list[Block]:
    """The blocks of the next shard: at most shard_contexts, and none beyond the rows wanted."""
    taken: list[Block] = []
    while rows > 0 and len(taken) < recipe.shard_contexts and (block := next(stream, None)) is not None:
        taken.append(block)
        rows -= int((~block.special).sum())
    return taken


def _run(
    wanted: list[Block],
    kept: np.ndarray,
    recipe: Recipe,
    capture: "Capture",
    batch_size: int,
    device: str,
    bar: Progress,
) -> dict[str, torch.Tensor]:
    """Forward the blocks and keep the rows: {hook: [rows, width]} in the store's dtype, on the CPU."""
    dtype = getattr(torch, recipe.dtype)
    parts: dict[str, list[torch.Tensor]] = {name: [] for name in recipe.hooks}
    for first in range(0, len(wanted), batch_size):
        batch = wanted[first : first + batch_size]
        ids = torch.from_numpy(np.stack([block.ids for block in batch])).long().to(device)
        keep = torch.from_numpy(kept[first : first + batch_size])
        for name, value in capture(ids).items():
            stored = value.to("cpu", dtype)
            check_finite(name, stored, batch)
            parts[name].append(stored[keep])
        bar.update(int(keep.sum()))
    return {name: torch.cat(values) for name, values in parts.items()}


# --- the folder: what is there already, progress, commit


def _check_folder(out: Path) -> None:
    if out.is_dir() and any(out.iterdir()) and not (out / MANIFEST).exists() and not (out / PROGRESS).exists():
        raise StoreError(f"{out} is not empty and not an activation store; give --out a new folder")
    if out.exists() and not out.is_dir():
        raise StoreError(f"{out} is a file; give --out a folder")


def _resume(out: Path, recipe: Recipe) -> list[ShardRecord] | None:
    """Records of the whole shards of an unfinished store; [] for a new one, None for a finished one."""
    if (out / MANIFEST).exists():
        _check_same(out, read_manifest(out).recipe, recipe)
        (out / PROGRESS).unlink(missing_ok=True)  # a kill between the commit and the end leaves it
        return None
    if not (out / PROGRESS).exists():
        out.mkdir(parents=True, exist_ok=True)
        _write_progress(out, recipe, [])
        return []
    progress = read_json(out / PROGRESS, StoreError, "an activation store")
    try:
        there = Recipe.model_validate(progress.get("recipe"))
        shards = [ShardRecord.model_validate(record) for record in progress.get("shards", [])]
    except ValidationError:
        raise StoreError(
            f"{out / PROGRESS} is not understood, so caching cannot go on; delete {out} and cache again"
        ) from None
    _check_same(out, there, recipe)
    for index, shard in enumerate(shards):
        if any(
            not (out / name).is_file() or (out / name).stat().st_size != file.bytes
            for name, file in shard.files.items()
        ):
            return shards[:index]
    return shards


def _check_same(out: Path, there: Recipe, wanted: Recipe) -> None:
    got, asked = there.model_dump(), wanted.model_dump()
    differing = [
        f"{key} is {_brief(got[key])}, asked for {_brief(asked[key])}" for key in got if got[key] != asked[key]
    ]
    if differing:
        raise StoreError(f"{out} holds another store: {'; '.join(differing)}; give another --out or delete the folder")


def _brief(value: Any) -> str:
    text = json.dumps(value)
    return text if len(text) < 300 else text[:300] + "..."


def _write_progress(out: Path, recipe: Recipe, shards: Iterable[ShardRecord]) -> None:
    write_json(out / PROGRESS, {"recipe": recipe.model_dump(), "shards": [shard.model_dump() for shard in shards]})


def _check_space(out: Path, recipe: Recipe, rows: int) -> None:
    per_row = sum(recipe.hooks.values()) * getattr(torch, recipe.dtype).itemsize + 20
    needed, free = (recipe.tokens - rows) * per_row, shutil.disk_usage(out).free
    if needed > free:
        raise StoreError(
            f"{out}: the store needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; ask for fewer tokens or hooks"
        )


def _commit(out: Path, recipe: Recipe, shards: list[ShardRecord], words: list[str], ended: bool) -> None:
    rows = sum(shard.rows for shard in shards)
    stats = {}
    for hook in recipe.hooks:
        sums = [load_file(out / shard_file(hook, index)) for index in range(len(shards))]
        stats[f"{hook}/mean"] = torch.stack([part["sum"] for part in sums]).sum(0) / rows
        stats[f"{hook}/mean_squared_norm"] = torch.stack([part["sum_squared_norm"] for part in sums]).sum() / rows
    write_whole(out / "stats.safetensors", lambda part: save_file(stats, part))
    write_json(out / "vocabulary.json", words)
    last = load_file(out / shard_file("tokens", len(shards) - 1))
    files = {
        name: FileRecord(bytes=(out / name).stat().st_size, sha256=sha256(out / name))
        for name in ("stats.safetensors", "vocabulary.json")
    }
    manifest = Manifest(
        recipe=recipe,
        rows=rows,
        contexts=sum(shard.contexts for shard in shards),
        documents=int(last["document"].max()) + 1,
        text_ended=ended,
        shards=shards,
        files=files,
        versions={name: version(name) for name in ("sae_lm", "torch", "transformers", "transformer-lens", "datasets")},
    )
    write_manifest(out, manifest)
    (out / PROGRESS).unlink()


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
