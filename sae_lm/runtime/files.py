"""Files that are whole or absent: written aside, synced, renamed; checksums; JSON with readable errors."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from sae_lm.errors import SaeLmError

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
PART = ".part"
"""Suffix of what is being written; a name that ends in it is never read."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)``, then move the result to path in one step.

    Raises SaeLmError where the disk is full (or its quota), and leaves nothing of the attempt there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + PART)
    try:
        write(temporary)
        with temporary.open("rb+") as written:
            os.fsync(written.fileno())
        os.replace(temporary, path)
    except BaseException as problem:  # Ctrl-C too leaves nothing half written
        temporary.unlink(missing_ok=True)
        # safetensors says in words what the system's error number was
        if getattr(problem, "errno", None) in FULL or re.search(
            rf"os error ({'|'.join(map(str, FULL))})\)", str(problem)
        ):
            raise SaeLmError(
                f"{path} cannot be written, the disk is full; free some room and run the same command again, "
                "what is finished is kept"
            ) from None
        raise


def check_folder(path: Path) -> None:
    """Make a folder and see that files can be written to it, before long work. Raises SaeLmError."""
    if path.exists() and not path.is_dir():
        raise SaeLmError(f"{path} is a file, expected a folder to write to; give another")
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as problem:
        raise SaeLmError(
            f"nothing can be written to the folder {path} ({problem.strerror}); check its permissions, or give another"
        ) from None


def free_bytes(path: Path) -> int:
    """Bytes free on the disk where ``path`` is or would be made."""
    existing = next(folder for folder in (path, *path.absolute().parents) if folder.exists())
    return shutil.disk_usage(existing).free


def json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def write_json(path: Path, value: Any) -> None:
    write_whole(path, lambda temporary: temporary.write_bytes(json_bytes(value)))


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


def replace_folder(temporary: Path, path: Path) -> None:
    """Move a finished folder to its place, replacing what an earlier run left there."""
    if path.exists():
        shutil.rmtree(path)
    os.replace(temporary, path)


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest() if hasattr(hashlib, "file_digest") else _sha256(file)


def _sha256(file: Any) -> str:  # Python 3.10
    digest = hashlib.sha256()
    while block := file.read(1 << 20):
        digest.update(block)
    return digest.hexdigest()


def files_digest(folder: Path) -> str:
    """sha256 over configuration and weights of a local model: what a hub model's commit says."""
    digest = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors"), *folder.glob("*.bin")]):
        digest.update(f"{file.name} {sha256(file)}\n".encode())
    return digest.hexdigest()
