"""Cut text into units that are taken as independent of each other: documents, or blocks of contexts where those are few.

Splits into train, validation and test, and bootstrap samples of held-out text, are of whole units. Documents are the
honest ones, since what is in a document is alike. But a corpus may be two novels: then nothing could be split, and a
bootstrap over one document has no spread at all. There the units are runs of consecutive contexts, as many as
`BLOCKS`. Contexts never share a token, and no model sees past its own. What the blocks of a novel do share is its
style, its people and its subject: probes and noise are then of such text, and the noise is that of other chapters, not
of other books.
"""

from typing import NamedTuple

import torch
from jaxtyping import Bool, Int, Shaped
from torch import Tensor

FEWEST_DOCUMENTS, FEWEST_EFFECTIVE = 20, 10.0
"""Documents are the units where there are so many, and where they weigh as much as so many of equal length."""
BLOCKS = 64
"""Blocks aimed at; more where the contexts are too many for blocks of whole contexts to come out even."""


class TextUnits(NamedTuple):
    """Which unit of text each of some rows is of, numbered from 0 in the order of the text."""

    of_row: Int[Tensor, " rows"]
    """int32"""
    kind: str
    """documents, contexts, or blocks of so many contexts"""
    after_border: Bool[Tensor, " rows"]
    """rows of a block's first context, whose text goes on from the block before; none of documents"""


def text_units(document: Int[Tensor, " rows"], context: Int[Tensor, " rows"], least: int = 1) -> TextUnits:
    """The units of consecutive rows.

    document, context: the store's columns of these rows, as `sae_lm.data.store.Store.tokens` gives them.
    least: contexts of a block, at least.
    """
    documents = _runs(document)
    rows = torch.zeros(documents.values, dtype=torch.int64).index_add_(0, documents.number, documents.length)
    effective = float(rows.sum()) ** 2 / float(rows.double().square().sum()) if len(rows) else 0.0
    if len(rows) >= FEWEST_DOCUMENTS and effective >= FEWEST_EFFECTIVE:
        return TextUnits(documents.at_rows(documents.number), "documents", torch.zeros(len(document), dtype=torch.bool))
    contexts = _runs(context)
    size = max(least, contexts.values // BLOCKS)
    kind = "contexts" if size == 1 else f"blocks of {size} contexts"
    number = contexts.number
    after_border = contexts.at_rows((number % size == 0) & (number > 0))
    return TextUnits(contexts.at_rows(number // size), kind, after_border)


def numbered(values: Int[Tensor, " rows"]) -> tuple[Int[Tensor, " rows"], int]:
    """Each row's value by its number among those that occur, rising, from 0 (int32); and how many occur.

    Neighbours are mostly alike: what is needed beside the result grows with the places where they are not.
    """
    runs = _runs(values)
    return runs.at_rows(runs.number), runs.values


class _Runs(NamedTuple):
    """Rows of one value that stand side by side."""

    number: Int[Tensor, " runs"]
    """of each run's value among those that occur, rising, from 0"""
    length: Int[Tensor, " runs"]
    values: int
    """how many occur"""

    def at_rows(self, of_run: Shaped[Tensor, " runs"]) -> Shaped[Tensor, " rows"]:
        """What each run has, at each of its rows; whole numbers as int32."""
        narrow = of_run if of_run.dtype == torch.bool else of_run.to(torch.int32)
        return narrow.repeat_interleave(self.length.to(torch.int32))  # else a wide number for each row is made


def _runs(values: Int[Tensor, " rows"]) -> _Runs:
    begins = torch.ones(len(values), dtype=torch.bool)
    torch.ne(values[1:], values[:-1], out=begins[1:])
    first = begins.nonzero().flatten()
    length = torch.cat([first, first.new_full((1,), len(values))]).diff()
    found, number = values[first].long().unique(return_inverse=True)
    return _Runs(number, length, len(found))
