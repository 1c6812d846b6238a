"""sae-lm export: write files of an SAE's latents for dashboards, automated interpretation and steering of other tools."""

import re
from pathlib import Path

from sae_lm.data.recipe import model_of
from sae_lm.data.store import Store, open_store
from sae_lm.errors import SaeError, SettingsError
from sae_lm.interop.delphi import write_delphi
from sae_lm.interop.examples import Encoded, encode, firing
from sae_lm.interop.neuronpedia import TOP, write_neuronpedia, write_saedashboard
from sae_lm.interop.steering_files import block_written, write_gguf, write_lm_eval
from sae_lm.interp.max_activating import fitting_hook
from sae_lm.interp.promoted_tokens import PromotedTokens, check_unembeds, promoted_tokens
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.files import check_folder
from sae_lm.sae.load import load_as_recorded
from sae_lm.sae.model import SAE
from sae_lm.settings import ExportSettings

CODES = "latent_codes"
"""Folder beside the output in which codes are kept for the next call."""
_ROWS = {"store", "tokens", "codes"}
_DASHBOARD = {*_ROWS, "latents", "model", "name"}
READ = {
    "neuronpedia": _DASHBOARD,
    "saedashboard": _DASHBOARD,
    "delphi": _ROWS,
    "gguf": {"latents", "name"},
    "lm-eval": {*_ROWS, "latents", "strength", "module"},
}
"""Target -> settings that it reads, beside those that all do; rows only where no strength is given."""


def export(settings: ExportSettings) -> list[Path]:
    """Write what ``settings`` describe; the paths that were written.

    Raises SettingsError for what a target needs and lacks, SaeError for an SAE that it cannot express.
    """
    out = settings.out
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise SettingsError(f"--out {out} exists already and is not replaced; give another folder, or remove it")
    steering = settings.to in ("gguf", "lm-eval")
    read = READ[settings.to]
    if settings.strength is not None and "strength" in read:
        read = read - _ROWS
    for name in sorted(settings.model_fields_set - read - {"sae", "to", "device", "out"}):
        if getattr(settings, name) is not None:
            beside = " with a --strength" if name in READ[settings.to] else ""
            raise SettingsError(f"--{name} is of no use with --to {settings.to}{beside}; leave out --{name}")
    if steering and len(settings.latents or ()) != 1:
        raise SettingsError(f"--to {settings.to} writes one latent; name it with --latents 12")
    if settings.store is None and settings.to != "gguf" and not (steering and settings.strength is not None):
        needs = "a --strength, or a --store to take it from" if steering else "a --store, whose rows are shown"
        raise SettingsError(f"--to {settings.to} needs {needs}")
    device = pick_device(settings.device)
    sae = load_as_recorded(settings.sae, device)
    if wrong := [latent for latent in settings.latents or () if not 0 <= latent < sae.config.d_sae]:
        raise SettingsError(
            f"--latents: {', '.join(map(str, wrong))} out of range, {settings.sae} has latents 0 to {sae.config.d_sae - 1}"
        )
    check_folder(out)
    if steering:
        return [_steering(settings, sae)]
    assert settings.store is not None
    store = open_store(settings.store)
    hook = fitting_hook(settings.sae, sae, store)
    if settings.to == "delphi":
        return write_delphi(_encoded(settings, sae, store, hook), out, hook)
    model_id, layer, name = _names(settings, hook, store)
    promoted = _promoted(settings, sae, store, hook, device)
    encoded = _encoded(settings, sae, store, hook)
    latents = firing(encoded, None if settings.latents is None else list(dict.fromkeys(settings.latents)))
    if settings.to == "neuronpedia":
        return write_neuronpedia(encoded, latents, out, model_id, f"{layer}-{name}", promoted)
    dataset = str(encoded.store.manifest.recipe.text["id"])
    facts = {"model_id": model_id, "layer": layer, "sae_set": name, "dataset": dataset}
    return write_saedashboard(encoded, latents, out, sae, facts, promoted)


def _encoded(settings: ExportSettings, sae: SAE, store: Store, hook: str) -> Encoded:
    return encode(store, hook, sae, settings.tokens, TOP, settings.codes or settings.out.absolute().parent / CODES)


def _steering(settings: ExportSettings, sae: SAE) -> Path:
    assert settings.latents is not None
    latent = settings.latents[0]
    if settings.to == "gguf":
        name = settings.name or str(sae.config.metadata.get("model_name") or "").rpartition("/")[2]
        return write_gguf(sae, latent, settings.out, name)
    strength = settings.strength
    if strength is None:
        assert settings.store is not None
        block_written(sae)  # before long work
        store = open_store(settings.store)
        encoded = _encoded(settings, sae, store, fitting_hook(settings.sae, sae, store))
        strength = float(encoded.statistics.largest[latent])
        if not strength:
            raise SaeError(
                f"latent {latent} does not fire on the rows searched, so its strength is not known; give --strength"
            )
    return write_lm_eval(sae, latent, settings.out, strength, settings.module)


def _names(settings: ExportSettings, hook: str, store: Store) -> tuple[str, int, str]:
    """(the model's name, the block's number, the set's name): letters, digits, dots and dashes alone."""
    found = re.match(r"blocks\.(\d+)\.", hook)
    if found is None:
        raise SaeError(
            f"the SAE is for {hook}, which is of no block, by whose number dashboards name an SAE; give another"
        )
    model = str(store.manifest.recipe.model["id"]).rstrip("/").rpartition("/")[2]
    kept = (
        "".join(c if c.isalnum() or c in ".-_" else "-" for c in word) for word in (model, settings.name or "sae-lm")
    )
    return next(kept), int(found[1]), next(kept)


def _promoted(settings: ExportSettings, sae: SAE, store: Store, hook: str, device: str) -> PromotedTokens | None:
    """None without a model. Raises ModelError for a model whose width or vocabulary is not the store's."""
    if settings.model in (None, "none"):
        return None
    import torch

    from sae_lm.interop.neuronpedia import LOGITS
    from sae_lm.lm.bridge import boot
    from sae_lm.lm.source import find_model

    source = find_model(*model_of(store.manifest.recipe, store.path, settings.model))
    model = boot(source, device=device, dtype=torch.float32)
    check_unembeds(model, hook, sae.config.d_in, store.manifest.recipe.model["d_vocab"])
    return promoted_tokens(model, sae.W_dec.detach().float().cpu(), LOGITS)


def run(settings: ExportSettings) -> int:
    paths = export(settings)
    print(f"{settings.to}: {len(paths)} {'file' if len(paths) == 1 else 'files'} in {settings.out}")
    if settings.to == "neuronpedia":
        print(
            "nothing was uploaded; send each file to https://www.neuronpedia.org/api/feature/upload-batch with your key"
        )
    return 0
