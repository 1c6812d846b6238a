"""Read one tensor of a store's file, and see that it has the size and the kind that the manifest tells."""

from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from sae_lm.data.manifest import QUANTILES, Manifest
from sae_lm.errors import StoreError
from sae_lm.runtime.files import disk_problem


def read_tensor(path: Path, key: str, store: object, shape: tuple[int | None, ...], dtype: torch.dtype) -> Tensor:
    """The tensor ``key`` of a file, memory-mapped: only what is read is loaded. None in ``shape`` stands for any length.

    Raises StoreError for a file that is missing, damaged, or holds something else under that name.
    """
    try:
        with safe_open(path, "pt") as file:
            tensor = file.get_tensor(key)
    except (OSError, SafetensorError) as problem:
        if words := disk_problem(problem):
            raise StoreError(f"{path} cannot be read, {words}; mend that, or copy the store to another disk") from None
        raise StoreError(f"{path} cannot be read ({problem}); run sae-lm verify {store}") from None
    fits = len(tensor.shape) == len(shape) and all(
        wanted in (None, size) for size, wanted in zip(tensor.shape, shape, strict=True)
    )
    if not fits or tensor.dtype != dtype:
        expected = tuple("any" if size is None else size for size in shape)
        raise StoreError(
            f"{path}: {key} is {tensor.dtype} of shape {tuple(tensor.shape)}, the manifest says {dtype} of {expected}; "
            f"run sae-lm verify {store}"
        )
    return tensor


def shard_tensor(manifest: Manifest, folder: str, shard: int, key: str) -> tuple[tuple[int | None, ...], torch.dtype]:
    """(shape, dtype) of a tensor in a shard's file; see `sae_lm.data.manifest`."""
    record, recipe = manifest.shards[shard], manifest.recipe
    if folder == "tokens":
        return ((record.contexts, recipe.context_size) if key == "blocks" else (record.rows,)), torch.int32
    width = recipe.hooks[folder]
    return {
        "rows": ((record.rows, width), getattr(torch, recipe.dtype)),
        "sum": ((width,), torch.float64),
        "sum_squared_norm": ((), torch.float64),
        "non_finite": ((), torch.int64),
        "norm_bins": ((None,), torch.int32),
        "norm_counts": ((None,), torch.int64),
    }[key]


def whole_tensor(key: str) -> tuple[tuple[int | None, ...], torch.dtype]:
    """(shape, dtype) of a tensor in stats.safetensors, by its name without the hook's."""
    return ((), torch.int64) if key == "non_finite" else ((len(QUANTILES),), torch.float64)
