"""Fit an SAE of ``hook_z`` whose model had its value biases folded away to a model that still has them.

HookedTransformer's defaults move what values have in common into the bias of attention's output, as patterns of
attention sum to 1: b_V (``fold_value_biases``) and, with it, the first norm's bias times W_V (``fold_ln``). In a raw
TransformerBridge ``hook_z`` has that constant still. An SAE reads it rightly once its own biases are moved by it.
"""

import copy
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from sae_lm.errors import ModelError, SaeError
from sae_lm.sae.model import SAE

if TYPE_CHECKING:
    from sae_lm.lm.bridge import TransformerBridge

INSTEAD = "call model.enable_compatibility_mode(), which folds them"


def fitted(model: "TransformerBridge", hook: str, sae: SAE) -> SAE:
    """hook: as the model has it. The SAE for this model's own activations at a hook: itself where nothing was folded or the model has no such biases.

    Weights are shared with the SAE that was given, but for the biases. To use it with a store of the model's
    activations, save this one. Raises SaeError where the SAE cannot be moved, ModelError for weights that cannot be read.
    """
    config = sae.config
    if config.value_biases == "kept":
        return sae
    constant = _constant(model, hook, config.d_in, with_norm=config.value_biases == "folded with norm")
    if constant is None or not bool(constant.any()):
        return sae
    if config.normalises:
        raise SaeError(
            f"this SAE of {hook} normalises activations of a model without value biases, which this one has; {INSTEAD}"
        )
    if sae.b_dec.requires_grad or sae.b_enc.requires_grad:
        raise SaeError(
            f"this SAE of {hook} is for a model without value biases, and moving its own biases would not train them; {INSTEAD}"
        )
    constant = constant.to(sae.b_dec)
    with torch.no_grad():
        moved = {"b_dec": sae.b_dec + constant}
        if not config.apply_b_dec_to_input:
            moved["b_enc"] = sae.b_enc - constant @ sae.W_enc
    kwargs = {**(config.metadata.get("model_from_pretrained_kwargs") or {}), "fold_value_biases": False}
    other = copy.copy(sae)
    other._parameters = {
        **sae._parameters,
        **{name: nn.Parameter(bias, requires_grad=False) for name, bias in moved.items()},
    }
    metadata = {**config.metadata, "model_from_pretrained_kwargs": kwargs}
    other.config = replace(config, value_biases="kept", metadata=metadata)
    other.provenance = [*sae.provenance, "biases moved by the value biases of the model, which it was trained without"]
    return other


def refuse_stored(sae: SAE) -> None:
    """Raise SaeError where rows of a store, which are as the model had them, may have what the SAE was trained without."""
    if sae.config.value_biases != "kept":
        raise SaeError(
            "this SAE was trained on a model whose value biases were folded away, and rows of a store may have them; save the SAE "
            "that sae_lm.interp.value_biases.fitted(model, hook, sae) gives, and use that"
        )


@torch.no_grad()
def _constant(model: Any, hook: str, d_in: int, with_norm: bool) -> Float[Tensor, " d_in"] | None:
    """What values of all tokens have in common, heads side by side; None where there is none."""
    block = model.blocks[int(hook.split(".")[1])]
    try:
        weight = block.attn.W_V  # [key-value heads, d_model, d_head]
        bias, norm = getattr(block.attn, "b_V", None), getattr(block.ln1, "bias", None) if with_norm else None
    except AttributeError as problem:
        raise ModelError(f"the value biases at {hook} cannot be read ({problem}); {INSTEAD}") from None
    if bias is None and norm is None:
        return None
    if weight.device.type == "meta":
        raise ModelError(f"the value biases at {hook} wait on the CPU or on disk; load the model without device_map")
    constant = torch.zeros(weight.shape[0], weight.shape[2], device=weight.device)
    if bias is not None:
        constant += bias.float().reshape(constant.shape).to(constant.device)
    if norm is not None:
        constant += torch.einsum("d,hde->he", norm.float().to(weight.device), weight.float())
    heads = d_in // weight.shape[2]
    return constant.repeat_interleave(heads // len(constant), 0).flatten()  # some models' heads share their values
