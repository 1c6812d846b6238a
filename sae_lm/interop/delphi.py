"""Write a cache of latent activations that delphi's automated interpretation reads: no SAE and no model is loaded there.

OUT/latents/HOOKPOINT/config.json
                      0_127.safetensors   latents 0 to 127:
    locations [n, 3]        context, position in it, latent less the file's first; in that order
    activations [n]         float16
    tokens [contexts, pos]  token ids of all contexts
"""

from pathlib import Path
from typing import Any

import numpy as np
import scipy.sparse
from safetensors.numpy import save_file

from sae_lm.errors import SaeError
from sae_lm.interop.examples import AT_ONCE, Encoded
from sae_lm.runtime.files import write_json, write_whole


def write_delphi(encoded: Encoded, out: Path, hookpoint: str, per_file: int = AT_ONCE) -> list[Path]:
    """Write the cache of all latents, ``per_file`` of them a file or more.

    hookpoint: the folder's name. Raises SaeError for activations that float16 does not hold, and where no latent fires.
    """
    codes = encoded.codes
    if (most := float(encoded.statistics.largest.max())) > np.finfo(np.float16).max:
        raise SaeError(
            f"the largest activation is {most:g}, and delphi's caches hold float16, up to 65504; scale the SAE's "
            "activations down"
        )
    if not most:
        raise SaeError(f"no latent fires on the {len(encoded.token_id):,} rows searched; give more, --tokens")
    first = int(encoded.context[0])
    tokens = encoded.blocks.astype(np.int64)
    matrix = scipy.sparse.vstack([part.matrix(codes.d_sae) for part in codes.parts()]).tocsc()
    folder = out / "latents" / hookpoint
    paths = []
    for low, high in _ranges(encoded.statistics.fires, per_file):
        entries = matrix[:, low:high].tocsr().tocoo()
        row, latent = entries.coords
        locations = np.stack([encoded.context[row] - first, encoded.position[row], latent], 1)
        kind = np.uint16 if locations.max() < 2**16 else np.uint32
        arrays = {
            "locations": locations.astype(kind),
            "activations": entries.data.astype(np.float16),
            "tokens": tokens,
        }
        paths.append(folder / f"{low}_{high - 1}.safetensors")
        write_whole(paths[-1], lambda temporary, arrays=arrays: save_file(arrays, temporary))
    write_json(folder / "config.json", _config(encoded, tokens.shape, len(paths)))
    return paths


def _config(encoded: Encoded, shape: tuple[int, ...], splits: int) -> dict[str, Any]:
    recipe = encoded.store.manifest.recipe
    return {
        "dataset_repo": recipe.text.get("id"),
        "dataset_split": recipe.text.get("split") or "train",
        "dataset_name": "",
        "dataset_column": recipe.text.get("column") or "text",
        "batch_size": 32,
        "cache_ctx_len": shape[1],
        "n_tokens": shape[0] * shape[1],
        "n_splits": splits,
        "model_name": recipe.model.get("id"),
    }


def _ranges(fires: np.ndarray, per_file: int) -> list[tuple[int, int]]:
    """(first, stop) of each file: in each some latent fires, and together they leave none out.

    delphi fails on a file without activations, and looks a latent up in the file that should be there if none is missing.
    """
    ranges: list[tuple[int, int]] = []
    low = 0
    for high in [*range(per_file, len(fires), per_file), len(fires)]:
        if fires[low:high].any():
            ranges.append((low, high))
            low = high
    if low < len(fires):
        ranges[-1] = (ranges[-1][0], len(fires))
    return ranges
