"""Write one latent's direction for programs that steer: llama.cpp's control vectors, lm-evaluation-harness' steered models."""

import csv
import re
from importlib.util import find_spec
from pathlib import Path

from sae_lm.errors import SaeError
from sae_lm.runtime.files import write_whole
from sae_lm.sae.export import export
from sae_lm.sae.model import SAE

COLUMNS = (
    "loader", "action", "sparse_model", "hookpoint", "feature_index", "steering_coefficient", "sae_id", "description",
)  # fmt: skip


def block_written(sae: SAE) -> int:
    """The number of the block whose output an SAE reads. Raises SaeError for an SAE of another place."""
    hook = str(sae.config.metadata.get("hook_name"))
    found = re.fullmatch(r"blocks\.(\d+)\.(hook_out|hook_resid_post|hook_in|hook_resid_pre)", hook)
    if found is None:
        raise SaeError(f"the SAE is for {hook}; steering files are of the residual stream, as blocks.8.hook_out")
    block = int(found[1]) - (found[2] in ("hook_in", "hook_resid_pre"))
    if block < 0:
        raise SaeError(f"the SAE is for {hook}, ahead of the first block, where these programs do not steer")
    return block


def write_gguf(sae: SAE, latent: int, out: Path, model: str) -> Path:
    """A control vector for ``llama-cli --control-vector-scaled FILE:STRENGTH``: the latent's decoder row.

    model: the architecture that llama.cpp compares with its model's, as ``llama``. The strength is in units of the
    latent's activation. Needs the package gguf. Raises SaeError for the first block, which llama.cpp does not steer, and
    for an SAE of rescaled activations: what a latent adds there depends on the token.
    """
    if sae.config.normalize_activations != "none":
        raise SaeError(
            f"the SAE rescales each activation ({sae.config.normalize_activations}), so that no one vector is what a latent "
            "adds; export one whose normalize_activations is none"
        )
    if find_spec("gguf") is None:
        raise SaeError("a control vector is written by the package gguf, which is not installed; run pip install gguf")
    from gguf import GGUFWriter  # pyright: ignore[reportMissingImports]

    block = block_written(sae)
    if block == 0:
        raise SaeError(
            "the SAE is for the output of block 0, which llama.cpp's control vectors leave out; use a later one"
        )
    row = sae.W_dec[latent].detach().float().cpu().numpy()

    def write(temporary: Path) -> None:
        writer = GGUFWriter(str(temporary), "controlvector")
        writer.add_string("controlvector.model_hint", model)
        writer.add_uint32("controlvector.layer_count", block)
        writer.add_tensor(f"direction.{block}", row)
        writer.write_header_to_file()
        writer.write_kv_data_to_file()
        writer.write_tensors_to_file()
        writer.close()

    path = out / f"latent-{latent}.gguf"
    write_whole(path, write)
    return path


def write_lm_eval(sae: SAE, latent: int, out: Path, strength: float, module: str | None = None) -> Path:
    """``steer.csv`` for ``lm_eval --model steered --model_args pretrained=...,steer_path=FILE``, and the SAE beside it.

    The SAE is written as sparsify's, since that is the loader there which reads a folder of this disk. So it must be
    one that sparsify can express. strength: added times the decoder row. module: the block's name below the model's
    base, as ``h.8`` in GPT-2; default ``layers.N``. One latent a file: of two on a module the last would act alone.
    """
    module = module or f"layers.{block_written(sae)}"
    if not re.fullmatch(r"[\w.]+", module):
        raise SaeError(f"module {module!r} is no name of a module, which reads layers.8 or h.8")
    place = out / "sae"
    export(sae, "sparsify", place / module)
    row = ["sparsify", "add", str(place.resolve()), module, latent, strength, "", f"latent {latent}"]

    def write(temporary: Path) -> None:
        with temporary.open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([COLUMNS, row])

    path = out / "steer.csv"
    write_whole(path, write)
    return path
