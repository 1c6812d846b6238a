"""Read SAEs of Gemma Scope 2: ``config.json`` and ``params.safetensors`` with lower-case names.

JumpReLU; b_dec is not subtracted. Transcoders, cross-layer transcoders and affine connections are refused.
"""

import re
from typing import Any

from sae_lm.sae.formats.gemma_scope import from_repository
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source

CONFIG, WEIGHTS = "config.json", "params.safetensors"
_REPOSITORY = re.compile(r"gemma-scope-2-(\w+)-(pt|it)")
_NAMES = ["w_enc", "w_dec", "b_enc", "b_dec", "threshold"]
_IN_FOLDER = {"resid_post": "model.layers.{}", "attn_out": "model.layers.{}.self_attn.o_proj.input",
              "mlp_out": "model.layers.{}.post_feedforward_layernorm"}  # fmt: skip


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, damaged or no SAE of one activation."""
    config = source.json(CONFIG) if CONFIG in source.files else {}
    tensors = source.tensors(WEIGHTS)
    if config.get("architecture", "jump_relu") != "jump_relu":
        raise source.error(f"architecture is {config['architecture']!r} in {CONFIG}, expected jump_relu")
    point, out = config.get("hf_hook_point_in"), config.get("hf_hook_point_out")
    path, found = from_repository(source.identity, _REPOSITORY, 2)
    other = "transcoder" in path or "clt" in path
    if config.get("affine_connection") or "affine_skip_connection" in tensors or other or out not in (None, "", point):
        raise source.error("is a transcoder or has an affine connection, which no SAE of one activation can stand for")
    source.needs(tensors, _NAMES)
    weights = source.numbers(tensors, _NAMES)
    weights["W_enc"], weights["W_dec"] = weights.pop("w_enc"), weights.pop("w_dec")
    d_in, d_sae = source.matrix(weights["W_enc"], "w_enc")
    model = _model(found, config)
    where = CONFIG
    if not point:
        kind = next((kind for kind in _IN_FOLDER if kind in path), None)
        layer = re.search(r"layer_(\d+)", path)
        point, where = (_IN_FOLDER[kind].format(layer[1]) if kind and layer else None), "the folder's name"
    hook, original = source.place(str(point) if point else None, where, "")
    source.note("b_dec not subtracted from the input: Gemma Scope")
    metadata = {"hook_name": hook, "original_hook_name": original, **({"model_name": model} if model else {})}
    sae_config = SaeConfig(
        architecture="jumprelu", d_in=d_in, d_sae=d_sae, apply_b_dec_to_input=False, metadata=metadata
    )
    return source.finish("gemma_scope_2", sae_config, weights)


def _model(repository: re.Match[str] | None, config: dict[str, Any]) -> str:
    """As the hub names it: config.json writes ``gemma-v3``."""
    inferred = f"gemma-3-{repository[1]}-{repository[2]}" if repository else ""
    name = str(config.get("model_name") or inferred)
    if not name:
        return ""
    name = name.replace("-v3", "-3")
    return name if "/" in name else f"google/{name}"
