"""sae-lm verify: check the files of a store or an SAE directory, and say what is wrong with them."""

from pathlib import Path

from sae_lm.data.integrity import check_files
from sae_lm.data.manifest import MANIFEST, PROGRESS, read_manifest
from sae_lm.errors import SettingsError, StoreError
from sae_lm.sae.folder import CONFIG, sae_directories
from sae_lm.sae.formats.saelens import verify_files
from sae_lm.settings import VerifySettings

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


def verify(path: Path) -> list[str]:
    """One line per damaged, missing or foreign file; empty where everything is whole.

    Raises StoreError where the folder is neither a store nor an SAE directory.
    """
    if is_sae(path):
        return verify_files(path)
    try:
        problems = check_files(path, read_manifest(path))
    except StoreError as problem:
        return [str(problem)]
    return [f"{name}: {what}" for part in problems for name, what in part.items()]


def run(settings: VerifySettings) -> int:
    """1 where something is damaged."""
    if str(settings.path).startswith("hf://"):
        raise StoreError(
            f"{settings.path} is on the hub, where files are checked as they are fetched; pull it, then verify"
        )
    path = Path(settings.path)
    if settings.repair and (path / CONFIG).is_file():
        raise SettingsError(f"--repair caches shards of a store again, and {path} is an SAE directory; train it again")
    if settings.repair:
        from sae_lm.data.repair import repair

        for line in repair(path, settings.model, settings.text, settings.device):
            print(line)
    problems = verify(path)
    print("\n".join(problems) if problems else f"{settings.path}: whole")
    return 1 if problems else 0
