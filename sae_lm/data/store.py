"""A finished activation store, opened for reading: rows, tokens, statistics and shuffled batches."""

from bisect import bisect_right
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cached_property
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from sae_lm.data.batches import Slice, row_order, shuffled_batches
from sae_lm.data.characters import FILE as PARTIAL
from sae_lm.data.characters import partial_tokens, pieces, read_partial, token_text
from sae_lm.data.manifest import QUANTILES, Manifest, read_manifest, shard_file
from sae_lm.data.norms import middles
from sae_lm.data.stored_tensors import read_tensor, shard_tensor, whole_tensor
from sae_lm.data.tokens import SpecialTokens
from sae_lm.errors import SettingsError, StoreError
from sae_lm.fields import with_home
from sae_lm.lm.hooks import canonical_hook
from sae_lm.runtime.files import parse_json, sha256
from sae_lm.runtime.html import bars_html, facts_html

SUMMED_NUMBERS = 1 << 19
"""Numbers of a hook's rows that are summed at a time: 4 MiB in float64, whatever the size of a shard."""
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


class TextAround(NamedTuple):
    """A row's token between the tokens around it, within its context."""

    document: int
    context: int
    position: int
    """of the row's token in its context"""
    first: int
    """position of the first of ``tokens``"""
    tokens: list[str]
    """texts of neighbouring tokens, special ones included; of a character's tokens one has it, the others nothing"""
    more_before: bool
    """whether the context has tokens before these"""
    more_after: bool
    part: tuple[int, int] | None = None
    """which of its character's tokens the row's is, and of how many; None for a token that is text by itself"""

    @property
    def before(self) -> str:
        return "".join(self.tokens[: self.position - self.first])

    @property
    def token(self) -> str:
        return self.tokens[self.position - self.first]

    @property
    def after(self) -> str:
        return "".join(self.tokens[self.position - self.first + 1 :])


