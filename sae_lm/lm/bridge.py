"""Load a language model as a TransformerBridge, capture activations at its hooks, and replace them."""

import math
import subprocess
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor
from transformer_lens.model_bridge import TransformerBridge

from sae_lm.errors import ModelError
from sae_lm.fields import has_heads
from sae_lm.lm.capture import Stop, probe_widths, trial_size
from sae_lm.lm.device_map import Placement, check_device_map, input_device, waiting
from sae_lm.lm.hooks import canonical_hook, expand_hooks, layer_of
from sae_lm.lm.source import ModelSource, find_model, language_config, loading_quietly
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.memory import is_out_of_memory

FORWARD_KWARGS: dict[str, Any] = {"use_cache": False, "output_attentions": False}
"""Arguments of every forward pass: a bridge does not keep a cache and attentions that nobody reads."""


def load_model(
    name: str = "embedded",
    *,
    device: str = "auto",
    dtype: torch.dtype = torch.float32,
    revision: str | None = None,
    device_map: Placement | None = None,
) -> TransformerBridge:
    """Boot a TransformerBridge with raw weights, frozen and in eval mode.

    name: ``embedded``, a directory in Hugging Face format, or a hub id.
    device_map: in place of a device, ``auto`` lays a model that is larger than one card over all of them; or
        {module: device}, as transformers takes it.

    Raises ModelError for what
    cannot be loaded and HubError where the hub is out of reach. Token ids may be on any device. Where keys and values
    of earlier tokens are lost (see ``remembers``), ``model.generate`` works without keeping them.
    """
    bridge = boot(find_model(name, revision), device=device, dtype=dtype, device_map=device_map)
    remembers(bridge)
    return bridge


_REMEMBERS: "WeakKeyDictionary[TransformerBridge, bool]" = WeakKeyDictionary()


def remembers(bridge: TransformerBridge) -> bool:
    """Whether generation with kept keys and values predicts what generation without them does; tried once per model.

    TransformerLens hands the cache of keys and values on under the name that transformers gave it, and has lost it where
    transformers renamed it: then every new token is predicted from itself alone. A model that is found to do that is
    told to keep none, so that its own ``generate`` is right as well. True for models that generate nothing.
    """
    if bridge not in _REMEMBERS:
        _REMEMBERS[bridge] = _same_with_kept_keys(bridge)
        if not _REMEMBERS[bridge]:
            bridge.adapter.supports_kv_cache = False
    return _REMEMBERS[bridge]


def _same_with_kept_keys(bridge: TransformerBridge) -> bool:
    """Logits of the token after eight others and one that was generated: from all of them, and from keys and values."""
    prompt = torch.arange(1, 9, device=input_device(bridge))[None] % bridge.cfg.d_vocab
    logits = []
    for kept in (True, False):
        try:
            with warnings.catch_warnings(), torch.no_grad(), without_users_hooks(bridge):
                warnings.simplefilter("ignore")  # of names that will go; what matters is what comes out
                made: Any = bridge.generate(
                    prompt,
                    max_new_tokens=2,
                    do_sample=False,
                    stop_at_eos=False,
                    use_past_kv_cache=kept,
                    output_logits=True,
                    verbose=False,
                )
        except Exception as problem:  # an encoder, a model of other inputs: each says so in its own way, and late
            if is_out_of_memory(problem):
                raise
            return True
        logits.append(made.logits[-1].float().cpu().double())
    difference, spread = (logits[0] - logits[1]).abs().max(), logits[1].std()
    half = next(bridge.parameters()).dtype.itemsize < 4
    return bool(difference <= (0.1 if half else 1e-3) * spread)


@contextmanager
def nothing_installed() -> Iterator[None]:
    """Inside the block, no library has pip install a package.

    For a model that sees, TransformerLens installs torchvision where it lacks it, and pip another torch with that: in
    the middle of a run, behind the user's back, for an image processor that nobody reads text with.
    """
    run = subprocess.check_call

    def refuse(command: Any, *arguments: Any, **keywords: Any) -> int:
        words = command if isinstance(command, list | tuple) else str(command).split()
        if "pip" in words and "install" in words:
            raise ModelError(f"{' '.join(map(str, words))}: nothing is installed while a model is loaded")
        return run(command, *arguments, **keywords)

    subprocess.check_call = refuse
    try:
        yield
    finally:
        subprocess.check_call = run


