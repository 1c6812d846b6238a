"""Which of a list of file names are SAEs, and of which format; nothing is opened."""

import os
from collections import defaultdict
from collections.abc import Iterable, Sequence
from difflib import SequenceMatcher
from pathlib import Path
from typing import NamedTuple

from sae_lm.runtime.files import PART

SHOWN = 12
"""SAEs that a sentence names, at most."""
WALKED = 200_000
"""Files of a local folder that are looked at, at most."""
TORCH = (".pt", ".pth")
_NO_SAE = ("trainer_state", "optimizer", "optim", "scheduler", "rng_state", "tokens", "training_args")
"""Beginnings of names of torch files that lie beside SAEs and are none."""


class Location(NamedTuple):
    """An SAE among files: which format its files' names suggest, and which of them are needed."""

    format: str
    """`torch` where only the keys in the file can tell"""
    files: dict[str, str]
    """name inside the SAE's folder -> path"""


def find_saes(paths: Iterable[str]) -> dict[str, Location]:
    """Folder or file of each SAE -> what it is; paths with slashes, from the same root. The root itself is ``""``."""
    folders: dict[str, set[str]] = defaultdict(set)
    for path in paths:
        folder, _, name = path.rpartition("/")
        if not any(part.endswith(PART) for part in path.split("/")):
            folders[folder].add(name)
    found: dict[str, Location] = {}
    for folder, names in folders.items():
        location = _of_folder(folder, names, folders)
        if location is not None:
            found[folder] = location
    for folder, names in folders.items():
        if not any(above in found for above in (folder, *_above(folder))):
            found |= {_join(folder, name): _torch_file(folder, name, names) for name in names if _may_be_sae(name)}
    return dict(sorted(found.items(), key=lambda item: _natural(item[0])))


def _of_folder(folder: str, names: set[str], folders: dict[str, set[str]]) -> Location | None:
    """The SAE that a folder is, by its files' names."""

    def with_files(format: str, *wanted: str) -> Location:
        return Location(format, {name: _join(folder, name) for name in wanted if name in names})

    if {"cfg.json", "sae.safetensors"} <= names:
        location = with_files("sparsify", "cfg.json", "sae.safetensors")
        above = folder.rpartition("/")[0]
        if folder and "config.json" in folders.get(above, ()):
            location.files["../config.json"] = _join(above, "config.json")
        return location
    if "cfg.json" in names and ("sae_weights.safetensors" in names or not any(map(_may_be_sae, names))):
        return with_files("saelens", "cfg.json", "sae_weights.safetensors", "activation_scaler.json")
    if {"config.json", "sae_weights.safetensors"} <= names:
        return with_files("llama_scope", "config.json", "sae_weights.safetensors")
    inside = folders.get(_join(folder, "checkpoints"), set())
    weights = next((name for name in ("pruned.safetensors", "final.safetensors") if name in inside), None)
    if (weights and "hyperparams.json" in names | inside) or (weights and "config.json" in names):
        location = with_files("llama_scope", "hyperparams.json", "config.json")
        location.files[f"checkpoints/{weights}"] = _join(folder, f"checkpoints/{weights}")
        return location
    if "params.npz" in names:
        return with_files("gemma_scope", "params.npz")
    if "params.safetensors" in names:
        return with_files("gemma_scope_2", "params.safetensors", "config.json")
    if "ae.pt" in names:
        return with_files("dictionary_learning", "ae.pt", "config.json")
    return None


def _torch_file(folder: str, name: str, names: set[str]) -> Location:
    files = {name: _join(folder, name)}
    for beside in (name.rpartition(".")[0] + "_cfg.json", "config.json"):
        if beside in names:
            files[beside] = _join(folder, beside)
    return Location("torch", files)


def one_file(folder: str, name: str, names: Iterable[str]) -> Location:
    """The location of a torch file that is named itself."""
    return _torch_file(folder, name, set(names))


def _may_be_sae(name: str) -> bool:
    return name.endswith(TORCH) and not name.startswith(_NO_SAE)


def is_one_sae(path: Path) -> bool:
    """Whether a path of this disk looks like an SAE of some format, by the names of its files."""
    return (path.is_file() and path.suffix in TORCH) or (path.is_dir() and "" in find_saes(local_files(path, 1)))


def local_files(folder: Path, depth: int | None = None) -> list[str]:
    """Files below a folder, from it on; hidden folders left out. depth: of folders that are entered."""
    found: list[str] = []
    for place, folders, names in os.walk(folder):
        relative = Path(place).relative_to(folder).as_posix()
        inside = "" if relative == "." else relative
        level = len(inside.split("/")) if inside else 0
        folders[:] = [] if level == depth else sorted(name for name in folders if not name.startswith("."))
        found += [_join(inside, name) for name in sorted(names)]
        if len(found) > WALKED:
            break
    return found


def some_of(names: Sequence[str], wanted: str = "") -> str:
    """A few names for a sentence, the nearest to what was asked for first, and how many more there are."""
    ordered = list(names)
    if wanted:
        ordered.sort(key=lambda name: -SequenceMatcher(None, name.lower(), wanted.lower()).ratio())
    more = f" and {len(ordered) - SHOWN:,} more" if len(ordered) > SHOWN else ""
    return ", ".join(ordered[:SHOWN]) + more


def _natural(name: str) -> list[tuple[int, str]]:
    """layer_2 before layer_10."""
    padded = "".join(char if char.isdigit() else f" {char} " for char in name).split()
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in padded]


def _above(folder: str) -> list[str]:
    parts = folder.split("/")
    return ["/".join(parts[:end]) for end in range(len(parts))] if folder else []


def _join(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name
