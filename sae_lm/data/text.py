"""Open a text and read its documents: the embedded text, local files, or a data set of the hub.

A source is opened once (and what is wrong with it is an error then), has a fingerprint for the manifests, and can be
read any number of times, always in the same order.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sae_lm.data.local_copy import check_local_copy
from sae_lm.data.manifest import MANIFEST
from sae_lm.data.pieces import Chunk
from sae_lm.data.readers import READERS, Files, Listed, Row, Rows, Streamed, kind_of
from sae_lm.embedded.text import embedded_split
from sae_lm.errors import TextError
from sae_lm.fields import with_home
from sae_lm.hub.quiet import quiet
from sae_lm.hub.revision import pin

if TYPE_CHECKING:
    from datasets import IterableDatasetDict

SUFFIXES = f"{', '.join(READERS)} (all but .json and .parquet also as .gz or .zst)"
EMBEDDED_SPLITS = ("all", "train", "held_out")
PEEKED_ROWS = 16
"""A column whose first rows are empty is still recognized."""


LONGEST_NAME = 256
"""Characters, above which a string is a text and no name of one."""
LIKE_A_PATH = re.compile(r"(~[\w.-]*|\.{0,2})/\S")
LIKE_A_NAME = re.compile(r"[\w.~][\w.~/\\:@-]*[\w/]", re.ASCII)
"""A hub id or a path, which a sentence is not: the first has spaces, one of Chinese or Japanese no such letters."""

DAY = "2024-07-26"
"""The day that chat templates are told it is: a text stays the same whenever it is read."""
_WRITTEN = {"%Y": "2024", "%y": "24", "%m": "07", "%B": "July", "%b": "Jul", "%d": "26", "%j": "208", "%A": "Friday",
            "%a": "Fri", "%F": DAY, "%H": "00", "%M": "00", "%S": "00"}  # fmt: skip
_SAME_DAY = "{% macro strftime_now(format) %}{{ format"
_SAME_DAY += "".join(f"|replace('{code}', '{written}')" for code, written in _WRITTEN.items())
_SAME_DAY += " }}{% endmacro %}"
"""Takes the place of the function of transformers; jinja drops the line end behind it."""

IDS = 2**31
"""Ids of tokens are below: they are kept in 32 bits."""


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
    chats: bool = False
    """whether rows are chats"""
    template: Callable[[Any], str] | None = field(default=None, repr=False, compare=False)
    """what makes text of a chat's messages"""
    template_sha256: str | None = None
    """of the chat template, where rows are chats: the text depends on it"""
    dated: bool = False
    """whether rows are chats into which the template writes today's date: `DAY` is written instead"""
    file: Path | None = field(default=None, repr=False, compare=False)
    """of a text of one local file"""

    def with_chats_of(self, tokenizer: Any) -> "Text":
        """The same text, whose chats are written as this tokenizer's template does."""
        template = getattr(tokenizer, "chat_template", None)
        if template is None:
            return self
        written, default = template, template
        if not isinstance(template, str):
            written, default = json.dumps(template, sort_keys=True), template.get("default", "")
        digest = hashlib.sha256(written.encode()).hexdigest() if self.chats else None
        asks = "strftime_now" in default
        of_one_day = f"{_SAME_DAY}\n{default}" if asks else None
        return replace(
            self,
            template=lambda chat: tokenizer.apply_chat_template(chat, tokenize=False, chat_template=of_one_day),
            template_sha256=digest,
            dated=asks and self.chats,
        )

    def known_as(self, recorded: Mapping[str, Any]) -> "Text":
        """The same text with the fingerprint that a store records, where an earlier version took in its file's name."""
        if self.file is None or recorded.get("fingerprint") in (None, self.fingerprint):
            return self
        earlier = _digest_files({str(recorded.get("id")): self.file})
        return replace(self, fingerprint=earlier) if earlier == recorded["fingerprint"] else self

    def facts(self) -> dict[str, str | None]:
        """For a store's recipe: what its documents depend on."""
        facts = {"id": self.id, "split": self.split, "column": self.column, "fingerprint": self.fingerprint}
        of_chats = {"chat_template_sha256": self.template_sha256, "chat_day": DAY if self.dated else None}
        return facts | {key: value for key, value in of_chats.items() if value}

    def chunks(self, place: Any = None, inside: bool = False) -> Iterator[Chunk]:
        """Documents in order, as far apart as they are read; those of white space alone are left out.

        place: of the chunk to begin with; ``inside``: in a document that has begun before, not white space alone.
        Raises TextError where the text cannot be read, and at the end if there was none.
        """
        blank: list[Chunk] = []  # a document's beginning, while it is white space
        empty = place is None
        for row in _guarded(self.rows.read(place, self.column), self.id):
            content = self._content(row.values.get(self.column))
            chunk = Chunk(row.place, content, row.ends)
            if not inside and (not content or (isinstance(content, str) and content.isspace())):
                blank = [] if row.ends else [*blank, chunk]
                continue
            empty = False
            yield from blank
            yield chunk
            blank, inside = [], not row.ends
        if empty:
            raise _empty(self.id)

    def documents(self) -> Iterator[str]:
        """Each text in order, whole, without the empty ones. Raises TextError as ``chunks`` does."""
        parts: list[str] = []
        for chunk in self.chunks():
            if not isinstance(chunk.content, str):
                raise TextError(
                    f"{self.id}: column {self.column!r} holds token ids, which are no text; name another column"
                )
            parts.append(chunk.content)
            if chunk.ends:
                yield "".join(parts)
                parts = []

    def _content(self, value: Any) -> str | list[int]:
        """What is tokenized of a row's value: text, a chat as text, or token ids as they are."""
        if value is None or isinstance(value, str) or value == []:
            return value or ""
        if _is_tokens(value):
            if not -IDS <= min(value) <= max(value) < IDS:
                raise TextError(
                    f"{self.id}: column {self.column!r} has the token id {max(value, key=abs)}, expected ids of the model's "
                    "tokens; name another column"
                )
            return value
        if not _is_chat(value):
            raise _not_text(self.id, self.column, value)
        if self.template is None:
            raise TextError(
                f"{self.id}: column {self.column!r} holds chats, and the tokenizer has no chat template to write them as text; "
                "take the model's instruct version, or name a column of text with --text-column"
            )
        try:
            written = self.template(value)
            written.encode()  # half a character cannot be tokenized
            return written
        except UnicodeEncodeError as error:
            raise _unreadable(self.id, error) from error
        except Exception as error:  # a template refuses roles by jinja's errors, of several kinds
            raise _unreadable(self.id, error, "; the tokenizer's chat template does not take this chat") from error


