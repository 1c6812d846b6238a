"""Load an SAE from a directory or from the hub."""

import os
from pathlib import Path

from safetensors.torch import load_file

from sae_lm.errors import HubError, SaeError
from sae_lm.sae.folder import CONFIG, WEIGHTS, sae_directories
from sae_lm.sae.formats.saelens import check, fold_norms, named
from sae_lm.sae.model import SAE


def load(path: str | os.PathLike[str], device: str = "cpu") -> SAE:
    """Load an SAE directory of ours or of SAELens (standard, topk, jumprelu), or a hub repository of one.

    path: a directory, or a hub id with an optional folder inside: ``user/repo`` or ``user/repo:folder``.
    Raises SaeError for what is missing, damaged or of another kind.
    """
    directory = Path(path).expanduser()
    if not directory.is_dir():
        beside = [sae.name for sae in sae_directories(directory.parent)]
        if beside:
            raise SaeError(f"there is no SAE {path}; {directory.parent} holds {', '.join(beside)}")
        directory = _download(str(path))
    inside = [sae.name for sae in sae_directories(directory)]
    if inside and not (directory / CONFIG).exists():
        raise SaeError(f"{path} is not one SAE but holds several; name one of {', '.join(inside)}")
    config, parsed = check(directory)
    weights = load_file(directory / WEIGHTS)  # of the devices that torch knows, safetensors knows some
    with named(directory):
        return SAE(parsed, fold_norms(config, weights)).to(device)


def _download(name: str) -> Path:
    from sae_lm.hub.repository import download_snapshot
    from sae_lm.hub.revision import pin

    repository, _, folder = name.partition(":")
    try:
        pinned = pin(repository, "model")
    except HubError as problem:
        raise SaeError(f"SAE {name!r} is not a directory, and not on the hub either: {problem}") from None
    try:
        return (pinned.local or download_snapshot(repository, pinned.revision, folder)) / folder
    except HubError as problem:
        raise SaeError(f"SAE {name!r}: {problem}") from None
