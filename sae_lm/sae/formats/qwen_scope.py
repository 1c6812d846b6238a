"""Read SAEs of Qwen-Scope: ``layerN.sae.pt``; the repository's name says model and k: SAE-Res-MODEL-W32K-L0_50.

W_enc is [d_sae, d_in], W_dec [d_in, d_sae]; topk, b_dec is not subtracted from the input.
"""

import re

from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source

_NAMES = ["W_enc", "W_dec", "b_enc", "b_dec"]


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, damaged or not told by the names."""
    state = source.tensors(source.only_file)
    source.needs(state, _NAMES)
    weights = source.numbers(state, _NAMES)
    d_sae, d_in = source.matrix(weights["W_enc"], "W_enc")
    source.matrix(weights["W_dec"], "W_dec")
    found = re.search(r"SAE-Res-(.+?)-W\d+K-L0_(\d+)", source.identity)
    layer = re.search(r"layer(\d+)\.sae\.pt$", source.identity)
    k = source.active_latents(int(found[2]) if found else None, "the repository's name")
    if found:
        source.note(f"k is {k} from the repository's name")
    metadata: dict[str, object] = {"model_name": f"Qwen/{found[1]}"} if found else {}
    hook, original = source.place(f"model.layers.{layer[1]}" if layer else None, "the file's name")
    metadata |= {"hook_name": hook, "original_hook_name": original}
    source.note("W_enc and W_dec transposed; b_dec not subtracted from the input: Qwen-Scope")
    config = SaeConfig(architecture="topk", d_in=d_in, d_sae=d_sae, k=k, apply_b_dec_to_input=False, metadata=metadata)
    return source.finish("qwen_scope", config, {**weights, "W_enc": weights["W_enc"].T, "W_dec": weights["W_dec"].T})
