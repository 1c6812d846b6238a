"""Read rows of local files and of streamed data sets, from their beginning or from any row read before.

A reader is made once and read any number of times. Each row comes with its place: JSON from which the same reader,
in another process as well, goes on with that row. Plain text has no rows, so its chunks stand for them: what is in
memory is bounded, whatever the size of a file.
"""

import codecs
import csv
import glob
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol, runtime_checkable

from sae_lm.hub.quiet import quiet
from sae_lm.runtime.files import parse_json

TEXT_BYTES = 1 << 17
"""Bytes of plain text to a chunk."""
PARQUET_ROWS = 64
"""Rows of a parquet file made into Python objects at once."""
STATE_ROWS = 32
"""Rows of a stream between two states of it, which take longer to copy than a row takes to read."""

LONGEST_FIELD = (1 << 31) - 1
"""Characters of a CSV field, at most; the csv module's own limit is 131,072."""

READERS = {".txt": "text", ".jsonl": "json", ".json": "json", ".parquet": "parquet", ".csv": "csv"}
COMPRESSED = {".gz": "gzip", ".zst": "zstd"}
"""Suffix behind that of a text, JSON lines or CSV file -> what pyarrow calls it."""


class Row(NamedTuple):
    place: Any
    """JSON: where this row begins"""
    values: dict[str, Any]
    """column -> value"""
    ends: bool
    """False where the next row goes on with the same document"""


@runtime_checkable
class Rows(Protocol):
    def read(self, place: Any = None, column: str | None = None) -> Iterator[Row]:
        """Rows from ``place`` on (default: all). column: the only one that is needed."""
        ...

    def knows(self, place: Any) -> bool:
        """Whether a place that another process noted can be gone on from."""
        ...


class Listed:
    """Rows that are in memory."""

    def __init__(self, rows: list[dict[str, Any]]) -> None:
        self.rows = rows

    def read(self, place: Any = None, column: str | None = None) -> Iterator[Row]:
        for number in range(place or 0, len(self.rows)):
            yield Row(number, self.rows[number], True)

    def knows(self, place: Any) -> bool:
        return True


class Streamed:
    """Rows of a ``datasets.IterableDataset``. Each is read quietly, for itself: a reader may stop at any of them."""

    def __init__(self, dataset: Any) -> None:
        from datasets import __version__

        self.dataset, self.version = dataset, __version__

    def knows(self, place: Any) -> bool:
        return place[0] == self.version  # the state of a stream is the library's own

    def read(self, place: Any = None, column: str | None = None) -> Iterator[Row]:
        _, state, skipped = place or (self.version, None, 0)
        dataset = copy(self.dataset)  # in which a state that is loaded stays
        if state is not None:
            dataset.load_state_dict(state)
        iterator, count = iter(dataset), 0
        while True:
            if not count % STATE_ROWS and count >= skipped and hasattr(dataset, "state_dict"):
                state, skipped, count = dataset.state_dict() if count else state, 0, 0
            with quiet("datasets"):
                values = next(iterator, None)
            if values is None:
                return
            if count >= skipped:
                yield Row([self.version, state, count], values, True)
            count += 1


@dataclass(frozen=True)
class Files:
    """Local files of one kind, one after another."""

    paths: list[Path]

    def read(self, place: Any = None, column: str | None = None) -> Iterator[Row]:
        number, inside = place or (0, None)
        for index in range(number, len(self.paths)):
            path, rows, lacking = self.paths[index], 0, 0
            for row in _reader(path)(path, inside, column):
                rows, lacking = rows + 1, lacking + (column not in row.values)
                yield Row([index, row.place], row.values, row.ends)
            if rows and rows == lacking and column is not None and inside is None:
                raise ValueError(f"{path.name} has no column {column!r}, as other files here have; leave that file out")
            inside = None

    def knows(self, place: Any) -> bool:
        return True


def kind_of(path: Path) -> str | None:
    """``text``, ``json``, ``csv`` or ``parquet``; None for a file that no reader is for."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    packed = bool(suffixes) and suffixes[-1] in COMPRESSED
    kind = READERS.get(suffixes[-2] if packed and len(suffixes) == 2 else suffixes[-1] if suffixes else "")
    return None if packed and (kind == "parquet" or len(suffixes) < 2) else kind


def _reader(path: Path) -> Callable[[Path, Any, str | None], Iterator[Row]]:
    kind = kind_of(path)
    if kind == "json" and not _holds_lines(path):
        return _json_documents
    return {"text": _text, "json": _json_lines, "csv": _csv, "parquet": _parquet}[str(kind)]


@contextmanager
def _bytes_of(path: Path, start: int = 0) -> Iterator[Any]:
    """A file's bytes from ``start`` on, decompressed where its suffix says so (then those before are read as well)."""
    packing = COMPRESSED.get(path.suffix.lower())
    if packing is None:
        with path.open("rb") as stream:
            stream.seek(start)
            yield stream
        return
    import pyarrow

    with pyarrow.input_stream(str(path), compression=packing) as stream:
        while start > 0 and (read := len(stream.read(min(start, 1 << 20)))):
            start -= read
        yield stream


