"""What a ``cfg.json`` of SAELens says, of version 6 or an older one: architecture, widths, norms, hook.

Before version 6 everything stood at the top level and some keys had other names (``hook_point``, ``activation_fn_str``).
SAELens reads a file without a version as an old one; so is it done here, but nested metadata is kept.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from sae_lm.errors import SaeError
from sae_lm.fields import has_heads
from sae_lm.sae.hook_names import bridge_hook, has_no_mean, written_to_residual
from sae_lm.sae.model import NORMS, SaeConfig
from sae_lm.sae.source import shown, truth

ARCHITECTURES = ("standard", "topk", "jumprelu", "gated", "batchtopk", "matryoshka_batchtopk")
"""What is read. The last two are of checkpoints of training, which become jumprelu with ``topk_threshold``."""
DEFAULT_K = 100
"""SAELens' where cfg.json of a topk SAE has none"""
AVERAGE = "expected_average_only_in"
"""Activations are multiplied by one number, sqrt(d_in) / their mean norm, which is folded into the weights."""
LARGEST = 2**40
_OLD_NAMES = {
    "hook_point": "hook_name",
    "hook_point_layer": "hook_layer",
    "hook_point_head_index": "hook_head_index",
    "activation_fn_str": "activation_fn",
}
_METADATA = (
    "model_name",
    "hook_name",
    "hook_layer",
    "hook_head_index",
    "model_class_name",
    "model_from_pretrained_kwargs",
    "prepend_bos",
    "exclude_special_tokens",
    "neuronpedia_id",
    "context_size",
    "seqpos_slice",
    "dataset_path",
    "sae_lens_version",
    "sae_lens_training_version",
)
_CENTRED = {"model_from_pretrained_kwargs": {"center_writing_weights": True}}
FOLDED_BIASES = "value biases folded: it was trained on a model whose hook_z lacks them; in a model that has them, its own are moved"
NO_PROCESSING_SINCE = 4
"""SAELens' major version from which it has trained on models as they are, unless kwargs say otherwise (pull request 279)."""
KNOWN_REPOSITORIES: dict[str, dict[str, Any]] = {
    "jbloom/GPT2-Small-SAEs-Reformatted": _CENTRED,
    "jbloom/GPT2-Small-Feature-Splitting-Experiment-Layer-8": _CENTRED,
    "tommmcgrath/gpt2-small-mlp-out-saes": _CENTRED,
    "JoshEngels/Mistral-7B-Residual-Stream-SAEs": {"normalize_activations": "constant_norm_rescale"},
}
"""What SAELens' directory of releases (6.54.12) says of repositories whose own files do not say it."""


