"""What a place in a model that a foreign SAE names is called in a TransformerBridge."""

import re

_BLOCK = re.compile(r"(?:[\w.]+\.)?(?:layers|h|blocks)\.(\d+)((?:\.\w+)*)")
"""A block's path in a Hugging Face model, and what follows: ``model.layers.3.mlp``, ``transformer.h.0``."""
_INSIDE = {
    "": "hook_out",
    ".input": "hook_in",
    ".mlp": "hook_mlp_out",
    ".attn": "hook_attn_out",
    ".attention": "hook_attn_out",
    ".self_attn": "hook_attn_out",
    ".post_feedforward_layernorm": "hook_mlp_out",
    ".self_attn.o_proj.input": "attn.hook_z",
    ".attn.c_proj.input": "attn.hook_z",
    ".attention.dense.input": "attn.hook_z",
}
_NORM_AFTER = re.compile(r"gemma-?[23](?!b)|olmo-?[23](?!b)", re.IGNORECASE)
"""Models whose MLP and attention outputs pass a norm before they are added: ``hook_mlp_out`` is behind it, the module
that Hugging Face calls ``mlp`` is not."""
_DICTIONARY_LEARNING = re.compile(r"(resid_post|resid_pre|mlp_out|attn_out|attention_out)_layer_(\d+)")
_LAYER_AT_END = re.compile(r"-SAE-l(\d+)\.(?:pt|pth)$")
"""DeepSeek-R1-Distill-Llama-8B-SAE-l19.pt, Llama-3.1-8B-Instruct-SAE-l19.pth: residual streams"""
_ALIASES = {
    "hook_resid_post": "hook_out",
    "hook_resid_pre": "hook_in",
    "resid_post": "hook_out",
    "resid_pre": "hook_in",
    "mlp_out": "hook_mlp_out",
    "attn_out": "hook_attn_out",
    "attention_out": "hook_attn_out",
}
_WRITING = re.compile(
    r"blocks\.\d+\.(hook_in|hook_out|hook_resid_mid|hook_mlp_out|hook_attn_out|mlp\.hook_out|attn\.hook_out)|hook_embed"
)
_WITHOUT_CENTRING = re.compile(r"gemma|llama|mistral|mixtral|qwen|phi-?3|olmo-?[23]|deepseek", re.IGNORECASE)


def bridge_hook(name: str, model: str = "") -> str | None:
    """``blocks.3.hook_resid_post``, ``model.layers.3``, ``layers.3``, ``3`` -> ``blocks.3.hook_out``; None for what is
    not known.

    model: its name, where known: in some, the output of a block's MLP has another name.
    """
    name = name.removesuffix(".output")
    if re.fullmatch(r"\d+", name):
        return f"blocks.{name}.hook_out"
    if name.startswith(("blocks.", "hook_", "ln_final.")) and "hook_" in name:
        block, dot, last = name.rpartition(".")
        return f"{block}{dot}{_ALIASES.get(last, last)}" if last in ("hook_resid_post", "hook_resid_pre") else name
    if parsed := _DICTIONARY_LEARNING.fullmatch(name):
        return f"blocks.{parsed[2]}.{_output(_ALIASES[parsed[1]], model)}"
    if name.split(".")[-1] in ("embed_tokens", "wte", "embed_in"):
        return "hook_embed"
    parsed = _BLOCK.fullmatch(name)
    if parsed is None or parsed[2] not in _INSIDE:
        return None
    behind = parsed[2] == ".post_feedforward_layernorm"  # of the norm, where there is one
    return f"blocks.{parsed[1]}.{_INSIDE[parsed[2]] if behind else _output(_INSIDE[parsed[2]], model)}"


def _output(hook: str, model: str) -> str:
    """Of what a module gives, as Hugging Face has it: in some models the block's own hook is behind a norm."""
    before = {"hook_mlp_out": "mlp.hook_out", "hook_attn_out": "attn.hook_out"} if _NORM_AFTER.search(model) else {}
    return before.get(hook, hook)


def named_in(path: str, model: str = "") -> str | None:
    """The hook that a path names: ``.../resid_post_layer_4/trainer_8`` of dictionary_learning, ``NAME-SAE-l19.pt``.

    model: as in `bridge_hook`."""
    if found := _DICTIONARY_LEARNING.findall(path):
        return bridge_hook("{}_layer_{}".format(*found[-1]), model)
    layer = _LAYER_AT_END.search(path)
    return f"blocks.{layer[1]}.hook_out" if layer else None


def written_to_residual(hook: str | None) -> bool:
    """Whether the activation is of the residual stream or added to it, so that centred writing weights centre it."""
    return hook is not None and _WRITING.fullmatch(hook) is not None


def has_no_mean(model: str) -> bool:
    """Whether the model's norms do not subtract the mean, so that TransformerLens never centres what is written."""
    return _WITHOUT_CENTRING.search(model) is not None