def _lines(stream: Any) -> Iterator[bytes]:
    """Lines of a stream of bytes with their ends. What pyarrow decompresses knows no lines."""
    rest: list[bytes] = []
    while chunk := stream.read(1 << 20):
        *whole, last = chunk.split(b"\n")
        for line in whole:
            yield b"".join([*rest, line, b"\n"])
            rest = []
        rest.append(last)
    if any(rest):
        yield b"".join(rest)


def _text(path: Path, place: Any, column: str | None) -> Iterator[Row]:
    """Chunks of one document, line ends as Python reads them: \\n for \\r\\n and \\r. The last may be empty."""
    at, rest = int(place or 0), b""
    with _bytes_of(path, at) as stream:
        # with what is left over a chunk has TEXT_BYTES, so that it depends on its place alone
        while chunk := stream.read(TEXT_BYTES - len(rest)):
            decoder = codecs.getincrementaldecoder("utf-8" if at else "utf-8-sig")()  # a byte order mark is no text
            content = rest + chunk
            text = decoder.decode(content)
            rest = decoder.getstate()[0]  # a character whose last bytes are in the next chunk
            if text.endswith("\r"):
                text, rest = text[:-1], b"\r" + rest
            if text:
                yield Row(at, {"text": _with_line_ends(text)}, False)
            at += len(content) - len(rest)
        yield Row(at, {"text": _with_line_ends(rest.decode("utf-8"))}, True)


def _with_line_ends(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\r", "\n") if "\r" in text else text


def _holds_lines(path: Path) -> bool:
    """Whether a JSON file has an object on each line; else it is read whole, as one array or as objects over lines."""
    with _bytes_of(path) as stream:
        first = next((line for line in _lines(stream) if line.strip()), b"")
    try:
        return isinstance(parse_json(first), dict)
    except ValueError:
        return False


def _json_lines(path: Path, place: Any, column: str | None) -> Iterator[Row]:
    at = int(place or 0)
    with _bytes_of(path, at) as stream:
        for line in _lines(stream):
            if line.strip():
                values = parse_json(line)
                if not isinstance(values, dict):
                    raise ValueError(f"the line at byte {at} holds a JSON {type(values).__name__}, expected an object")
                if b"\\ud" in line.lower() and isinstance(value := values.get(column), str):
                    value.encode()  # half a character cannot be tokenized
                yield Row(at, values, True)
            at += len(line)


def _json_documents(path: Path, place: Any, column: str | None) -> Iterator[Row]:
    """JSON that is not one object a line: by the reader of datasets, which holds such a file in memory."""
    for number, values in enumerate(_read_by_datasets("json", path)):
        if number >= int(place or 0):
            yield Row(number, values, True)


def _parquet(path: Path, place: Any, column: str | None) -> Iterator[Row]:
    import pyarrow.parquet

    first, skipped = place or (0, 0)
    with pyarrow.parquet.ParquetFile(path) as file:
        for group in range(first, file.num_row_groups):
            number = 0
            for batch in file.iter_batches(PARQUET_ROWS, row_groups=[group], columns=[column] if column else None):
                if number + len(batch) > skipped:
                    for place_in_batch, values in enumerate(batch.to_pylist()):
                        if number + place_in_batch >= skipped:
                            yield Row([group, number + place_in_batch], values, True)
                number += len(batch)
            skipped = 0


def _csv(path: Path, place: Any, column: str | None) -> Iterator[Row]:
    """The first record that is not blank names the columns. Fields may hold line ends between quotes; all are text."""
    with _bytes_of(path) as stream:
        lines = _CountedLines(stream)
        records = csv.reader(lines)
        while not (head := _record(records)):
            if head is None:
                return
    at = lines.at if place is None else int(place)
    with _bytes_of(path, at) as stream:
        lines = _CountedLines(stream, at)
        records = csv.reader(lines)
        while (record := _record(records)) is not None:
            if record and len(record) != len(head):
                raise ValueError(f"the record at byte {at} has {len(record)} fields, expected {len(head)}")
            if record:
                yield Row(at, dict(zip(head, record, strict=True)), True)
            at = lines.at


class _CountedLines:
    """Lines of a stream as text, without a file's byte order mark, and at which byte the next one begins."""

    def __init__(self, stream: Any, at: int = 0) -> None:
        self.lines, self.at = _lines(stream), at

    def __iter__(self) -> "_CountedLines":
        return self

    def __next__(self) -> str:
        line = next(self.lines)
        text = line.decode("utf-8" if self.at else "utf-8-sig")
        self.at += len(line)
        return text


def _record(records: Any) -> list[str] | None:
    limit = csv.field_size_limit(LONGEST_FIELD)  # of the whole process, which belongs to the user
    try:
        return next(records, None)
    finally:
        csv.field_size_limit(limit)


def _read_by_datasets(reader: str, path: Path) -> Iterable[dict[str, Any]]:
    from datasets import config, load_dataset

    counted = config.HF_UPDATE_DOWNLOAD_COUNTS
    config.HF_UPDATE_DOWNLOAD_COUNTS = False  # else a distant server is asked to count each local read
    try:
        with quiet("datasets"):  # which takes a file's name as a pattern
            return load_dataset(reader, data_files=glob.escape(str(path.absolute())), split="train", streaming=True)
    finally:
        config.HF_UPDATE_DOWNLOAD_COUNTS = counted
