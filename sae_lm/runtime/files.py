"""Files that are whole or absent: written aside, synced, renamed; checksums; JSON with readable errors."""

import errno
import hashlib
import json
import os
import re
import shutil
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from sae_lm.errors import SaeLmError

FULL = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))
DISKS = {
    **dict.fromkeys(FULL, "the disk is full"),
    errno.EROFS: "the disk can only be read",
    errno.EACCES: "permission is denied",
    errno.EPERM: "permission is denied",
    errno.ENODEV: "the disk cannot map files into memory",
    errno.EOPNOTSUPP: "the disk cannot do what safetensors asks of it",
    errno.ENOSYS: "the disk cannot do what safetensors asks of it",
    errno.EIO: "the disk fails",
    errno.ESTALE: "the disk is no longer there",
}
"""The system's error number -> what it says of a disk."""
OF_WINDOWS = {
    5: errno.EACCES,
    19: errno.EROFS,
    32: errno.EACCES,  # another process has it open
    33: errno.EACCES,  # another process has locked it
    39: errno.ENOSPC,
    112: errno.ENOSPC,
}
"""Windows' own error number -> the system's error number, of which it says the same."""
PROBE = "sae_lm.probe."
"""How the name of a folder begins that is made and deleted again to learn what a disk can do; a kill may leave it."""
STALE_SECONDS = 60.0
"""Age at which such a folder is what a kill left, and not of another process: trying takes moments."""
PART = ".part"
"""Suffix of what is being written; a name that ends in it is never read."""


def present(folder: Path, pattern: str) -> list[Path]:
    """What of a folder matches a pattern, sorted; nothing where another process removes the folder meanwhile."""
    try:
        return sorted(folder.glob(pattern))
    except FileNotFoundError:  # of a folder that was there a moment ago
        return []


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Call ``write(temporary path)``, then move the result to path in one step.

    Raises SaeLmError where the disk is full (or its quota) or cannot be written, and leaves nothing of the attempt there.
    """
    temporary = path.with_name(path.name + PART)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary.unlink(missing_ok=True)  # never written through, if it is a link
        mode = _usual_mode(temporary)
        write(temporary)
        _allow(temporary, mode)
        _sync(temporary)
        os.replace(temporary, path)
    except BaseException as problem:  # Ctrl-C too leaves nothing half written
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        _raise_in_words(path, problem)
        raise


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """``with whole_folder(path) as temporary:`` what is written to ``temporary`` is at ``path`` afterwards, or nothing is.

    What an earlier run left there is replaced. A link to a folder stays one. Raises SaeLmError as ``write_whole`` does.
    """
    place = Path(os.path.realpath(path))
    temporary = place.with_name(place.name + PART)
    try:
        shutil.rmtree(temporary, ignore_errors=True)
        _refuse_dangling(path)
        temporary.mkdir(parents=True)
        yield temporary
        mode = _usual_mode(temporary / PROBE)
        (temporary / PROBE).unlink()
        for inside in [*temporary.rglob("*"), temporary]:
            if inside.is_file():
                _allow(inside, mode)
            _sync(inside)
        _replace_folder(temporary, place)
    except BaseException as problem:
        shutil.rmtree(temporary, ignore_errors=True)
        _raise_in_words(path, problem)
        raise


def _replace_folder(temporary: Path, path: Path) -> None:
    """Move a finished folder to its place. What an earlier run left there goes once that is done, or else comes back.

    A kill in between leaves it aside, and the next call does either.
    """
    earlier = path.with_name(f"{path.name}.earlier{PART}")
    try:
        if path.is_dir():
            shutil.rmtree(earlier, ignore_errors=True)
            os.replace(path, earlier)
        os.replace(temporary, path)
        _sync(path.parent)
    finally:
        if path.exists():
            shutil.rmtree(earlier, ignore_errors=True)
        elif earlier.exists():
            os.replace(earlier, path)


def _sync(path: Path) -> None:
    """Have the disk hold what a file, or the list of names in a folder, is now, before anything relies on it."""
    if not path.is_dir():
        with path.open("rb+") as written:
            os.fsync(written.fileno())
        return
    with suppress(OSError):  # Windows opens no folder
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _usual_mode(path: Path) -> int:
    """Who may read a file that is made there, as the process' umask and the folder have it. It is left there, empty."""
    path.touch()
    return path.stat().st_mode & 0o777


def _allow(path: Path, mode: int) -> None:
    """safetensors writes files that nobody but their owner may read, so that a store could not be shared."""
    with suppress(OSError):  # some disks know no permissions
        if path.stat().st_mode & 0o777 != mode:
            path.chmod(mode)


