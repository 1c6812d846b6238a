"""Make the shards of a store: run the model over contexts and keep the rows.

Shards are whole contexts of one stream of blocks, and a forward batch never crosses a shard. So a
shard's bytes depend on the recipe and its number alone, whoever makes it and whatever was made before.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors import safe_open
from torch import Tensor

from sae_lm.data.manifest import QUANTILES, FileRecord, Recipe, ShardRecord, shard_file
from sae_lm.data.norms import add_histograms, norm_quantiles
from sae_lm.data.recipe import describe_recipe
from sae_lm.data.shards import OpenShard, first_rows, norms, rows_wanted
from sae_lm.data.text import Text, open_text
from sae_lm.data.tokenizer_checks import check_ids
from sae_lm.data.tokens import BEGINNING, START, Block, Place, Position, SpecialTokens, blocks
from sae_lm.lm.capture import Forward
from sae_lm.lm.device_map import check_device_map
from sae_lm.lm.forward import open_forward
from sae_lm.lm.source import find_model, load_tokenizer
from sae_lm.runtime.device import OnItsWay, imitation, pick_device, to_device
from sae_lm.runtime.files import sha256
from sae_lm.runtime.progress import Progress
from sae_lm.settings import CacheSettings

BATCHES_BEHIND = 4
"""Forward batches that may wait to be written at least. A shard's worth of them may, so that the model runs on while a
shard is written: rows of two shards are in memory at most."""
SINK_SAMPLE = 8192
"""Positions whose median norm decides what a sink is."""


class Job(NamedTuple):
    """One shard to be made."""

    number: int
    first_context: int
    blocks: list[Block]
    wanted: np.ndarray
    """[contexts, context_size] bool: tokens that get a row, unless they are sinks"""


@dataclass(frozen=True)
class ShardMaker:
    """Makes shard number i of a recipe: the same bytes whoever asks, and whatever was made before."""

    forward: Forward
    recipe: Recipe
    tokenizer: Any
    text: Text
    batch_size: int
    """contexts per forward pass"""
    device: str

    def slow(self) -> str:
        """A sentence where the model runs in a dtype that the device imitates; else empty."""
        return imitation(self.forward.dtype, self.forward.device, "give --model-dtype float32")

    def stream(self, start: Position, place: Place = BEGINNING) -> Iterator[Block]:
        """Contexts from ``start`` on; ``place``: the last one noted before it."""
        recipe = self.recipe
        special = SpecialTokens(recipe.bos, recipe.separator, recipe.other_special)
        size = recipe.model["d_vocab"]
        for block in blocks(self.text.chunks, self.tokenizer, special, recipe.context_size, pack=recipe.pack,
                      repeat=recipe.repeat, start=start, place=place):  # fmt: skip
            if block.ids.max() >= size or block.ids.min() < 0:
                document = block.documents[(block.ids >= size) | (block.ids < 0)][0]
                check_ids(block.ids, size, self.tokenizer, f"document {document} of text {self.text.id!r}")
            yield block

    def jobs(self, records: dict[int, ShardRecord], places: dict[int, Place] | None = None) -> Iterator[Job]:
        """The shards that are not among ``records``, in order. Where sinks are dropped, on and on to the text's end.

        places: number of a shard -> from where the text is read on behind it; without one, from its beginning.
        """
        recipe, rows, contexts = self.recipe, 0, 0
        position, place, stream = START, BEGINNING, None
        places = {i: noted for i, noted in (places or {}).items() if self.text.rows.knows(noted.reader)}
        for index in count():
            if rows >= recipe.tokens:
                return
            if record := records.get(index):
                # no document is tokenized that is cached; it is read from the last place that is known before
                position, place, stream = Position(*record.next), places.get(index, place), None
                rows, contexts = rows + record.rows, contexts + record.contexts
                continue
            stream = stream or self.stream(position, place)
            limit = None if recipe.drop_sinks else recipe.tokens - rows
            if not (wanted := self._next_shard(stream, limit)):
                return  # the text ended
            mask = rows_wanted(wanted, recipe)
            mask = mask if limit is None else first_rows(mask, limit)
            began_again = wanted[-1].next.document > int(wanted[-1].documents.max()) + 1
            if began_again and not rows and not mask.any():
                return  # the whole text has no token that gets a row
            yield Job(index, contexts, wanted, mask)
            place = wanted[-1].place
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
        self,
        job: Job,
        sink_norms: dict[str, float],
        keep: Callable[..., None],
        bar: Progress | None = None,
        limit: int | None = None,
    ) -> tuple[OpenShard, int]:
        """Forward a shard's blocks; ``keep(work, ...)`` has each batch added, here or in a thread. Returns the rows kept as well.

        limit: rows after which the store ends; then no batch is made without a context of which rows may still be wanted.
        """
        shard = OpenShard(job.number, job.first_context, job.blocks, job.wanted, self.recipe)
        lengths = np.array([block.length for block in job.blocks])
        order = lengths.argsort(kind="stable")  # all equal, so unchanged, where contexts are packed
        rows = np.full(len(order), -1)  # of each context, as far as they are made
        for which in self._batches(order, rows, limit):
            longest = int(lengths[which].max())
            values = self.activations([job.blocks[i] for i in which], longest)
            kept = job.wanted[which, :longest]
            for hook, largest in sink_norms.items():  # what is not finite is no sink: it stops the run in `add`
                length = norms(values.get()[hook].flatten(0, 1))
                kept = kept & ~((length > largest) & length.isfinite()).view(kept.shape).numpy()
            keep(_add, shard, which.tolist(), values, kept)
            rows[which] = kept.sum(1)
            if bar is not None:
                bar.update(int(kept.sum()))
        return shard, int(rows.clip(0).sum())

    def _batches(self, order: np.ndarray, rows: np.ndarray, limit: int | None) -> Iterator[np.ndarray]:
        """Which contexts are run together; what goes together depends on the shard alone.

        With a limit the batch of the first context without rows comes next, until those before it have so many.
        """
        batches = [order[first : first + self.batch_size] for first in range(0, len(order), self.batch_size)]
        if limit is None:
            yield from batches
            return
        batch_of = np.empty(len(order), np.int64)
        for number, which in enumerate(batches):
            batch_of[which] = number
        while len(missing := np.flatnonzero(rows < 0)) and rows[: missing[0]].sum() < max(1, limit):
            yield batches[batch_of[missing[0]]]

    def activations(self, batch: list[Block], longest: int) -> OnItsWay:
        """{hook: [contexts, longest, width]} in the store's dtype, on their way to the CPU."""
        ids = to_device(torch.from_numpy(np.stack([block.ids[:longest] for block in batch])).long(), self.device)
        lengths = torch.tensor([block.length for block in batch])
        mask = None
        if int(lengths.min()) < longest:
            mask = to_device((torch.arange(longest) < lengths[:, None]).long(), self.device)
        dtype = getattr(torch, self.recipe.dtype)
        return OnItsWay({name: value.to(dtype) for name, value in self.forward(ids, mask).items()})

    def sink_norms(self) -> dict[str, float]:
        """Per hook, the norm beyond which a token is a sink: the recipe's multiple of the median over the text's head."""
        assert self.recipe.drop_sinks is not None
        size = self.recipe.context_size
        head = list(islice(self.stream(START), -(-SINK_SAMPLE // size)))
        lengths: dict[str, list[Tensor]] = {hook: [] for hook in self.recipe.hooks}
        for first in range(0, len(head), self.batch_size):
            batch = head[first : first + self.batch_size]
            mask = torch.from_numpy(rows_wanted(batch, self.recipe))
            for hook, value in self.activations(batch, size).get().items():
                length = norms(value[mask])
                lengths[hook].append(length[length.isfinite()])
        medians = {hook: torch.cat([torch.empty(0), *parts]) for hook, parts in lengths.items()}
        return {hook: self.recipe.drop_sinks * float(part.median()) for hook, part in medians.items() if len(part)}


def _add(shard: OpenShard, which: list[int], values: OnItsWay, kept: np.ndarray) -> None:
    shard.add(which, values.get(), kept)


@contextmanager
def open_writer(
    settings: CacheSettings,
    *,
    local_rank: int | None = None,
    text_revision: str | None = None,
    recorded: Mapping[str, Any] | None = None,
    text: Text | None = None,
    other_special: tuple[int, ...] | None = None,
) -> Iterator[ShardMaker]:
    """Open the model, its tokenizer and the text that ``settings`` name; the model is hooked inside the block.

    local_rank: of several processes on this machine, which take one GPU each.
    text_revision: commit of a text of the hub (default: the newest).
    recorded: what a store that is there records of its text, which may be known to it by an earlier fingerprint.
    text: one that need not be opened, as none of it is read (`sae_lm.data.recipe.recorded_text`).
    other_special: of the store that is repaired (default: what the tokenizer calls special).
    Raises ModelError, TextError, HubError, SettingsError for what cannot be opened.
    """
    check_device_map(settings.device_map, settings.device, one_of_many=local_rank is not None)
    source = find_model(settings.model, settings.revision)
    opened = text or open_text(settings.text, settings.split, settings.text_column, text_revision)
    opened = opened.known_as(recorded or {})
    tokenizer = load_tokenizer(source)
    text = text or opened.with_chats_of(tokenizer)
    device, dtype = settings.device, getattr(torch, settings.model_dtype)
    if settings.device_map is None:
        device = pick_device(device, local_rank)
    with open_forward(
        source, settings.hooks, kind=settings.forward, device=device, dtype=dtype, device_map=settings.device_map
    ) as forward:
        recipe = describe_recipe(settings, forward, source, text, tokenizer)
        if other_special is not None:
            recipe = recipe.model_copy(update={"other_special": other_special})
        yield ShardMaker(forward, recipe, tokenizer, text, settings.batch_size, forward.device)


def bytes_per_row(recipe: Recipe) -> int:
    """On disk, all hooks and the tokens' columns together; the contexts' own ids not counted."""
    return sum(recipe.hooks.values()) * getattr(torch, recipe.dtype).itemsize + 20


def statistics(out: Path, recipe: Recipe, shards: int) -> dict[str, Tensor]:
    """Mean, mean squared norm and quantiles of the norm of every hook, from the sums that the shards hold."""
    stats = {}
    for hook in recipe.hooks:
        rows, shard_sums = 0, []
        for index in range(shards):
            with safe_open(out / shard_file(hook, index), "pt") as file:
                rows += file.get_slice("rows").get_shape()[0]
                # copies: a tensor that is not one keeps the whole file mapped
                keys = [key for key in file.keys() if key != "rows"]  # noqa: SIM118
                shard_sums.append({key: file.get_tensor(key).clone() for key in keys})
        stats[f"{hook}/mean"] = torch.stack([sums["sum"] for sums in shard_sums]).sum(0) / rows
        stats[f"{hook}/mean_squared_norm"] = torch.stack([sums["sum_squared_norm"] for sums in shard_sums]).sum() / rows
        stats[f"{hook}/non_finite"] = torch.stack([sums["non_finite"] for sums in shard_sums]).sum()
        bins, counts = add_histograms((sums["norm_bins"], sums["norm_counts"]) for sums in shard_sums)
        stats[f"{hook}/norm_quantiles"] = norm_quantiles(bins, counts, QUANTILES)
    return stats


def file_record(path: Path) -> FileRecord:
    return FileRecord(bytes=path.stat().st_size, sha256=sha256(path))
