"""Files that are whole or absent: written aside, synced, renamed; checksums; JSON with readable errors."""

import hashlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lm.errors import SaeLmError

PART = ".part"
"""Suffix of what is being written; a name that ends in it is never read."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)``, then move the result to path in one step."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    write(part)
    with part.open("rb+") as written:
        os.fsync(written.fileno())
    os.replace(part, path)


def write_json(path: Path, value: Any) -> None:
    text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_whole(path, lambda part: part.write_text(text, encoding="utf-8"))


def read_json(path: Path, error: type[SaeLmError], what: str) -> dict[str, Any]:
    """Parse a JSON file that holds an object; a missing or malformed one raises ``error`` naming it."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read as JSON ({problem}); the folder is damaged, make it anew") from None
    if not isinstance(value, dict):
        raise error(
            f"{path} holds a JSON {type(value).__name__}, expected an object; the folder is damaged, make it anew"
        )
    return value


def replace_folder(part: Path, path: Path) -> None:
    """Move a finished folder to its place, replacing what an earlier run left there."""
    if path.exists():
        shutil.rmtree(path)
    os.replace(part, path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()
