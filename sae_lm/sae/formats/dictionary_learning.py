"""Read and write SAEs of dictionary_learning: ``ae.pt``, a state dict of one of seven classes, and ``config.json``.

What a class computes is taken from dictionary_learning's dictionary.py and trainers. Matrices of ``nn.Linear`` are
[out, in], those named W_enc and W_dec are [in, out].
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_lm.sae.hook_names import bridge_hook, named_in
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source, as_number, plain, shown

CONFIG, WEIGHTS = "config.json", "ae.pt"
OURS = "sae_lm"
"""Key of config.json under which `dictionary_learning_export` keeps our metadata."""
_LINEAR = ["encoder.weight", "decoder.weight"]
_PLAIN = ["W_enc", "b_enc", "W_dec", "b_dec"]
TENSORS: dict[str, list[str]] = {
    "AutoEncoder": [*_LINEAR, "encoder.bias", "bias"],
    "AutoEncoderNew": [*_LINEAR, "encoder.bias", "decoder.bias"],
    "GatedAutoEncoder": [*_LINEAR, "decoder_bias", "r_mag", "gate_bias", "mag_bias"],
    "JumpReluAutoEncoder": [*_PLAIN, "threshold"],
    "AutoEncoderTopK": [*_LINEAR, "encoder.bias", "b_dec"],
    "BatchTopKSAE": [*_LINEAR, "encoder.bias", "b_dec"],
    "MatryoshkaBatchTopKSAE": [*_PLAIN],
}
"""Class -> the tensors of weights; beside them are k, threshold (of all latents) and group_sizes."""
_SETTINGS = ("k", "threshold", "group_sizes")


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, ambiguous or of no class known here."""
    file = WEIGHTS if WEIGHTS in source.files else source.only_file
    state = source.tensors(file)
    config = source.json(CONFIG) if CONFIG in source.files else {}
    trainer = config.get("trainer")
    if config and not isinstance(trainer, Mapping):
        raise source.error(
            f"{CONFIG} has no object 'trainer'; expected what dictionary_learning writes beside {WEIGHTS}"
        )
    trainer = trainer or {}
    name = _class(source, state, trainer.get("dict_class"))
    required = TENSORS[name]
    source.needs(state, required, tuple(set(_SETTINGS) - set(required)))
    weights = _oriented(source, name, source.numbers(state, required))
    d_in, d_sae = source.matrix(weights["W_enc"], "W_enc")
    per_latent = dict.fromkeys(("b_enc", "threshold", "r_mag", "gate_bias", "mag_bias"), (d_sae,))
    source.fits(weights, {"W_dec": (d_sae, d_in), "b_dec": (d_in,), **per_latent})
    if name == "GatedAutoEncoder":
        rate, gate = weights.pop("r_mag").exp(), weights.pop("gate_bias")
        weights |= {"W_enc": weights["W_enc"] * rate, "b_enc": weights.pop("mag_bias")}
        weights["threshold"] = weights["b_enc"] - gate * rate
        source.note(
            "gated, used as the jumprelu SAE that computes the same: W_enc exp(r_mag), b_mag - b_gate exp(r_mag)"
        )
    architecture, k = _firing(source, name, state, weights, trainer)
    pre_bias = name not in ("AutoEncoderNew", "JumpReluAutoEncoder")
    source.note(f"b_dec {'' if pre_bias else 'not '}subtracted from the input: {name}")
    if name == "AutoEncoder" and not torch.allclose(norms := weights["W_dec"].norm(dim=1), torch.ones_like(norms)):
        source.note(
            "decoder rows are left as stored; AutoEncoder.from_pretrained makes them unit, which scales activations"
        )
    metadata = _metadata(source, config, trainer)
    sae_config = SaeConfig(
        architecture=architecture, d_in=d_in, d_sae=d_sae, k=k, apply_b_dec_to_input=pre_bias, metadata=metadata
    )
    return source.finish(f"dictionary_learning's {name}", sae_config, weights)


