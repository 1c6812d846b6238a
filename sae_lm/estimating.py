"""cache settings -> what caching would cost: rows, bytes, time from a short trial, free space."""

import shutil
import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

import torch

from sae_lm.background import WriteBehind
from sae_lm.caching import BATCHES_BEHIND, ShardMaker, bytes_per_row, describe_recipe
from sae_lm.data.forward import open_forward
from sae_lm.data.hub import find_model
from sae_lm.data.huggingface import load_tokenizer
from sae_lm.data.shards import OpenShard, rows_wanted
from sae_lm.data.text import open_text
from sae_lm.data.tokens import START
from sae_lm.device import pick_device
from sae_lm.errors import TextError
from sae_lm.settings import EstimateSettings


class Estimate(NamedTuple):
    rows: int
    """rows asked for, or all the text has where it ended within the trial"""
    text_ended: bool
    shards: int
    hooks: dict[str, int]
    bytes: int
    free: int
    """bytes free on the disk of the store's folder"""
    rows_per_second: float
    forward: str

    @property
    def seconds(self) -> float:
        return self.rows / self.rows_per_second

    def __str__(self) -> str:
        ended = " (all that the text has)" if self.text_ended else ""
        enough = "enough" if self.free > self.bytes else "NOT ENOUGH"
        widths = ", ".join(f"{hook} ({width})" for hook, width in self.hooks.items())
        return "\n".join(
            [
                f"hooks:  {widths}",
                f"rows:   {self.rows:,}{ended} in {self.shards:,} shards",
                f"disk:   {self.bytes / 1e9:,.2f} GB, {self.free / 1e9:,.1f} GB free: {enough}",
                f"time:   {_duration(self.seconds)} at {self.rows_per_second:,.0f} rows/s ({self.forward}, measured just now)",
            ]
        )


def estimate(settings: EstimateSettings) -> Estimate:
    """Run the model over the text's beginning for ``settings.trial`` seconds, in a folder that is deleted again."""
    source = find_model(settings.model, settings.revision)
    text = open_text(settings.text, settings.split, settings.text_column)
    tokenizer = load_tokenizer(source)
    device, dtype = pick_device(settings.device), getattr(torch, settings.model_dtype)
    with open_forward(source, settings.hooks, kind=settings.forward, device=device, dtype=dtype) as forward:
        recipe = describe_recipe(settings, forward, source, text, tokenizer)
        maker = ShardMaker(forward, recipe, tokenizer, text, settings.batch_size, device)
        contexts, rows, seconds, ended = _trial(maker, settings.trial)
    wanted = min(recipe.tokens, rows) if ended else recipe.tokens
    there = next(folder for folder in (settings.out, *settings.out.absolute().parents) if folder.exists())
    per_shard = max(1, recipe.shard_contexts * rows // max(1, contexts))
    return Estimate(
        rows=wanted,
        text_ended=wanted < recipe.tokens,
        shards=-(-wanted // per_shard),
        hooks=recipe.hooks,
        bytes=wanted * bytes_per_row(recipe),
        free=shutil.disk_usage(there).free,
        rows_per_second=rows / seconds,
        forward=forward.attention,
    )


def _trial(maker: ShardMaker, limit: float) -> tuple[int, int, float, bool]:
    """Contexts run, their rows, the seconds they took, and whether the text ended before the time was up."""
    stream, contexts, rows, began = maker.stream(START), 0, 0, time.perf_counter()
    with tempfile.TemporaryDirectory() as folder, WriteBehind(BATCHES_BEHIND) as writer:
        while batch := list(islice(stream, maker.batch_size)):
            kept = rows_wanted(batch, maker.recipe)
            shard = OpenShard(0, 0, batch, kept, maker.recipe)
            values = maker.activations(batch, maker.recipe.context_size)
            writer.submit(shard.add, range(len(batch)), values, kept)
            writer.submit(shard.write, Path(folder), kept.size)
            contexts, rows = contexts + len(batch), rows + int(kept.sum())
            if time.perf_counter() - began > limit:
                break
        else:
            batch = None
        writer.wait()
    if not contexts:
        raise TextError(
            f"text {maker.text.id!r} does not fill one context of {maker.recipe.context_size} tokens; give more text"
        )
    return contexts, rows, time.perf_counter() - began, batch is None


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"
