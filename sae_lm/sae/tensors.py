"""Read tensors from safetensors, torch and npz files; nothing in a file is executed, and no small file fills the memory."""

import io
import pickle
import pickletools
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from sae_lm.errors import SaeError
from sae_lm.runtime.files import disk_problem

LONGEST_NAME = 300
"""Characters of a class or function that a pickle names, at most."""
LONGEST_LINE = 10_000
"""Bytes without a line's end, at most, in a pickle that cannot be followed to its end."""
SPARE, RATIO = 2**26, 64
"""Bytes that a file may hold beyond its size on disk, and how many times its size: weights hardly compress."""


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """Name -> tensor. Raises SaeError."""
    with _readable(path, "safetensors"):
        return load_file(path)


def read_torch(path: Path) -> Mapping[str, Any]:
    """What ``torch.save`` has written of a dictionary, on the CPU. Raises SaeError; code in the pickle is not run."""
    with _readable(path, "a torch file"):
        if zipfile.is_zipfile(path):
            _check_size(path, 1)  # torch does not compress
        _check_names(path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old ways of pickling: either it can be read or an error says so
            content = torch.load(path, map_location="cpu", weights_only=True)
    if not isinstance(content, Mapping):
        raise SaeError(
            f"{path} holds a {type(content).__name__}, expected a dictionary of tensors; give the SAE's file"
        )
    for part in (content, *(value for value in content.values() if isinstance(value, Mapping))):
        _check_tensors(path, part)
    return content


def _check_tensors(path: Path, content: Mapping[str, Any]) -> None:
    for name, value in content.items():
        if not isinstance(value, Tensor):
            continue
        if value.layout != torch.strided or value.is_nested or value.is_meta:
            raise SaeError(f"{path}: {name} is a sparse, nested or meta tensor, expected a dense one; save it as such")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():
            raise SaeError(f"{path}: {name} claims more numbers than the file holds; the file is damaged or forged")


def read_npz(path: Path) -> dict[str, Tensor]:
    """Name -> tensor of a file of ``numpy.savez``. Raises SaeError; an array of objects would be a pickle."""
    with _readable(path, "an npz file"):
        _check_size(path, RATIO)
        with np.load(path, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(np.ascontiguousarray(arrays[name])) for name in arrays.files}


def read_tensors(path: Path) -> Mapping[str, Any]:
    """By the name's ending. Raises SaeError."""
    if path.suffix == ".safetensors":
        return read_safetensors(path)
    return read_npz(path) if path.suffix == ".npz" else read_torch(path)


@contextmanager
def _readable(path: Path, kind: str) -> Iterator[None]:
    try:
        yield
    except SaeError:
        raise
    except (OSError, SafetensorError) as problem:
        if words := disk_problem(problem):
            raise unreadable(path, words) from None
        if isinstance(problem, FileNotFoundError):
            raise SaeError(f"{path} is missing; download the SAE again") from None
        raise _damaged(path, kind, problem) from None
    except pickle.UnpicklingError as problem:
        if "nsupported" in str(problem) or "GLOBAL" in str(problem):
            raise SaeError(
                f"{path} needs code of its own to be opened, beyond plain tensors, and was refused; nothing of it was "
                "executed; ask for safetensors, or save its state_dict() as a plain dictionary of tensors"
            ) from None
        raise SaeError(
            f"{path} cannot be read as {kind}; it is damaged or of another kind, download it again"
        ) from None
    except Exception as problem:  # of a damaged file, readers raise whatever comes: IndexError, tokenize.TokenError
        if isinstance(problem, ValueError) and "allow_pickle" in str(problem):
            raise SaeError(
                f"{path} holds an array of Python objects, which only code could open; nothing of it was executed; "
                "expected arrays of numbers alone"
            ) from None
        raise _damaged(path, kind, problem) from None


def unreadable(path: Path, words: str) -> SaeError:
    """words: of ``disk_problem``."""
    return SaeError(f"{path} cannot be read, {words}; mend that, or copy the SAE to another disk")


def _damaged(path: Path, kind: str, problem: Exception) -> SaeError:
    reason = (str(problem).splitlines() or [type(problem).__name__])[0][:120]
    return SaeError(f"{path} cannot be read as {kind} ({reason}); it is damaged or cut short, download it again")


def _check_names(path: Path) -> None:
    """Refuse a pickle that names code at absurd length: torch's message about it would take hours to be made.

    What else is wrong with the pickle is torch's to say.
    """
    held: list[bytes] = []
    try:
        if zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                held = [archive.read(name) for name in archive.namelist() if name.endswith("data.pkl")]
            streams, each = [io.BytesIO(content) for content in held], 1
        else:  # as torch before 1.6: three pickles about the file, and that of the content
            held = [path.read_bytes()]
            streams, each = [io.BytesIO(content) for content in held], 4
        for stream in streams:
            for _ in range(each):
                for operation, argument, _place in pickletools.genops(stream):
                    if operation.name in ("GLOBAL", "INST") and len(str(argument)) > LONGEST_NAME:
                        raise SaeError(
                            f"{path} needs code of its own to be opened, of a name of {len(str(argument)):,} characters, and was "
                            "refused; nothing of it was executed; it is damaged or forged"
                        )
    except (
        ValueError,
        EOFError,
        KeyError,
        IndexError,
        UnicodeError,
        zipfile.BadZipFile,
        NotImplementedError,
    ) as problem:
        # torch may follow it further, as where a name is not of ASCII, to a name that was not looked at
        if any(len(line) > LONGEST_LINE for content in held for line in content.split(b"\n")):
            raise _damaged(path, "a torch file", problem) from None


def _check_size(path: Path, ratio: int) -> None:
    with zipfile.ZipFile(path) as archive:
        held = sum(entry.file_size for entry in archive.infolist())
    if held > ratio * path.stat().st_size + SPARE:
        raise SaeError(
            f"{path} would unpack to {held:,} bytes, far more than its {path.stat().st_size:,}; it is refused"
        )
