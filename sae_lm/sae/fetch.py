"""Find the SAE that a name stands for, in a folder, on the hub or among SAELens' releases, and have its files here."""

from collections.abc import Mapping
from difflib import SequenceMatcher
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sae_lm.errors import HubError, SaeError
from sae_lm.fields import with_home
from sae_lm.sae.locations import TORCH, Location, find_saes, local_files, one_file, some_of
from sae_lm.sae.source import Source


def find(name: str) -> tuple[Source, str]:
    """(the SAE's files, the format their names suggest). name: see `sae_lm.sae.load.load`. Raises SaeError, HubError."""
    path = Path(with_home(name))
    if path.is_dir():
        return _in_folder(name, path)
    if path.is_file():
        return _file(name, path)
    head, colon, folder = name.partition(":")
    inside = Path(with_home(head))
    if colon and ("/" not in head or head.startswith((".", "/", "~"))) and inside.is_dir():
        raise SaeError(
            f"there is no SAE {name}; one in a folder of this disk is named with a slash: {inside / (folder or 'FOLDER')}"
        )
    if colon and "/" not in head:
        return _release(name, head, folder)
    if path.parent.is_dir() and str(path.parent) != ".":
        beside = [f for f in find_saes(local_files(path.parent, 1)) if f]
        if beside:
            raise SaeError(f"there is no SAE {name}; {path.parent} holds {some_of(beside, path.name)}")
    if path.is_absolute() or name.startswith((".", "~")) or head.count("/") > 1:
        raise SaeError(_not_here(name, path))
    return _on_hub(name, head, folder)


def _not_here(name: str, path: Path) -> str:
    """A sentence for a path of this disk that is not there: where it stops being right, and what is there."""
    above = next(parent for parent in path.parents if parent.is_dir())
    missing = path.relative_to(above).parts[0]
    there = some_of(_folders(above), missing)
    return f"SAE {name} is not a directory: {above} has no {missing}, {f'but {there}' if there else 'nor any folder'}"


def _folders(place: Path) -> list[str]:
    """Folders and torch files of a folder, by name."""
    try:
        found = [file.name for file in place.iterdir() if file.is_dir() or file.suffix in TORCH]
    except OSError:
        return []
    return sorted(name for name in found if not name.startswith("."))


def _in_folder(name: str, folder: Path) -> tuple[Source, str]:
    """Of a folder that is an SAE."""
    paths = local_files(folder, 1)
    above = [f"../{file.name}" for file in [folder.parent / "config.json"] if file.is_file()]
    location = find_saes(paths).get("")
    if location is None:
        inside = [place for place in find_saes(local_files(folder)) if place]
        if inside:
            raise SaeError(f"{name} is not one SAE but holds several; name one of {some_of(inside)}")
        raise SaeError(
            f"{name} is not an SAE directory: it has no cfg.json, and no other file of an SAE that is known here; "
            f"it holds {some_of(paths) or 'nothing'}"
        )
    files = {inside: folder / path for inside, path in location.files.items()}
    if location.format == "sparsify" and above:
        files["../config.json"] = folder.parent / "config.json"
    return Source(name=name, identity=folder.resolve().as_posix(), files=files), location.format


def _file(name: str, path: Path) -> tuple[Source, str]:
    """Of one file: an SAE of its own, or of its folder's SAE."""
    beside = [file.name for file in path.parent.iterdir() if file.is_file()]
    if path.suffix in TORCH:
        location = one_file("", path.name, beside)
        files = {inside: path.parent / file for inside, file in location.files.items()}
        return Source(name=name, identity=path.resolve().as_posix(), files=files), location.format
    location = find_saes(beside).get("")
    if location is None or path.name not in location.files:
        raise SaeError(f"{name} is a file of no format known here; give the folder of the SAE, or a .pt file")
    return _in_folder(str(path.parent), path.parent)


