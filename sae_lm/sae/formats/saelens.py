"""Read and write an SAE's directory, ``cfg.json`` and ``sae_weights.safetensors``, as SAELens does.

Our own facts (penalty, coefficient, seed, store, versions) stand under ``metadata``, which SAELens
keeps and ignores. ``sae_lens_version`` is in it because without one SAELens takes its pre-6 path and
drops the metadata.
"""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from sae_lm.errors import SaeError
from sae_lm.runtime.files import PART, read_json, replace_folder, sha256, write_json
from sae_lm.sae.folder import CONFIG, WEIGHTS
from sae_lm.sae.model import SAE, SaeConfig, check_shapes

SAELENS_VERSION = "6.54.12"
"""The release whose format is written; what it computes from it is in sae_lm.sae.model."""


def save(sae: SAE, directory: Path) -> None:
    """Write an SAE directory; it appears whole or not at all."""
    temporary = directory.with_name(directory.name + PART)
    shutil.rmtree(temporary, ignore_errors=True)
    temporary.mkdir(parents=True)
    weights = {name: value.detach().float().cpu().contiguous() for name, value in sae.named_parameters()}
    save_file(weights, temporary / WEIGHTS)
    config: dict[str, Any] = {
        "architecture": sae.config.architecture,
        "d_in": sae.config.d_in,
        "d_sae": sae.config.d_sae,
        "dtype": "float32",
        "device": "cpu",
        "apply_b_dec_to_input": sae.config.apply_b_dec_to_input,
        "normalize_activations": "none",
        "reshape_activations": "none",
        "metadata": {
            "sae_lens_version": SAELENS_VERSION,
            **sae.config.metadata,
            "weights_sha256": sha256(temporary / WEIGHTS),
        },
    }
    if sae.config.architecture == "topk":
        # decoder rows have unit norm, so this changes nothing; without it SAELens refuses to fold the norms
        config |= {"k": sae.config.k, "rescale_acts_by_decoder_norm": True}
    write_json(temporary / CONFIG, config)
    replace_folder(temporary, directory)


def check(directory: Path) -> tuple[dict[str, Any], SaeConfig]:
    """What is in cfg.json, and what is meant by it, once the weights fit it and their checksum; they are not loaded.

    Raises SaeError for what is missing, damaged or of another kind.
    """
    config = read_json(directory / CONFIG, SaeError, "an SAE directory")
    parsed = _read_config(directory, config)
    if problem := _weights_problem(directory, parsed.metadata.get("weights_sha256"), parsed):
        raise SaeError(f"{directory}: {problem}; the SAE is damaged, train or download it again")
    return config, parsed


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
    if recorded is None and (directory / WEIGHTS).is_file():
        raise SaeError(
            f"{directory / CONFIG} records no checksum (an SAE written by another program); there is nothing to verify"
        )
    try:
        parsed = _read_config(directory, config)
    except SaeError:  # of another version or kind, which is no damage
        parsed = None
    problem = _weights_problem(directory, recorded, parsed)
    return [] if problem is None else [problem]


def _weights_problem(directory: Path, recorded: str | None, config: SaeConfig | None) -> str | None:
    """What is wrong with the weights, by their checksum and by the configuration, where these are known; or None."""
    try:
        with safe_open(directory / WEIGHTS, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        if recorded is not None and sha256(directory / WEIGHTS) != recorded:
            return f"{WEIGHTS}: content does not match its checksum"
        if config is not None:
            check_shapes(config, shapes)
    except FileNotFoundError:
        return f"{WEIGHTS}: missing"
    except (OSError, SafetensorError) as problem:
        return f"{WEIGHTS}: cannot be read ({problem})"
    except SaeError as problem:
        return str(problem)
    return None


@contextmanager
def named(directory: Path) -> Iterator[None]:
    """Errors about an SAE's numbers name its directory."""
    try:
        yield
    except SaeError as problem:
        raise SaeError(f"{directory}: {problem}; train or download it again") from None


def _read_config(directory: Path, config: dict[str, Any]) -> SaeConfig:
    metadata = config.get("metadata") or {}
    if not isinstance(metadata, dict):
        raise SaeError(f"{directory / CONFIG}: metadata is a {type(metadata).__name__}, expected an object")
    for key in ("d_in", "d_sae", "k"):
        if key in config and not isinstance(config[key], int):
            raise SaeError(f"{directory / CONFIG}: {key} is {config[key]!r}, expected a whole number")
    if config.get("activation_fn_str", config.get("activation_fn", "relu")) != "relu":
        raise SaeError(f"{directory / CONFIG} is of a SAELens before 6; load it with SAELens and save it again")
    for key in ("d_in", "d_sae", "architecture"):
        if key not in config:
            raise SaeError(f"{directory / CONFIG} has no {key!r}; expected the configuration of a SAELens 6 SAE")
    for key, plain in (("normalize_activations", "none"), ("reshape_activations", "none")):
        if config.get(key, plain) not in (plain, None):
            raise SaeError(
                f"{directory / CONFIG}: {key} is {config[key]!r}, only {plain!r} is read; fold it into the weights with SAELens first"
            )
    with named(directory):
        return SaeConfig(
            architecture=config["architecture"],
            d_in=config["d_in"],
            d_sae=config["d_sae"],
            k=config.get("k", 100) if config["architecture"] == "topk" else None,  # 100: SAELens' default
            apply_b_dec_to_input=config.get("apply_b_dec_to_input", True),
            metadata=metadata,
        )


def fold_norms(config: dict[str, Any], weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Where SAELens ranks latents by activation times decoder norm, move the norm into the encoder."""
    if config["architecture"] == "topk" and config.get("rescale_acts_by_decoder_norm"):
        norm = weights["W_dec"].norm(dim=1)
        if norm.isfinite().all() and (norm - 1).abs().max() > 1e-6:
            weights = {
                **weights,
                "W_enc": weights["W_enc"] * norm,
                "b_enc": weights["b_enc"] * norm,
                "W_dec": weights["W_dec"] / norm.clamp_min(1e-30)[:, None],  # a row of zeros stays one
            }
    return weights
