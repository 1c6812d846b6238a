"""text -> store: run the model over contexts, fill shards, commit the manifest last.

Shards are whole contexts of one stream of blocks, and a forward batch never crosses a shard. So a
shard's bytes depend on the recipe and its number alone: a run that was killed goes on with the shards
that are missing, and ranks take turns at them; either way the store ends with the same bytes. Tokens
are made ahead of the model and rows are written behind it, each in a thread of its own.
"""

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lm.background import WriteBehind, read_ahead
from sae_lm.data.forward import Forward, context_limit, describe_model, open_forward
from sae_lm.data.hub import find_model
from sae_lm.data.huggingface import load_tokenizer
from sae_lm.data.manifest import QUANTILES, FileRecord, Manifest, Recipe, ShardRecord, shard_file, write_manifest
from sae_lm.data.norms import add_histograms, norm_quantiles
from sae_lm.data.shards import OpenShard, first_rows, norms, rows_wanted
from sae_lm.data.store import open_store
from sae_lm.data.text import Text, open_text
from sae_lm.data.tokens import START, Block, Position, blocks, special_tokens, vocabulary
from sae_lm.data.unfinished import Unfinished, check_folder, read_unfinished, written_by_one
from sae_lm.device import pick_device
from sae_lm.errors import SettingsError, StoreError, TextError
from sae_lm.files import sha256, write_json, write_whole
from sae_lm.processes import Ranks, join_ranks
from sae_lm.progress import Progress
from sae_lm.settings import CacheSettings
from sae_lm.signals import stop_wishes

BATCHES_BEHIND = 4
"""Forward batches that may wait to be written at least. A shard's worth of them may, so that the model runs on while a
shard is written: rows of two shards are in memory at most."""
SINK_SAMPLE = 8192
"""Positions whose median norm decides what a sink is."""


def cache(settings: CacheSettings) -> Path:
    """Write the activation store that ``settings`` describe and return its folder.

    A whole store of the same recipe is reused, an unfinished one continued, any other content of the folder
    refused (StoreError). Under torchrun all ranks write one store. SIGINT and SIGTERM raise Stopped
    after the current shard.
    """
    check_folder(settings.out)
    folder = Path(settings.text).expanduser()
    if folder.is_dir() and folder.resolve() in (settings.out.resolve(), *settings.out.resolve().parents):
        raise SettingsError(
            f"out ({settings.out}) is inside the text's folder, whose files are the text; give another --out"
        )
    source = find_model(settings.model, settings.revision)
    text = open_text(settings.text, settings.split, settings.text_column)
    tokenizer = load_tokenizer(source)
    with join_ranks() as ranks:
        device = pick_device(settings.device, ranks.local_rank if ranks.size > 1 else None)
        dtype = getattr(torch, settings.model_dtype)
        with open_forward(source, settings.hooks, kind=settings.forward, device=device, dtype=dtype) as forward:
            maker = ShardMaker(forward, describe_recipe(settings, forward, source, text, tokenizer), tokenizer, text,
                               settings.batch_size, device)  # fmt: skip
            if read_unfinished(settings.out, maker.recipe) is None:
                if ranks.rank == 0:
                    print(f"{open_store(settings.out)!r} is there already; reused", flush=True)
                return settings.out
            with written_by_one(settings.out) if ranks.rank == 0 else nullcontext():
                _write_store(maker, settings, ranks)
    return settings.out


def _write_store(maker: "ShardMaker", settings: CacheSettings, ranks: Ranks) -> None:
    state = read_unfinished(settings.out, maker.recipe)
    if state is None:
        return  # another process has finished it a moment ago
    if ranks.rank == 0:
        _check_space(settings.out, maker.recipe, state)
        state.begin(settings.batch_size, maker.sink_norms() if maker.recipe.drop_sinks else {})
    ranks.barrier()
    state = state.reread()
    _fill(maker, state, ranks)
    ranks.barrier()
    if ranks.rank == 0:
        _commit(state.reread(), vocabulary(maker.tokenizer, maker.recipe.model["d_vocab"]))
    ranks.barrier()


