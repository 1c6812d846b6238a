"""sae-lm show: write a page of what an SAE's latents fire on, or of two SAEs side by side."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from sae_lm.concepts.rows import CONCEPTS
from sae_lm.concepts.token_labels import read_labels
from sae_lm.data.recipe import model_of
from sae_lm.data.store import Store, open_store
from sae_lm.errors import ModelError, SaeError, SaeLmError, SettingsError
from sae_lm.interp.max_activating import fitting_hook
from sae_lm.metrics.concept_owners import LEAST_CORRELATION
from sae_lm.metrics.latent_statistics import SAMPLED
from sae_lm.metrics.latent_survey import CONCEPT_ROWS, Survey, survey
from sae_lm.pages.latents import write_latents
from sae_lm.pages.latents_data import page_data
from sae_lm.pages.text import visible
from sae_lm.runtime.device import pick_device
from sae_lm.runtime.files import check_folder
from sae_lm.sae.load import load_as_recorded
from sae_lm.sae.model import SAE
from sae_lm.settings import ShowSettings, command_line

LATENTS = 16_384
"""Latents of an SAE that get a card where none are named, at most: spread evenly over those that fire."""
CODES = "latent_codes"
"""Folder beside the page in which codes are kept for the next call."""


def show(settings: ShowSettings) -> Path:
    """Write the page that ``settings`` describe and return its path.

    Raises SaeError for an SAE that does not fit the store, SettingsError for latents it does not have.
    """
    if settings.out.is_dir():
        raise SettingsError(f"--out {settings.out} is a folder, expected a file; give {settings.out / 'latents.html'}")
    store = open_store(settings.store)
    device = pick_device(settings.device)
    paths = [settings.sae] if settings.beside is None else [settings.sae, settings.beside]
    saes = [(_name(path, paths), load_as_recorded(path, device)) for path in paths]
    hooks = [fitting_hook(path, sae, store) for path, (_, sae) in zip(paths, saes, strict=True)]
    if len(set(hooks)) > 1:
        raise SaeError(
            f"{paths[0]} is for hook {hooks[0]}, {paths[1]} for {hooks[1]}; a page shows SAEs of one hook, on the same rows"
        )
    _check_latents(settings, saes[0][1])
    given = None
    if settings.labels is not None:
        given = read_labels(settings.labels, store.vocabulary, CONCEPTS)
    check_folder(settings.out.absolute().parent)
    model, logits = _language_model(settings, store, saes, hooks[0], device)
    found = survey(
        store, hooks[0], saes,
        tokens=settings.tokens, contexts=settings.contexts, folder=settings.codes or settings.out.absolute().parent / CODES,
        model=model, given=given,
    )  # fmt: skip
    chosen = [_chosen(settings, found, side) for side in range(len(saes))]
    if not any(chosen):
        raise SaeError(
            f"no latent of {settings.sae} fires on the {len(found.token_id):,} rows searched of {settings.store}, expected some; "
            "name latents with --latents, or search more rows with --tokens"
        )
    facts = {
        "saes": [{"name": name, "what": _what(sae), "loaded": sae.provenance} for name, sae in saes],
        "hook": hooks[0],
        "manifest": store.manifest,
        "rows": len(found.token_id),
        "warnings": _warnings(store, found, chosen),
        "unread": found.unread,
        "least": LEAST_CORRELATION,
        "least_rows": CONCEPT_ROWS,
        "sampled": SAMPLED,
        "logits": logits,
        "cofiring": _cofiring(found),
        "command": visible(command_line(settings)),
    }
    write_latents(settings.out, page_data(store, found, chosen), facts)
    return settings.out


def _name(path: str, paths: Sequence[str]) -> str:
    """The last part of a path, or more of it where two would be called alike."""
    name = Path(path).name
    return name if sum(Path(other).name == name for other in paths) == 1 else str(path)


def _check_latents(settings: ShowSettings, sae: SAE) -> None:
    wrong = [latent for latent in settings.latents or () if not 0 <= latent < sae.config.d_sae]
    if wrong:
        raise SettingsError(
            f"--latents: {', '.join(map(str, wrong))} out of range, {settings.sae} has latents 0 to {sae.config.d_sae - 1}"
        )


def _chosen(settings: ShowSettings, found: Survey, side: int) -> list[int]:
    """Latents that get a card: those named, of a second SAE their matches; else those that fire."""
    if settings.latents:
        named = list(dict.fromkeys(settings.latents))
        return (
            named
            if side == 0 or found.matches is None
            else list(dict.fromkeys(found.matches.of_left.latent[named].tolist()))
        )
    return spread_latents((found.saes[side].statistics.fires > 0).nonzero()[0].tolist())


def spread_latents(alive: list[int]) -> list[int]:
    """All, or `LATENTS` of them, spread evenly."""
    count = min(LATENTS, len(alive))
    return [alive[i * (len(alive) - 1) // max(1, count - 1)] for i in range(count)]


def _what(sae: SAE) -> str:
    c = sae.config
    k = f", k = {c.k}" if c.k else ""
    arm = c.metadata.get("arm")
    return f"{c.architecture}, {c.d_sae:,} latents{k}" + (f"; arm {arm}, seed {c.metadata.get('seed')}" if arm else "")


def _language_model(
    settings: ShowSettings, store: Store, saes: Sequence[tuple[str, SAE]], hook: str, device: str
) -> tuple[Any, str]:
    """(a bridge or None, a sentence on what is promoted). Unless it is asked for by name, a model that is not at hand
    is done without."""
    from sae_lm.interp.promoted_tokens import check_unembeds
    from sae_lm.lm.bridge import boot
    from sae_lm.lm.source import find_model, load_tokenizer

    absent = "Not shown: {}."
    recorded = store.manifest.recipe.model
    if settings.model == "none":
        return None, absent.format("the language model was left out (--model none)")
    if settings.model is None and recorded["id"] != "embedded":
        return None, absent.format(f"that takes the language model; name it with --model {visible(recorded['id'])}")
    try:
        source = find_model(*model_of(store.manifest.recipe, store.path, settings.model))
        model = boot(source, device=device, dtype=torch.float32)
    except SaeLmError as problem:
        if settings.model is not None:
            raise
        return None, absent.format(f"the language model is not at hand ({problem})")
    if len(load_tokenizer(source)) <= len(store.vocabulary):
        store.learn_bytes(load_tokenizer(source))
    try:
        check_unembeds(model, hook, saes[0][1].config.d_in, recorded["d_vocab"])
    except ModelError:
        if settings.model is not None:
            raise
        return None, absent.format("the SAE is not of the residual stream")
    return model, what_is_promoted(saes)


def what_is_promoted(saes: Sequence[tuple[str, SAE]]) -> str:
    """For the page. saes: with their names there."""
    said = (
        "What a latent's decoder row adds to the logits of the next token by itself: W_dec times the final norm's weight "
        "times the unembedding, less the mean over tokens, per unit of activation. Later layers are left out."
    )
    rescaling = [name for name, sae in saes if sae.config.rescales]
    if rescaling:
        said += (
            f" Of {' and '.join(rescaling)} it is times the size of each activation, by which the SAE divides it before it "
            "encodes it: that differs from row to row."
        )
    return said


def _warnings(store: Store, found: Survey, chosen: Sequence[Sequence[int]]) -> list[str]:
    out = []
    for of, latents in zip(found.saes, chosen, strict=True):
        alive, d_sae = int((of.statistics.fires > 0).sum()), of.sae.config.d_sae
        if alive < d_sae:
            out.append(f"{of.name}: {d_sae - alive:,} of {d_sae:,} latents never fire on these rows.")
        if len(latents) < alive:
            out.append(f"{of.name}: {len(latents):,} of {alive:,} latents that fire are on this page.")
    if store.text_repeats:
        out.append(
            "The store goes through its text more than once: rows may be of text that other rows are of as well."
        )
    unclear = [token for token, text in enumerate(store.vocabulary) if "\ufffd" in text]
    if unclear and not store.partial_tokens:
        out.append("This store does not know the bytes of tokens that are part of a character: they show as \ufffd.")
    return out


def _cofiring(found: Survey) -> str:
    rows, n = {of.cofiring.rows for of in found.saes}, len(found.token_id)
    if rows == {n}:
        return "Co-firing is counted on all rows."
    return f"Co-firing is counted on {', '.join(f'{r:,}' for r in sorted(rows))} of {n:,} rows, drawn at random."


def run(settings: ShowSettings) -> int:
    print(f"page: {show(settings)}")
    return 0
