"""sae-lm export: write files of an SAE's latents for dashboards, automated interpretation and steering of other tools."""

from pathlib import Path

from sae_lm.data.store import open_store
from sae_lm.errors import SaeError, SettingsError
from sae_lm.interop.delphi import write_delphi
from sae_lm.interop.examples import Encoded, encode, firing
from sae_lm.interop.neuronpedia import TOP, write_neuronpedia, write_saedashboard
from sae_lm.interop.steering_files import block_written, write_gguf, write_lm_eval
from sae_lm.interp.max_activating import fitting_hook
from sae_lm.interp.promoted_tokens import PromotedTokens, promoted_tokens
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.files import check_folder
from sae_lm.sae.load import load
from sae_lm.sae.model import SAE
from sae_lm.settings import ExportSettings

CODES = "latent_codes"
"""Folder beside the output in which codes are kept for the next call."""


def export(settings: ExportSettings) -> list[Path]:
    """Write what ``settings`` describe; the paths that were written.

    Raises SettingsError for what a target needs and lacks, SaeError for an SAE that it cannot express.
    """
    out = settings.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--out {out} exists already and is not replaced; give another folder, or remove it")
    steering = settings.to in ("gguf", "lm-eval")
    if steering and len(settings.latents or ()) != 1:
        raise SettingsError(f"--to {settings.to} writes one latent; name it with --latents 12")
    if settings.store is None and not (settings.to == "gguf" or (steering and settings.strength is not None)):
        needs = "a --strength, or a --store to take it from" if steering else "a --store, whose rows are shown"
        raise SettingsError(f"--to {settings.to} needs {needs}")
    device = pick_device(settings.device)
    sae = load(settings.sae, device)
    if wrong := [latent for latent in settings.latents or () if not 0 <= latent < sae.config.d_sae]:
        raise SettingsError(
            f"--latents: {', '.join(map(str, wrong))} out of range, {settings.sae} has latents 0 to {sae.config.d_sae - 1}"
        )
    check_folder(out)
    if steering:
        return [_steering(settings, sae)]
    encoded = _encoded(settings, sae)
    if settings.to == "delphi":
        if settings.latents is not None:
            raise SettingsError("--to delphi writes all latents; leave out --latents")
        return write_delphi(encoded, out, fitting_hook(settings.sae, sae, encoded.store))
    latents = firing(encoded, None if settings.latents is None else list(dict.fromkeys(settings.latents)))
    model_id, layer, name = _names(settings, sae, encoded)
    promoted = _promoted(settings, sae, device)
    if settings.to == "neuronpedia":
        return write_neuronpedia(encoded, latents, out, model_id, f"{layer}-{name}", promoted)
    dataset = str(encoded.store.manifest.recipe.text["id"])
    facts = {"model_id": model_id, "layer": layer, "sae_set": name, "dataset": dataset}
    return write_saedashboard(encoded, latents, out, sae, facts, promoted)


def _encoded(settings: ExportSettings, sae: SAE) -> Encoded:
    assert settings.store is not None
    store = open_store(settings.store)
    hook = fitting_hook(settings.sae, sae, store)
    return encode(store, hook, sae, settings.tokens, TOP, settings.codes or settings.out.absolute().parent / CODES)


def _steering(settings: ExportSettings, sae: SAE) -> Path:
    assert settings.latents is not None
    latent = settings.latents[0]
    if settings.to == "gguf":
        name = settings.name or str(sae.config.metadata.get("model_name") or "").rpartition("/")[2]
        return write_gguf(sae, latent, settings.out, name)
    strength = settings.strength
    if strength is None:
        block_written(sae)  # before long work
        strength = float(_encoded(settings, sae).statistics.largest[latent])
        if not strength:
            raise SaeError(
                f"latent {latent} does not fire on the rows searched, so its strength is not known; give --strength"
            )
    return write_lm_eval(sae, latent, settings.out, strength, settings.module)


def _names(settings: ExportSettings, sae: SAE, encoded: Encoded) -> tuple[str, int, str]:
    """(the model's name, the block's number, the set's name): letters, digits, dots and dashes alone."""
    model = str(encoded.store.manifest.recipe.model["id"]).rstrip("/").rpartition("/")[2]
    kept = (
        "".join(c if c.isalnum() or c in ".-_" else "-" for c in word) for word in (model, settings.name or "sae-lm")
    )
    return next(kept), block_written(sae), next(kept)


def _promoted(settings: ExportSettings, sae: SAE, device: str) -> PromotedTokens | None:
    if settings.model is None:
        return None
    import torch

    from sae_lm.interop.neuronpedia import LOGITS
    from sae_lm.lm.bridge import boot
    from sae_lm.lm.source import find_model

    model = boot(find_model(settings.model, None), device=device, dtype=torch.float32)
    return promoted_tokens(model, sae.W_dec.detach().float().cpu(), LOGITS)


def run(settings: ExportSettings) -> int:
    paths = export(settings)
    print(f"{settings.to}: {len(paths)} {'file' if len(paths) == 1 else 'files'} in {settings.out}")
    if settings.to == "neuronpedia":
        print(
            "nothing was uploaded; send each file to https://www.neuronpedia.org/api/feature/upload-batch with your key"
        )
    return 0
