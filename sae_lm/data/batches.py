"""Shuffled batches of a store's rows: every row once per epoch, in an order that depends on seed and epoch alone.

Shards are cut into pieces of neighbouring rows. The pieces of the whole store are permuted and read one
after another, each in one sequential read, into a window in memory; the window's rows are permuted; the
next window is read meanwhile. The sequence of rows so defined runs on through windows and epochs, and
batch i is its rows i * batch_size onwards: batches are always full, no row is dropped or repeated within
an epoch, any batch can be the first, and ranks take slices of the same batches. While the rows fit one
window this is an exact uniform permutation.
"""

from collections.abc import Callable, Iterator, Sequence
from itertools import count, pairwise
from typing import NamedTuple, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from sae_lm.errors import SettingsError
from sae_lm.runtime.seeds import derive
from sae_lm.runtime.threads import read_ahead

WINDOW_BYTES = 1 << 30
"""Rows mixed at a time, by their size in the store's widest hook: which columns are read does not change the order.
Two windows are in memory, of each column: one in use, one being read."""
PIECES = 64
"""Pieces to a window: at the default size reads of 16 MiB, which a disk does at its sequential speed."""


@runtime_checkable
class Columns(Protocol):
    """What shuffling needs of a store: rows of shards, column by column."""

    first_row: list[int]
    """number of the first row of each shard, and of all rows"""

    @property
    def hooks(self) -> dict[str, int]:
        """Hook name -> width."""
        ...

    def __len__(self) -> int: ...

    def column_bytes(self, column: str) -> int: ...

    def empty_column(self, column: str, rows: int) -> Tensor: ...

    def read_into(self, column: str, start: int, stop: int, out: Tensor) -> None: ...


class Window(NamedTuple):
    """A part of the sequence of rows."""

    first: int
    """place of its first row in the sequence"""
    spans: list[tuple[int, int]]
    """row numbers of the store, from and to"""
    order: Tensor
    """permutation of the spans' rows laid end to end"""


