"""The names of an SAE directory's files, and which directories in a folder are SAEs; reading these needs no torch."""

from pathlib import Path

from sae_lm.runtime.files import PART

CONFIG, WEIGHTS = "cfg.json", "sae_weights.safetensors"


def sae_directories(folder: Path) -> list[Path]:
    """The SAEs in a folder, by name; not what a kill left half made."""
    found = sorted(config.parent for config in folder.glob(f"*/{CONFIG}"))
    return [directory for directory in found if not directory.name.endswith(PART)]
