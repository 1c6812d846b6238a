"""store or SAE directory -> what is wrong with its files."""

from pathlib import Path

from sae_lm.data.manifest import MANIFEST, PROGRESS, read_manifest
from sae_lm.errors import SaeError, StoreError
from sae_lm.files import read_json, sha256
from sae_lm.sae.checkpoint import CONFIG, WEIGHTS


def verify(path: Path) -> list[str]:
    """One line per damaged, missing or foreign file; empty where everything is whole.

    Raises StoreError where the folder is neither a store nor an SAE directory.
    """
    if (path / CONFIG).is_file():
        return _verify_sae(path)
    if (path / MANIFEST).is_file() or (path / PROGRESS).is_file():
        return _verify_store(path)
    raise StoreError(f"{path} is neither an activation store ({MANIFEST}) nor an SAE directory ({CONFIG}); name one")


def _verify_store(path: Path) -> list[str]:
    try:
        manifest = read_manifest(path)
    except StoreError as problem:
        return [str(problem)]
    problems = []
    expected = manifest.all_files()
    for name, record in expected.items():
        file = path / name
        if not file.is_file():
            problems.append(f"{name}: missing")
        elif file.stat().st_size != record.bytes:
            problems.append(f"{name}: {file.stat().st_size} bytes, expected {record.bytes}")
        elif sha256(file) != record.sha256:
            problems.append(f"{name}: content does not match its checksum")
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if file.is_file()}
    problems += [f"{name}: does not belong to the store" for name in sorted(there - set(expected) - {MANIFEST})]
    return problems


def _verify_sae(path: Path) -> list[str]:
    try:
        config = read_json(path / CONFIG, SaeError, "an SAE directory")
    except SaeError as problem:
        return [str(problem)]
    if not (path / WEIGHTS).is_file():
        return [f"{WEIGHTS}: missing"]
    metadata = config.get("metadata")
    recorded = metadata.get("weights_sha256") if isinstance(metadata, dict) else None
    if recorded is None:
        raise SaeError(
            f"{path / CONFIG} records no checksum (an SAE written by another program); there is nothing to verify"
        )
    return [] if sha256(path / WEIGHTS) == recorded else [f"{WEIGHTS}: content does not match its checksum"]