def open_text(text: str, split: str | None = None, column: str | None = None, revision: str | None = None) -> Text:
    """Open ``embedded``, a local file or folder, or a hub data set (``ID``, or ``ID:CONFIGURATION``).

    One .txt file on disk is one document; elsewhere a row is one (so of .txt files on the hub, a line). A row holds
    text, a chat (a list of messages with ``role`` and ``content``), or a document's token ids.

    split: of a hub data set, ``train`` unless given; of ``embedded``: all (the default), train or held_out.
    column: ``text`` unless given; else chats or token ids (`OTHER_COLUMNS`); else the only column that holds strings,
        where no other holds lists or objects.
    revision: of a hub data set.
    """
    path = Path(with_home(text))
    rows: Rows
    if text == "embedded":
        split = split or "all"
        _check_split(text, split, EMBEDDED_SPLITS)
        documents = embedded_split(split)
        rows = Listed([document._asdict() for document in documents])
        fingerprint = _digest(document.text for document in documents)
    elif text and os.path.exists(path):
        name = os.path.basename(os.path.abspath(path))  # no path of this machine in a manifest
        text = os.fsencode(name).decode(errors="replace")
        if split is not None:
            raise TextError(f"{text}: got split {split!r}, but local files have no splits; leave it out")
        if (path / MANIFEST).is_file() and (path / "tokens").is_dir():
            raise TextError(
                f"{text} is an activation store, whose files are no text; give the text that it was made of"
            )
        try:
            files = _files(path)
            fingerprint = _digest_files(files)
        except OSError as error:
            raise _unreadable(text, error) from error
        rows = _readers_of(files, text)
    elif text.startswith(("./", "../", "/", "~", os.sep)) or kind_of(path):
        raise TextError(f"no such file or folder: {text!r}; check the path")
    else:
        split = split or "train"
        repo_id, _, config = (text, "", "") if "://" in text else text.partition(":")
        pinned = pin(repo_id, "dataset", revision)
        fingerprint = pinned.revision
        source = (repo_id, pinned.revision) if pinned.local is None else (str(pinned.local), None)
        splits = _load_hub(text, *source, config or None)
        _check_split(text, split, map(str, splits))
        if pinned.local is not None:
            check_local_copy(text, pinned.local, config or None, split)
        rows = Streamed(splits[split])
    chosen, chats = _choose_column(text, rows, column)
    return Text(text, split, chosen, fingerprint, rows, chats, file=path if split is None and path.is_file() else None)


