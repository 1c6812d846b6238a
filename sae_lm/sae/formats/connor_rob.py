"""Read the attention SAEs of Kissane, Krzyzanowski et al.: ``NAME.pt`` beside ``NAME_cfg.json``; ReLU, b_dec subtracted.

They are for ``attn.hook_z`` with the axis of heads flattened, of GPT-2 small as HookedTransformer loads it by default:
the value biases are folded away.
"""

from sae_lm.sae.formats.saelens_config import FOLDED_BIASES
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source

_NAMES = ["W_enc", "b_enc", "W_dec", "b_dec"]


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, damaged or without its configuration."""
    state = source.tensors(source.only_file)
    file = source.only_file.rpartition(".")[0] + "_cfg.json"
    config = source.json(file)
    source.needs(state, _NAMES)
    weights = source.numbers(state, _NAMES)
    recorded = config.get("act_name")
    hook, original = source.place(str(recorded) if recorded else None, file)
    source.note("b_dec subtracted from the input")
    source.note(FOLDED_BIASES)
    sae_config = SaeConfig(
        architecture="standard",
        d_in=source.whole(config, "act_size", file),
        d_sae=source.whole(config, "dict_size", file),
        value_biases="folded with norm",
        metadata={"hook_name": hook, "original_hook_name": original, "model_name": config.get("model_name") or "gpt2"},
    )
    return source.finish("connor_rob", sae_config, weights)
