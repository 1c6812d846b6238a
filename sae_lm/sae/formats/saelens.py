"""Read and write an SAE's directory, ``cfg.json`` and ``sae_weights.safetensors``, as SAELens does.

Our own facts (penalty, coefficient, seed, store, versions) stand under ``metadata``, which SAELens
keeps and ignores. ``sae_lens_version`` is in it because without one SAELens takes its pre-6 path and
drops the metadata.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.fields import has_heads
from sae_lm.runtime.files import disk_problem, json_bytes, read_json, sha256, whole_folder, write_json
from sae_lm.sae.folder import CONFIG, WEIGHTS
from sae_lm.sae.formats.saelens_config import AVERAGE, KNOWN_REPOSITORIES, Parsed, parse
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.sae.source import Source, as_number, shown
from sae_lm.sae.tensors import unreadable

SAELENS_VERSION = "6.54.12"
"""The release whose format is written; what it computes from it is in sae_lm.sae.model."""
SCALER = "activation_scaler.json"
"""Beside a checkpoint of training: the number that activations are multiplied by."""
OPTIONAL = ("scaling_factor", "finetuning_scaling_factor")
"""Of versions before 6: what activations of latents are multiplied by before they are decoded."""
OF_WEIGHTS = ("weights_sha256", "largest_activations")
"""Keys of our metadata that hold for the weights that were saved, and for no others. SAELens keeps them all the same."""
UNIT = 1e-5
"""Decoder rows whose norm is off by no more count as unit rows."""


def save(sae: SAE, directory: Path) -> None:
    """Write an SAE directory; it appears whole or not at all. Raises SaeError for what SAELens does not have."""
    if sae.config.architecture == "groupmax":
        raise SaeError("SAELens has no groupmax SAEs; write it for sparsify instead")
    with whole_folder(directory) as temporary:
        weights = {name: value.detach().float().cpu().contiguous() for name, value in sae.named_parameters()}
        save_file(weights, temporary / WEIGHTS)
        config: dict[str, Any] = {
            "architecture": sae.config.architecture,
            "d_in": sae.config.d_in,
            "d_sae": sae.config.d_sae,
            "dtype": "float32",
            "device": "cpu",
            "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
            "normalize_activations": sae.config.normalize_activations,
            "reshape_activations": "hook_z" if has_heads(sae.config.metadata.get("hook_name")) else "none",
            "metadata": {
                "sae_lens_version": SAELENS_VERSION,
                **{key: value for key, value in sae.config.metadata.items() if key != "sae_lens_version"},
                "weights_sha256": sha256(temporary / WEIGHTS),
            },
        }
        if loaded_with := _loaded_with(sae.config):
            kwargs = sae.config.metadata.get("model_from_pretrained_kwargs") or {}
            config["metadata"]["model_from_pretrained_kwargs"] = {**kwargs, **loaded_with}
        if sae.config.architecture == "topk":
            # where decoder rows have unit norm, this changes nothing; without it SAELens refuses to fold the norms
            unit = bool(((weights["W_dec"].norm(dim=1) - 1).abs() <= UNIT).all())
            config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": unit}
        config["metadata"]["config_sha256"] = config_digest(config)
        write_json(temporary / CONFIG, config)


def _loaded_with(config: SaeConfig) -> dict[str, bool]:
    """What SAELens says of the model that an SAE was trained on, where it was not as it is."""
    centred = {"center_writing_weights": True} if config.centred_input else {}
    if config.value_biases == "kept":
        return centred
    return {**centred, "fold_value_biases": True, "fold_ln": config.value_biases == "folded with norm"}


def config_digest(config: Mapping[str, Any]) -> str:
    """sha256 of what cfg.json says, whatever its layout, but for this checksum itself."""
    content = json.loads(json_bytes(dict(config)))
    content["metadata"].pop("config_sha256", None)
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def check(directory: Path) -> tuple[dict[str, Any], SaeConfig]:
    """What is in cfg.json, and what is meant by it, once the weights fit it and their checksum; they are not loaded.

    Raises SaeError for what is missing, damaged or of another kind.
    """
    config, _ = _as_vouched_for(directory, read_json(directory / CONFIG, SaeError, "an SAE directory"))
    return config, _checked(directory, config).config


def _as_vouched_for(directory: Path, config: dict[str, Any]) -> tuple[dict[str, Any], str | None]:
    """cfg.json without what does not hold any more, and a sentence on it, where another program wrote it since `save`."""
    if not changed_since_saved(config):
        return config, None
    metadata = {key: value for key, value in config["metadata"].items() if key != "config_sha256"}
    note = "cfg.json was written anew by another program since the SAE was saved"
    if _weights_problem(directory, metadata.get("weights_sha256"), None) is None:
        return {**config, "metadata": metadata}, f"{note}; its weights are as they were"
    gone = [key for key in OF_WEIGHTS if metadata.pop(key, None) is not None]
    return {
        **config,
        "metadata": metadata,
    }, f"{note}, and the weights are others: left out {', '.join(gone) or 'nothing'}"


def _checked(
    directory: Path,
    config: dict[str, Any],
    overrides: Mapping[str, Any] | None = None,
    hook: str | None = None,
    given_k: int | None = None,
) -> Parsed:
    parsed = parse(config, directory / CONFIG, overrides, hook, given_k)
    if problem := _weights_problem(directory, parsed.config.metadata.get("weights_sha256"), parsed):
        raise SaeError(f"{directory}: {problem}; the SAE is damaged, train or download it again")
    return parsed


def verify_files(directory: Path) -> list[str]:
    """One line per damaged or missing file; empty where all is whole, be it of a kind that is not read here.

    Raises SaeError where no checksum is recorded that would show damage.
    """
    try:
        config = read_json(directory / CONFIG, SaeError, "an SAE directory")
    except SaeError as problem:
        return [str(problem)]
    metadata = config.get("metadata")
    recorded = metadata.get("weights_sha256") if isinstance(metadata, dict) else None
    anew = written_anew(config)
    if anew and "weights_sha256" not in _as_vouched_for(directory, config)[0]["metadata"] and _is_there(directory):
        raise SaeError(
            f"{directory} was changed and saved by another program, whose weights no checksum vouches for; there is nothing "
            "to verify"
        )
    if recorded is None and _is_there(directory):
        raise SaeError(
            f"{directory / CONFIG} records no checksum (an SAE written by another program); there is nothing to verify"
        )
    try:
        parsed = parse(config, directory / CONFIG)
    except SaeError:  # of another version or kind, which is no damage
        parsed = None
    problems = [problem] if (problem := _weights_problem(directory, recorded, parsed)) else []
    if changed_since_saved(config) and not anew:
        problems.append(f"{CONFIG}: content does not match its checksum")
    return problems


def changed_since_saved(config: Mapping[str, Any]) -> bool:
    """Whether cfg.json says other than what `save` wrote; False where no checksum of it is recorded."""
    metadata = config.get("metadata")
    digest = metadata.get("config_sha256") if isinstance(metadata, dict) else None
    return bool(digest) and digest != _digest_of(config)


def written_anew(config: Mapping[str, Any]) -> bool:
    """Whether this is SAELens' copy of what `save` wrote, and no damage: it writes the architecture last, `save` first."""
    return changed_since_saved(config) and next(iter(config)) != "architecture"


