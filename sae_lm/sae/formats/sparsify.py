"""Read SAEs of EleutherAI's sparsify: ``cfg.json`` and ``sae.safetensors`` in a folder named after the module.

encoder.weight is [d_sae, d_in], W_dec is [d_sae, d_in] too. b_dec is subtracted from the input; topk or groupmax is taken
of relu(pre). Transcoders and skip connections have another input than output, and are refused.
"""

from typing import Any

from sae_lm.sae.hook_names import bridge_hook
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source

CONFIG, WEIGHTS, RUN = "cfg.json", "sae.safetensors", "../config.json"
OURS = "sae_lm"
"""Key of cfg.json under which an export keeps our metadata; sparsify drops what it does not know."""


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, damaged or no SAE of one activation."""
    config, tensors = source.json(CONFIG), source.tensors(WEIGHTS)
    if config.get("transcode") or config.get("skip_connection") or "W_skip" in tensors:
        raise source.error("is a transcoder or has a skip connection, which no SAE of one activation can stand for")
    if config.get("signed"):
        raise source.error("signed is true: it keeps negative activations too, which no SAE here does")
    activation = config.get("activation", "topk")
    if activation not in ("topk", "groupmax"):
        raise source.error(f"activation is {activation!r} in {CONFIG}, expected topk or groupmax")
    source.needs(tensors, ["encoder.weight", "encoder.bias", "W_dec", "b_dec"])
    weights = source.numbers(tensors, ["encoder.weight", "encoder.bias", "W_dec", "b_dec"])
    d_in, d_sae = source.whole(config, "d_in", CONFIG), _latents(source, config)
    source.note("b_dec subtracted from the input: no transcoder")
    source.note("W_dec not transposed: sparsify keeps it as [d_sae, d_in]")
    k = source.active_latents(config.get("k"), CONFIG)
    metadata = _metadata(source, config)
    sae_config = SaeConfig(architecture=activation, d_in=d_in, d_sae=d_sae, k=k, metadata=metadata)
    source.matrix(weights["encoder.weight"], "encoder.weight")
    named = {"W_enc": weights["encoder.weight"].T, "b_enc": weights["encoder.bias"]}
    return source.finish("sparsify", sae_config, {**named, "W_dec": weights["W_dec"], "b_dec": weights["b_dec"]})


def _latents(source: Source, config: dict[str, Any]) -> int:
    if config.get("num_latents"):
        return source.whole(config, "num_latents", CONFIG)
    return source.whole(config, "d_in", CONFIG) * source.whole(config, "expansion_factor", CONFIG)


def _metadata(source: Source, config: dict[str, Any]) -> dict[str, Any]:
    """Model from the run's config beside the folder, hook from the folder's name."""
    kept = dict(config[OURS]) if isinstance(config.get(OURS), dict) else {}
    run = source.json(RUN) if RUN in source.files else {}
    model = str(run.get("model") or kept.get("model_name") or "")
    folder = source.identity.rpartition("/")[2]
    if kept.get("hook_name"):
        hook, original = source.place(str(kept["hook_name"]), f"{CONFIG}, {OURS}.hook_name", model)
    else:
        layer = folder.replace("layer_", "layers.") if folder.startswith("layer_") else folder
        known = bridge_hook(layer, model) is not None
        hook, original = source.place(layer if known else None, f"the folder's name, {folder!r},", model)
        original = folder if known else original
    metadata = {**kept, "hook_name": hook, "original_hook_name": original}
    for key, value in (
        ("model_name", model),
        ("dataset_path", run.get("dataset")),
        ("context_size", run.get("ctx_len")),
    ):
        if value:
            metadata.setdefault(key, value)
    return metadata
