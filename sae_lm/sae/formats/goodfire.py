"""Read SAEs of Goodfire: one torch file with ``encoder_linear`` and ``decoder_linear``; ReLU, no bias before the encoder."""

import re

from sae_lm.sae.hook_names import named_in
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source

_NAMES = ["encoder_linear.weight", "encoder_linear.bias", "decoder_linear.weight", "decoder_linear.bias"]


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing or damaged, or where the file's name does not say the layer."""
    state = source.tensors(source.only_file)
    source.needs(state, _NAMES)
    weights = source.numbers(state, _NAMES)
    d_sae, d_in = source.matrix(weights["encoder_linear.weight"], "encoder_linear.weight")
    source.matrix(weights["decoder_linear.weight"], "decoder_linear.weight")
    found = re.search(r"([\w.-]+)-SAE-l(\d+)\.(?:pt|pth)$", source.identity)
    hook, original = source.place(named_in(source.identity), "the file's name")
    metadata = {"hook_name": hook, "original_hook_name": original}
    if found:
        metadata["model_name"] = f"meta-llama/{found[1]}" if found[1].startswith("Llama") else found[1]
        source.note(f"model {metadata['model_name']} from the file's name")
    source.note("b_dec not subtracted from the input: Goodfire")
    config = SaeConfig(architecture="standard", d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, metadata=metadata)
    named = {"W_enc": weights["encoder_linear.weight"].T, "b_enc": weights["encoder_linear.bias"]}
    decoder = {"W_dec": weights["decoder_linear.weight"].T, "b_dec": weights["decoder_linear.bias"]}
    return source.finish("goodfire", config, {**named, **decoder})
