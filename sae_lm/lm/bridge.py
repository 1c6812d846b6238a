"""Load a language model as a TransformerBridge, capture activations at its hooks, and replace them."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sae_lm.errors import ModelError
from sae_lm.lm.capture import Stop, probe_widths
from sae_lm.lm.hooks import canonical_hook, expand_hooks
from sae_lm.lm.source import ModelSource, find_model, language_config, loading_quietly
from sae_lm.runtime.device import pick_device

FORWARD_KWARGS: dict[str, Any] = {"use_cache": False, "output_attentions": False}
"""Arguments of every forward pass: a bridge does not keep a cache and attentions that nobody reads."""


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
    keywords: dict[str, Any] = {} if source.is_local or not source.revision else {"revision": source.revision}
    device = pick_device(device)
    with loading_quietly(source, "a causal language model with weights and tokenizer in Hugging Face format"):
        bridge = TransformerBridge.boot_transformers(source.location, device=device, dtype=dtype, **keywords)
    bridge.eval()
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    return bridge


def expand_bridge_hooks(bridge: TransformerBridge, patterns: Sequence[str]) -> list[str]:
    """Every hook point of the bridge that the patterns stand for; see ``sae_lm.lm.hooks``."""
    names = expand_hooks(patterns, bridge.cfg.n_layers, bridge.hook_dict)
    assert names is not None
    return [resolve_hook(bridge, name) for name in names]


def resolve_hook(bridge: TransformerBridge, name: str) -> str:
    """The canonical name of one hook point the model has. Raises ModelError naming what it has instead."""
    canonical = canonical_hook(name)
    for known in (canonical, name):
        if known in bridge.hook_dict:
            return known
    layers = bridge.cfg.n_layers
    raise ModelError(
        f"hook {name!r} is not a hook point of this model, which has {layers} layers; residual streams are "
        f"blocks.0.hook_out (after block 0) to blocks.{layers - 1}.hook_out"
    )


class Capture:
    """``with Capture(bridge, names) as capture: rows = capture(tokens)``; each forward stops after the last hook.

    A ``sae_lm.lm.capture.Forward``; residual streams are [batch, pos, d_model].
    """

    def __init__(self, bridge: TransformerBridge, names: Sequence[str]) -> None:
        self.bridge = bridge
        self.names = list(dict.fromkeys(resolve_hook(bridge, name) for name in names))
        self.seen: dict[str, Tensor] = {}
        self.hooks: dict[str, int] = {}
        self.attention = "bridge eager"
        self.config: Any = language_config(bridge.original_model.config)
        self.dtype = next(bridge.parameters()).dtype

    def _grab(self, name: str) -> Callable[..., None]:
        def keep(tensor: Tensor, hook: Any) -> None:
            self.seen[name] = tensor.detach()
            if len(self.seen) == len(self.names):
                raise Stop

        return keep

    def __enter__(self) -> "Capture":
        self._hooks = self.bridge.hooks(fwd_hooks=[(name, self._grab(name)) for name in self.names])
        self._hooks.__enter__()
        self.hooks = probe_widths(self, str(next(self.bridge.parameters()).device))
        return self

    def __exit__(self, *exception: Any) -> None:
        self._hooks.__exit__(None, None, None)

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        self.seen = {}
        try:
            with torch.inference_mode():
                self.bridge(tokens, return_type=None, attention_mask=mask, **FORWARD_KWARGS)
        except Stop:
            return self.seen
        missing = ", ".join(sorted(set(self.names) - set(self.seen)))
        raise ModelError(
            f"hook {missing} never fired in a forward pass; name a residual stream such as blocks.0.hook_out"
        )


@contextmanager
def replace_activation(bridge: TransformerBridge, name: str, function: Callable[[Tensor], Tensor]) -> Iterator[None]:
    """Inside the block every forward uses ``function(activation)`` in place of the activation at ``name``."""

    def hook_function(tensor: Tensor, hook: Any) -> Tensor:
        return function(tensor).to(tensor.dtype)

    with bridge.hooks(fwd_hooks=[(resolve_hook(bridge, name), hook_function)]):
        yield
