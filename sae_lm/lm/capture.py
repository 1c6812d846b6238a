"""The interface of a hooked language model, and what the store records of the model."""

from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from sae_lm.errors import ModelError
from sae_lm.lm.source import ModelSource
from sae_lm.runtime.files import files_digest

COUNTED_FROM_PADDING = {
    "camembert", "data2vec-text", "ibert", "longformer", "luke", "mpnet", "roberta", "roberta-prelayernorm",
    "xlm-roberta", "xlm-roberta-xl", "xmod",
}  # fmt: skip
"""Kinds of models, as configurations name them, whose first token has the position after the padding's id."""


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
    device: str
    """where token ids go; activations come from the devices of their blocks"""
    remark: str
    """a sentence on how the model was placed, usually empty"""

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        """tokens [batch, pos] int64, mask [batch, pos] (1 for tokens, 0 for padding) -> {hook: [batch, pos, width]}."""
        ...


class Stop(Exception):
    """Raised inside a hook once every activation asked for was seen: the forward pass ends there."""


def trial_size(config: Any) -> tuple[int, int]:
    """How many contexts of how many tokens a trial pass has: two numbers of which neither is the model's of heads.

    So the shape of an activation tells whether it has these axes, and which they are.
    """
    heads = [getattr(config, key, None) for key in ("num_attention_heads", "num_key_value_heads")]
    contexts, tokens = [size for size in range(2, 6) if size not in heads][:2]
    return contexts, tokens


def probe_widths(run: Forward, device: str) -> dict[str, int]:
    """{hook: width} from a pass of a few tokens. Raises ModelError where an activation is no residual stream."""
    contexts, tokens = trial_size(run.config)
    widths = {}
    for name, value in run(torch.zeros(contexts, tokens, dtype=torch.long, device=device)).items():
        if value.ndim != 3 or value.shape[:2] != (contexts, tokens):
            raise ModelError(
                f"hook {name} gives a tensor of shape {list(value.shape)} for {contexts} contexts of {tokens} tokens, "
                "expected [batch, pos, width]; name a residual stream such as blocks.0.hook_out"
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
    if not limit:
        return None
    return int(limit) - (int(config.pad_token_id or 0) + 1 if config.model_type in COUNTED_FROM_PADDING else 0)


def too_long(config: Any, context_size: int) -> str:
    """Why the model takes no contexts of so many tokens, for a message; empty where it does."""
    limit = context_limit(config)
    if not limit or context_size <= limit:
        return ""
    named = getattr(config, "max_position_embeddings", limit)
    why = "" if named == limit else f" ({named} position embeddings, of which {named - limit} are for padding)"
    return f"the model takes at most {limit} tokens{why}"
