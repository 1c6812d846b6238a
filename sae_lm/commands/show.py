"""sae-lm show: write a page of the contexts on which one SAE's latents fire."""

from pathlib import Path

from sae_lm.data.store import open_store
from sae_lm.errors import SaeError, SettingsError
from sae_lm.interp.max_activating import chunk_rows, fitting_hook, search, spread_latents
from sae_lm.pages.latents import latent_card
from sae_lm.pages.templates import render
from sae_lm.pages.text import visible
from sae_lm.sae.load import load
from sae_lm.settings import ShowSettings, command_line


def show(settings: ShowSettings) -> Path:
    """Write the page that ``settings`` describe and return its path.

    Raises SaeError for an SAE that does not fit the store, SettingsError for latents it does not have.
    """
    if settings.out.is_dir():
        raise SettingsError(f"--out {settings.out} is a folder, expected a file; give {settings.out / 'latents.html'}")
    store = open_store(settings.store)
    sae = load(settings.sae, settings.device)
    hook = fitting_hook(settings.sae, sae, store)
    wrong = [latent for latent in settings.latents or () if not 0 <= latent < sae.config.d_sae]
    if wrong:
        raise SettingsError(
            f"--latents: {', '.join(map(str, wrong))} out of range, {settings.sae} has latents 0 to {sae.config.d_sae - 1}"
        )
    start = max(0, len(store) - settings.tokens)
    chosen = list(dict.fromkeys(settings.latents or spread_latents(store, hook, sae, start)))
    if not chosen:
        raise SaeError(
            f"no latent of {settings.sae} fires on the first rows searched of {settings.store}, expected some; "
            "name latents with --latents"
        )
    found = search(store, hook, sae, chosen, start, settings.contexts)
    render(
        "latents.html.jinja",
        settings.out,
        sae=sae.config,
        name=Path(settings.sae).name,
        hook=hook,
        manifest=store.manifest,
        rows=len(store) - start,
        cards=[latent_card(store, hook, sae, latent, column, found) for column, latent in enumerate(chosen)],
        alive_rows=None if settings.latents else min(chunk_rows(store, sae), len(store) - start),
        command=visible(command_line(settings)),
    )
    return settings.out


def run(settings: ShowSettings) -> int:
    print(f"page: {show(settings)}")
    return 0