def names_a_text(text: str) -> bool:
    """Whether ``open_text`` is meant, where a string could be a text itself: what is there, or reads like a name.

    A path that is not there counts, so that a slip in it is told and not measured.
    """
    if text == "embedded" or os.path.exists(with_home(text)):
        return True
    of_one_line = "\n" not in text and len(text) < LONGEST_NAME
    return of_one_line and bool(LIKE_A_PATH.match(text) or LIKE_A_NAME.fullmatch(text) or kind_of(Path(text)))


def _files(path: Path) -> dict[str, Path]:
    """Relative name -> file, sorted by name."""
    if path.is_file():
        if kind_of(path) is None:
            raise TextError(f"{path.name}: got suffix {path.suffix!r}, expected one of {SUFFIXES}; convert the file")
        return {"": path}  # a copy may have another name, and is the same text
    below = {file.relative_to(path).as_posix(): file for file in path.rglob("*") if file.is_file()}
    files = {
        name: below[name]
        for name in sorted(below)
        if kind_of(below[name]) and not any(part.startswith(".") for part in name.split("/"))
    }
    kinds = sorted({str(kind_of(file)) for file in files.values()})
    if not files:
        raise TextError(f"{path}: no file to read in this folder; expected files named {SUFFIXES}")
    if len(kinds) > 1:
        raise TextError(
            f"{path}: got files of several kinds ({', '.join(kinds)}), expected one kind; "
            "name one file or a folder with one kind"
        )
    return files


def _readers_of(files: dict[str, Path], name: str) -> Rows:
    paths = [file for file in files.values() if file.stat().st_size]
    if not paths:
        raise _empty(name)
    return Files(paths)


def _load_hub(name: str, source: str, revision: str | None, config: str | None) -> "IterableDatasetDict":
    from datasets import load_dataset

    try:
        with quiet("datasets"):
            return load_dataset(source, config, revision=revision, streaming=True)
    except Exception as error:
        hint = "" if config else "; a configuration is chosen as ID:CONFIGURATION"
        raise _unreadable(name, error, hint) from error


def _guarded(iterator: Iterator[Row], name: str) -> Iterator[Row]:
    """The rows; whatever the readers raise on the way (damage, encoding, network) becomes a TextError."""
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


def _choose_column(name: str, rows: Rows, wanted: str | None) -> tuple[str, bool]:
    """The column, and whether it holds chats. Decided on the first rows, since a streamed data set often does not know its columns."""
    head = [row.values for row in islice(_guarded(rows.read(), name), PEEKED_ROWS)]
    if not head:
        raise _empty(name)
    columns = list(dict.fromkeys(column for row in head for column in row))
    column = wanted or ("text" if "text" in columns else _told_by_its_values(name, head, columns))
    if column not in columns:
        raise TextError(f"{name}: got column {column!r}, expected one of {', '.join(columns)}")
    for row in head:
        value = row.get(column)
        if not (isinstance(value, str | None) or value == [] or _is_chat(value) or _is_tokens(value)):
            raise _not_text(name, column, value)
    return column, _holds(head, column, _is_chat)


def _told_by_its_values(name: str, head: list[dict[str, Any]], columns: list[str]) -> str:
    """The column of a text that has none called ``text``. Raises TextError where it could be more than one, or none.

    Chats and token ids come first: the strings beside them are where a row comes from, its number, its language.
    """
    for column, of_kind in OTHER_COLUMNS:
        if _holds(head, column, of_kind):
            return column
    strings = [column for column in columns if _holds(head, column, lambda value: isinstance(value, str))]
    nested = [column for column in columns if _holds(head, column, lambda value: isinstance(value, list | dict))]
    if len(strings) == 1 and not nested:
        return strings[0]
    what = "cannot tell which column holds the text" if strings else "no column holds text, chats or token ids"
    if len(strings) == 1:  # which may be a mere name of what the others hold
        what += f" ({strings[0]} has strings, {', '.join(nested)} lists or objects that are no chats or token ids)"
    raise TextError(f"{name}: {what}, got columns {', '.join(columns)}; name one with --text-column")


def _is_chat(value: Any) -> bool:
    """Messages, each {"role": ..., "content": ...}."""
    return (
        isinstance(value, list)
        and bool(value)
        and all(isinstance(m, dict) and {"role", "content"} <= set(m) for m in value)
    )


def _is_tokens(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(type(token) is int for token in value)


OTHER_COLUMNS = (
    ("messages", _is_chat),
    ("conversations", _is_chat),
    ("conversation", _is_chat),
    ("input_ids", _is_tokens),
)
"""Columns that are taken where none is called ``text``, the first that holds its kind."""


def _holds(head: list[dict[str, Any]], column: str, of_kind: Callable[[Any], bool]) -> bool:
    return any(of_kind(row.get(column)) for row in head)


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
