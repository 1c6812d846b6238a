"""Find a language model by name, and read its configuration and its tokenizer; nothing heavy is loaded."""

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

from sae_lm.embedded import MODEL_DIR
from sae_lm.errors import ModelError, SaeLmError, SaeLmWarning
from sae_lm.fields import with_home
from sae_lm.hub.quiet import overheard, quiet
from sae_lm.hub.revision import pin


class ModelSource(NamedTuple):
    """Where a language model is loaded from, and what is recorded of it."""

    location: str
    """a folder, or a hub id"""
    id: str
    """``embedded``, a hub id, or the last part of a folder's path: no path of this machine is recorded"""
    revision: str | None
    """full commit hash; None for folders"""

    @property
    def is_local(self) -> bool:
        return Path(self.location).is_dir()


def find_model(name: str, revision: str | None = None) -> ModelSource:
    """``embedded``, a folder in Hugging Face format, or a hub id, pinned. Nothing is loaded yet.

    Raises ModelError for a folder that holds no model and for a revision of what has none, HubError for what the hub
    does not have.
    """
    folder = Path(with_home(name))
    if revision is not None and (name == "embedded" or folder.is_dir()):
        raise ModelError(
            f"model {name!r} is {'built in' if name == 'embedded' else 'a folder'} and has no revisions, got revision "
            f"{revision!r}; leave the revision out, or give a hub id"
        )
    if name == "embedded":
        return ModelSource(str(MODEL_DIR), name, None)
    if not folder.is_dir():
        pinned = pin(name, "model", revision)
        return ModelSource(str(pinned.local or name), name, pinned.revision)
    if not (folder / "config.json").is_file():
        raise ModelError(
            f"model {name!r} is a folder without config.json; give a Hugging Face model folder, a hub id or `embedded`"
        )
    return ModelSource(str(folder), folder.resolve().name, None)


def read_config(source: ModelSource) -> Any:
    """config.json of a model. Raises ModelError where it cannot be read or knows no layers."""
    from transformers import AutoConfig

    with loading_quietly(source, "a configuration that can be read"):
        config = language_config(AutoConfig.from_pretrained(source.location, revision=source.revision))
    for key in ("num_hidden_layers", "hidden_size", "vocab_size"):
        if not isinstance(getattr(config, key, None), int):
            raise ModelError(
                f"model {source.id!r} ({type(config).__name__}) names no {key}; expected a language model of one stack of blocks"
            )
    return config


def language_config(config: Any) -> Any:
    """A model's configuration, or of a model that sees or hears as well the part about its language model.

    That part keeps the name of the whole model's architecture.
    """
    nested = config.get_text_config() if hasattr(config, "get_text_config") else config
    if nested is config:
        return config
    nested = copy(nested)
    nested.architectures = config.architectures
    return nested


def load_tokenizer(source: ModelSource) -> Any:
    """The tokenizer as it was saved; not to be changed. A bridge's own has BOS and EOS added where the model knows none.

    The same object for the same files, within a thread: the library tokenizers (0.23) keeps what each one that was used
    has encoded, some MB, until the process ends.
    """
    written: tuple[Any, ...] = ()
    if source.is_local:
        folder = Path(source.location).resolve()
        source = source._replace(location=str(folder))
        files = sorted(path for path in folder.iterdir() if path.is_file())
        written = tuple((path.name, (about := path.stat()).st_mtime_ns, about.st_size) for path in files)
    tokenizer, said = _tokenizer(source, written, threading.get_ident())
    for warning in said:
        warnings.warn(warning, stacklevel=2)
    return tokenizer


def saved_tokenizer(bridge: Any) -> Any:
    """The tokenizer of a bridge as ``load_tokenizer`` gives it; the bridge's own where no files of it are found.

    One that was made in memory has no name, and the files in the working directory are not its own.
    """
    tokenizer, config = bridge.tokenizer, bridge.original_model.config
    if not (name := getattr(tokenizer, "name_or_path", "")):
        return tokenizer
    of_model = name == getattr(config, "_name_or_path", "")
    try:
        return load_tokenizer(ModelSource(name, name, getattr(config, "_commit_hash", None) if of_model else None))
    except ModelError:
        return tokenizer


@lru_cache(maxsize=4)
def _tokenizer(source: ModelSource, written: tuple[Any, ...], thread: int) -> tuple[Any, list[Any]]:
    """The tokenizer, and what is warned of it. written: when files of a folder were; a commit of the hub stays what it is."""
    from transformers import AutoTokenizer

    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always", SaeLmWarning)
        with loading_quietly(source, "a tokenizer that can be loaded; save one beside it"):
            tokenizer = AutoTokenizer.from_pretrained(source.location, revision=source.revision)
    return tokenizer, [one.message for one in said]


@contextmanager
def loading_quietly(source: ModelSource, expected: str) -> Iterator[None]:
    """No progress bars and load reports inside the block; whatever transformers raises becomes one sentence.

    What it warns of tokenizers becomes a SaeLmWarning each, behind the block.

    expected: what should have been there. Raises ModelError.
    """
    try:
        with quiet("transformers"), overheard("tokeniz") as said:  # a bar would not become lines in a pipe
            yield
        for line in said:
            warnings.warn(f"the tokenizer of model {source.id!r}: {line}", SaeLmWarning, stacklevel=3)
    except SaeLmError:
        raise
    except Exception as problem:  # transformers raises OSError, ValueError, KeyError, SafetensorError, ...
        reason = " ".join(str(problem).split())[:300]
        raise ModelError(
            f"model {source.id!r} cannot be loaded ({type(problem).__name__}: {reason}); expected {expected}"
        ) from problem
