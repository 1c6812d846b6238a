"""Make the shards of a store: run the model over contexts and keep the rows.

Shards are whole contexts of one stream of blocks, and a forward batch never crosses a shard. So a
shard's bytes depend on the recipe and its number alone, whoever makes it and whatever was made before.
"""

import hashlib
import json
from collections.abc import Callable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from safetensors.torch import load_file
from torch import Tensor

from sae_lm.data.manifest import QUANTILES, FileRecord, Recipe, ShardRecord, shard_file
from sae_lm.data.norms import add_histograms, norm_quantiles
from sae_lm.data.shards import OpenShard, first_rows, norms, rows_wanted
from sae_lm.data.text import Text
from sae_lm.data.tokens import START, Block, Position, blocks, special_tokens
from sae_lm.errors import SettingsError
from sae_lm.lm.capture import Forward, context_limit, describe_model
from sae_lm.runtime.files import sha256
from sae_lm.runtime.progress import Progress
from sae_lm.settings import CacheSettings

BATCHES_BEHIND = 4
"""Forward batches that may wait to be written at least. A shard's worth of them may, so that the model runs on while a
shard is written: rows of two shards are in memory at most."""


SINK_SAMPLE = 8192
"""Positions whose median norm decides what a sink is."""


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


def bytes_per_row(recipe: Recipe) -> int:
    """On disk, all hooks and the tokens' columns together; the contexts' own ids not counted."""
    return sum(recipe.hooks.values()) * getattr(torch, recipe.dtype).itemsize + 20


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