def describe_recipe(settings: CacheSettings, forward: Forward, source: Any, text: Text, tokenizer: Any) -> Recipe:
    """Everything the rows depend on. Raises SettingsError for a context the model does not take."""
    limit = context_limit(forward.config)
    if limit and settings.context_size > limit:
        raise SettingsError(
            f"context_size is {settings.context_size}, the model takes at most {limit} tokens; give --context-size {limit}"
        )
    special = special_tokens(tokenizer, settings.prepend_bos)
    return Recipe(
        model=describe_model(source, forward.config, forward.dtype),
        tokenizer_sha256=_tokenizer_digest(tokenizer),
        text={"id": text.id, "split": text.split, "column": text.column, "fingerprint": text.fingerprint},
        forward=forward.attention,
        context_size=settings.context_size,
        pack=settings.pack,
        repeat=settings.repeat,
        keep_special=settings.keep_special,
        drop_sinks=settings.drop_sinks,
        bos=special.bos,
        separator=special.separator,
        dtype=settings.dtype,
        hooks=forward.hooks,
        tokens=settings.tokens,
        shard_contexts=max(1, settings.shard_tokens // settings.context_size),
    )


class Job(NamedTuple):
    """One shard to be made."""

    number: int
    first_context: int
    blocks: list[Block]
    wanted: np.ndarray
    """[contexts, context_size] bool: tokens that get a row, unless they are sinks"""


class ShardMaker:
    """Makes shard number i of a recipe: the same bytes whoever asks, and whatever was made before."""

    def __init__(
        self, forward: Forward, recipe: Recipe, tokenizer: Any, text: Text, batch_size: int, device: str
    ) -> None:
        self.forward, self.recipe, self.tokenizer, self.text = forward, recipe, tokenizer, text
        self.batch_size, self.device = batch_size, device
        self.dtype = getattr(torch, recipe.dtype)

    def stream(self, start: Position) -> Iterator[Block]:
        recipe = self.recipe
        special = special_tokens(self.tokenizer, recipe.bos is not None)
        return blocks(self.text.documents, self.tokenizer, special, recipe.context_size, pack=recipe.pack,
                      repeat=recipe.repeat, start=start)  # fmt: skip

    def jobs(self, records: dict[int, ShardRecord]) -> Iterator[Job]:
        """The shards that are not among ``records``, in order. Where sinks are dropped, on and on to the text's end."""
        recipe, rows, contexts = self.recipe, 0, 0
        position, stream = START, None
        for index in count():
            if rows >= recipe.tokens:
                return
            if record := records.get(index):
                if stream is None:
                    position = Position(*record.next)  # nothing is tokenized that is cached
                else:
                    list(islice(stream, record.contexts))
                rows, contexts = rows + record.rows, contexts + record.contexts
                continue
            stream = stream or self.stream(position)
            limit = None if recipe.drop_sinks else recipe.tokens - rows
            if not (wanted := self._next_shard(stream, limit)):
                return  # the text ended
            mask = rows_wanted(wanted, recipe)
            mask = mask if limit is None else first_rows(mask, limit)
            began_again = wanted[-1].next.document > int(wanted[-1].documents.max()) + 1
            if began_again and not rows and not mask.any():
                return  # the whole text has no token that gets a row
            yield Job(index, contexts, wanted, mask)
            rows += 0 if recipe.drop_sinks else int(mask.sum())
            contexts += len(wanted)

    def _next_shard(self, stream: Iterator[Block], limit: int | None) -> list[Block]:
        """At most shard_contexts blocks, and none beyond the rows wanted."""
        taken: list[Block] = []
        while len(taken) < self.recipe.shard_contexts and (limit is None or limit > 0):
            if (block := next(stream, None)) is None:
                break
            taken.append(block)
            if limit is not None:
                limit -= int(rows_wanted([block], self.recipe).sum())
        return taken

    def run(
        self, job: Job, sink_norms: dict[str, float], store: Callable[..., None], bar: Progress | None = None
    ) -> tuple[OpenShard, int]:
        """Forward a shard's blocks; ``store(add, which, values, kept)`` takes each batch. Returns the rows kept as well."""
        shard = OpenShard(job.number, job.first_context, job.blocks, job.wanted, self.recipe)
        lengths = np.array([block.length for block in job.blocks])
        order = lengths.argsort(kind="stable")  # all equal, so unchanged, where contexts are packed
        rows = 0
        for first in range(0, len(order), self.batch_size):
            which = order[first : first + self.batch_size]
            longest = int(lengths[which].max())
            values = self.activations([job.blocks[i] for i in which], longest)
            kept = job.wanted[which, :longest]
            for hook, limit in sink_norms.items():  # what is not finite is no sink: it stops the run in `add`
                length = norms(values[hook].flatten(0, 1))
                kept = kept & ~((length > limit) & length.isfinite()).view(kept.shape).numpy()
            store(shard.add, which.tolist(), values, kept)
            rows += int(kept.sum())
            if bar is not None:
                bar.update(int(kept.sum()))
        return shard, rows

    def activations(self, batch: list[Block], longest: int) -> dict[str, Tensor]:
        """{hook: [contexts, longest, width]} in the store's dtype, on the CPU."""
        ids = torch.from_numpy(np.stack([block.ids[:longest] for block in batch])).long().to(self.device)
        lengths = torch.tensor([block.length for block in batch])
        mask = None
        if int(lengths.min()) < longest:
            mask = (torch.arange(longest) < lengths[:, None]).long().to(self.device)
        return {name: value.to(self.dtype).to("cpu") for name, value in self.forward(ids, mask).items()}

    def sink_norms(self) -> dict[str, float]:
        """Per hook, the norm beyond which a token is a sink: the recipe's multiple of the median over the text's head."""
        assert self.recipe.drop_sinks is not None
        size = self.recipe.context_size
        head = list(islice(self.stream(START), -(-SINK_SAMPLE // size)))
        found: dict[str, list[Tensor]] = {hook: [] for hook in self.recipe.hooks}
        for first in range(0, len(head), self.batch_size):
            batch = head[first : first + self.batch_size]
            mask = torch.from_numpy(rows_wanted(batch, self.recipe))
            for hook, value in self.activations(batch, size).items():
                length = norms(value[mask])
                found[hook].append(length[length.isfinite()])
        medians = {hook: torch.cat([torch.empty(0), *parts]) for hook, parts in found.items()}
        return {hook: self.recipe.drop_sinks * float(part.median()) for hook, part in medians.items() if len(part)}


# --- filling: this process's share of the shards


def _fill(maker: ShardMaker, state: Unfinished, ranks: Ranks) -> None:
    """Make the missing shards, every size-th of them the one of this rank."""
    recipe, out = maker.recipe, state.out
    rows = sum(record.rows for record in state.records.values())
    if state.records and ranks.rank == 0:
        print(f"continuing after {rows:,} rows in {len(state.records)} shards", flush=True)
    jobs = read_ahead(maker.jobs(state.records), 2)
    known = {index: record.rows for index, record in state.records.items()}
    with (
        stop_wishes("this shard") as wish,
        Progress("caching", recipe.tokens, "tok", rows, silent=ranks.rank > 0) as bar,
        WriteBehind(max(BATCHES_BEHIND, recipe.shard_contexts // maker.batch_size)) as writer,
    ):
        try:
            for turn in _turns(jobs, ranks):
                job, left = turn[ranks.rank], recipe.tokens
                shard, made = maker.run(job, state.sink_norms, writer.submit, bar) if job else (None, 0)
                if recipe.drop_sinks:  # how many rows the shards before this one have is known only now
                    done = ranks.gather((job.number, made) if job else None)
                    known |= dict(filter(None, done))
                    left -= sum(known[i] for i in range(job.number)) if job else 0
                if shard is not None and left > 0:
                    writer.submit(_write, out, shard, left)
                bar.update(sum(int(other.wanted.sum()) for other in turn if other and other is not job))
                if wish:
                    writer.wait()
                    kept = f"{bar.done:,} of {recipe.tokens:,} rows are in {out}"
                    raise wish.stop(f"{kept}; run the same command again to go on")
                if recipe.drop_sinks and sum(known.values()) >= recipe.tokens:
                    break
        finally:
            jobs.close()


def _turns(jobs: Iterator[Job], ranks: Ranks) -> Iterator[list[Job | None]]:
    """The jobs of all ranks at a time; None for the ranks that have none left."""
    while turn := list(islice(jobs, ranks.size)):
        yield [*turn, *[None] * (ranks.size - len(turn))]


def _write(out: Path, shard: OpenShard, limit: int) -> None:
    record = shard.write(out, limit)
    write_json(Unfinished.record_file(out, shard.index), record.model_dump())


# --- the end


def _check_space(out: Path, recipe: Recipe, state: Unfinished) -> None:
    rows = recipe.tokens - sum(record.rows for record in state.records.values())
    there = next(folder for folder in (out, *out.absolute().parents) if folder.exists())
    needed, free = rows * bytes_per_row(recipe), shutil.disk_usage(there).free
    if needed > free:
        raise StoreError(
            f"{out}: the store needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; ask for fewer tokens or hooks"
        )


def bytes_per_row(recipe: Recipe) -> int:
    """On disk, all hooks and the tokens' columns together; the contexts' own ids not counted."""
    return sum(recipe.hooks.values()) * getattr(torch, recipe.dtype).itemsize + 20


def _commit(state: Unfinished, words: list[str]) -> None:
    recipe, out = state.recipe, state.out
    shards = [state.records[index] for index in sorted(state.records)]
    if sorted(state.records) != list(range(len(shards))):
        raise StoreError(f"{out}: files of a shard are gone that was written before; run the same command again")
    rows = sum(record.rows for record in shards)
    if not rows:
        state.give_up()
        raise TextError(
            f"text {recipe.text['id']!r} is empty or too short: it does not fill one context of {recipe.context_size} tokens "
            "with a token that gets a row; give more text or a smaller --context-size"
        )
    if rows < recipe.tokens:
        print(
            f"the text ended after {rows:,} of {recipe.tokens:,} rows; the store keeps what there is "
            "(--repeat would go through the text again)",
            flush=True,
        )
    write_whole(out / "stats.safetensors", lambda part: save_file(statistics(out, recipe, len(shards)), part))
    write_json(out / "vocabulary.json", words)
    manifest = Manifest(
        recipe=recipe,
        rows=rows,
        contexts=sum(record.contexts for record in shards),
        documents=max(record.last_document for record in shards) + 1,
        text_ended=rows < recipe.tokens,
        sink_norms=state.sink_norms,
        shards=shards,
        files={name: file_record(out / name) for name in ("stats.safetensors", "vocabulary.json")},
        batch_size=state.batch_size,
        versions=state.versions,
    )
    write_manifest(out, manifest)
    state.end()


def statistics(out: Path, recipe: Recipe, shards: int) -> dict[str, Tensor]:
    """Mean, mean squared norm and quantiles of the norm of every hook, from the sums that the shards hold."""
    stats = {}
    for hook in recipe.hooks:
        parts = [load_file(out / shard_file(hook, index)) for index in range(shards)]
        rows = sum(len(part.pop("rows")) for part in parts)
        stats[f"{hook}/mean"] = torch.stack([part["sum"] for part in parts]).sum(0) / rows
        stats[f"{hook}/mean_squared_norm"] = torch.stack([part["sum_squared_norm"] for part in parts]).sum() / rows
        stats[f"{hook}/non_finite"] = torch.stack([part["non_finite"] for part in parts]).sum()
        bins, counts = add_histograms((part["norm_bins"], part["norm_counts"]) for part in parts)
        stats[f"{hook}/norm_quantiles"] = norm_quantiles(bins, counts, QUANTILES)
    return stats


def file_record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=sha256(path))


def _tokenizer_digest(tokenizer: Any) -> str:
    backend = getattr(tokenizer, "backend_tokenizer", None)
    content = backend.to_str() if backend is not None else json.dumps(tokenizer.get_vocab(), sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()