class RowOrder(NamedTuple):
    """The sequence without end of a store's rows start to stop, epoch after epoch, which batches are cut from."""

    first_row: Sequence[int]
    """as in `Columns`"""
    start: int
    stop: int
    seed: int
    window_rows: int
    """rows that are mixed at a time"""

    def windows(self, place: int) -> Iterator[Window]:
        """The windows of the sequence, from the one that holds ``place`` on."""
        piece = max(1, self.window_rows // PIECES)
        edges = [(max(a, self.start), min(b, self.stop)) for a, b in pairwise(self.first_row)]
        pieces = [(c, min(c + piece, b)) for a, b in edges for c in range(a, b, piece)]
        sizes = np.array([b - a for a, b in pieces])
        rows = self.stop - self.start
        for epoch in count(place // rows):
            order = torch.randperm(len(pieces), generator=_generator("pieces", self.seed, epoch)).numpy()
            ends = np.cumsum(sizes[order])
            taken = 0
            while taken < len(pieces):
                before = int(ends[taken - 1]) if taken else 0
                upto = max(taken + 1, int(np.searchsorted(ends, before + self.window_rows, "right")))
                total = int(ends[upto - 1]) - before
                window_first = epoch * rows + before
                if window_first + total > place:
                    permutation = torch.randperm(total, generator=_generator("rows", self.seed, epoch, taken))
                    yield Window(window_first, [pieces[i] for i in order[taken:upto]], permutation)
                taken = upto

    def rows(self, place: int, number: int) -> Tensor:
        """Row numbers at places ``place`` to ``place + number``: what ``shuffled_batches`` reads there."""
        parts: list[Tensor] = []
        for window in self.windows(place):
            numbers = torch.cat([torch.arange(a, b) for a, b in window.spans])[window.order]
            a, b = max(place, window.first), min(place + number, window.first + len(numbers))
            parts.append(numbers[a - window.first : b - window.first])
            if b == place + number:
                break
        return torch.cat(parts)


def row_order(
    store: Columns, seed: int, start: int = 0, stop: int | None = None, *, window_bytes: int = WINDOW_BYTES
) -> RowOrder:
    """The order of rows start to stop (default: all). window_bytes: see `WINDOW_BYTES`."""
    widest = max(store.column_bytes(hook) for hook in store.hooks)
    last = len(store) if stop is None else stop
    return RowOrder(store.first_row, start, last, seed, max(1, window_bytes // widest))


class Slice(NamedTuple):
    """Which part of each batch a process reads: the rank-th of ``size`` equal ones."""

    rank: int
    size: int


WHOLE = Slice(0, 1)
"""One process that reads whole batches."""


def shuffled_batches(
    store: Columns,
    columns: Sequence[str],
    order: RowOrder,
    batch_size: int,
    numbers: range,
    part: Slice = WHOLE,
    pin: bool = False,
) -> Iterator[dict[str, Tensor]]:
    """The batches of the given numbers; batch i is rows i * batch_size to (i + 1) * batch_size of the order.

    columns: hooks and columns of the tokens. pin: into memory that an accelerator reads by itself. Yields {column: [batch_size / part.size, ...]}.
    Raises SettingsError where the batch does not divide.
    """
    if batch_size % part.size:
        raise SettingsError(
            f"batch_size is {batch_size}, which does not divide among {part.size} processes; give a multiple of {part.size}"
        )
    share = batch_size // part.size
    windows = order.windows(numbers.start * batch_size)
    loaded = read_ahead(_load(store, columns, windows, numbers.stop * batch_size), 1)
    pieces: list[dict[str, Tensor]] = []
    made = numbers.start
    try:
        for window, buffers in loaded:
            last = window.first + len(window.order)
            while made < numbers.stop:
                low = (
                    made * batch_size + part.rank * share
                )  # this rank's rows of batch `made`, as places in the sequence
                a, b = max(low, window.first), min(low + share, last)
                if a < b:
                    rows = window.order[a - window.first : b - window.first]
                    pieces.append({name: _gather(buffer, rows, pin) for name, buffer in buffers.items()})
                if low + share > last:
                    break
                yield (
                    pieces[0] if len(pieces) == 1 else {n: _join([piece[n] for piece in pieces], pin) for n in columns}
                )
                pieces, made = [], made + 1
            if made >= numbers.stop:
                return
    finally:
        loaded.close()


def _gather(buffer: Tensor, rows: Tensor, pin: bool) -> Tensor:
    if not pin:
        return buffer[rows]
    return torch.index_select(buffer, 0, rows, out=buffer.new_empty(len(rows), *buffer.shape[1:], pin_memory=True))


def _join(pieces: list[Tensor], pin: bool) -> Tensor:
    joined = torch.cat(pieces)
    return joined.pin_memory() if pin else joined


def _generator(what: str, *numbers: int) -> torch.Generator:
    return torch.Generator().manual_seed(derive(what, *numbers))


def _load(
    store: Columns, columns: Sequence[str], windows: Iterator[Window], stop: int
) -> Iterator[tuple[Window, dict[str, Tensor]]]:
    """Each window with its rows. Two sets of buffers take turns; nobody looks at a window once the next is taken."""
    sets: list[dict[str, Tensor]] = [{}, {}]
    for turn, window in enumerate(windows):
        if window.first >= stop:
            return
        sets[turn % 2] = _filled(sets[turn % 2], store.read_into, columns, window, store.empty_column)
        yield window, {name: buffer[: len(window.order)] for name, buffer in sets[turn % 2].items()}


def _filled(
    buffers: dict[str, Tensor],
    read_into: Callable[[str, int, int, Tensor], None],
    columns: Sequence[str],
    window: Window,
    empty: Callable[[str, int], Tensor],
) -> dict[str, Tensor]:
    for column in columns:
        if column not in buffers or len(buffers[column]) < len(window.order):
            buffers[column] = empty(column, len(window.order))
        filled = 0
        for a, b in window.spans:
            read_into(column, a, b, buffers[column][filled : filled + b - a])
            filled += b - a
    return buffers


def shuffle_quality(
    store: Columns,
    batch_size: int,
    seed: int = 0,
    *,
    start: int = 0,
    stop: int | None = None,
    window_bytes: int = WINDOW_BYTES,
    batches: int = 20,
) -> float:
    """Distinct documents per batch, over the number that rows drawn uniformly would have; 1 is perfect.

    Taken over ``batches`` batches spread over the first epoch. Reads the documents' column alone.
    """
    order = row_order(store, seed, start, stop, window_bytes=window_bytes)
    rows = order.stop - start
    per_epoch = rows // batch_size
    if not per_epoch:
        raise SettingsError(f"batch_size is {batch_size}, more than the {rows} rows; give a smaller one")
    drawn = [
        order.rows(int(index) * batch_size, batch_size)
        for index in np.linspace(0, per_epoch - 1, min(batches, per_epoch)).astype(int)
    ]
    counts, documents_drawn = torch.zeros(0, dtype=torch.int64), [[] for _ in drawn]
    for a, b in pairwise(store.first_row):
        a, b = max(a, start), min(b, order.stop)
        if a < b:
            documents = store.empty_column("document", b - a)
            store.read_into("document", a, b, documents)
            here = torch.bincount(documents, minlength=len(counts))
            here[: len(counts)] += counts
            counts = here
            for numbers, parts in zip(drawn, documents_drawn, strict=True):
                parts.append(documents[numbers[(numbers >= a) & (numbers < b)] - a])
    ideal = float((1 - (1 - counts[counts > 0].double() / rows).pow(batch_size)).sum())
    return float(np.mean([len(torch.cat(parts).unique()) for parts in documents_drawn])) / ideal
