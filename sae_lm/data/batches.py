"""shards -> batches: every row once per epoch, in an order that depends on (seed, epoch) alone.

Shards (or pieces of a window's size, where shards are larger) are permuted and read one after another
into a window in memory; the window's rows
are permuted and cut into batches. Rows that do not fill a batch go on into the next window and the
next epoch, so batches are always full and no row is dropped or repeated within an epoch. While the
store fits the window this is an exact uniform permutation.
"""

from collections.abc import Iterator
from itertools import count
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from sae_lm.seeds import derive

if TYPE_CHECKING:
    from sae_lm.data.store import Store

WINDOW_BYTES = 2 << 30
"""Rows held in memory at a time."""


def shuffled_batches(
    store: "Store",
    hook: str,
    batch_size: int,
    seed: int,
    num_batches: int,
    start: int,
    stop: int,
    window_bytes: int = WINDOW_BYTES,
) -> Iterator[Float[Tensor, "batch width"]]:
    """``num_batches`` batches of rows start to stop, going through them as often as that takes."""
    left: Tensor | None = None
    made = 0
    for epoch in count():
        for spans in _windows(store, hook, seed, epoch, start, stop, window_bytes):
            rows = torch.cat([store.rows(hook, first, last) for first, last in spans])
            generator = torch.Generator().manual_seed(derive("rows", seed, epoch, spans[0][0]))
            rows = rows[torch.randperm(len(rows), generator=generator)]
            if left is not None:
                rows = torch.cat([left, rows])
            whole = len(rows) // batch_size
            for index in range(whole):
                if made == num_batches:
                    return
                yield rows[index * batch_size : (index + 1) * batch_size]
                made += 1
            left = rows[whole * batch_size :].clone()
        if made >= num_batches:
            return


def _windows(
    store: "Store", hook: str, seed: int, epoch: int, start: int, stop: int, window_bytes: int
) -> Iterator[list[tuple[int, int]]]:
    """Lists of (first row, last row) spans, one list per window; shards in permuted order."""
    edges = zip(store.first_row[:-1], store.first_row[1:], strict=True)
    shards = [(max(first, start), min(last, stop)) for first, last in edges if first < stop and last > start]
    limit = max(1, window_bytes // (store.hooks[hook] * getattr(torch, store.manifest.recipe.dtype).itemsize))
    spans = [(a, min(a + limit, last)) for first, last in shards for a in range(first, last, limit)]
    order = torch.randperm(len(spans), generator=torch.Generator().manual_seed(derive("shards", seed, epoch)))
    window: list[tuple[int, int]] = []
    for index in order.tolist():
        first, last = spans[index]
        if window and sum(b - a for a, b in window) + last - first > limit:
            yield window
            window = []
        window.append((first, last))
    if window:
        yield window
