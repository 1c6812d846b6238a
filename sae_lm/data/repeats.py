"""Find text that stands in a store more than once: held-out rows that are copies of training rows are not held out.

Runs of `RUN` tokens are hashed, wherever they begin, and of the hashes those that end in zeros are kept: the same runs
in every copy, however contexts cut it. (Winnowing's idea: Schleimer, Wilkerson and Aiken 2003.)
"""

from collections.abc import Iterator

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from sae_lm.data.store import Store
from sae_lm.settings import TrainSettings

RUN = 32
"""Tokens in a row that two texts hardly have in common by chance; a power of two."""
KEPT_BITS = 3
"""One run of 2^3 is looked at."""
FEWEST_RUNS = 20
"""Runs below which no share is given."""
MOST_BEFORE, MOST_AFTER = 1 << 25, 1 << 20
"""Rows that are looked at before a row, and from it on."""
AT_ONCE = 1 << 22
HELD_OUT: float = TrainSettings.model_fields["held_out"].default
"""Share of a store at its end that ``train`` holds out unless told otherwise."""
TOLD = 0.1
"""Share from which on it is told: licences and the like are less of most text (4.6% of the embedded one)."""

_MIX, _BASE = np.uint64(0x9E3779B97F4A7C15), 0xD1B54A32D192ED03


def runs(ids: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(places, hashes) of the runs that are looked at, [n] int64 and [n] uint64. ids: [tokens] of any integers."""
    hashes = ids.astype(np.uint64) * _MIX
    hashes ^= hashes >> np.uint64(29)
    length, base = 1, _BASE
    while length < RUN:
        if len(hashes) <= length:
            return np.empty(0, np.int64), np.empty(0, np.uint64)
        hashes = hashes[:-length] * np.uint64(base) + hashes[length:]
        length, base = 2 * length, base * base % 2**64
    hashes ^= hashes >> np.uint64(32)
    hashes *= _MIX
    place = np.flatnonzero(hashes >> np.uint64(64 - KEPT_BITS) == 0)
    return place, hashes[place]


def share_seen_before(store: Store, start: int) -> float | None:
    """Share of the text of the rows from ``start`` on that stands word for word among the rows before; None of too few.

    At most `MOST_AFTER` rows and the last `MOST_BEFORE` before them are looked at.
    """
    stop = min(len(store), start + MOST_AFTER)
    after = [runs(ids)[1] for ids in _token_ids(store, start, stop)]
    if sum(map(len, after)) < FEWEST_RUNS:
        return None
    wanted, counts = np.unique(np.concatenate(after), return_counts=True)
    seen = np.zeros(len(wanted), bool)
    for ids in _token_ids(store, max(0, start - MOST_BEFORE), start):
        seen |= np.isin(wanted, runs(ids)[1])
    return float(counts[seen].sum() / counts.sum())


def remark_on_copies(store: Store) -> str | None:
    """A line on held-out text that stands in the rows before it; None where there is little, or the text repeats."""
    share = None if store.text_repeats else share_seen_before(store, round(len(store) * (1 - HELD_OUT)))
    if share is None or share <= TOLD:
        return None
    return (
        f"{share:.0%} of the text of the last {HELD_OUT:.0%} of the rows, which training holds out, stands word for word in the "
        "rows before it, so that figures of held-out rows will be too good; text without copies has none of this"
    )


def share_in_several(token_id: Int[Tensor, " rows"], unit: Int[Tensor, " rows"]) -> float:
    """Share of a text that stands word for word in several of its units (documents, blocks of contexts); 0 of too few."""
    place, hashes = runs(token_id.numpy())
    if len(place) < FEWEST_RUNS:
        return 0.0
    _, number = np.unique(hashes, return_inverse=True)
    units = unit.numpy()[place]
    first, last = np.full(number.max() + 1, np.iinfo(np.int64).max), np.full(number.max() + 1, -1)
    np.minimum.at(first, number, units)
    np.maximum.at(last, number, units)
    return float((first < last)[number].mean())


def _token_ids(store: Store, start: int, stop: int) -> Iterator[np.ndarray]:
    """Token ids of consecutive rows, in pieces that overlap by a run less one token."""
    for first in range(start, stop, AT_ONCE):
        last = min(stop, first + AT_ONCE + RUN - 1)
        ids = torch.empty(last - first, dtype=torch.int32)
        store.read_into("token_id", first, last, ids)
        yield ids.numpy()