def boot(
    source: ModelSource, *, device: str = "auto", dtype: torch.dtype, device_map: Placement | None = None
) -> TransformerBridge:
    """``load_model`` for a model that was found already, so that the hub is asked once."""
    keywords: dict[str, Any] = {} if source.is_local or not source.revision else {"revision": source.revision}
    check_device_map(device_map, device)
    if device_map is None:
        keywords["device"] = pick_device(device)
    else:
        keywords["device_map"] = device_map
    kind = "a causal language model with weights and tokenizer in Hugging Face format"
    with loading_quietly(source, kind), nothing_installed():
        bridge = TransformerBridge.boot_transformers(source.location, dtype=dtype, **keywords)
    if bridge.cfg.device == "meta":  # of an embedding that waits on disk; generate() puts its tokens there
        bridge.cfg.device = str(input_device(bridge))
    bridge.eval()
    for parameter in bridge.parameters():
        parameter.requires_grad_(False)
    bridge.original_model.register_forward_pre_hook(_inputs_to_device, with_kwargs=True)
    return bridge


def _inputs_to_device(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> Any:
    """Token ids and masks of a store lie on the CPU; TransformerLens hands them to the model as they are."""
    device = input_device(module)

    def moved(value: Any) -> Any:
        return value.to(device) if isinstance(value, Tensor) and value.device != device else value

    return tuple(map(moved, inputs)), {name: moved(value) for name, value in keywords.items()}


@contextmanager
def without_users_hooks(bridge: TransformerBridge) -> Iterator[None]:
    """Inside the block no hook is called but those that are added there: for passes that nobody asked for.

    A splice or a recorder of the user's would take such a pass for one of its own. Permanent hooks stay, since some of
    TransformerLens' hook points fire by those of others. Hooks that were added in the block come after the others then.
    """
    before = []
    for point in set(bridge.hook_dict.values()):
        hooks = point._forward_hooks
        before.append((hooks, dict(hooks)))
        permanent = {handle.hook.id for handle in point.fwd_hooks if handle.is_permanent}
        for key in set(hooks) - permanent:
            del hooks[key]
    try:
        yield
    finally:
        for hooks, held in before:
            added = dict(hooks)
            hooks.clear()
            hooks.update({**held, **added})


@contextmanager
def token_ids(bridge: TransformerBridge) -> Iterator[Callable[[], Tensor | None]]:
    """Inside the block, the function that is yielded gives the token ids of the forward pass that is under way.

    [batch, pos]; None where the pass was given embeddings. Passes of any kind count, those of ``generate`` too.
    """
    current: list[Tensor | None] = [None]

    def note(module: Any, inputs: tuple[Any, ...], keywords: dict[str, Any]) -> None:
        tokens = keywords.get("input_ids", inputs[0] if inputs else None)
        current[0] = tokens if isinstance(tokens, Tensor) and not tokens.is_floating_point() else None

    handle = bridge.original_model.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield lambda: current[0]
    finally:
        handle.remove()


def expand_bridge_hooks(bridge: TransformerBridge, patterns: Sequence[str]) -> list[str]:
    """Every hook point of the bridge that the patterns stand for; see ``sae_lm.lm.hooks``."""
    names = expand_hooks(patterns, bridge.cfg.n_layers, bridge.hook_dict)
    assert names is not None
    return [resolve_hook(bridge, name) for name in names]


def resolve_hook(bridge: TransformerBridge, name: str) -> str:
    """The canonical name of one hook point the model has. Raises ModelError naming what it has instead."""
    if not isinstance(name, str):
        raise ModelError(f"a hook is {name!r}, expected its name, such as 'blocks.0.hook_out', or a layer as text, '0'")
    canonical = canonical_hook(name)
    for known in (canonical, name):
        if known in bridge.hook_dict:
            return known
    layers = bridge.cfg.n_layers
    near = get_close_matches(canonical, bridge.hook_dict, n=3)
    raise ModelError(
        f"hook {name!r} is not a hook point of this model, which has {layers} layers; residual streams are "
        f"blocks.0.hook_out (after block 0) to blocks.{layers - 1}.hook_out"
        + (f"; the nearest names are {', '.join(near)}" if near else "")
    )


def hook_names(bridge: TransformerBridge, name: str) -> list[str]:
    """Every name of the hook point that ``name`` stands for: ``blocks.1.hook_out``, ``blocks.1.hook_resid_post``."""
    point = bridge.hook_dict[resolve_hook(bridge, name)]
    return [known for known, other in bridge.hook_dict.items() if other is point]


def hook_width(bridge: TransformerBridge, name: str) -> int:
    """The width of a hook's activation [batch, pos, width]; of [batch, pos, heads, d_head] it is heads * d_head.

    Known for residual streams, found by a forward pass of a few tokens for others. Raises ModelError for a hook that
    never fires, or whose activation has no contexts or no positions.
    """
    name = resolve_hook(bridge, name)
    if layer_of(name):
        return bridge.cfg.d_model
    contexts, positions = trial_size(language_config(bridge.original_model.config))
    shape: list[int] = []

    def look(tensor: Tensor, hook: Any) -> None:
        shape.extend(tensor.shape)
        raise Stop

    try:
        with torch.no_grad(), without_users_hooks(bridge), bridge.hooks(fwd_hooks=[(name, look)]):
            tokens = torch.zeros(contexts, positions, dtype=torch.long, device=input_device(bridge))
            bridge(tokens, return_type=None, **FORWARD_KWARGS)
    except Stop:
        pass
    except ValueError as problem:
        raise _switched_off(name, problem) from problem
    if not shape:
        raise ModelError(
            f"hook {name} never fired in a forward pass; name another, such as a residual stream (blocks.0.hook_out)"
        )
    if len(shape) < 3 or shape[:2] != [contexts, positions]:
        raise ModelError(
            f"hook {name} gives a tensor of shape {shape} for {contexts} contexts of {positions} tokens, expected "
            "[batch, pos, width] or [batch, pos, heads, d_head]; name a residual stream, an MLP's or attention's "
            "output, or hook_z"
        )
    return math.prod(shape[2:])


def _switched_off(name: str, problem: ValueError) -> ModelError:
    """Of hook points that TransformerLens keeps switched off."""
    return ModelError(f"hook {name} cannot be used: {' '.join(str(problem).split())}")


class Capture:
    """``with Capture(bridge, names) as capture: rows = capture(tokens)``; each forward stops after the last hook.

    A ``sae_lm.lm.capture.Forward``; residual streams are [batch, pos, d_model], and heads are laid side by side.
    """

    def __init__(self, bridge: TransformerBridge, names: Sequence[str]) -> None:
        self.bridge = bridge
        self.names = list(dict.fromkeys(resolve_hook(bridge, name) for name in names))
        self.seen: dict[str, Tensor] = {}
        self.hooks: dict[str, int] = {}
        self.attention = "bridge eager"
        self.config: Any = language_config(bridge.original_model.config)
        self.dtype = next(bridge.parameters()).dtype
        self.device, self.remark = str(input_device(bridge)), waiting(bridge)

    def _grab(self, name: str) -> Callable[..., None]:
        def keep(tensor: Tensor, hook: Any) -> None:
            self.seen[name] = tensor.detach().flatten(2) if has_heads(name) and tensor.ndim > 3 else tensor.detach()
            if len(self.seen) == len(self.names):
                raise Stop

        return keep

    def __enter__(self) -> "Capture":
        self._hooks = self.bridge.hooks(fwd_hooks=[(name, self._grab(name)) for name in self.names])
        with without_users_hooks(self.bridge):
            try:
                self._hooks.__enter__()
            except ValueError as problem:
                raise _switched_off(", ".join(self.names), problem) from problem
            try:
                self.hooks = probe_widths(self, self.device)
            except BaseException:
                self.__exit__()
                raise
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
    """Inside the block every forward uses ``function(activation)`` in place of the activation at ``name``.

    The function gets [batch, pos, width] and returns that: heads [batch, pos, heads, d_head] are laid side by side.
    """

    def hook_function(tensor: Tensor, hook: Any) -> Tensor:
        return function(tensor.flatten(2)).to(tensor).reshape(tensor.shape)  # of its dtype, on its device

    with bridge.hooks(fwd_hooks=[(resolve_hook(bridge, name), hook_function)]):
        yield