def _class(source: Source, state: Mapping[str, Any], recorded: object) -> str:
    """As given behind the format, as recorded, or as the tensors' names alone tell. Raises SaeError."""
    name = source.variant or recorded
    if name is not None:
        if not isinstance(name, str) or name not in TENSORS:
            raise source.error(f"dict_class {name!r} is not read here; expected {', '.join(TENSORS)}")
        return str(name)
    keys = {*state}
    of_batch = {"AutoEncoderTopK", "BatchTopKSAE"}
    if {*_PLAIN} <= keys and "group_sizes" not in keys:
        fitting = {"JumpReluAutoEncoder"} if "threshold" in keys else set()
        per_latent = isinstance(state.get("threshold"), Tensor) and state["threshold"].ndim == 1
        fitting = (
            fitting
            if per_latent
            else {"MatryoshkaBatchTopKSAE"} & ({"MatryoshkaBatchTopKSAE"} if "k" in keys else set())
        )
    else:
        fitting = {c for c, names in TENSORS.items() if {*names} <= keys and not keys - {*names} - {*_SETTINGS}}
    if fitting == of_batch:
        raise source.error(
            f"without a {CONFIG} it may be an AutoEncoderTopK or a BatchTopKSAE, which fire differently; give "
            "format='dictionary_learning/AutoEncoderTopK' or format='dictionary_learning/BatchTopKSAE'"
        )
    if len(fitting) != 1:
        raise source.error(
            f"its tensors, {', '.join(map(str, [*state][:8]))}, are those of no class of dictionary_learning"
        )
    source.note(f"{(found := fitting.pop())} by the names of its tensors")
    return found


def _oriented(source: Source, name: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The names and orientations used here."""
    if "encoder.weight" not in weights:
        return weights
    source.matrix(weights["encoder.weight"], "encoder.weight")
    source.matrix(weights["decoder.weight"], "decoder.weight")
    renamed = {"encoder.weight": "W_enc", "decoder.weight": "W_dec", "encoder.bias": "b_enc"}
    renamed |= dict.fromkeys(("bias", "decoder.bias", "decoder_bias"), "b_dec")
    return {renamed.get(key, key): value.T if value.ndim == 2 else value for key, value in weights.items()}


def _firing(
    source: Source, name: str, state: Mapping[str, Any], weights: dict[str, Tensor], trainer: Mapping[str, Any]
) -> tuple[str, int | None]:
    """(architecture, k); thresholds are put among the weights."""
    if name == "AutoEncoderTopK":
        return "topk", source.active_latents(state.get("k", trainer.get("k")), WEIGHTS)
    if name in ("BatchTopKSAE", "MatryoshkaBatchTopKSAE"):
        if source.k is not None:
            return "topk", source.active_latents(None, WEIGHTS)
        threshold = as_number(state.get("threshold", -1.0))
        k = plain(state.get("k"))
        instead = f"give k={k if type(k) is int else '...'} to keep the k largest per token"
        if threshold is None:
            raise source.error(
                f"threshold is {shown(state['threshold'])} in {WEIGHTS}, expected one number, of all latents; {instead}"
            )
        if threshold < 0:
            source.note(
                f"threshold is {threshold:g}: it was never set, and every positive activation fires, as in dictionary_learning; "
                + instead
            )
        weights["threshold"] = torch.full((weights["b_enc"].numel(),), max(threshold, 0.0))
        source.note(f"{name} fires above its threshold, {threshold:g}, as a jumprelu SAE")
        return "jumprelu", None
    return ("jumprelu" if "threshold" in weights else "standard"), None


def _metadata(source: Source, config: Mapping[str, Any], trainer: Mapping[str, Any]) -> dict[str, Any]:
    """Model and hook. Raises SaeError where the hook is not recorded."""
    ours = config.get(OURS)
    kept = dict(ours) if isinstance(ours, Mapping) else {}
    model = str(trainer.get("lm_name") or kept.get("model_name") or "")
    recorded, where = kept.get("hook_name"), f"{CONFIG}, {OURS}.hook_name"
    if recorded is None:
        submodule = trainer.get("submodule_name")
        recorded, where = (str(submodule) if submodule else None), f"{CONFIG}, trainer.submodule_name"
        if recorded is not None and bridge_hook(recorded, model) is None and isinstance(trainer.get("layer"), int):
            recorded = f"{recorded}_layer_{trainer['layer']}"
    if recorded is None and (in_path := named_in(source.identity, model)):
        recorded, where = in_path, "its path"
    if recorded is None:
        where = f"{CONFIG} (layer {trainer['layer']} of what is not said)" if "layer" in trainer else "no file"
    hook, original = source.place(recorded, where, model)
    metadata = {**kept, **({"model_name": model} if model else {}), "hook_name": hook, "original_hook_name": original}
    buffer = config.get("buffer")
    if isinstance(buffer, Mapping) and isinstance(buffer.get("ctx_len"), int):
        metadata["context_size"] = buffer["ctx_len"]
    return metadata
