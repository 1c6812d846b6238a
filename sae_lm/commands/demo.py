"""sae-lm demo: the whole pipeline on the embedded model and text. Cache, train, compare, show."""

import time
from pathlib import Path

from sae_lm.errors import SettingsError
from sae_lm.fields import flag
from sae_lm.settings import CacheSettings, CompareSettings, DemoSettings, ShowSettings, TrainSettings


def demo_settings(out: Path) -> tuple[CacheSettings, TrainSettings, CompareSettings, ShowSettings]:
    """What ``sae-lm demo`` runs; configs/demo.toml says the same as a file."""
    store, runs, report = out / "acts", out / "runs", out / "report"
    return (
        CacheSettings(hooks=("blocks.2.hook_out",), tokens=750_000, out=store),
        TrainSettings(
            store=store,
            d_sae=2048,
            k=16,
            arms=("none", "abs_cos:1", "max_cos:0.25"),
            seeds=3,
            tokens=600_000,  # of 750,000 rows four fifths, each once
            held_out=0.2,
            parallel=2,
            out=runs,
        ),
        CompareSettings(runs=runs, out=report, ce_contexts=96, parallel=2),
        ShowSettings(
            sae=str(runs / "none-seed0"),
            beside=str(runs / "max_cos_0.25-seed0"),
            store=store,
            out=report / "latents.html",
            codes=out / "latent_codes",
        ),
    )


def demo(settings: DemoSettings) -> str:
    """Run the demo and return what is printed at its end."""
    if settings.what == "toy":
        from sae_lm.synthetic import suite

        return suite.demo(settings.out / "toy", settings.full, settings.seeds)
    if unread := sorted(settings.model_fields_set & {"full", "seeds"}):
        raise SettingsError(f"demo: {flag(unread[0])} is for the toys; give it with `demo toy`, or leave it out")
    from sae_lm.commands.cache import cache
    from sae_lm.commands.compare import compare
    from sae_lm.commands.show import show
    from sae_lm.commands.train import train
    from sae_lm.pages.terminal import text_table

    began = time.monotonic()
    caching, training, comparing, showing = demo_settings(settings.out)
    cache(caching)
    train(training)
    show(showing)  # first, so that the report links to it
    report = compare(comparing)
    minutes, seconds = divmod(round(time.monotonic() - began), 60)
    return (
        f"{text_table(report)}\n\nlatents: {showing.out}\nreport: {comparing.out / 'report.html'}\n"
        f"took {minutes} min {seconds} s"
    )


def run(settings: DemoSettings) -> int:
    print(demo(settings))
    return 0
