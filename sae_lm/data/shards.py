"""Write a shard of a store: one file of tokens and one of each hook, each written whole or not at all."""

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from sae_lm.data.manifest import FileRecord, Recipe, ShardRecord, shard_file
from sae_lm.data.norms import norm_histogram
from sae_lm.data.tokens import Block
from sae_lm.errors import StoreError
from sae_lm.runtime.files import sha256, write_whole

EXACT_ROWS = 64
"""Rows summed in float32 before float64 takes over: 64 bfloat16 values of like size add up there exactly."""


def rows_wanted(blocks: Sequence[Block], recipe: Recipe) -> np.ndarray:
    """[contexts, context_size] bool: the tokens that get a row, as far as their ids tell."""
    inside = np.arange(recipe.context_size) < np.array([[block.length] for block in blocks])
    return inside if recipe.keep_special else inside & ~np.stack([block.special for block in blocks])


def first_rows(kept: np.ndarray, limit: int) -> np.ndarray:
    """The same mask with its first ``limit`` true entries alone."""
    return kept & (kept.cumsum().reshape(kept.shape) <= limit)


class OpenShard:
    """Rows of one shard while it fills, in any order of its contexts."""

    def __init__(self, index: int, first_context: int, blocks: list[Block], wanted: np.ndarray, recipe: Recipe) -> None:
        """wanted: [contexts, context_size] bool, the tokens that get a row unless they are sinks."""
        self.index, self.first_context, self.blocks = index, first_context, blocks
        self.wanted, self.kept, self.recipe = wanted, np.zeros_like(wanted), recipe
        self.rows: dict[str, list[Tensor]] = {hook: [torch.empty(0)] * len(blocks) for hook in recipe.hooks}

    def add(
        self, which: Sequence[int], values: dict[str, Float[Tensor, "contexts pos width"]], kept: np.ndarray
    ) -> None:
        """Rows of some contexts. kept: [len(which), pos] bool. Raises StoreError at a NaN or an infinity."""
        self.kept[which, : kept.shape[1]] = kept
        counts = kept.sum(1).tolist()
        mask = torch.from_numpy(kept)
        for hook, value in values.items():
            rows = value[mask]
            if not torch.isfinite(norms(rows)).all():
                self._refuse_non_finite(hook, rows, which, kept)
            for context, own_rows in zip(which, rows.split(counts), strict=True):
                self.rows[hook][context] = own_rows

    def write(
        self, store: Path, limit: int, only: Iterable[str] | None = None, contexts: int | None = None
    ) -> ShardRecord:
        """Write the files of the first ``limit`` rows and return their record.

        Where the limit is reached the store ends, and contexts behind its last row are left out.
        only: folders (``tokens``, hooks) to write; the record then lists these alone.
        contexts: how many the shard has, where that is known.
        """
        kept, used = first_rows(self.kept, limit), contexts or len(self.kept)
        if contexts is None and self.kept.sum() >= limit:
            used = int(np.flatnonzero(kept.any(axis=1))[-1]) + 1
        sinks = int((self.wanted & ~self.kept)[:used].sum())
        blocks, kept = self.blocks[:used], kept[:used]
        context, position = np.nonzero(kept)
        ids = np.stack([block.ids for block in blocks])
        documents = np.stack([block.documents for block in blocks])
        tokens = {
            "blocks": ids,
            "token_id": ids[context, position],
            "document": documents[context, position],
            "position": position.astype(np.int32),
            "context": (context + self.first_context).astype(np.int32),
        }
        contents = {"tokens": {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tokens.items()}}
        files = {}
        for folder in ("tokens", *self.recipe.hooks) if only is None else only:
            name = shard_file(folder, self.index)
            tensors = contents[folder] if folder in contents else hook_tensors(self._rows(folder, used, len(context)))
            write_whole(store / name, lambda temporary, tensors=tensors: save_file(tensors, temporary))
            files[name] = FileRecord(bytes=(store / name).stat().st_size, sha256=sha256(store / name))
        padding = sum(len(block.ids) - block.length for block in blocks)
        return ShardRecord(
            rows=len(context),
            contexts=used,
            special_tokens=sum(int(block.special.sum()) for block in blocks) - padding,
            padding=padding,
            sinks=sinks,
            last_document=int(documents.max()),
            next=(blocks[-1].next.document, blocks[-1].next.offset),
            files=files,
        )

    def _rows(self, hook: str, contexts: int, count: int) -> Tensor:
        """The first rows of the first contexts; the last context may end before its own last row. Forgets them."""
        made = [rows for rows in self.rows.pop(hook)[:contexts] if rows.dim() == 2]
        return torch.cat(made)[:count]

    def _refuse_non_finite(self, hook: str, rows: Tensor, which: Sequence[int], kept: np.ndarray) -> None:
        bad = (~torch.isfinite(rows).all(1)).nonzero().flatten()
        if not len(bad):  # finite values whose squares are not
            raise StoreError(
                f"hook {hook} gave an activation whose norm is beyond float32; run the model in float32 or cache another hook"
            )
        if self.recipe.dtype == "float16" and not torch.isnan(rows).any():
            raise StoreError(
                f"hook {hook} gave an activation beyond float16's largest number; cache with --dtype bfloat16"
            )
        context, position = (int(axis[int(bad[0])]) for axis in np.nonzero(kept))
        block = self.blocks[which[context]]
        raise StoreError(
            f"hook {hook} gave a NaN or infinite activation at document {block.documents[position]}, token id "
            f"{block.ids[position]} (position {position} of its context; {len(bad)} such of {len(rows)} rows in this batch); "
            "run the model in float32 or leave that document out"
        )


def hook_tensors(rows: Float[Tensor, "rows width"]) -> dict[str, Tensor]:
    """What a shard's file of one hook holds: the rows, and what their statistics are made of."""
    lengths = norms(rows)
    bins, counts = norm_histogram(lengths)
    return {
        "rows": rows,
        "sum": _column_sums(rows),
        "sum_squared_norm": lengths.double().square().sum(),
        "non_finite": (~lengths.isfinite()).sum(),
        "norm_bins": bins,
        "norm_counts": counts,
    }


def norms(rows: Float[Tensor, "rows width"]) -> Float[Tensor, " rows"]:
    return torch.linalg.vector_norm(rows, dim=1, dtype=torch.float32)


def _column_sums(rows: Float[Tensor, "rows width"]) -> Float[Tensor, " width"]:
    """float64 sums over rows, to about float32's rounding of 64 of them; see EXACT_ROWS."""
    whole = len(rows) // EXACT_ROWS * EXACT_ROWS
    total = rows[whole:].double().sum(0)
    for piece in rows[:whole].split(EXACT_ROWS * 128):
        total += piece.unflatten(0, (-1, EXACT_ROWS)).float().sum(1).double().sum(0)
    return total
