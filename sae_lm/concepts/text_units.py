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
from jaxtyping import Bool, Int
from torch import Tensor

FEWEST_DOCUMENTS, FEWEST_EFFECTIVE = 20, 10.0
"""Documents are the units where there are so many, and where they weigh as much as so many of equal length."""
BLOCKS = 64
"""Blocks aimed at; more where the contexts are too many for blocks of whole contexts to come out even."""


class TextUnits(NamedTuple):
    """Which unit of text each of some rows is of, numbered from 0 in the order of the text."""

    of_row: Int[Tensor, " rows"]
    kind: str
    """documents, contexts, or blocks of so many contexts"""
    after_border: Bool[Tensor, " rows"]
    """rows of a block's first context, whose text goes on from the block before; none of documents"""


def text_units(document: Int[Tensor, " rows"], context: Int[Tensor, " rows"], least: int = 1) -> TextUnits:
    """The units of consecutive rows.

    document, context: the store's columns of these rows, as `sae_lm.data.store.Store.tokens` gives them.
    least: contexts of a block, at least.
    """
    _, of_row, rows = document.long().unique(return_inverse=True, return_counts=True)
    effective = float(rows.sum()) ** 2 / float(rows.double().square().sum()) if len(rows) else 0.0
    if len(rows) >= FEWEST_DOCUMENTS and effective >= FEWEST_EFFECTIVE:
        return TextUnits(of_row, "documents", torch.zeros(len(of_row), dtype=torch.bool))
    contexts, number = context.long().unique(return_inverse=True)
    size = max(least, len(contexts) // BLOCKS)
    kind = "contexts" if size == 1 else f"blocks of {size} contexts"
    return TextUnits(number // size, kind, (number % size == 0) & (number > 0))
