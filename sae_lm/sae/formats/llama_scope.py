"""Read SAEs of Llama Scope and llamascopium (Language-Model-SAEs), of three generations, whatever their file names.

Where ``norm_activation`` is dataset-wise, x times sqrt(d_in) / (average norm) is encoded, and what is decoded is divided by
that factor of the output: both are folded. With ``sparsity_include_decoder_norm`` a latent fires where its pre-activation
times its decoder row's norm passes: thresholds are divided by the norms, ranks of topk have them folded in.

1. hyperparams.json, encoder.weight [d_sae, d_in]: one threshold, of activations as they are, times the factor;
2. config.json, encoder.weight: log_jumprelu_threshold per latent;
3. config.json, W_E [d_in, d_sae]: activation_function.log_jumprelu_threshold, average norms among the tensors.
"""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source, as_number, folded_bias, shown, truth

OLD, CONFIG, AVERAGE = "hyperparams.json", "config.json", "dataset_average_activation_norm"
_OLD_NAMES = {"encoder.weight": "W_E", "encoder.bias": "b_E", "decoder.weight": "W_D", "decoder.bias": "b_D"}
_THRESHOLDS = ("log_jumprelu_threshold", "activation_function.log_jumprelu_threshold")


def read(source: Source) -> SAE:
    """Raises SaeError for what is missing, damaged or no SAE of one activation."""
    file = OLD if OLD in source.files else CONFIG
    config, tensors = source.json(file), _tensors(source)
    point_in, point_out = config.get("hook_point_in"), config.get("hook_point_out")
    if config.get("sae_type", "sae") != "sae" or point_out not in (None, point_in):
        raise source.error("is a transcoder or crosscoder, which no SAE of one activation can stand for")
    if config.get("use_glu_encoder") or "W_E_glu" in tensors or "encoder_glu.weight" in tensors:
        raise source.error("use_glu_encoder is true, and no SAE here has a gated linear unit for an encoder")
    norms = {name: value for name, value in tensors.items() if name.startswith(AVERAGE)}
    named = {_OLD_NAMES.get(name, name): value for name, value in tensors.items() if name not in norms}
    old = "encoder.weight" in tensors
    has_bias = truth(config, "use_decoder_bias", True, source.files[file]) or "b_D" in named
    wanted = ["W_E", "b_E", "W_D", *(["b_D"] if has_bias else [])]
    source.needs(named, wanted, _THRESHOLDS)
    weights = source.numbers(named, [*wanted, *(name for name in _THRESHOLDS if name in named)])
    for name in ("W_E", "W_D"):
        source.matrix(weights[name], name)
        weights[name] = weights[name].T if old else weights[name]
    d_in, d_sae = weights["W_E"].shape
    if source.whole(config, "d_model", file) != d_in:
        raise source.error(f"d_model is {config['d_model']} in {file}, the encoder has width {d_in}")
    weights.setdefault("b_D", torch.zeros(d_in))
    source.fits(weights, {"b_E": (d_sae,), "W_D": (d_sae, d_in), "b_D": (d_in,)})
    architecture, k, threshold = _firing(source, config, weights, d_sae, file)
    scale_in, scale_out, norm = _scales(source, config, norms, d_in, file)
    if OLD in source.files and threshold is not None:
        threshold = threshold * scale_in
        source.note(
            "jump_relu_threshold is one number, of activations as they are: multiplied by the factor of the input"
        )
    folded = _folded(source, config, weights, threshold, architecture, file)
    if scale_in != 1 or scale_out != 1:
        source.note(f"norm folded: input times {scale_in:.6g}, output divided by {scale_out:.6g}")
    folded["W_enc"], folded["W_dec"] = folded["W_enc"] * scale_in, folded["W_dec"] / scale_out
    folded["b_dec"] = folded["b_dec"] / scale_out
    hook, original = source.place(str(point_in) if point_in else None, file)
    sae_config = SaeConfig(
        architecture=architecture,
        d_in=d_in,
        d_sae=d_sae,
        k=k,
        apply_b_dec_to_input=False,
        normalize_activations=norm,
        metadata={"hook_name": hook, "original_hook_name": original, **_model(source)},
    )
    return source.finish("llama_scope", sae_config, folded)


def _tensors(source: Source) -> Mapping[str, Any]:
    file = next((name for name in source.files if name.endswith(".safetensors")), None) or source.only_file
    content = source.tensors(file)
    inner = content.get("sae")
    return inner if isinstance(inner, Mapping) else content


def _model(source: Source) -> dict[str, Any]:
    if "Llama3_1-8B-Base" in source.identity:
        source.note("model meta-llama/Llama-3.1-8B from the folder's name")
        return {"model_name": "meta-llama/Llama-3.1-8B"}
    return {}


