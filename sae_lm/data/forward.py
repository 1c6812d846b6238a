"""blocks -> activations: which model runs, with what attention, and what its hooks give.

Hook names mean what a TransformerBridge means by them. Residual streams at the borders of blocks are
values that the Hugging Face model computes as well, under its own attention kernels (usually sdpa,
which is much faster on long contexts than the bridge's eager code), so where every hook asked for is
such a border and the architecture is one whose plain forward is tested against the bridge, the plain
model runs; else the bridge does. ``--forward`` decides otherwise.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Protocol, runtime_checkable

import torch
from torch import Tensor

from sae_lm.data.hooks import expand_hooks
from sae_lm.data.hub import ModelSource
from sae_lm.errors import ModelError, SettingsError
from sae_lm.files import files_digest

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


@runtime_checkable
class Forward(Protocol):
    """A language model that stops after the last hook asked for."""

    hooks: dict[str, int]
    """canonical hook name -> width"""
    attention: str
    """``huggingface sdpa``, ``bridge eager``: whose forward pass, which attention"""
    config: Any
    """the Hugging Face configuration"""
    dtype: torch.dtype

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """tokens [batch, pos] int64, mask [batch, pos] (1 for tokens, 0 for padding) -> {hook: [batch, pos, width]}."""
        ...


class Stop(Exception):
    """Raised inside a hook once every activation asked for was seen: the forward pass ends there."""


@contextmanager
def open_forward(
    source: ModelSource, patterns: Sequence[str], *, kind: Kind, device: str, dtype: torch.dtype
) -> Iterator[Forward]:
    """Load the model and hook it. Raises ModelError for a model or a hook that is not to be had."""
    from sae_lm.data import huggingface

    config = huggingface.read_config(source)
    architecture = (config.architectures or ["?"])[0]
    names = expand_hooks(patterns, config.num_hidden_layers) if architecture in BLOCKS else None
    if kind == "huggingface" and names is None:
        raise SettingsError(
            f"forward is huggingface, which gives blocks.N.hook_in and blocks.N.hook_out of {', '.join(BLOCKS)}; "
            f"got hooks {', '.join(patterns)} of {architecture}; give --forward bridge"
        )
    if kind != "bridge" and names is not None:
        with huggingface.PlainForward(source, names, BLOCKS[architecture], device, dtype) as forward:
            yield forward
        return
    from sae_lm.data.activations import Capture, boot, expand_bridge_hooks  # TransformerLens: seconds

    bridge = boot(source, device=device, dtype=dtype)
    with Capture(bridge, expand_bridge_hooks(bridge, patterns)) as capture:
        yield capture


def probe_widths(run: Any, device: str) -> dict[str, int]:
    """{hook: width} from a forward pass of two tokens. Raises ModelError where an activation is no residual stream."""
    widths = {}
    for name, value in run(torch.zeros(1, 2, dtype=torch.long, device=device)).items():
        if value.ndim != 3:
            raise ModelError(
                f"hook {name} gives a tensor of {value.ndim} dimensions, expected [batch, pos, width]; name a residual stream such as blocks.0.hook_out"
            )
        widths[name] = value.shape[-1]
    return widths


def describe_model(source: ModelSource, config: Any, dtype: torch.dtype) -> dict[str, Any]:
    """Facts for the manifest: what produced the activations; two models of equal facts are the same model."""
    return {
        "id": source.id,
        "revision": source.revision,
        "architecture": (config.architectures or ["?"])[0],
        "dtype": str(dtype).removeprefix("torch."),
        "processing": "none",
        "n_layers": config.num_hidden_layers,
        "d_model": config.hidden_size,
        "d_vocab": config.vocab_size,
        "files_sha256": files_digest(Path(source.location)) if source.revision is None else None,
    }


def context_limit(config: Any) -> int | None:
    """Longest context the model takes, in tokens; None where its configuration does not say."""
    limit = getattr(config, "max_position_embeddings", None)
    return int(limit) if limit else None
