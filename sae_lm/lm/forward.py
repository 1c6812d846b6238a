"""Open a language model for caching: the plain Hugging Face model where it serves, else a TransformerBridge.

Hook names mean what a TransformerBridge means by them. Residual streams at the borders of blocks are
values that the Hugging Face model computes as well, under its own attention kernels (usually sdpa,
which is much faster on long contexts than the bridge's eager code), so where every hook asked for is
such a border and the architecture is one whose plain forward is tested against the bridge, the plain
model runs; else the bridge does. ``--forward`` decides where it is given.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Literal

import torch

from sae_lm.errors import SettingsError
from sae_lm.lm.capture import Forward
from sae_lm.lm.device_map import Placement
from sae_lm.lm.hooks import expand_hooks
from sae_lm.lm.source import ModelSource, read_config

BLOCKS = {
    "BertForMaskedLM": "encoder.layer",
    "BertModel": "encoder.layer",
    "BloomForCausalLM": "h",
    "GPT2LMHeadModel": "h",
    "GPTJForCausalLM": "h",
    "GPTNeoForCausalLM": "h",
    "GPTNeoXForCausalLM": "layers",
    "Gemma2ForCausalLM": "layers",
    "Gemma3ForCausalLM": "layers",
    "Gemma3ForConditionalGeneration": "language_model.layers",
    "GemmaForCausalLM": "layers",
    "LlamaForCausalLM": "layers",
    "MistralForCausalLM": "layers",
    "OPTForCausalLM": "decoder.layers",
    "Olmo2ForCausalLM": "layers",
    "PhiForCausalLM": "layers",
    "Qwen2ForCausalLM": "layers",
    "Qwen3ForCausalLM": "layers",
}
"""Architecture in config.json -> where its Hugging Face base model keeps its blocks. All are tested against the bridge."""

Kind = Literal["auto", "huggingface", "bridge"]


@contextmanager
def open_forward(
    source: ModelSource,
    patterns: Sequence[str],
    *,
    kind: Kind,
    device: str,
    dtype: torch.dtype,
    device_map: Placement | None = None,
) -> Iterator[Forward]:
    """Load the model, on a device or laid over several, and hook it. Raises ModelError for a model or a hook that is not available."""
    config = read_config(source)
    architecture = (config.architectures or ["?"])[0]
    names = expand_hooks(patterns, config.num_hidden_layers) if architecture in BLOCKS else None
    if kind == "huggingface" and names is None:
        raise SettingsError(
            f"forward is huggingface, which gives blocks.N.hook_in and blocks.N.hook_out of {', '.join(BLOCKS)}; "
            f"got hooks {', '.join(patterns)} of {architecture}; give --forward bridge"
        )
    if kind != "bridge" and names is not None:
        from sae_lm.lm.huggingface import PlainForward

        with PlainForward(source, names, BLOCKS[architecture], device, dtype, device_map) as forward:
            yield forward
        return
    from sae_lm.lm.bridge import Capture, boot, expand_bridge_hooks  # TransformerLens: seconds

    bridge = boot(source, device=device, dtype=dtype, device_map=device_map)
    with Capture(bridge, expand_bridge_hooks(bridge, patterns)) as capture:
        yield capture
