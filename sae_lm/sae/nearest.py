"""Find the nearest other row of each row by cosine: searched in tiles, kept up to date, or looked up for a sample.

The search costs O(m^2 d) and what it finds moves slowly, cosines to what was found cost O(m d). So `NearestRows`
searches one part of the dictionary at a time, and takes the cosines that matter anew every time.
"""

from collections.abc import Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.runtime.device import to_device
from sae_lm.sae.directions import TILE, product_dtype, row_products, unit_rows

RECHECKED_CANDIDATES = 4
"""Candidates per row whose cosines are taken anew at an update: the highest as they were last seen."""
LOGGED_ROWS = 512
"""Rows, at most, whose nearest neighbour a line of the log looks up."""
NO_COSINE = -2.0
"""Stands for the cosine of a row that has no neighbour: below every cosine."""


def nearest_row(unit: Float[Tensor, "n d_in"], matmul_dtype: torch.dtype = torch.float32) -> Int[Tensor, " n"]:
    """Index of the row with the largest signed cosine to each row, itself excluded; exact over all rows."""
    every = unit.to(product_dtype(unit, matmul_dtype))
    return nearest_in_part(every, every)[1]


def cosine_tiles(
    rows: Float[Tensor, "n d_in"], others: Float[Tensor, "m d_in"], tile: int = TILE
) -> Iterator[tuple[int, Float[Tensor, "tile m"]]]:
    """(first row, cosines) of so many rows at a time to all others; both are unit rows."""
    for first in range(0, len(rows), tile):
        yield first, rows[first : first + tile] @ others.T


def nearest_in_part(
    rows: Float[Tensor, "n d_in"],
    part: Float[Tensor, "m d_in"],
    first: int = 0,
    rate: Float[Tensor, " n"] | None = None,
    tile: int = TILE,
    count: int | None = None,
) -> tuple[Float[Tensor, "*nearest"], Int[Tensor, "*nearest"]]:
    """For each unit row the highest cosine to another row of the part, `NO_COSINE` without one, and where that is in the part.

    Row i, if it is in the part, stands there at i - first. rate: of each row, of which the first are then the part;
    only the part's rows of a higher rate count. count: the so many highest, [n, count], instead of the highest, [n].
    """
    highest, where = [], []
    for start, cosines in cosine_tiles(rows, part, tile):
        stop = start + len(cosines)
        if rate is not None:
            own, others = rate[start:stop, None], rate[: len(part)]
            # most tiles have lower rates than the whole part; an accelerator would be waited for to know it
            if not rate.is_cpu or own.max() >= others.min():
                cosines.masked_fill_(others <= own, NO_COSINE)
        elif first < stop and start < first + len(part):
            own = torch.arange(start, stop, device=rows.device)[:, None] - first
            cosines.masked_fill_(torch.arange(len(part), device=rows.device) == own, NO_COSINE)
        # measured: argmax takes four times as long in bfloat16
        nearest = cosines.max(1) if count is None else cosines.topk(count, dim=1)
        highest.append(nearest.values)
        where.append(nearest.indices)
    return torch.cat(highest), torch.cat(where)


