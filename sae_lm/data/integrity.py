"""Compare every file of a store with its record."""

import re
from pathlib import Path
from typing import NamedTuple

from sae_lm.data.manifest import MANIFEST, PROGRESS, Manifest
from sae_lm.runtime.files import sha256


class Problems(NamedTuple):
    """Relative names of files -> what is wrong with them."""

    damaged: dict[str, str]
    foreign: dict[str, str]


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
    present = {file.relative_to(path).as_posix() for file in path.rglob("*") if not file.is_dir()}
    leftover = re.compile(
        rf"{PROGRESS}/(recipe\.json|lock|\d{{5,}}(\.place)?\.json)"
    )  # of a kill just after the commit
    foreign = sorted(name for name in present - set(expected) - {MANIFEST} if not leftover.fullmatch(name))
    return Problems(damaged, {name: "does not belong to the store" for name in foreign})
