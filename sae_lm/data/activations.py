"""blocks -> activations: the one module that loads a language model through TransformerLens."""

import hashlib
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sae_lm.data.hub import ModelSource, find_model
from sae_lm.data.manifest import canonical_hook
from sae_lm.device import pick_device
from sae_lm.errors import ModelError, SaeLmError
from sae_lm.files import sha256

LEAN: dict[str, Any] = {"use_cache": False, "output_attentions": False}
"""Forward arguments that keep a bridge from holding what nobody reads."""


def load_model(
    name: str = "embedded",
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
) -> TransformerBridge:
    """Boot a TransformerBridge with raw weights, frozen and in eval mode.

    name: ``embedded``, a directory in Hugging Face format, or a hub id. Raises ModelError for what
    cannot be loaded and HubError where the hub is out of reach.
    """
    return boot(find_model(name, revision), device=device, dtype=dtype)


def boot(source: ModelSource, *, device: str, dtype: torch.dtype) -> TransformerBridge:
    """``load_model`` for a model that was found already, so that the hub is asked once."""
    from transformers.utils import logging

    logging.disable_progress_bar()  # a model loads in seconds here, and its bar would not become lines in a pipe
    keywords: dict[str, Any] = {} if source.is_local or not source.revision else {"revision": source.revision}
    try:
        bridge = TransformerBridge.boot_transformers(
            source.location, device=pick_device(device), dtype=dtype, **keywords
        )
    except SaeLmError:
        raise
    except Exception as problem:  # transformers raises OSError, ValueError, KeyError, SafetensorError, ...
        reason = " ".join(str(problem).split())[:300]
        raise ModelError(
            f"model {source.id!r} cannot be loaded ({type(problem).__name__}: {reason}); expected a causal language model "
            "with weights and tokenizer in Hugging Face format"
        ) from problem
    bridge.eval()
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    return bridge


def resolve_hook(bridge: TransformerBridge, name: str) -> str:
    """The canonical name of a hook point the model has. Raises ModelError naming what it has instead."""
    hooks = bridge.hook_dict
    canonical = canonical_hook(name)
    if canonical in hooks:
        return canonical
    if name in hooks:
        return name
    layers = bridge.cfg.n_layers
    found = re.match(r"blocks\.(\d+)\.", name)
    if found and int(found[1]) >= layers:
        raise ModelError(
            f"hook {name!r}: the model has {layers} layers, blocks.0 to blocks.{layers - 1}; name one of these"
        )
    raise ModelError(
        f"hook {name!r} is not a hook point of this model; residual streams are blocks.0.hook_out (after block 0) "
        f"to blocks.{layers - 1}.hook_out"
    )


def context_limit(bridge: TransformerBridge) -> int | None:
    """Longest context the model takes, in tokens; None where its configuration does not say."""
    limit = getattr(bridge.original_model.config, "max_position_embeddings", None) or bridge.cfg.n_ctx
    return int(limit) if limit else None


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer as it was saved. The bridge's own has BOS and EOS added where the model knows none."""
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(source.location, revision=source.revision)
    except Exception as problem:
        reason = " ".join(str(problem).split())[:300]
        raise ModelError(
            f"model {source.id!r} has no tokenizer that can be loaded ({reason}); save one beside it"
        ) from problem


def files_digest(folder: Path) -> str:
    """sha256 over configuration and weights of a local model: what a hub model's commit says."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()


def describe_model(bridge: TransformerBridge, source: ModelSource) -> dict[str, Any]:
    """Facts for the manifest: what produced the activations; two models of equal facts are the same model."""
    config: Any = bridge.original_model.config
    return {
        "id": source.id,
        "revision": source.revision,
        "architecture": (config.architectures or [type(bridge.original_model).__name__])[0],
        "dtype": str(next(bridge.parameters()).dtype).removeprefix("torch."),
        "processing": "none",
        "n_layers": bridge.cfg.n_layers,
        "d_model": bridge.cfg.d_model,
        "d_vocab": bridge.cfg.d_vocab,
        "files_sha256": files_digest(Path(source.location)) if source.is_local else None,
    }


class _AllSeen(Exception):
    """Raised inside a hook once every requested activation was seen: the forward ends there."""


class Capture:
    """``with Capture(bridge, names) as capture: rows = capture(tokens)``; each forward stops after the last hook."""

    def __init__(self, bridge: TransformerBridge, names: Sequence[str]) -> None:
        self.bridge = bridge
        self.names = list(dict.fromkeys(resolve_hook(bridge, name) for name in names))
        self.seen: dict[str, Tensor] = {}

    def _grab(self, name: str) -> Callable[..., None]:
        def keep(tensor: Tensor, hook: Any) -> None:
            self.seen[name] = tensor.detach()
            if len(self.seen) == len(self.names):
                raise _AllSeen

        return keep

    def __enter__(self) -> "Capture":
        self._hooks = self.bridge.hooks(fwd_hooks=[(name, self._grab(name)) for name in self.names])
        self._hooks.__enter__()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(None, None, None)

    def __call__(self, tokens: Int[Tensor, "batch pos"]) -> dict[str, Float[Tensor, "batch ..."]]:
        """{hook: activation}; a residual stream is [batch, pos, d_model]."""
        self.seen = {}
        try:
            with torch.inference_mode():
                self.bridge(tokens, return_type=None, **LEAN)
        except _AllSeen:
            return self.seen
        missing = ", ".join(sorted(set(self.names) - set(self.seen)))
        raise ModelError(
            f"hook {missing} never fired in a forward pass; name a residual stream such as blocks.0.hook_out"
        )


@contextmanager
def replaced(bridge: TransformerBridge, name: str, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block every forward uses ``function(activation)`` in place of the activation at ``name``."""

    def hook_function(tensor: Tensor, hook: Any) -> Tensor:
        return function(tensor).to(tensor.dtype)

    with bridge.hooks(fwd_hooks=[(resolve_hook(bridge, name), hook_function)]):
        yield
