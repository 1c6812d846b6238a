"""Write an SAE for another library: SAELens, dictionary_learning or sparsify."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path

from sae_lm.errors import SaeError
from sae_lm.sae.model import SAE

WRITERS = {
    "saelens": ("sae_lm.sae.formats.saelens", "save"),
    "dictionary_learning": ("sae_lm.sae.formats.dictionary_learning_export", "write"),
    "sparsify": ("sae_lm.sae.formats.sparsify_export", "write"),
}
"""Target -> the module and function that write its directory."""


def export(sae: SAE, target: str, directory: Path) -> None:
    """Write ``sae`` as a directory that ``target`` reads; it appears whole or not at all.

    Raises SaeError for what the target cannot express, and for a directory in which something lies already.
    """
    if target not in WRITERS:
        raise SaeError(f"target is {target!r}; expected {', '.join(WRITERS)}")
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        raise SaeError(f"{directory} exists already and is not replaced; give another, or remove it")
    module, name = WRITERS[target]
    write: Callable[[SAE, Path], None] = getattr(import_module(module), name)
    write(sae, directory)