@dataclass(frozen=True)
class Parsed:
    """cfg.json as it is meant."""

    written: str
    """the architecture as written, one of ARCHITECTURES"""
    config: SaeConfig
    """of the SAE that is made of it: gated, batchtopk and matryoshka_batchtopk are jumprelu"""
    scaled: bool
    """whether activations are multiplied by a number that stands elsewhere"""
    ranked_by_norm: bool
    """whether latents are chosen by activation times decoder norm"""
    notes: list[str] = field(default_factory=list)

    def tensors(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of what the weights have to hold."""
        d_in, d_sae = self.config.d_in, self.config.d_sae
        shapes: dict[str, tuple[int, ...]] = {"W_enc": (d_in, d_sae), "W_dec": (d_sae, d_in), "b_dec": (d_in,)}
        more = {"gated": ("b_gate", "b_mag", "r_mag"), "jumprelu": ("b_enc", "threshold")}.get(self.written, ("b_enc",))
        shapes |= dict.fromkeys(more, (d_sae,))
        return shapes | ({"topk_threshold": ()} if self.written.endswith("batchtopk") else {})


def parse(
    config: Mapping[str, Any],
    path: Path,
    overrides: Mapping[str, Any] | None = None,
    hook: str | None = None,
    given_k: int | None = None,
) -> Parsed:
    """overrides: what a directory of releases says, which counts for more. hook: a bridge's name, in place of the
    recorded one; given_k: of a topk SAE, likewise. Raises SaeError naming ``path``."""
    nested = config.get("metadata") or {}
    if not isinstance(nested, Mapping):
        raise SaeError(f"{path}: metadata is a {type(nested).__name__}, expected an object")
    notes: list[str] = []
    version = str(nested.get("sae_lens_version") or config.get("sae_lens_version") or "")
    top = {_OLD_NAMES.get(key, key): value for key, value in config.items() if key != "metadata"} | dict(
        overrides or {}
    )
    metadata = {key: top[key] for key in _METADATA if top.get(key) is not None} | dict(nested)
    metadata |= {key: value for key, value in (overrides or {}).items() if key in _METADATA}
    if re.match(r"[0-5]\.", version) or (not version and "metadata" not in config and "architecture" not in config):
        notes.append(f"cfg.json is of SAELens {version or 'before version 6'}, read as SAELens reads those")
    architecture, k = _architecture(top, path, old=not (major := re.match(r"[0-9]{1,9}", version)) or int(major[0]) < 6)
    for key in ("d_in", "d_sae"):
        _check_whole(top, key, path)
    normalize, scaled = _norm(top, path)
    k = _active_latents(k, given_k, path, notes) if architecture == "topk" else None
    model = str(metadata.get("model_name") or "")
    centred = _hook_and_centring(metadata, model, notes, hook, path)
    value_biases = _value_biases(metadata, notes, path)
    subtracted = bool(truth(top, "apply_b_dec_to_input", True, path))
    try:
        parsed = SaeConfig(
            architecture={"gated": "jumprelu", "batchtopk": "jumprelu", "matryoshka_batchtopk": "jumprelu"}.get(
                architecture, architecture
            ),
            d_in=top["d_in"],
            d_sae=top["d_sae"],
            k=k,
            apply_b_dec_to_input=subtracted,
            normalize_activations=normalize,
            centred_input=centred,
            value_biases=value_biases,
            metadata=metadata,
        )
    except SaeError as problem:
        advice = "train or download it again" if given_k is None else "give another k"
        raise SaeError(f"{path.parent}: {problem}; {advice}") from None
    if not subtracted:
        notes.append("b_dec not subtracted from the input: apply_b_dec_to_input is false")
    of_batch = architecture.endswith("batchtopk")
    ranked = bool(truth(top, "rescale_acts_by_decoder_norm", of_batch, path))
    return Parsed(architecture, parsed, scaled, ranked and (architecture == "topk" or of_batch), notes)


def _architecture(top: Mapping[str, Any], path: Path, old: bool) -> tuple[str, Any]:
    """As written, and k."""
    k, function = top.get("k"), top.get("activation_fn") or "relu"
    architecture = top.get("architecture")
    if architecture is None and (old and ("activation_fn" in top or "hook_name" in top)):
        architecture = "standard"
    if function == "topk" and architecture in ("standard", "topk"):
        kwargs = top.get("activation_fn_kwargs") or {}
        architecture, k = "topk", kwargs.get("k", k) if isinstance(kwargs, Mapping) else k
    elif function != "relu":
        raise SaeError(f"{path}: activation_fn is {function!r}, only relu and topk are read; load it with SAELens")
    for key, value in (("d_in", top.get("d_in")), ("d_sae", top.get("d_sae")), ("architecture", architecture)):
        if value is None:
            raise SaeError(f"{path} has no {key!r}; expected the configuration of a SAELens SAE")
    if architecture not in ARCHITECTURES:
        raise SaeError(
            f"{path}: architecture {architecture!r} is unknown here; expected {', '.join(ARCHITECTURES)}; "
            "transcoders and the like are not SAEs of one activation"
        )
    return architecture, k


def _active_latents(recorded: object, given: int | None, path: Path, notes: list[str]) -> Any:
    """k of a topk SAE: as given, as recorded, or as SAELens has it."""
    if given is not None:
        notes.append(f"k is {given} as given, cfg.json says {'none' if recorded is None else shown(recorded)}")
        return given
    if recorded is None:
        notes.append(f"k is {DEFAULT_K}: cfg.json has none, and SAELens then takes {DEFAULT_K}")
        return DEFAULT_K
    _check_whole({"k": recorded}, "k", path)
    return recorded


def _check_whole(values: Mapping[str, Any], key: str, path: Path) -> None:
    value = values[key]
    if isinstance(value, bool) or not isinstance(value, int) or not 1 <= value <= LARGEST:
        raise SaeError(f"{path}: {key} is {value!r}, expected a whole number from 1 on")


def _norm(top: Mapping[str, Any], path: Path) -> tuple[str, bool]:
    """normalize_activations of the SAE, and whether there is a number to fold."""
    norm = top.get("normalize_activations")
    norm = {None: "none", False: "none", True: AVERAGE}.get(norm, norm) if not isinstance(norm, (list, dict)) else norm
    if norm == AVERAGE:
        return "none", True
    if norm not in NORMS:
        raise SaeError(
            f"{path}: normalize_activations is {norm!r}, read are {', '.join((*NORMS, AVERAGE))}; "
            "fold it into the weights with SAELens first"
        )
    shape = top.get("reshape_activations")
    if shape not in (None, "none", "hook_z"):
        raise SaeError(f"{path}: reshape_activations is {shape!r}, expected none or hook_z; load it with SAELens")
    return norm, False


def _hook_and_centring(metadata: dict[str, Any], model: str, notes: list[str], given: str | None, path: Path) -> bool:
    """Give the hook its name in a bridge; whether the activations were centred."""
    recorded = metadata.get("hook_name")
    hook = given or (bridge_hook(str(recorded), model) if recorded else None)
    if given:
        metadata["hook_name"] = given
        if recorded:
            metadata.setdefault("original_hook_name", recorded)
    elif not recorded:
        notes.append("cfg.json names no hook")
    elif hook in (None, recorded):
        notes.append(f"hook {recorded} from cfg.json")
    else:
        metadata |= {"hook_name": hook, "original_hook_name": recorded}
        notes.append(f"hook {hook} from cfg.json, which says {recorded}")
    kwargs = metadata.get("model_from_pretrained_kwargs")
    says = truth(kwargs, "center_writing_weights", None, path) if isinstance(kwargs, Mapping) else None
    if says and written_to_residual(hook) and not has_no_mean(model):
        notes.append(
            "input centred: it was trained on a model with center_writing_weights, whose activations have mean 0 over d_in; "
            "the mean is subtracted before encoding and added to the reconstruction"
        )
        return True
    if (
        says is None
        and "original_hook_name" in metadata
        and not has_no_mean(model)
        and not metadata.get("sae_lens_version")
    ):
        notes.append(
            "input not centred: cfg.json does not say whether the model was loaded with center_writing_weights, "
            "as TransformerLens did by default"
        )
    return False


def _value_biases(metadata: Mapping[str, Any], notes: list[str], path: Path) -> str:
    """Whether the model's hook_z had its value biases: as kwargs say, else as the version loaded models by default."""
    if not has_heads(metadata.get("hook_name")):
        return "kept"
    version = str(metadata.get("sae_lens_training_version") or metadata.get("sae_lens_version") or "")
    major = re.match(r"[0-9]{1,9}", version)
    by_default = major is None or int(major[0]) < NO_PROCESSING_SINCE
    kwargs = metadata.get("model_from_pretrained_kwargs")
    kwargs = kwargs if isinstance(kwargs, Mapping) else {}
    if not truth(kwargs, "fold_value_biases", by_default, path):
        return "kept"
    notes.append(FOLDED_BIASES)
    return "folded with norm" if truth(kwargs, "fold_ln", by_default, path) else "folded"
