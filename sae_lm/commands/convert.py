"""sae-lm convert: write an SAE of any known format for another library."""

from dataclasses import replace
from pathlib import Path

from sae_lm.sae.export import export
from sae_lm.sae.load import load
from sae_lm.sae.model import SAE
from sae_lm.settings import ConvertSettings


def convert(settings: ConvertSettings) -> SAE:
    """Write the directory that ``settings`` describe; what was decided on the way goes into it too.

    Raises SaeError for an SAE that cannot be read, and for one that the target cannot express.
    """
    sae = load(
        settings.sae,
        "cpu",
        format=settings.format,
        hook=settings.hook,
        k=settings.k,
        input_scale=settings.input_scale,
    )
    sae.config = replace(sae.config, metadata={**sae.config.metadata, "provenance": sae.provenance})
    export(sae, settings.to, Path(settings.out))
    return sae


def run(settings: ConvertSettings) -> int:
    sae = convert(settings)
    print("\n".join([*(f"decided: {sentence}" for sentence in sae.provenance), f"SAE: {settings.out}"]))
    return 0
