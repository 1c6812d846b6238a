"""sae-lm cache: run a language model over a text and store what its hooks see.

A run that was killed goes on with the shards that are missing, and ranks take turns at them; either way the
store ends with the same bytes. The manifest comes last: it commits the store. Tokens are made ahead of the model and
rows are written behind it, each in a thread of its own. Where a shard begins in the text is known only once the tokens
before it are: of several ranks the first makes all tokens, and the others get theirs from it.
"""

import sys
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from safetensors.torch import save_file

from sae_lm.data.characters import partial_tokens, write_partial
from sae_lm.data.manifest import MANIFEST, Manifest, Recipe, write_manifest
from sae_lm.data.partial_store import PartialStore, check_folder, open_for_writing, stored_recipe
from sae_lm.data.recipe import text_revision
from sae_lm.data.repeats import remark_on_copies
from sae_lm.data.shards import OpenShard
from sae_lm.data.store import Store, open_store
from sae_lm.data.tokenizer_checks import remarks
from sae_lm.data.tokens import vocabulary
from sae_lm.data.writer import BATCHES_BEHIND, Job, ShardMaker, bytes_per_row, file_record, open_writer, statistics
from sae_lm.errors import SettingsError, StoreError, TextError
from sae_lm.fields import with_home
from sae_lm.runtime.distributed import Ranks, join_ranks
from sae_lm.runtime.files import check_disk, free_bytes, write_json, write_whole
from sae_lm.runtime.progress import Progress
from sae_lm.runtime.signals import stop_on_signal
from sae_lm.runtime.threads import WriteBehind, read_ahead
from sae_lm.settings import CacheSettings


def cache(settings: CacheSettings) -> Path:
    """Write the activation store that ``settings`` describe and return its folder.

    A whole store of the same recipe is reused, an unfinished one continued, any other content of the folder
    refused (StoreError). Under torchrun all ranks write one store. SIGINT and SIGTERM raise Stopped
    after the current shard.
    """
    _check_out(settings)
    stored = stored_recipe(settings.out)
    known: dict[str, Any] = {"recorded": stored.text, "text_revision": _begun_at(settings, stored)} if stored else {}
    with (
        join_ranks() as ranks,
        open_writer(settings, local_rank=ranks.local_rank if ranks.size > 1 else None, **known) as maker,
        open_for_writing(settings.out, maker.recipe, lock=ranks.rank == 0) as state,
    ):
        if state is None:
            if ranks.rank == 0:
                print(f"{open_store(settings.out)!r} is there already; reused", flush=True)
        else:
            _write_store(maker, state, ranks)
    return settings.out


def _check_out(settings: CacheSettings) -> None:
    """Raise StoreError or SettingsError where the store cannot be written, before anything is loaded."""
    check_folder(settings.out)
    if not (settings.out / MANIFEST).is_file():  # a finished one is reused, wherever it is
        check_disk(settings.out)
    folder = Path(with_home(settings.text))
    if folder.is_dir() and folder.resolve() in (settings.out.resolve(), *settings.out.resolve().parents):
        raise SettingsError(
            f"out ({settings.out}) is inside the text's folder, whose files are the text; give another --out"
        )


def _begun_at(settings: CacheSettings, stored: Recipe) -> str | None:
    """The commit of a text of the hub that the store was begun with, though the text may have a newer one now."""
    named = (settings.text, settings.split or "train")
    return text_revision(stored) if (stored.text.get("id"), stored.text.get("split")) == named else None


def _write_store(maker: ShardMaker, state: PartialStore, ranks: Ranks) -> None:
    """Cache the shards that are missing, with all ranks, and commit the store."""
    if ranks.rank == 0:
        _check_space(maker.recipe, state)
        if not state.records:  # a run that goes on has said it
            of_text = remarks(maker.tokenizer, maker.text, maker.recipe)
            for remark in filter(None, (maker.forward.remark, maker.slow(), *of_text)):
                print(f"note: {remark}", file=sys.stderr, flush=True)
        state.begin(maker.batch_size, maker.sink_norms() if maker.recipe.drop_sinks else {})
    ranks.barrier()
    _fill(maker, state if ranks.rank == 0 else state.reread(), ranks)
    ranks.barrier()
    if ranks.rank == 0:
        words = vocabulary(maker.tokenizer, maker.recipe.model["d_vocab"])
        _commit(state.reread(), words, partial_tokens(maker.tokenizer, words))
    ranks.barrier()


# --- filling: this process's share of the shards