class Store:
    """A whole activation store. Row numbers run over all shards, in the order of the text."""

    def __init__(self, path: str | Path, manifest: Manifest, locate: Callable[[str], Path] | None = None) -> None:
        """locate: relative name of a file -> where it is now; fetches it first where the store is not on this machine."""
        self.path, self.manifest = path, manifest
        self.locate = locate if locate is not None else Path(path).joinpath
        self.first_row = [0, *accumulate(shard.rows for shard in manifest.shards)]
        self.first_context = [0, *accumulate(shard.contexts for shard in manifest.shards)]

    def __len__(self) -> int:
        return self.manifest.rows

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r}, {len(self):,} rows, hooks {', '.join(self.hooks)})"

    def _repr_html_(self) -> str:
        """For notebooks: where the rows are from, and the norms of each hook's."""
        recipe = self.manifest.recipe
        facts = [
            ("store", str(self.path)),
            ("model", str(recipe.model["id"])),
            ("text", str(recipe.text["id"])),
            ("rows", f"{len(self):,} in {len(self.manifest.shards):,} shards, {recipe.dtype}"),
            ("contexts", f"{self.manifest.contexts:,} of {recipe.context_size} tokens"),
            ("documents", f"{self.manifest.documents:,}"),
        ]
        plots = ""
        for hook, width in self.hooks.items():
            norms = self.norm_quantiles(hook)
            facts.append((hook, f"width {width}, median norm {norms[min(norms, key=lambda q: abs(q - 0.5))]:.4g}"))
            ends = [f"{norms[share]:.4g} ({share:.0%})" for share in (min(norms), max(norms))]
            plots += bars_html(f"{hook}: quantiles of the norm", [*norms.values()], *ends)
        return facts_html("Activation store", facts, plots)

    @property
    def hooks(self) -> dict[str, int]:
        """Canonical hook name -> width."""
        return self.manifest.recipe.hooks

    @cached_property
    def vocabulary(self) -> list[str]:
        """Text of each token id."""
        path = self.locate("vocabulary.json")
        try:
            texts = parse_json(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as problem:
            raise StoreError(f"{path} cannot be read as JSON ({problem}); run sae-lm verify {self.path}") from None
        if not isinstance(texts, list) or not all(isinstance(text, str) for text in texts):
            raise StoreError(f"{path} is no list of texts; run sae-lm verify {self.path}")
        return texts

    @cached_property
    def partial_tokens(self) -> dict[int, bytes]:
        """Bytes of the tokens that are part of a character and no text by themselves; empty in stores that lack them."""
        return read_partial(self.locate(PARTIAL)) if PARTIAL in self.manifest.files else {}

    def learn_bytes(self, tokenizer: Any) -> None:
        """Take the bytes of parts of characters from a tokenizer, in a store that was written without them."""
        if PARTIAL not in self.manifest.files:
            self.partial_tokens = partial_tokens(tokenizer, self.vocabulary)

    def token_text(self, token: int) -> str:
        """A token's own text; its bytes by name where it is a part of a character."""
        return token_text(token, self.vocabulary, self.partial_tokens)

    def hook(self, name: str | None = None) -> str:
        """The canonical name of a hook of this store (default: its only one). Raises StoreError."""
        if not isinstance(name, str | None):
            raise StoreError(f"hook is {name!r}, expected a name; rows are asked for by rows(start=..., stop=...)")
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
        """Mean row and mean squared norm of a hook, over the rows before ``stop`` (default: all), one at least."""
        name, stop = self.hook(hook), len(self) if stop is None else stop
        self._check_span(min(stop - 1, 0), stop, self.first_row)
        total, squares = torch.zeros(self.hooks[name], dtype=torch.float64), 0.0
        for shard, (first, last) in enumerate(zip(self.first_row[:-1], self.first_row[1:], strict=True)):
            if last <= stop:
                total += self._tensor(name, shard, "sum")
                squares += float(self._tensor(name, shard, "sum_squared_norm"))
            elif first < stop:
                for part in self._slices(name, "rows", first, stop):
                    for rows in part.split(max(1, SUMMED_NUMBERS // self.hooks[name])):
                        wide = rows.double()
                        total += wide.sum(0)
                        # row by row, so that threads do not share a sum out, which would round otherwise with their number
                        squares += float(wide.square_().sum(1).sum())
        return Moments(total / stop, squares / stop)

    def norm_quantiles(self, hook: str | None = None) -> dict[float, float]:
        """Share of the rows -> Euclidean norm that this share stays below, to within 0.8%."""
        return dict(zip(QUANTILES, self._statistic(hook, "norm_quantiles").tolist(), strict=True))

    def rows_beyond(self, multiple: float, hook: str | None = None) -> int:
        """How many rows have a norm beyond a multiple of the median; norms are known to within 0.8%."""
        name = self.hook(hook)
        limit, found = multiple * self.norm_quantiles(name)[0.5], 0
        for shard in range(len(self.manifest.shards)):
            bins, counts = (self._tensor(name, shard, key) for key in ("norm_bins", "norm_counts"))
            found += int(counts[middles(bins) > limit].sum())
        return found

    def non_finite(self, hook: str | None = None) -> int:
        """How many rows hold a NaN or an infinity, as counted while writing."""
        return int(self._statistic(hook, "non_finite"))

    def rows(self, hook: str | None = None, start: int = 0, stop: int | None = None) -> Float[Tensor, "rows width"]:
        """Rows start to stop of a hook, in the store's dtype."""
        return self._copied(self.hook(hook), start, stop)

    def tokens(
        self, start: int = 0, stop: int | None = None, columns: Sequence[str] = TOKEN_COLUMNS
    ) -> dict[str, Int[Tensor, " rows"]]:
        """token_id, document, position and context of rows start to stop, or some of these; int32."""
        return {name: self._copied(name, start, stop) for name in columns}

    def _copied(self, column: str, start: int, stop: int | None) -> Tensor:
        stop = len(self) if stop is None else stop
        self._check_span(start, stop, self.first_row)
        out = self.empty_column(column, stop - start)
        self.read_into(column, start, stop, out)
        return out

    def blocks(self, start: int = 0, stop: int | None = None) -> Int[Tensor, "contexts pos"]:
        """All token ids of contexts start to stop, special tokens included, int32."""
        stop = self.manifest.contexts if stop is None else stop
        self._check_span(start, stop, self.first_context)
        out = torch.empty(stop - start, self.manifest.recipe.context_size, dtype=torch.int32)
        _copy_into(out, self._slices("tokens", "blocks", start, stop, self.first_context))
        return out

    def text_around(self, row: int, before: int, after: int) -> TextAround:
        """A row's token with at most so many tokens before and after it, of its own context."""
        columns = self.tokens(row, row + 1)
        document, context, position = (int(columns[name]) for name in ("document", "context", "position"))
        ids = self.blocks(context, context + 1)[0].tolist()
        first, last = max(0, position - before), min(len(ids), position + after + 1)
        if not 0 <= position < len(ids) or not all(0 <= token < len(self.vocabulary) for token in ids):
            raise StoreError(
                f"store {self.path}: row {row} is position {position} of a context that is not so, or holds a token that the "
                f"vocabulary lacks; run sae-lm verify {self.path}"
            )
        texts, part = [""] * len(ids), None
        for piece in pieces(ids, self.vocabulary, self.partial_tokens):
            inside = piece.first <= position < piece.last
            texts[position if inside else piece.first] = piece.text
            if inside and piece.last - piece.first > 1:
                part = position - piece.first + 1, piece.last - piece.first
            if piece.first < first < piece.last:  # a character is shown whole
                first = piece.first
            if piece.first < last < piece.last:
                last = piece.last
        return TextAround(document, context, position, first, texts[first:last], first > 0, last < len(ids), part)

    def held_out_from(self, share: float) -> tuple[int, int]:
        """(context, row) where the last ``share`` of the contexts begins; no context is on both sides."""
        context = int(self.manifest.contexts * (1 - share))
        return context, self._first_row_of(context)

    def _first_row_of(self, context: int) -> int:
        shard = min(bisect_right(self.first_context, context), len(self.manifest.shards)) - 1
        contexts = self._tensor("tokens", shard, "context").contiguous()
        return self.first_row[shard] + int(torch.searchsorted(contexts, context))

    def special(self, blocks: Int[Tensor, "contexts pos"]) -> Tensor:
        """[contexts, pos] bool: where the ids are special (BOS, separators, marks of chats), which have no rows."""
        recipe = self.manifest.recipe
        special = SpecialTokens(recipe.bos, recipe.separator, recipe.other_special)
        return torch.isin(blocks, torch.tensor(special.ids, dtype=blocks.dtype))

    def rowless(self, start: int, stop: int) -> Tensor:
        """[contexts, pos] bool: which tokens of contexts start to stop have no row, whatever the reason."""
        first, last = (self._first_row_of(context) for context in (start, stop))
        columns = self.tokens(first, last)
        marks = torch.ones(stop - start, self.manifest.recipe.context_size, dtype=torch.bool)
        marks[(columns["context"] - start).long(), columns["position"].long()] = False
        return marks

    @property
    def text_repeats(self) -> bool:
        """Whether rows may be of text that earlier rows are of as well (``sae-lm cache --repeat``)."""
        manifest = self.manifest
        merged = "merged" in manifest.recipe.text  # which does not know where in its texts it ended
        return manifest.recipe.repeat and (merged or manifest.shards[-1].next > (manifest.documents, 0))

    def gather(self, hook: str | None, indices: Int[Tensor, " n"]) -> Float[Tensor, "n width"]:
        """Rows at the given numbers, in the given order; each shard is opened once. Raises StoreError for others."""
        name = self.hook(hook)
        if len(indices):
            self._check_span(int(indices.min()), int(indices.max()) + 1, self.first_row)
        out, order = self.empty_column(name, len(indices)), indices.argsort()
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
        columns: Sequence[str] | None = None,
        epochs: int = 1,
        steps: int | None = None,
        start: int = 0,
        stop: int | None = None,
        first: int = 0,
        rank: int = 0,
        world_size: int = 1,
        pin: bool = False,
    ) -> Iterator[Any]:
        """Shuffled batches of rows start to stop, read in the background; see ``sae_lm.data.batches``.

        Yields [batch, width] of the hook, or, where ``columns`` names hooks and columns of the tokens (token_id,
        document, position, context), {column: its rows}. The order depends on seed and epoch alone.

        steps: end before the batch of this number, whatever ``epochs`` is (default: the whole batches of ``epochs``).
        first: number of the first batch, to go on where another run ended.
        rank, world_size: each batch is cut into world_size slices; yield the rank-th.
        pin: into memory that an accelerator reads by itself; needs one.
        Raises SettingsError for numbers out of bounds, StoreError for a hook the store lacks.
        """
        names = [self.hook(hook)] if columns is None else [self._column(name) for name in columns]
        last = len(self) if stop is None else stop
        inside = 0 <= start < last <= len(self) and batch_size >= 1 and 0 <= rank < world_size
        if not inside or min(first, epochs, steps or 0) < 0:
            raise SettingsError(
                f"batches of {batch_size} rows from {start} to {last}, rank {rank} of {world_size}, first {first}, epochs {epochs}, "
                f"steps {steps}: expected 0 <= start < stop <= {len(self)}, batch_size >= 1, 0 <= rank < world_size, no other below 0"
            )
        numbers = range(first, (last - start) * epochs // batch_size if steps is None else steps)
        order = row_order(self, seed, start, last)
        made = shuffled_batches(self, names, order, batch_size, numbers, Slice(rank, world_size), pin)
        return (batch[names[0]] for batch in made) if columns is None else made

    def _column(self, name: str) -> str:
        return name if name in TOKEN_COLUMNS else self.hook(name)

    def empty_column(self, column: str, rows: int) -> Tensor:
        """Room for rows of a hook or of a column of the tokens."""
        if column in TOKEN_COLUMNS:
            return torch.empty(rows, dtype=torch.int32)
        return torch.empty(rows, self.hooks[column], dtype=getattr(torch, self.manifest.recipe.dtype))

    def column_bytes(self, column: str) -> int:
        """Bytes per row."""
        itemsize = getattr(torch, self.manifest.recipe.dtype).itemsize
        return 4 if column in TOKEN_COLUMNS else self.hooks[column] * itemsize

    def read_into(self, column: str, start: int, stop: int, out: Tensor) -> None:
        """Copy rows start to stop of a column into ``out``, without torch's threads: it may run beside a model."""
        folder, key = ("tokens", column) if column in TOKEN_COLUMNS else (column, "rows")
        _copy_into(out, self._slices(folder, key, start, stop))

    def _slices(
        self, folder: str, key: str, start: int, stop: int, firsts: list[int] | None = None
    ) -> Iterator[Tensor]:
        firsts = self.first_row if firsts is None else firsts
        self._check_span(start, stop, firsts)
        shard = bisect_right(firsts, start) - 1
        while start < stop:
            first, last = firsts[shard], min(stop, firsts[shard + 1])
            if start < last:
                yield self._tensor(folder, shard, key)[start - first : last - first]
                start = last
            shard += 1

    def _check_span(self, start: int, stop: int, firsts: list[int]) -> None:
        if not 0 <= start <= stop <= firsts[-1]:
            raise StoreError(f"store {self.path}: rows {start} to {stop} asked for, it holds 0 to {firsts[-1]}")

    def _tensor(self, folder: str, shard: int, key: str) -> Tensor:
        shape, dtype = shard_tensor(self.manifest, folder, shard, key)
        return read_tensor(self.locate(shard_file(folder, shard)), key, self.path, shape, dtype)

    def _statistic(self, hook: str | None, key: str) -> Tensor:
        return read_tensor(self.locate("stats.safetensors"), f"{self.hook(hook)}/{key}", self.path, *whole_tensor(key))


def _copy_into(out: Tensor, parts: Iterable[Tensor]) -> None:
    """Lay parts end to end; of a store's shards no more than one is mapped into memory at a time."""
    filled = 0
    for part in parts:
        np.copyto(_bytes(out[filled : filled + len(part)]), _bytes(part))
        filled += len(part)


def _bytes(tensor: Tensor) -> np.ndarray:
    return tensor.flatten().view(torch.uint8).numpy()


def open_store(path: str | Path, *, checksums: bool = False) -> Store:
    """Open a whole store: a folder, or ``hf://datasets/OWNER/NAME[@REVISION]``, of which shards are fetched when read.

    The sizes of all files are checked, on request their checksums as well (files of the hub are checked as
    they are fetched). Raises StoreError.
    """
    if str(path).startswith("hf://"):
        from sae_lm.data.remote import open_remote

        return Store(str(path), *open_remote(str(path)))
    manifest = read_manifest(path := Path(with_home(path)))
    for name, record in manifest.all_files().items():
        file = path / name
        size = file.stat().st_size if file.is_file() else None
        got = "is missing" if size is None else f"has {size} bytes, expected {record.bytes}"
        if size == record.bytes:
            if not checksums or sha256(file) == record.sha256:
                continue
            got = "does not match its checksum"
        raise StoreError(f"store {path} is damaged: {name} {got}; run sae-lm verify {path} --repair")
    return Store(path, manifest)
