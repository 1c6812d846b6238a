"""shards -> rows: a finished activation store, opened for reading."""

import json
from bisect import bisect_right
from collections.abc import Iterator
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lm.data.manifest import Manifest, canonical_hook, read_manifest
from sae_lm.data.shards import shard_file
from sae_lm.errors import StoreError

TOKEN_COLUMNS = ("token_id", "document", "position", "context")


class Moments(NamedTuple):
    mean: Float[Tensor, " width"]
    """mean row, float64"""
    mean_squared_norm: float
    """mean over rows of the squared Euclidean norm"""

    @property
    def variance(self) -> float:
        """Mean squared distance of a row from the mean row: what predicting the mean costs."""
        return self.mean_squared_norm - float(self.mean.square().sum())


class Store:
    """A whole activation store. Row numbers run over all shards, in the order of the text."""

    def __init__(self, path: Path, manifest: Manifest) -> None:
        self.path, self.manifest = path, manifest
        self.first_row = [0, *accumulate(shard.rows for shard in manifest.shards)]
        self.first_context = [0, *accumulate(shard.contexts for shard in manifest.shards)]

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self):,} rows, hooks {', '.join(self.hooks)})"

    @property
    def hooks(self) -> dict[str, int]:
        """Canonical hook name -> width."""
        return self.manifest.recipe.hooks

    @cached_property
    def vocabulary(self) -> list[str]:
        """Text of each token id."""
        return json.loads((self.path / "vocabulary.json").read_text(encoding="utf-8"))

    def hook(self, name: str | None = None) -> str:
        """The canonical name of a hook of this store (default: its only one). Raises StoreError."""
        if name is None:
            if len(self.hooks) > 1:
                raise StoreError(
                    f"store {self.path} holds several hooks ({', '.join(self.hooks)}); name one (--hook, or hook=...)"
                )
            return next(iter(self.hooks))
        canonical = canonical_hook(name)
        if canonical not in self.hooks:
            raise StoreError(f"store {self.path} has no hook {name!r}; it holds {', '.join(self.hooks)}")
        return canonical

    def moments(self, hook: str | None = None, stop: int | None = None) -> Moments:
        """Mean row and mean squared norm of a hook, over the rows before ``stop`` (default: all)."""
        name, stop = self.hook(hook), len(self) if stop is None else stop
        total, squares = torch.zeros(self.hooks[name], dtype=torch.float64), 0.0
        for shard, (first, last) in enumerate(zip(self.first_row[:-1], self.first_row[1:], strict=True)):
            if last <= stop:
                total += self._tensor(name, shard, "sum")
                squares += float(self._tensor(name, shard, "sum_squared_norm"))
            elif first < stop:
                rows = self.rows(name, first, stop).double()
                total += rows.sum(0)
                squares += float(rows.square().sum())
        return Moments(total / stop, squares / stop)

    def rows(self, hook: str | None = None, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows width"]:
        """Rows start to stop of a hook, in the store's dtype."""
        parts = list(self._slices(self.hook(hook), "rows", start, len(self) if stop is None else stop))
        width = self.hooks[self.hook(hook)]
        return torch.cat(parts) if parts else torch.empty(0, width, dtype=getattr(torch, self.manifest.recipe.dtype))

    def tokens(self, start: int = 0, stop: int | None = None) -> dict[str, Int[Tensor, " rows"]]:
        """token_id, document, position and context of rows start to stop, int32."""
        stop = len(self) if stop is None else stop
        empty = torch.empty(0, dtype=torch.int32)
        return {name: torch.cat([empty, *self._slices("tokens", name, start, stop)]) for name in TOKEN_COLUMNS}

    def blocks(self, start: int = 0, stop: int | None = None) -> Int[Tensor, "contexts pos"]:
        """All token ids of contexts start to stop, special tokens included, int32."""
        stop = self.manifest.contexts if stop is None else stop
        empty = torch.empty(0, self.manifest.recipe.context_size, dtype=torch.int32)
        return torch.cat([empty, *self._slices("tokens", "blocks", start, stop, self.first_context)])

    def held_out_from(self, share: float) -> tuple[int, int]:
        """(context, row) where the last ``share`` of the contexts begins; no context is on both sides."""
        context = int(self.manifest.contexts * (1 - share))
        shard = min(bisect_right(self.first_context, context), len(self.manifest.shards)) - 1
        contexts = self._tensor("tokens", shard, "context").contiguous()
        return context, self.first_row[shard] + int(torch.searchsorted(contexts, context))

    def special(self, blocks: Int[Tensor, "contexts pos"]) -> Tensor:
        """[contexts, pos] bool: where the ids are BOS or separators, which have no rows."""
        recipe = self.manifest.recipe
        marks = torch.zeros(blocks.shape, dtype=torch.bool)
        for token in (recipe.bos, recipe.separator):
            if token is not None:
                marks |= blocks == token
        return marks

    def gather(self, hook: str | None, indices: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """Rows at the given numbers, in the given order; each shard is opened once."""
        name = self.hook(hook)
        out = torch.empty(len(indices), self.hooks[name], dtype=getattr(torch, self.manifest.recipe.dtype))
        order = indices.argsort()
        wanted = indices[order]
        for shard, (first, last) in enumerate(zip(self.first_row[:-1], self.first_row[1:], strict=True)):
            low, high = (int(torch.searchsorted(wanted, edge)) for edge in (first, last))
            if low < high:
                values = self._tensor(name, shard, "rows")
                out[order[low:high]] = values[wanted[low:high].long() - first]
        return out

    def batches(
        self,
        batch_size: int,
        seed: int = 0,
        *,
        hook: str | None = None,
        epochs: int = 1,
        start: int = 0,
        stop: int | None = None,
    ) -> Iterator[Float[Tensor, "batch width"]]:
        """Shuffled rows; see ``sae_lm.data.batches``. An incomplete last batch is dropped."""
        from sae_lm.data.batches import shuffled_batches

        last = len(self) if stop is None else stop
        count = (last - start) * epochs // batch_size
        return shuffled_batches(self, self.hook(hook), batch_size, seed, count, start, last)

    def _slices(
        self, folder: str, key: str, start: int, stop: int, firsts: list[int] | None = None
    ) -> Iterator[Tensor]:
        firsts = self.first_row if firsts is None else firsts
        if not 0 <= start <= stop <= firsts[-1]:
            raise StoreError(f"store {self.path}: rows {start} to {stop} asked for, it holds 0 to {firsts[-1]}")
        shard = bisect_right(firsts, start) - 1
        while start < stop:
            first, last = firsts[shard], min(stop, firsts[shard + 1])
            if start < last:
                yield self._tensor(folder, shard, key)[start - first : last - first]
                start = last
            shard += 1

    def _tensor(self, folder: str, shard: int, key: str) -> Tensor:
        path = self.path / shard_file(folder, shard)
        try:
            with safe_open(path, "pt") as file:
                return file.get_tensor(key)  # memory-mapped: only what is read is loaded
        except (OSError, SafetensorError) as problem:
            raise StoreError(f"{path} cannot be read ({problem}); run sae-lm verify {self.path}") from None


def open_store(path: str | Path) -> Store:
    """Open a whole store; sizes of all files are checked, checksums are ``sae-lm verify``'s. Raises StoreError."""
    path = Path(path)
    manifest = read_manifest(path)
    for name, record in manifest.all_files().items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        if size != record.bytes:
            got = "is missing" if size is None else f"has {size} bytes"
            raise StoreError(
                f"store {path} is damaged: {name} {got}, expected {record.bytes} bytes; cache the store again"
            )
    return Store(path, manifest)