class NearestRows:
    """The nearest neighbours of m rows, searched part by part: each `update` finds every row's nearest in one part
    of the dictionary, the first update in all.

    Of its nearest in the parts, a row's `RECHECKED_CANDIDATES` highest are then looked at as they are now, and the highest of
    these is its neighbour: while a penalty parts a row from its neighbour, another becomes the nearest.

    parts: how many; 1 searches everything at each update.
    ranked: seek among rows that fire more often.
    matmul_dtype: dtype of the search's cosines. In bfloat16, neighbours that differ by less than its rounding may be
        taken for each other; the cosines returned are exact.
    per_part: candidates from each part: with as many as are looked at again and one part, `update_several` is exact.
    """

    def __init__(
        self,
        parts: int = 1,
        ranked: bool = False,
        matmul_dtype: torch.dtype = torch.float32,
        per_part: int = 1,
    ) -> None:
        self.parts, self.ranked, self.matmul_dtype, self.per_part = parts, ranked, matmul_dtype, per_part
        self.candidates: Tensor | None = None
        """[m, parts * per_part], each row's nearest in each part"""
        self.cosines: Tensor | None = None
        """of the same shape, to these, as last seen"""
        self.order: Tensor | None = None
        """rows from the most to the least frequent; None: as they are"""
        self.turn = 0

    def update(
        self, unit: Float[Tensor, "m d"], firing_frequency: Float[Tensor, " m"] | None = None
    ) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
        """Each row's nearest and the cosine to it, after one more part is searched; -2 where a row has none.

        firing_frequency: of the rows, for ranks.
        """
        rows, cosines = self._nearest_now(unit, *self._search(unit, firing_frequency))
        highest = cosines.max(1)
        return rows.gather(1, highest.indices[:, None])[:, 0], highest.values

    def update_several(
        self, unit: Float[Tensor, "m d"], firing_frequency: Float[Tensor, " m"] | None = None
    ) -> tuple[Int[Tensor, "m several"], Float[Tensor, "m several"]]:
        """As `update`, all candidates of each row that were looked at again; -2 in place of those it lacks."""
        candidates, known = self._search(unit, firing_frequency)
        if self.ranked and self.parts > 1:
            known = _once(candidates, known)
        return self._nearest_now(unit, candidates, known)

    def _search(self, unit: Tensor, firing_frequency: Tensor | None) -> tuple[Tensor, Tensor]:
        """Search one more part, the first time all; return candidates and their cosines as last seen, of ranks as now."""
        every = unit.to(product_dtype(unit, self.matmul_dtype))
        if self.candidates is None or self.cosines is None:
            shape = (len(unit), self.parts * min(self.per_part, len(unit)))
            self.candidates = torch.zeros(shape, dtype=torch.long, device=unit.device)
            self.cosines = unit.new_full(self.candidates.shape, NO_COSINE)
            turns = self.parts
        else:
            turns = 1
        for _ in range(turns):
            if self.ranked and self.turn == 0:
                assert firing_frequency is not None
                self.order = firing_frequency.argsort(descending=True, stable=True)
            self._search_part(every, firing_frequency, self.candidates, self.cosines)
        known = self.cosines
        if self.ranked and firing_frequency is not None:
            known = torch.where(firing_frequency[self.candidates] > firing_frequency[:, None], known, NO_COSINE)
        return self.candidates, known

    def _search_part(self, every: Tensor, firing_frequency: Tensor | None, candidates: Tensor, cosines: Tensor) -> None:
        """Find every row's nearest in the part whose turn it is."""
        m, turn = len(every), self.turn
        first, last = turn * m // self.parts, (turn + 1) * m // self.parts
        each = candidates.shape[1] // self.parts
        count = min(each, last - first) if self.per_part > 1 else None
        column = turn if count is None else slice(turn * each, turn * each + count)
        if self.order is None:
            cosine, where = nearest_in_part(every, every[first:last], first, count=count)
            cosines[:, column], candidates[:, column] = cosine.to(cosines.dtype), where + first
        else:  # rows that fire more often than the part's have none in it
            assert firing_frequency is not None
            below = self.order[first:]
            rows, rate = every.index_select(0, below), firing_frequency.index_select(0, below)
            cosine, where = nearest_in_part(rows, rows[: last - first], rate=rate, count=count)
            cosines[:, column] = NO_COSINE
            cosines[below, column], candidates[below, column] = cosine.to(cosines.dtype), below[where]
        self.turn = (turn + 1) % self.parts

    def _nearest_now(self, unit: Tensor, candidates: Tensor, known: Tensor) -> tuple[Tensor, Tensor]:
        """Look again at the highest candidates, remember what was seen, return them."""
        assert self.cosines is not None
        known, column = known.topk(min(RECHECKED_CANDIDATES, known.shape[1]), dim=1)
        rows = candidates.gather(1, column)
        now = torch.where(known > NO_COSINE, row_products(unit, unit, rows), NO_COSINE)
        self.cosines.scatter_(1, column, torch.where(known > NO_COSINE, now, self.cosines.gather(1, column)))
        return rows, now

    def state(self) -> dict[str, Tensor]:
        """What `restore` needs to continue bit for bit; empty before the first update."""
        if self.candidates is None or self.cosines is None:
            return {}
        state = {
            "candidates": self.candidates.clone(),
            "cosines": self.cosines.clone(),
            "turn": torch.tensor(self.turn),
        }
        return state if self.order is None else {**state, "order": self.order}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Tensors are taken as they are: on the device of the rows."""
        if state:
            self.candidates, self.cosines = state["candidates"].clone(), state["cosines"].clone()
            self.order, self.turn = state.get("order"), int(state["turn"])


def _once(candidates: Int[Tensor, "m n"], cosines: Float[Tensor, "m n"]) -> Float[Tensor, "m n"]:
    """The cosines, of a candidate that a row has twice only one: as ranks change, a row comes into another part."""
    ids = torch.where(cosines > NO_COSINE, candidates, -1)
    sorted_ids = ids.sort(dim=1, stable=True)
    repeats = torch.zeros_like(ids, dtype=torch.bool)
    repeats[:, 1:] = sorted_ids.values.diff(dim=1) == 0
    return cosines.masked_fill(torch.zeros_like(repeats).scatter_(1, sorted_ids.indices, repeats), NO_COSINE)


def nearest_in_chunks(
    unit: Float[Tensor, "m d"], chunk: int, generator: torch.Generator | None, matmul_dtype: torch.dtype = torch.float32
) -> tuple[Int[Tensor, " m"], Float[Tensor, " m"]]:
    """Each row's nearest inside its chunk and the cosine to it, for a random partition into ceil(m / chunk) chunks, or as
    many as leave two rows in each."""
    nearest = torch.empty(len(unit), dtype=torch.long, device=unit.device)
    for members in to_device(torch.randperm(len(unit), generator=generator), unit.device).tensor_split(
        min(-(-len(unit) // chunk), len(unit) // 2)
    ):
        nearest[members] = members[nearest_row(unit[members], matmul_dtype)]
    return nearest, row_products(unit, unit, nearest[:, None])[:, 0]


@torch.no_grad()
def coherence(
    rows: Float[Tensor, "m d"],
    generator: torch.Generator | None,
    sample: int,
    matmul_dtype: torch.dtype = torch.float32,
) -> Float[Tensor, ""]:
    """Mean cosine of a row to its nearest other row among all, estimated on a sample of rows."""
    unit = unit_rows(rows.float())
    chosen = to_device(torch.randperm(len(rows), generator=generator)[:sample], rows.device)
    return _nearest_of_some(unit.to(product_dtype(unit, matmul_dtype)), chosen).float().mean()


@torch.no_grad()
def nearest_quantiles(rows: Float[Tensor, "n d_in"]) -> dict[str, float]:
    """Cosine of unit rows to the nearest other: mean and quantiles over an even sample, for a log. Empty below two rows."""
    if len(rows) < 2:
        return {}
    sample = torch.arange(0, len(rows), -(-len(rows) // LOGGED_ROWS), device=rows.device)
    nearest = _nearest_of_some(rows, sample)
    low, middle, high = nearest.quantile(nearest.new_tensor([0.1, 0.5, 0.9])).tolist()
    return {
        "nearest_cos": float(nearest.mean()),
        "nearest_cos_10": low,
        "nearest_cos_50": middle,
        "nearest_cos_90": high,
    }


def _nearest_of_some(unit: Float[Tensor, "n d_in"], chosen: Int[Tensor, " some"]) -> Float[Tensor, " some"]:
    """Cosine of each chosen row to its nearest other among all."""
    cosines = unit[chosen] @ unit.T
    cosines[torch.arange(len(chosen), device=unit.device), chosen] = NO_COSINE
    return cosines.amax(1)
