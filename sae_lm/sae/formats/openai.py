"""Read SAEs of OpenAI's sparse_autoencoder: one torch file with ``pre_bias`` and ``latent_bias``.

pre_bias is subtracted from the input and added to the output. Where the activation is TopK, inputs are layer-normed
(ddof 1, epsilon 1e-5) and the norm is undone in the output; where it is ReLU they are not.
"""

import re
from collections.abc import Mapping

from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source, shown

_WEIGHTS = ["encoder.weight", "decoder.weight", "pre_bias", "latent_bias"]
_OTHERS = (
    "stats_last_nonzero",
    "latents_activation_frequency",
    "latents_mean_square",
    "activation",
    "activation_state_dict",
)
_PLACES = {
    "resid_delta_attn": "hook_attn_out",
    "resid_post_attn": "hook_resid_mid",
    "resid_delta_mlp": "hook_mlp_out",
    "resid_post_mlp": "hook_out",
    "mlp_post_act": "mlp.hook_post",
}
_PATH = re.compile(rf"/({'|'.join(_PLACES)})(?:_v\w+)?/autoencoders/(\d+)\.pt$")
"""gpt2-small/resid_post_mlp_v5_32k/autoencoders/8.pt"""


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, damaged or of another activation."""
    state = source.tensors(source.only_file)
    source.needs(state, _WEIGHTS, _OTHERS)
    weights = source.numbers(state, _WEIGHTS)
    d_sae, d_in = source.matrix(weights["encoder.weight"], "encoder.weight")
    source.matrix(weights["decoder.weight"], "decoder.weight")
    activation, k = state.get("activation", "ReLU"), None
    if activation == "TopK":
        settings = state.get("activation_state_dict")
        settings = settings if isinstance(settings, Mapping) else {}
        if settings.get("postact_fn", "ReLU") != "ReLU":
            raise source.error(f"postact_fn is {shown(settings['postact_fn'])}, only ReLU is read")
        k = source.active_latents(settings.get("k"), "activation_state_dict")
    elif activation != "ReLU":
        raise source.error(f"activation is {shown(activation)}, expected TopK or ReLU")
    norm = "layer_norm" if activation == "TopK" else "none"
    source.note(f"normalize_activations is {norm}: the activation is {activation}")
    source.note("pre_bias subtracted from the input")
    found = _PATH.search(source.identity)
    recorded = f"blocks.{found[2]}.{_PLACES[found[1]]}" if found else None
    hook, original = source.place(recorded, "its path")
    metadata = {"hook_name": hook, "original_hook_name": f"{found[1]}, layer {found[2]}" if found else original}
    if found and "gpt2-small" in source.identity:
        metadata["model_name"] = "gpt2"
    config = SaeConfig(
        architecture="topk" if activation == "TopK" else "standard",
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        normalize_activations=norm,
        metadata=metadata,
    )
    named = {"W_enc": weights["encoder.weight"].T, "b_enc": weights["latent_bias"]}
    return source.finish(
        "openai", config, {**named, "W_dec": weights["decoder.weight"].T, "b_dec": weights["pre_bias"]}
    )
