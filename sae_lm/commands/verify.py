"""sae-lm verify: check the files of a store or an SAE directory, and say what is wrong with them."""

from pathlib import Path

from sae_lm.data.integrity import check_files
from sae_lm.data.manifest import read_manifest
from sae_lm.errors import SettingsError, StoreError
from sae_lm.fields import flag, with_home
from sae_lm.pages.text import visible
from sae_lm.sae.folder import CONFIG
from sae_lm.sae.formats.saelens import verify_files
from sae_lm.settings import VerifySettings
from sae_lm.training.folder_kind import is_sae


def verify(path: Path | str) -> list[str]:
    """One line per damaged, missing or foreign file; empty where everything is whole.

    Raises StoreError where the folder is neither a store nor an SAE directory.
    """
    path = Path(with_home(path))
    if is_sae(path):
        return [visible(problem) for problem in verify_files(path)]
    try:
        problems = check_files(path, read_manifest(path))
    except StoreError as problem:
        return [str(problem)]
    return [visible(f"{name}: {what}") for part in problems for name, what in part.items()]


def run(settings: VerifySettings) -> int:
    """1 where something is damaged."""
    if str(settings.path).startswith("hf://"):
        raise StoreError(
            f"{settings.path} is on the hub, where files are checked as they are fetched; pull it, then verify"
        )
    path = Path(settings.path)
    unread = sorted(settings.model_fields_set & {"model", "text", "device", "device_map"})
    if unread and not settings.repair:
        raise SettingsError(f"verify: {flag(unread[0])} is for --repair alone; give that too, or leave it out")
    if settings.repair and (path / CONFIG).is_file():
        raise SettingsError(f"--repair caches shards of a store again, and {path} is an SAE directory; train it again")
    if settings.repair:
        from sae_lm.data.repair import repair

        for line in repair(path, settings.model, settings.text, settings.device, settings.device_map):
            print(line)
    problems = verify(path)
    print("\n".join(problems) if problems else f"{settings.path}: whole")
    return 1 if problems else 0