def _is_there(directory: Path) -> bool:
    return (directory / WEIGHTS).is_file()


def _digest_of(config: Mapping[str, Any]) -> str | None:
    """`config_digest`; None for what `save` cannot have written."""
    try:
        return config_digest(config)
    except ValueError:  # NaN
        return None


def _weights_problem(directory: Path, recorded: str | None, parsed: Parsed | None) -> str | None:
    """What is wrong with the weights, by their checksum and by the configuration, where these are known; or None.

    Raises SaeError where the disk does not let them be read.
    """
    try:
        with safe_open(directory / WEIGHTS, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if recorded is not None and sha256(directory / WEIGHTS) != recorded:
            return f"{WEIGHTS}: content does not match its checksum"
        if parsed is not None:
            return _shape_problem(shapes, parsed)
    except (OSError, SafetensorError) as problem:
        if words := disk_problem(problem):  # which is no damage
            raise unreadable(directory / WEIGHTS, words) from None
        if isinstance(problem, FileNotFoundError):
            return f"{WEIGHTS}: missing"
        return f"{WEIGHTS}: cannot be read ({problem})"
    return None


def _shape_problem(shapes: dict[str, tuple[int, ...]], parsed: Parsed) -> str | None:
    expected = parsed.tensors()
    if parsed.written == "jumprelu" and "log_threshold" in shapes:
        expected["log_threshold"] = expected.pop("threshold")
    expected |= {name: (parsed.config.d_sae,) for name in OPTIONAL if name in shapes}
    if set(shapes) != set(expected):
        return f"a {parsed.written} SAE has tensors {sorted(expected)}, got {sorted(shapes)}"
    for name, shape in expected.items():
        if shapes[name] != shape:
            return f"{name} has shape {shapes[name]}, the configuration says {shape}"
    return None


def read(source: Source) -> SAE:
    """The SAE of a directory as SAELens or `save` has written it. Raises SaeError."""
    directory = source.files[CONFIG].parent if CONFIG in source.files else Path(source.name)
    known = KNOWN_REPOSITORIES.get(source.repository or "", {})
    if known:
        source.note(f"{', '.join(map(str, known))}: as SAELens' directory of releases says of {source.repository}")
    hook = source.place(None, CONFIG)[0] if source.hook is not None else None
    config, changed = _as_vouched_for(directory, source.json(CONFIG))
    parsed = _checked(directory, config, {**known, **source.overrides}, hook, source.k)
    source.notes += [*([changed] if changed else []), *parsed.notes]
    if recorded := parsed.config.metadata.get("weights_sha256"):  # which was compared just now
        source.checksums[WEIGHTS] = str(recorded)
    names = [*parsed.tensors()]
    tensors = load_file(source.files[WEIGHTS])
    if "log_threshold" in tensors:
        names.remove("threshold")
    extra = [name for name in OPTIONAL if name in tensors]
    weights = fold(parsed, source.numbers(tensors, [*names, *extra]), source)
    return source.finish("saelens", parsed.config, weights)


def fold(parsed: Parsed, weights: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """The weights that compute the same without gates of their own, factors and ranks by norm."""
    weights = dict(weights)
    if "log_threshold" in weights:
        weights["threshold"] = weights.pop("log_threshold").exp()
    if parsed.written == "gated":
        rate, gate = weights.pop("r_mag").exp(), weights.pop("b_gate")
        weights["W_enc"], weights["b_enc"] = weights["W_enc"] * rate, weights.pop("b_mag")
        weights["threshold"] = weights["b_enc"] - gate * rate
        source.note(
            "gated, used as the jumprelu SAE that computes the same: W_enc exp(r_mag), b_mag - b_gate exp(r_mag)"
        )
    if parsed.written.endswith("batchtopk"):
        weights["threshold"] = weights.pop("topk_threshold").expand(parsed.config.d_sae)
        source.note(f"a training checkpoint of a {parsed.written} SAE, used as jumprelu at its topk_threshold")
    for name in OPTIONAL:
        factor = weights.pop(name, None)
        if factor is not None and not bool((factor == 1).all()):
            weights["W_dec"] = weights["W_dec"] * factor[:, None]
            source.note(f"{name} folded into W_dec")
    if parsed.ranked_by_norm:
        weights = fold_norms(weights, source)
    return _scaled(weights, source) if parsed.scaled else weights


def fold_norms(weights: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """Where latents are ranked by activation times decoder norm, move the norm into the encoder."""
    norm = weights["W_dec"].norm(dim=1)
    if not norm.isfinite().all() or (norm - 1).abs().max() <= 1e-6:
        return weights
    source.note(f"decoder norms, {float(norm.min()):.4g} to {float(norm.max()):.4g}, folded into the encoder")
    return {
        **weights,
        "W_enc": weights["W_enc"] * norm,
        "b_enc": weights["b_enc"] * norm,
        "W_dec": weights["W_dec"] / norm.clamp_min(1e-30)[:, None],  # a row of zeros stays one
    }


def _scaled(weights: dict[str, Tensor], source: Source) -> dict[str, Tensor]:
    """Fold what activations are multiplied by. Raises SaeError where it is not known."""
    scale, where, source.scale_used = source.input_scale, "as given", True
    if scale is None and "norm_scaling_factor" in source.overrides:
        scale, where = source.overrides["norm_scaling_factor"], "from SAELens' directory of releases"
    if scale is None and SCALER in source.files:
        scale, where = source.json(SCALER).get("scaling_factor"), f"from {SCALER}"
    factor = as_number(scale) or 0.0
    if factor <= 0:
        said = "and no file says by what" if scale is None else f"by {shown(scale)}, which is no number above 0"
        raise source.error(
            f"normalize_activations is {AVERAGE!r}: activations are to be multiplied by a number, {said}; give "
            "input_scale=, which is sqrt(d_in) / mean norm of the activations, or RELEASE:ID where sae_lens is installed"
        )
    source.note(f"activations are multiplied by {factor:.6g}, {where}; folded into W_enc, W_dec and b_dec")
    return {
        **weights,
        "W_enc": weights["W_enc"] * factor,
        "W_dec": weights["W_dec"] / factor,
        "b_dec": weights["b_dec"] / factor,
    }