def _fill(maker: ShardMaker, state: PartialStore, ranks: Ranks) -> None:
    """Make the missing shards, every size-th of them the one of this rank."""
    recipe, out = maker.recipe, state.out
    rows = sum(record.rows for record in state.records.values())
    if state.records and ranks.rank == 0:
        print(f"continuing after {rows:,} rows in {len(state.records)} shards", flush=True)
    jobs = read_ahead(maker.jobs(state.records, state.places) if ranks.rank == 0 else (), 2 * ranks.size)
    known = {index: record.rows for index, record in state.records.items()}
    with (
        stop_on_signal("this shard") as stop_request,
        Progress("caching", recipe.tokens, "tok", rows, silent=ranks.rank > 0) as bar,
        WriteBehind(max(BATCHES_BEHIND, recipe.shard_contexts // maker.batch_size)) as writer,
    ):
        try:
            for turn in _turns(jobs, ranks):
                job, left = turn.job, recipe.tokens
                limit = recipe.tokens - _rows_before(job, known) if job and recipe.drop_sinks else None
                shard, made = maker.run(job, state.sink_norms, writer.submit, bar, limit) if job else (None, 0)
                if recipe.drop_sinks:  # how many rows the shards before this one have is known only now
                    done = ranks.gather((job.number, made) if job else None)
                    known |= dict(filter(None, done))
                    left -= sum(known[i] for i in range(job.number)) if job else 0
                if shard is not None and left > 0:
                    writer.submit(_write, out, shard, left)
                bar.update(turn.others)
                if any(ranks.gather(bool(stop_request))):
                    writer.wait()
                    kept = f"{bar.done:,} of {recipe.tokens:,} rows are in {out}"
                    raise stop_request.stop(f"{kept}; run the same command again to go on")
                if recipe.drop_sinks and sum(known.values()) >= recipe.tokens:
                    break
        finally:
            jobs.close()


def _rows_before(job: Job, known: dict[int, int]) -> int:
    """Rows of the shards before this one, as far as it is known how many they have: other ranks may be at some."""
    return sum(known.get(index, 0) for index in range(job.number))


class _Turn(NamedTuple):
    """What the ranks do at a time, as one of them sees it."""

    job: Job | None
    """None where there is none left for this rank"""
    others: int
    """rows that the other ranks may get"""


def _turns(jobs: Iterator[Job], ranks: Ranks) -> Iterator[_Turn]:
    """This rank's turns, until there are no jobs left. jobs: rank 0's."""

    def deal() -> list[_Turn | None]:
        turn: list[Job | None] = list(islice(jobs, ranks.size))
        rows = [int(job.wanted.sum()) if job else 0 for job in turn]
        missing = ranks.size - len(turn)
        if not turn:
            return [None] * ranks.size
        return [
            _Turn(job, sum(rows) - own)
            for job, own in zip([*turn, *[None] * missing], [*rows, *[0] * missing], strict=True)
        ]

    while turn := ranks.dealt(deal):
        yield turn


def _write(out: Path, shard: OpenShard, limit: int) -> None:
    record = shard.write(out, limit)
    write_json(PartialStore.place_file(out, shard.index), shard.blocks[-1].place)
    write_json(PartialStore.record_file(out, shard.index), record.model_dump())


# --- the end


def _check_space(recipe: Recipe, state: PartialStore) -> None:
    rows = recipe.tokens - sum(record.rows for record in state.records.values())
    needed, free = rows * bytes_per_row(recipe), free_bytes(state.out)
    if needed > free:
        raise StoreError(
            f"{state.out}: the store needs {needed / 1e9:.1f} GB, the disk has {free / 1e9:.1f} GB free; ask for fewer tokens or hooks"
        )


def _commit(state: PartialStore, words: list[str], partial: dict[int, bytes]) -> None:
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
    write_whole(out / "stats.safetensors", lambda temporary: save_file(statistics(out, recipe, len(shards)), temporary))
    write_json(out / "vocabulary.json", words)
    names = ["stats.safetensors", "vocabulary.json", *write_partial(out, partial)]
    manifest = Manifest(
        recipe=recipe,
        rows=rows,
        contexts=sum(record.contexts for record in shards),
        documents=max(record.last_document for record in shards) + 1,
        text_ended=rows < recipe.tokens,
        sink_norms=state.sink_norms,
        shards=shards,
        files={name: file_record(out / name) for name in names},
        batch_size=state.batch_size,
        versions=state.versions,
    )
    write_manifest(out, manifest)
    state.end()
    for line in what_is_left_out(open_store(out)):
        print(line, flush=True)


EXTREME = 10.0
"""Multiple of a hook's median norm, the one that ``--drop-sinks`` is usually given."""


def what_is_left_out(store: Store) -> Iterator[str]:
    """What has no row, what perhaps should have none, and what stands there more than once, in a line each."""
    recipe, shards = store.manifest.recipe, store.manifest.shards
    special = sum(shard.special_tokens for shard in shards)
    if recipe.other_special and special and not recipe.keep_special:
        yield (
            f"{special:,} special tokens have no row, those that documents spell out (marks of chats) among them; "
            "--keep-special keeps them"
        )
    if copies := remark_on_copies(store):
        yield copies
    for hook in store.hooks if recipe.drop_sinks is None else ():
        if extreme := store.rows_beyond(EXTREME, hook):
            yield (
                f"{extreme:,} of {len(store):,} rows of {hook} have norms beyond {EXTREME:g} times the median: attention sinks, which "
                f"rule FVU and training; --drop-sinks {EXTREME:g} leaves them out"
            )


def run(settings: CacheSettings) -> int:
    print(f"store: {cache(settings)}")
    return 0
