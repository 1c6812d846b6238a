"""store or SAE directory -> what is wrong with its files."""

import re
from pathlib import Path
from typing import NamedTuple

from sae_lm.data.manifest import MANIFEST, PROGRESS, Manifest, read_manifest
from sae_lm.errors import SaeError, StoreError
from sae_lm.files import read_json, sha256
from sae_lm.sae.checkpoint import CONFIG, WEIGHTS, sae_directories


class Problems(NamedTuple):
    """Relative names of files -> what is wrong with them."""

    damaged: dict[str, str]
    foreign: dict[str, str]


def verify(path: Path) -> list[str]:
    """One line per damaged, missing or foreign file; empty where everything is whole.

    Raises StoreError where the folder is neither a store nor an SAE directory.
    """
    if (path / CONFIG).is_file():
        return _verify_sae(path)
    if (path / MANIFEST).is_file() or (path / PROGRESS).is_dir():
        try:
            problems = check_files(path, read_manifest(path))
        except StoreError as problem:
            return [str(problem)]
        return [f"{name}: {what}" for part in problems for name, what in part.items()]
    inside = [found.name for found in sae_directories(path)]
    if inside:
        raise StoreError(f"{path} holds several SAEs; name one of {', '.join(inside)}")
    raise StoreError(f"{path} is neither an activation store ({MANIFEST}) nor an SAE directory ({CONFIG}); name one")


def check_files(path: Path, manifest: Manifest) -> Problems:
    """Read every file of a store and compare it with its record."""
    damaged = {}
    expected = manifest.all_files()
    for name, record in expected.items():
        file = path / name
        if not file.is_file():
            damaged[name] = "missing"
        elif file.stat().st_size != record.bytes:
            damaged[name] = f"{file.stat().st_size} bytes, expected {record.bytes}"
        elif sha256(file) != record.sha256:
            damaged[name] = "content does not match its checksum"
    there = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    leftover = re.compile(rf"{PROGRESS}/(recipe\.json|lock|\d{{5,}}\.json)")  # of a kill just after the commit
    foreign = sorted(name for name in there - set(expected) - {MANIFEST} if not leftover.fullmatch(name))
    return Problems(damaged, {name: "does not belong to the store" for name in foreign})


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
