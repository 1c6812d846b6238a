"""Open a text and read its documents: the embedded text, local files, or a data set of the hub.

A source is opened once (and what is wrong with it is an error then), has a fingerprint for the manifests, and can be
read any number of times, always in the same order.
"""

import glob
import hashlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lm.embedded.text import embedded_dataset
from sae_lm.errors import TextError
from sae_lm.hub.quiet import quiet
from sae_lm.hub.revision import pin

if TYPE_CHECKING:
    from datasets import IterableDatasetDict

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet"}
SUFFIXES = ", ".join(READERS)
EMBEDDED_SPLITS = ("all", "train", "held_out")
PEEKED_ROWS = 16
"""A column whose first rows are empty is still recognized."""

Rows = Iterable[dict[str, Any]]


@dataclass(frozen=True)
class Text:
    id: str
    """As the user named it; of a local path only the last part."""
    split: str | None
    """None for local files, which have no splits."""
    column: str
    fingerprint: str
    """The commit of a hub data set; else a sha256 of the contents."""
    rows: Rows = field(repr=False, compare=False)

    def documents(self) -> Iterator[str]:
        """Each text in order, without the empty ones. Raises TextError at the end if there was none."""
        empty = True
        for row in _guarded(self.rows, self.id):
            text = row.get(self.column)
            if text is None or text == "":
                continue
            if not isinstance(text, str):
                raise _not_text(self.id, self.column, text)
            if not text.isspace():
                empty = False
                yield text
        if empty:
            raise _empty(self.id)


def open_text(text: str, split: str | None = None, column: str | None = None, revision: str | None = None) -> Text:
    """Open ``embedded``, a local file or folder, or a hub data set (``ID``, or ``ID:CONFIGURATION``).

    One .txt file on disk is one document; elsewhere a row is one (so of .txt files on the hub, a line).

    split: of a hub data set, ``train`` unless given; of ``embedded``: all (the default), train or held_out.
    column: ``text`` unless given, or the only column that holds strings.
    revision: of a hub data set.
    """
    path = Path(os.path.expanduser(text))
    rows: Rows
    if text == "embedded":
        split = split or "all"
        _check_split(text, split, EMBEDDED_SPLITS)
        dataset = embedded_dataset(split)
        rows = dataset.to_list()
        fingerprint = _digest(dataset["text"])
    elif text and os.path.exists(path):
        name = os.path.basename(os.path.abspath(path))  # no path of this machine in a manifest
        text = os.fsencode(name).decode(errors="replace")
        if split is not None:
            raise TextError(f"{text}: got split {split!r}, but local files have no splits; leave it out")
        try:
            files = _files(path)
            fingerprint = _digest_files(files)
        except OSError as error:
            raise _unreadable(text, error) from error
        rows = _load_files(files, text)
    elif text.startswith(("./", "../", "/", "~", os.sep)) or path.suffix.lower() in READERS:
        raise TextError(f"no such file or folder: {text!r}; check the path")
    else:
        split = split or "train"
        repo_id, _, config = (text, "", "") if "://" in text else text.partition(":")
        pinned = pin(repo_id, "dataset", revision)
        fingerprint = pinned.revision
        source = (repo_id, pinned.revision) if pinned.local is None else (str(pinned.local), None)
        splits = _load_hub(text, *source, config or None)
        _check_split(text, split, map(str, splits))
        rows = _HubRows(splits[split])
    return Text(text, split, _choose_column(text, rows, column), fingerprint, rows)


def _files(path: Path) -> dict[str, Path]:
    """Relative name -> file, sorted by name."""
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise TextError(f"{path.name}: got suffix {path.suffix!r}, expected one of {SUFFIXES}; convert the file")
        return {path.name: path}
    below = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    files = {
        name: below[name]
        for name in sorted(below)
        if below[name].suffix.lower() in READERS and not any(part.startswith(".") for part in name.split("/"))
    }
    kinds = sorted({READERS[file.suffix.lower()] for file in files.values()})
    if not files:
        raise TextError(f"{path}: no file to read in this folder; expected files named {SUFFIXES}")
    if len(kinds) > 1:
        raise TextError(
            f"{path}: got files of several kinds ({', '.join(kinds)}), expected one kind; "
            "name one file or a folder with one kind"
        )
    return files


