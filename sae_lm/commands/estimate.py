"""sae-lm estimate: measure in a short trial how many rows, bytes and how much time caching would take."""

import tempfile
import time
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from sae_lm.data.shards import rows_wanted
from sae_lm.data.tokens import START
from sae_lm.data.writer import BATCHES_BEHIND, Job, ShardMaker, open_writer
from sae_lm.errors import TextError
from sae_lm.pages.terminal import columns
from sae_lm.runtime.files import free_bytes
from sae_lm.runtime.threads import WriteBehind
from sae_lm.settings import EstimateSettings

CHUNK_BATCHES = 4
"""Forward batches to a shard of the trial: enough to sort contexts by length, where they have different ones."""


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
    slow: str
    """a sentence on what makes it slow and could be otherwise; usually empty"""

    @property
    def seconds(self) -> float:
        return self.rows / self.rows_per_second

    def __str__(self) -> str:
        ended = " (all that the text has)" if self.text_ended else ""
        enough = "enough" if self.free > self.bytes else "NOT ENOUGH"
        widths = ", ".join(f"{hook} ({width})" for hook, width in self.hooks.items())
        rows = {
            "hooks:": widths,
            "rows:": f"{self.rows:,}{ended} in {self.shards:,} shards",
            "disk:": f"{self.bytes / 1e9:,.3g} GB, {self.free / 1e9:,.1f} GB free: {enough}",
            "time:": f"{_duration(self.seconds)} at {self.rows_per_second:,.0f} rows/s ({self.forward}, measured just now)",
            **({"note:": self.slow} if self.slow else {}),
        }
        return "\n".join(columns([*rows], [[*rows.values()]], heads=False, left=True))


def estimate(settings: EstimateSettings) -> Estimate:
    """Run the model over the text's beginning for ``settings.trial`` seconds, in a folder that is deleted again."""
    with open_writer(settings) as maker:
        trial = _trial(maker, settings.trial)
    recipe = maker.recipe
    wanted = min(recipe.tokens, trial.rows) if trial.ended else recipe.tokens
    per_shard = max(1, recipe.shard_contexts * trial.rows // trial.contexts)
    return Estimate(
        rows=wanted,
        text_ended=wanted < recipe.tokens,
        shards=-(-wanted // per_shard),
        hooks=recipe.hooks,
        bytes=wanted * trial.bytes // trial.rows,
        free=free_bytes(settings.out),
        rows_per_second=trial.timed_rows / trial.seconds,
        forward=recipe.forward,
        slow=maker.slow(),
    )


class Trial(NamedTuple):
    contexts: int
    rows: int
    bytes: int
    """written for these rows"""
    timed_rows: int
    """rows of the chunks after the first, which also pays for what happens once"""
    seconds: float
    ended: bool
    """the text ended before the time was up"""


def _trial(maker: ShardMaker, limit: float) -> Trial:
    """Cache small shards, one after another, as ``cache`` does, into a folder that is deleted again."""
    stream, ended = maker.stream(START), False
    contexts = rows = size = 0
    marks: list[tuple[float, int]] = []
    sink_norms = maker.sink_norms() if maker.recipe.drop_sinks else {}
    with tempfile.TemporaryDirectory() as folder, WriteBehind(BATCHES_BEHIND) as writer:
        began = time.perf_counter()
        while len(marks) < 2 or marks[-1][0] - marks[0][0] < limit:
            if not (chunk := list(islice(stream, maker.batch_size * CHUNK_BATCHES))):
                ended = True
                break
            shard, made = maker.run(Job(0, 0, chunk, rows_wanted(chunk, maker.recipe)), sink_norms, writer.submit)
            writer.wait()
            record = shard.write(Path(folder), made + 1)
            size += sum(file.bytes for file in record.files.values())
            contexts, rows = contexts + len(chunk), rows + made
            marks.append((time.perf_counter(), rows))
    if not rows:
        raise TextError(
            f"text {maker.text.id!r} does not fill one context of {maker.recipe.context_size} tokens with a token that gets a row; "
            "give more text or a smaller --context-size"
        )
    first = marks[0] if len(marks) > 1 and marks[-1][1] > marks[0][1] else (began, 0)
    return Trial(contexts, rows, size, marks[-1][1] - first[1], max(marks[-1][0] - first[0], 1e-9), ended)


def _duration(seconds: float) -> str:
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min")):
        if seconds >= 2 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def run(settings: EstimateSettings) -> int:
    print(estimate(settings))
    return 0
