"""Write an SAE as EleutherAI's sparsify does: ``cfg.json`` and ``sae.safetensors``."""

from pathlib import Path

from safetensors.torch import save_file

from sae_lm.errors import SaeError
from sae_lm.runtime.files import whole_folder, write_json
from sae_lm.sae.formats.sparsify import CONFIG, OURS, WEIGHTS
from sae_lm.sae.model import SAE
from sae_lm.sae.source import folded_bias


def write(sae: SAE, directory: Path) -> None:
    """Write a directory that sparsify's ``SparseCoder.load_from_disk`` reads; whole or not at all.

    Raises SaeError for what sparsify has not: it knows topk and groupmax, and subtracts b_dec (folded where ours does not).
    """
    config = sae.config
    if config.architecture not in ("topk", "groupmax"):
        raise SaeError(
            f"sparsify has SAEs of k latents per token alone (topk, groupmax), this one is {config.architecture}; "
            "write it for saelens or dictionary_learning"
        )
    if config.value_biases != "kept":
        raise SaeError(
            "sparsify cannot say that the model's value biases were folded away, as they were for this SAE; write it for saelens"
        )
    if config.normalises:
        raise SaeError(
            "sparsify has no SAE that normalises each activation, which this one does "
            f"({config.normalize_activations}{', centred' if config.centred_input else ''}); write it for saelens"
        )
    W_enc, b_enc, W_dec, b_dec = (
        value.detach().float().cpu() for value in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    )
    if not config.apply_b_dec_to_input:
        b_enc = folded_bias(W_enc, b_enc, -b_dec)
    with whole_folder(directory) as temporary:
        tensors = {"encoder.weight": W_enc.T.contiguous(), "encoder.bias": b_enc, "W_dec": W_dec, "b_dec": b_dec}
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary / WEIGHTS)
        settings = {
            "activation": config.architecture,
            "expansion_factor": max(1, config.d_sae // config.d_in),
            "normalize_decoder": bool(((W_dec.norm(dim=1) - 1).abs() <= 1e-5).all()),
            "num_latents": config.d_sae,
            "k": config.k,
            "multi_topk": False,
            "skip_connection": False,
            "transcode": False,
            "d_in": config.d_in,
            OURS: dict(config.metadata),
        }
        write_json(temporary / CONFIG, settings)