def _firing(
    source: Source, config: Mapping[str, Any], weights: dict[str, Tensor], d_sae: int, file: str
) -> tuple[str, int | None, Tensor | None]:
    """(architecture, k, threshold per latent)."""
    function = str(config.get("act_fn", "")).lower()
    if function == "topk":
        return "topk", source.active_latents(config.get("top_k"), file), None
    if function == "relu":
        return "standard", None, None
    if function != "jumprelu":
        raise source.error(f"act_fn is {config.get('act_fn')!r} in {file}, expected jumprelu, topk or relu")
    logs = next((weights.pop(name) for name in _THRESHOLDS if name in weights), None)
    if logs is not None:
        source.fits({_THRESHOLDS[0]: logs}, {_THRESHOLDS[0]: (d_sae,)})
        return "jumprelu", None, logs.exp()
    threshold = as_number(recorded := config.get("jump_relu_threshold"))
    if threshold is None:
        raise source.error(f"jump_relu_threshold is {shown(recorded)} in {file}, expected a number")
    return "jumprelu", None, torch.full((d_sae,), threshold)


def _scales(
    source: Source, config: Mapping[str, Any], norms: Mapping[str, Any], d_in: int, file: str
) -> tuple[float, float, str]:
    """What input and output are multiplied by, and the SAE's normalize_activations."""
    norm = config.get("norm_activation", "inference")
    if norm in ("inference", "none", None):
        return 1.0, 1.0, "none"
    if norm == "token-wise":
        source.note("norm_activation is token-wise: each activation is brought to norm sqrt(d_in)")
        return 1.0, 1.0, "constant_norm_rescale"
    if norm != "dataset-wise":
        raise source.error(f"norm_activation is {norm!r} in {file}, expected dataset-wise, token-wise or inference")
    if source.input_scale is not None:
        source.scale_used = True
        return source.input_scale, source.input_scale, "none"
    recorded = config.get(AVERAGE)
    recorded = dict(recorded) if isinstance(recorded, Mapping) else {}
    recorded |= {name.removeprefix(f"{AVERAGE}."): value for name, value in norms.items()}
    point = config.get("hook_point_in")
    average_in = recorded.get("in", recorded.get(str(point)))
    average_out = recorded.get("out", average_in)
    if "norm_scaling_factor" in source.overrides and average_in is None:
        scale = float(source.overrides["norm_scaling_factor"])
        source.note("factor of the input from SAELens' directory of releases")
        return scale, scale, "none"
    mean_in, mean_out = as_number(average_in) or 0.0, as_number(average_out) or 0.0
    if min(mean_in, mean_out) <= 0:
        bad = shown(average_in if mean_in <= 0 else average_out)
        raise source.error(
            f"norm_activation is dataset-wise and the average norm is {bad}, expected a number above 0; give input_scale=, "
            "which is sqrt(d_in) / mean norm of the activations"
        )
    return math.sqrt(d_in) / mean_in, math.sqrt(d_in) / mean_out, "none"


def _folded(
    source: Source,
    config: Mapping[str, Any],
    weights: dict[str, Tensor],
    threshold: Tensor | None,
    architecture: str,
    file: str,
) -> dict[str, Tensor]:
    """Decoder norms and bias folded, in units of the normalised input."""
    W_enc, b_enc, W_dec, b_dec = (weights[name] for name in ("W_E", "b_E", "W_D", "b_D"))
    if truth(config, "apply_decoder_bias_to_pre_encoder", False, source.files[file]):
        b_enc = folded_bias(W_enc, b_enc, b_dec)
        source.note("decoder bias subtracted from the normalised input: folded into b_enc")
    else:
        said = (
            ""
            if config.get("apply_decoder_bias_to_pre_encoder") is not None
            else f", of which {file} says nothing, as SAELens reads it"
        )
        source.note(f"b_dec not subtracted from the input{said}")
    folded = {"W_enc": W_enc, "b_enc": b_enc, "W_dec": W_dec, "b_dec": b_dec}
    if truth(config, "sparsity_include_decoder_norm", True, source.files[file]) and architecture != "standard":
        norm = W_dec.norm(dim=1).clamp_min(1e-30)
        source.note("latents fire by pre-activation times decoder norm (sparsity_include_decoder_norm)")
        if threshold is not None:
            threshold = threshold / norm
        else:
            folded |= {"W_enc": W_enc * norm, "b_enc": b_enc * norm, "W_dec": W_dec / norm[:, None]}
    return folded | ({"threshold": threshold} if threshold is not None else {})