def _refuse_dangling(path: Path) -> None:
    if path.is_symlink() and not path.exists():
        raise SaeLmError(
            f"{path} is a link to {os.readlink(path)}, which is not there; make that folder, or give another"
        )


def _raise_in_words(path: Path, problem: BaseException) -> None:
    if isinstance(problem, SaeLmError) or not (words := disk_problem(problem)):
        return
    what_to_do = "free some room" if words == DISKS[errno.ENOSPC] else "mend that, or give another folder,"
    raise SaeLmError(
        f"{path} cannot be written, {words}; {what_to_do} and run the same command again, what is finished is kept"
    ) from None


def disk_problem(problem: BaseException) -> str | None:
    """What an error says of the disk, in words; None where it is not about a disk.

    Of safetensors' errors as well, which have the system's number in their text alone.
    """
    if isinstance(problem, FileNotFoundError) and problem.errno is None and _unreadable_at(str(problem)):
        return DISKS[errno.EACCES]
    number = getattr(problem, "errno", None)
    if number is None:
        number = number_said(str(problem))
    return DISKS.get(number) if number is not None else None


def number_said(said: str, windows: bool = os.name == "nt") -> int | None:
    """The system's error number that the text of safetensors' error gives; Windows has numbers of its own there."""
    found = re.search(r"os error (\d+)\)", said)
    number = int(found[1]) if found else None
    return OF_WINDOWS.get(number) if windows and number is not None else number


def _unreadable_at(said: str) -> bool:
    """Whether the file is there that safetensors says it cannot find: it says so of all it may not open."""
    path = said.rpartition(": ")[2]
    return os.path.exists(path) and not os.access(path, os.R_OK)


def check_disk(folder: Path) -> None:
    """See that safetensors can write to the disk of a folder, and map what it wrote. Raises SaeLmError.

    The folder need not be there yet.
    """
    import numpy as np
    from safetensors import SafetensorError, safe_open
    from safetensors.numpy import save_file

    _refuse_dangling(folder)
    where = _existing(folder)
    clear_probes(where, STALE_SECONDS)
    try:  # in a folder of its own, since others may look at the same disk at once
        with tempfile.TemporaryDirectory(dir=where, prefix=PROBE, suffix=PART, ignore_cleanup_errors=True) as own:
            probe = Path(own) / "probe"
            save_file({"probe": np.zeros(1)}, probe)
            with safe_open(probe, "np") as file:
                file.get_tensor("probe")
    except (OSError, SafetensorError) as problem:
        words = disk_problem(problem) or " ".join(str(problem).split())
        raise SaeLmError(
            f"nothing can be written to {folder}: {words}; mend that, or give a folder on another disk"
        ) from None


def clear_probes(where: Path, age: float) -> None:
    """Delete what kills left of `check_disk`: what is older, in seconds."""
    for left in present(where, f"{PROBE}*{PART}"):
        with suppress(OSError):
            if time.time() - left.stat().st_mtime > age:
                shutil.rmtree(left) if left.is_dir() else left.unlink()


def refuse_links_out(folder: Path, names: Iterable[str], error: type[SaeLmError]) -> None:
    """Raise ``error`` where a file to be written, or a folder on its way, is a link that leaves ``folder``."""
    whole = folder.resolve()
    for name in names:
        if whole not in (folder / name).resolve().parents:
            raise error(
                f"{folder / name} is a link out of {folder}, where nothing is written; put the file itself in its place"
            )


def _existing(path: Path) -> Path:
    return next(folder for folder in (path, *path.absolute().parents) if folder.exists())


def check_folder(path: Path) -> None:
    """Make a folder and see that files can be written to it, before long work. Raises SaeLmError."""
    _refuse_dangling(path)
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
    return shutil.disk_usage(_existing(path)).free


def json_bytes(value: Any) -> bytes:
    """Half a character, which UTF-8 has not, is escaped as JSON does it."""
    return (json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "backslashreplace")


def write_json(path: Path, value: Any) -> None:
    write_whole(path, lambda temporary: temporary.write_bytes(json_bytes(value)))


def parse_json(text: str | bytes) -> Any:
    """Raises ValueError for what is not JSON, and for brackets within brackets beyond what can be read."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("too many brackets within brackets") from None


def read_json(path: Path, error: type[SaeLmError], what: str) -> dict[str, Any]:
    """Parse a JSON file that holds an object; a missing or malformed one raises ``error`` naming it."""
    try:
        value = parse_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise error(f"{path.parent} is not {what}: it has no {path.name}") from None
    except (OSError, ValueError) as problem:
        raise error(f"{path} cannot be read as JSON ({problem}); the folder is damaged, make it anew") from None
    if not isinstance(value, dict):
        raise error(
            f"{path} holds a JSON {type(value).__name__}, expected an object; the folder is damaged, make it anew"
        )
    return value


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
