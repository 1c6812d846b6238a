"""Tell a folder that is an SAE from one that is an activation store, and name what is in one that is neither."""

from pathlib import Path

from sae_lm.data.manifest import MANIFEST, PROGRESS
from sae_lm.errors import StoreError
from sae_lm.sae.folder import CONFIG, sae_directories

MOST_NAMED = 8
"""Stores or SAEs of a folder that a sentence names."""


def is_sae(path: Path) -> bool:
    """Whether a folder is an SAE directory, else it is a store. Raises StoreError where it is neither: what it holds."""
    if (path / CONFIG).is_file():
        return True
    if (path / MANIFEST).is_file() or (path / PROGRESS).is_dir():
        return False
    if not path.exists():
        raise StoreError(f"{path} does not exist; name an activation store or an SAE directory")
    inside = [directory.name for directory in sae_directories(path)]
    inside += [manifest.parent.name for manifest in sorted(path.glob(f"*/{MANIFEST}"))]
    if inside:
        named = ", ".join(inside[:MOST_NAMED]) + ", ..." * (len(inside) > MOST_NAMED)
        raise StoreError(f"{path} is not one activation store or SAE but holds some; name one of {named}")
    raise StoreError(f"{path} is neither an activation store ({MANIFEST}) nor an SAE directory ({CONFIG}); name one")