def _load_files(files: dict[str, Path], name: str) -> Rows:
    from datasets import config, load_dataset

    # A file name is taken as a pattern, and a file without a byte as an error.
    patterns = [glob.escape(os.path.abspath(file)) for file in files.values() if file.stat().st_size]
    if not patterns:
        raise _empty(name)
    reader = READERS[next(iter(files.values())).suffix.lower()]
    options: dict[str, Any] = {"sample_by": "document"} if reader == "text" else {}
    counted = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else a distant server is asked to count each local read
    try:
        with quiet("datasets"):
            return load_dataset(reader, data_files=patterns, split="train", streaming=True, **options)
    except Exception as error:
        raise _unreadable(name, error) from error
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counted


def _load_hub(name: str, source: str, revision: str | None, config: str | None) -> "IterableDatasetDict":
    from datasets import load_dataset

    try:
        with quiet("datasets"):
            return load_dataset(source, config, revision=revision, streaming=True)
    except Exception as error:
        hint = "" if config else "; a configuration is chosen as ID:CONFIGURATION"
        raise _unreadable(name, error, hint) from error


class _HubRows:
    """Rows of the hub, which are fetched while they are read: each is read quietly.

    For each row alone, since a reader may stop at any of them or read on much later.
    """

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __iter__(self) -> Iterator[dict[str, Any]]:
        iterator = iter(self.rows)
        while True:
            with quiet("datasets"):
                row = next(iterator, None)
            if row is None:
                return
            yield row


def _guarded(rows: Rows, name: str) -> Iterator[dict[str, Any]]:
    """The rows; whatever the readers raise on the way (damage, encoding, network) becomes a TextError."""
    iterator = iter(rows)
    while True:
        try:
            row = next(iterator)
        except StopIteration:
            return
        except Exception as error:
            raise _unreadable(name, error) from error
        yield row


def _check_split(name: str, split: str, splits: Iterable[str]) -> None:
    known = list(splits)
    if split not in known:
        raise TextError(f"{name}: got split {split!r}, expected one of {', '.join(known)}")


def _choose_column(name: str, rows: Rows, wanted: str | None) -> str:
    """Decided on the first rows, since a streamed data set often does not know its columns."""
    head = list(islice(_guarded(rows, name), PEEKED_ROWS))
    if not head:
        raise _empty(name)
    columns = list(dict.fromkeys(column for row in head for column in row))
    strings = [column for column in columns if any(isinstance(row.get(column), str) for row in head)]
    if wanted is None and "text" not in columns and len(strings) != 1:
        raise TextError(
            f"{name}: cannot tell which column holds the text, got columns {', '.join(columns)}; name one with --text-column"
        )
    column = wanted or ("text" if "text" in columns else strings[0])
    if column not in columns:
        raise TextError(f"{name}: got column {column!r}, expected one of {', '.join(columns)}")
    for row in head:
        if not isinstance(row.get(column), str | None):
            raise _not_text(name, column, row[column])
    return column


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(b"%d\n" % len(encoded) + encoded)  # the length keeps "a", "bc" apart from "ab", "c"
    return digest.hexdigest()


def _digest_files(files: dict[str, Path]) -> str:
    digest = hashlib.sha256()
    for name, file in files.items():
        digest.update(f"{name}\n{file.stat().st_size}\n".encode(errors="surrogateescape"))
        with file.open("rb") as stream:
            while chunk := stream.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()


def _empty(name: str) -> TextError:
    return TextError(f"empty text: {name} holds no document with any text in it; name another source or column")


def _not_text(name: str, column: str, value: object) -> TextError:
    return TextError(f"{name}: got {type(value).__name__} in column {column!r}, expected text; name another column")


def _unreadable(name: str, error: Exception, hint: str = "") -> TextError:
    reason = re.sub(r"//[^/\s@]*@", "//", " ".join(str(error).split()))[:300]  # an address may hold a password
    return TextError(f"{name}: cannot be read, {type(error).__name__}: {reason}{hint}")