def _on_hub(name: str, head: str, folder: str, overrides: Mapping[str, Any] | None = None) -> tuple[Source, str]:
    """Of a repository of the hub. Its files are listed first, and only those of the SAE are fetched."""
    from sae_lm.hub.repository import list_files, models_of
    from sae_lm.hub.revision import pin

    repository, _, revision = head.partition("@")
    try:
        pinned = pin(repository, "model", revision or None)
    except HubError as problem:
        there = models_of(repository) if "has no model" in str(problem) else []
        near = [other for other in there if _alike(other, repository)]
        owner = repository.partition("/")[0]
        known = f"; {owner} has {some_of(near, repository)}" if near else ""
        known += _near_here(repository)
        raise SaeError(f"SAE {name!r} is not a directory, and not on the hub either: {problem}{known}") from None
    try:
        paths = local_files(pinned.local) if pinned.local else list_files(repository, pinned.revision)
        place, location = _choose(name, repository, paths, folder.strip("/"))
        files = _fetched(repository, pinned.revision, pinned.local, location)
    except HubError as problem:
        raise SaeError(f"SAE {name!r}: {problem}") from None
    source = Source(
        name=name,
        identity="/".join(filter(None, (repository, place))),
        files=files,
        repository=repository,
        revision=pinned.revision,
        overrides=overrides or {},
    )
    if place != folder.strip("/"):
        source.note(f"{repository} holds one SAE, {place}")
    return source, location.format


def _near_here(repository: str) -> str:
    """Of a name that may also be a misspelt path of this disk: the folders it may have meant."""
    path = Path(repository)
    above = next(parent for parent in path.parents if parent.is_dir())
    missing = path.relative_to(above).parts[0]
    near = [other for other in _folders(above) if _alike(other, missing)]
    return f"; here are the folders {some_of([str(above / other) for other in near], str(path))}" if near else ""


def _alike(one: str, other: str) -> bool:
    return SequenceMatcher(None, one.lower(), other.lower()).ratio() > 0.5


def _choose(name: str, repository: str, paths: list[str], folder: str) -> tuple[str, Location]:
    """The SAE that is meant among a repository's files. Raises SaeError naming those there are."""
    found = find_saes(paths)
    if folder in found:
        return folder, found[folder]
    if folder in paths:
        above, _, file = folder.rpartition("/")
        if folder.endswith(TORCH):
            beside = [path.rpartition("/")[2] for path in paths if path.rpartition("/")[0] == above]
            return folder, one_file(above, file, beside)
        if above in found:
            return above, found[above]
    below = [place for place in found if place.startswith(f"{folder}/") or not folder]
    if len(below) == 1:
        return below[0], found[below[0]]
    if below:
        raise SaeError(
            f"{name} is not one SAE but holds several; name one of {some_of(below)}: {repository}:FOLDER, nothing was fetched"
        )
    if found:
        raise SaeError(f"SAE {name!r}: {repository} has no SAE {folder!r}; it holds {some_of([*found], folder)}")
    raise SaeError(
        f"SAE {name!r}: {repository} holds no file of an SAE that is known here, but {some_of(paths) or 'none'}"
    )


def _fetched(repository: str, commit: str, local: Path | None, location: Location) -> dict[str, Path]:
    from sae_lm.hub.repository import download_from_model

    if local:
        return {inside: local / path for inside, path in location.files.items()}
    return {inside: download_from_model(repository, commit, path) for inside, path in location.files.items()}


def _release(name: str, release: str, sae_id: str) -> tuple[Source, str]:
    """Of one of SAELens' releases, where that is installed."""
    if find_spec("sae_lens") is None:
        raise SaeError(
            f"SAE {name!r} is not a directory, and no hub id, which reads OWNER/NAME:FOLDER; SAELens' names of releases "
            "are known where sae_lens is installed"
        )
    from sae_lens.loading.pretrained_saes_directory import (  # pyright: ignore[reportMissingImports]
        get_pretrained_saes_directory,
    )

    directory = get_pretrained_saes_directory()
    if release not in directory:
        raise SaeError(
            f"SAE {name!r}: SAELens has no release {release!r}; near it are {some_of([*directory], release)}"
        )
    about = directory[release]
    if sae_id not in about.saes_map:
        raise SaeError(
            f"SAE {name!r}: release {release} has no {sae_id!r}; it has {some_of([*about.saes_map], sae_id)}"
        )
    overrides = dict(about.config_overrides or {})
    if sae_id in about.norm_scaling_factor:
        overrides["norm_scaling_factor"] = about.norm_scaling_factor[sae_id]
    source, format = _on_hub(name, about.repo_id, about.saes_map[sae_id], overrides)
    source.note(f"SAELens' release {release}, {sae_id}: {about.repo_id}:{about.saes_map[sae_id]}")
    return source, format
