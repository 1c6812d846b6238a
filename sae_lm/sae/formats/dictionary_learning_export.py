"""Write an SAE as dictionary_learning does: ``ae.pt``, the state dict of one of its classes, and ``config.json``.

``ae.pt`` is what that library reads and no other kind of file will do; it holds plain tensors, which its own reader opens
without executing anything.
"""

import io
from pathlib import Path

import torch
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.runtime.files import whole_folder, write_json
from sae_lm.sae.formats.dictionary_learning import CONFIG, OURS, WEIGHTS
from sae_lm.sae.model import SAE
from sae_lm.sae.source import folded_bias


def write(sae: SAE, directory: Path) -> None:
    """Write a directory that dictionary_learning's ``load_dictionary`` reads; whole or not at all.

    standard: AutoEncoder, or AutoEncoderNew where b_dec is not subtracted or decoder rows are not unit, since reading an
    AutoEncoder makes them so and scales activations; topk: AutoEncoderTopK; jumprelu: JumpReluAutoEncoder. Biases are
    folded where the class has none. Raises SaeError for what no class has.
    """
    config = sae.config
    if config.value_biases != "kept":
        raise SaeError(
            "dictionary_learning cannot say that the model's value biases were folded away, as they were for this SAE; write it for saelens"
        )
    if config.normalises:
        raise SaeError(
            "dictionary_learning has no SAE that normalises each activation, which this one does "
            f"({config.normalize_activations}{', centred' if config.centred_input else ''}); write it for saelens"
        )
    if config.architecture == "groupmax":
        raise SaeError("dictionary_learning has no groupmax SAEs; write it for sparsify")
    name, state = _state(sae)
    hook = str(config.metadata.get("hook_name") or "")
    parts = hook.split(".")
    layer = int(parts[1]) if len(parts) > 1 and parts[1].isdigit() else None
    trainer = {
        "dict_class": name,
        "activation_dim": config.d_in,
        "dict_size": config.d_sae,
        "layer": layer,
        "lm_name": config.metadata.get("model_name") or "",
        "submodule_name": f"resid_post_layer_{layer}" if hook.endswith(".hook_out") and len(parts) == 3 else hook,
    }
    if config.architecture == "topk":
        trainer["k"] = config.k
    with whole_folder(directory) as temporary:
        content = io.BytesIO()  # torch's own writing to a file does not tell a full disk from another error
        torch.save(state, content)
        (temporary / WEIGHTS).write_bytes(content.getbuffer())
        buffer = {"ctx_len": config.metadata.get("context_size")}
        write_json(temporary / CONFIG, {"trainer": trainer, "buffer": buffer, OURS: dict(config.metadata)})


def _state(sae: SAE) -> tuple[str, dict[str, Tensor]]:
    """The class, and its state dict."""
    config = sae.config
    W_enc, b_enc, W_dec, b_dec = (
        value.detach().float().cpu() for value in (sae.W_enc, sae.b_enc, sae.W_dec, sae.b_dec)
    )
    rows = {"encoder.weight": W_enc.T.contiguous(), "decoder.weight": W_dec.T.contiguous()}
    if config.architecture == "jumprelu":
        if config.apply_b_dec_to_input:
            b_enc = folded_bias(W_enc, b_enc, b_dec)
        threshold = sae.threshold.detach().float().cpu()
        plain = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec, "threshold": threshold}
        return "JumpReluAutoEncoder", {name: value.contiguous() for name, value in plain.items()}
    if config.architecture == "topk":
        if not config.apply_b_dec_to_input:
            b_enc = folded_bias(W_enc, b_enc, -b_dec)
        buffers = {"k": torch.tensor(config.k, dtype=torch.int), "threshold": torch.tensor(-1.0)}
        return "AutoEncoderTopK", {**rows, **buffers, "encoder.bias": b_enc, "b_dec": b_dec}
    if config.apply_b_dec_to_input:
        if torch.allclose(norms := W_dec.norm(dim=1), torch.ones_like(norms)):
            return "AutoEncoder", {"bias": b_dec, **rows, "encoder.bias": b_enc}
        b_enc = folded_bias(W_enc, b_enc, b_dec)
    return "AutoEncoderNew", {**rows, "encoder.bias": b_enc, "decoder.bias": b_dec}
