"""activations -> shards: one tokens file and one file per hook, each written whole or not at all."""

from pathlib import Path

import numpy as np
import torch
from jaxtyping import Float
from safetensors.torch import save_file
from torch import Tensor

from sae_lm.data.manifest import FileRecord, ShardRecord
from sae_lm.data.tokens import Block
from sae_lm.errors import StoreError
from sae_lm.files import sha256, write_whole

SUMMED_ROWS = 8192


def shard_file(folder: str, index: int) -> str:
    """Relative path of a shard's file: ``blocks.3.hook_out/00007.safetensors``."""
    return f"{folder}/{index:05d}.safetensors"


def kept_positions(blocks: list[Block], limit: int) -> np.ndarray:
    """[contexts, context_size] bool: the first ``limit`` tokens that are not special."""
    kept = ~np.stack([block.special for block in blocks])
    return kept & (kept.cumsum().reshape(kept.shape) <= limit)


def write_shard(
    store: Path,
    index: int,
    first_context: int,
    blocks: list[Block],
    kept: np.ndarray,
    rows: dict[str, Float[Tensor, "rows width"]],
) -> ShardRecord:
    """Write the files of one shard and return their record. ``rows[hook]`` holds the kept tokens in order."""
    context, position = np.nonzero(kept)
    ids = np.stack([block.ids for block in blocks])
    documents = np.stack([block.documents for block in blocks])
    tokens = {
        "blocks": ids,
        "token_id": ids[context, position],
        "document": documents[context, position],
        "position": position.astype(np.int32),
        "context": (context + first_context).astype(np.int32),
    }
    contents = {"tokens": {name: torch.from_numpy(np.ascontiguousarray(value)) for name, value in tokens.items()}}
    for hook, values in rows.items():
        contents[hook] = {"rows": values, **_sums(values)}
    files = {}
    for folder, tensors in contents.items():
        name = shard_file(folder, index)
        write_whole(store / name, lambda part, tensors=tensors: save_file(tensors, part))
        files[name] = FileRecord(bytes=(store / name).stat().st_size, sha256=sha256(store / name))
    special = int(np.stack([block.special for block in blocks]).sum())
    return ShardRecord(rows=len(context), contexts=len(blocks), special_tokens=special, files=files)


def _sums(values: Float[Tensor, "rows width"]) -> dict[str, Tensor]:
    """float64 sums over rows, a piece at a time: a shard in float64 would take four times its room."""
    sums = {
        "sum": torch.zeros(values.shape[1], dtype=torch.float64),
        "sum_squared_norm": torch.zeros((), dtype=torch.float64),
    }
    for piece in values.split(SUMMED_ROWS):
        exact = piece.double()
        sums["sum"] += exact.sum(0)
        sums["sum_squared_norm"] += exact.square().sum()
    return sums


def check_finite(hook: str, values: Float[Tensor, "contexts pos width"], blocks: list[Block]) -> None:
    """Raise StoreError at the first NaN or infinity among tokens that are not special."""
    bad = ~torch.isfinite(values).all(-1).cpu() & ~torch.from_numpy(np.stack([b.special for b in blocks]))
    if bad.any():
        context, position = (int(i) for i in bad.nonzero()[0])
        block = blocks[context]
        raise StoreError(
            f"hook {hook} gave a NaN or infinite activation at document {block.documents[position]}, token id "
            f"{block.ids[position]} (position {position}); run the model in float32 or leave that document out"
        )
