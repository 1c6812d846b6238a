"""Capture residual streams from the plain Hugging Face model: the fast path.

The base model without its head is loaded, forward hooks sit on its blocks, and the pass ends in the
last of them. What a bridge would give is the oracle in tests/lm/test_forward.py.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from sae_lm.errors import ModelError
from sae_lm.lm.capture import Stop, probe_widths
from sae_lm.lm.device_map import Placement, check_device_map, input_device, waiting
from sae_lm.lm.hooks import layer_of
from sae_lm.lm.source import ModelSource, language_config, loading_quietly
from sae_lm.runtime.device import pick_device


class PlainForward:
    """``with PlainForward(...) as forward: forward(tokens)``; see ``sae_lm.lm.capture.Forward``."""

    def __init__(
        self,
        source: ModelSource,
        names: Sequence[str],
        blocks: str,
        device: str,
        dtype: torch.dtype,
        device_map: Placement | None = None,
    ) -> None:
        from transformers import AutoModel

        check_device_map(device_map, device)
        device = pick_device(device)
        placed: dict[str, Any] = {} if device_map is None else {"device_map": device_map}
        with loading_quietly(source, "a language model with weights in Hugging Face format"):
            model, loading = AutoModel.from_pretrained(
                source.location, revision=source.revision, dtype=dtype, output_loading_info=True, **placed
            )
        missing = sorted(name for name in loading["missing_keys"] if "pooler" not in name)
        if missing:
            raise ModelError(f"model {source.id!r} has no weights for {', '.join(missing[:5])}; save the whole model")
        if device_map is None:
            model = model.to(device)
        self.model: Any = model.eval().requires_grad_(False)
        self.names, self.blocks = list(names), model.get_submodule(blocks)
        self.device = device if device_map is None else str(input_device(model))
        self.remark = waiting(model)
        self.config: Any = language_config(model.config)
        self.attention = f"huggingface {model.config._attn_implementation}"
        self.dtype = dtype
        self.seen: dict[str, Tensor] = {}
        self.hooks: dict[str, int] = {}

    def __enter__(self) -> "PlainForward":
        self._handles = [self._hook(name) for name in self.names]
        self.hooks = probe_widths(self, self.device)
        return self

    def __exit__(self, *exception: Any) -> None:
        for handle in self._handles:
            handle.remove()

    def __call__(self, tokens: Tensor, mask: Tensor | None = None) -> dict[str, Tensor]:
        self.seen = {}
        try:
            with torch.inference_mode():
                self.model(tokens, attention_mask=mask, use_cache=False)
        except Stop:
            return self.seen
        raise ModelError(f"model {type(self.model).__name__} ran to its end without reaching {', '.join(self.names)}")

    def _hook(self, name: str) -> Any:
        layer = layer_of(name)
        assert layer is not None
        block = self.blocks[layer[0]]
        if layer[1] == "hook_out":
            return block.register_forward_hook(self._grab_output(name))
        return block.register_forward_pre_hook(self._grab_input(name), with_kwargs=True)

    def _grab_output(self, name: str) -> Callable[..., None]:
        return lambda block, inputs, output: self._keep(name, output[0] if isinstance(output, tuple) else output)

    def _grab_input(self, name: str) -> Callable[..., None]:
        return lambda block, inputs, keywords: self._keep(name, inputs[0] if inputs else keywords["hidden_states"])

    def _keep(self, name: str, value: Tensor) -> None:
        self.seen[name] = value
        if len(self.seen) == len(self.names):
            raise Stop
