"""Local files and the embedded text. What needs a hub is in test_hub.py."""

import io
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow
import pyarrow.parquet
import pytest
from text_rows import documents, message, write_rows

from sae_lm.data import readers
from sae_lm.data.text import open_text
from sae_lm.embedded import text as embedded
from sae_lm.errors import HubError, TextError


@pytest.fixture(autouse=True)
def local_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Caches go to a folder of the test, and any attempt to reach a network fails it."""
    from datasets import config

    attempts: list[object] = []

    def refuse(*address: object, **options: object) -> None:
        attempts.append(address)
        raise OSError("no network in this test")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    monkeypatch.setattr(config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(config, "HF_UPDATE_DOWNLOAD_COUNTS", True)
    yield
    assert not attempts
    assert config.HF_UPDATE_DOWNLOAD_COUNTS is True, "the setting of the user was not put back"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def test_one_txt_file_is_one_document(folder: Path) -> None:
    (folder / "a.txt").write_text("first line\n\nsecond paragraph\n")
    text = open_text(str(folder / "a.txt"))
    assert documents(text) == ["first line\n\nsecond paragraph\n"]
    assert (text.id, text.split, text.column) == ("a.txt", None, "text")


@pytest.mark.parametrize("suffix", [".jsonl", ".json", ".parquet", ".JSONL"])
def test_rows_of_a_file_are_documents_and_empty_ones_are_skipped(folder: Path, suffix: str) -> None:
    rows = [{"text": "one"}, {"text": None}, {"text": ""}, {"text": " \n"}, {"text": "two"}]
    assert documents(open_text(str(write_rows(folder / f"a{suffix}", *rows)))) == ["one", "two"]


def test_a_folder_is_read_in_order_of_names_and_the_same_way_again(folder: Path) -> None:
    for name in ("b/2", "b", "a", "10", "9"):
        (folder / name).parent.mkdir(exist_ok=True, parents=True)
        (folder / f"{name}.txt").write_text(f"document {name}")
    (folder / ".hidden.txt").write_text("not a document")
    (folder / "notes.md").write_text("not a document")
    text = open_text(str(folder))
    assert documents(text) == [f"document {name}" for name in ("10", "9", "a", "b", "b/2")]
    assert documents(text) == documents(text)
    assert text.id == "corpus"


def test_names_that_look_like_patterns_are_read_as_they_are(folder: Path) -> None:
    (folder / "we[i]rd").mkdir()
    (folder / "we[i]rd" / "a[1]*.txt").write_text("odd")
    (folder / "we[i]rd" / "empty.txt").write_text("")
    assert documents(open_text(str(folder))) == ["odd"]


def test_progress_bars_are_off_while_a_text_is_opened(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    (folder / "a.json").write_text('[{"text": "x"}]')
    datasets.enable_progress_bars()
    real, disabled = datasets.load_dataset, []

    def load_dataset(*arguments, **options):
        disabled.append(datasets.are_progress_bars_disabled())
        return real(*arguments, **options)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    open_text(str(folder))
    assert disabled == [True] and not datasets.are_progress_bars_disabled()


def test_the_id_of_a_path_is_its_last_part(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "a.txt").write_text("here")
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(folder.parent))
    assert {open_text(name).id for name in (".", f"{folder}/", "~/corpus", "../corpus")} == {"corpus"}


def test_the_fingerprint_follows_names_and_contents_only(folder: Path) -> None:
    def fingerprint() -> str:
        return open_text(str(folder)).fingerprint

    (folder / "a.txt").write_text("ab")
    (folder / "b.txt").write_text("c")
    seen = [fingerprint()]
    (folder / "a.txt").touch()
    assert fingerprint() == seen[0]
    assert open_text(str(folder.rename(folder.with_name("moved")))).fingerprint == seen[0]
    folder.with_name("moved").rename(folder)
    for change in (
        lambda: (folder / "a.txt").write_text("a"),  # then "a" + "bc": the same bytes, cut elsewhere
        lambda: (folder / "b.txt").write_text("bc"),
        lambda: (folder / "b.txt").rename(folder / "c.txt"),
    ):
        change()
        seen.append(fingerprint())
    assert len(set(seen)) == 4
    assert all(len(value) == 64 for value in seen)


def test_the_fingerprint_of_a_single_file_leaves_its_name_out(folder: Path) -> None:
    (folder / "a.txt").write_text("ab")
    (folder / "b.txt").write_text("ab")
    (folder / "c.txt").write_text("ac")
    a, b, c = (open_text(str(folder / f"{name}.txt")).fingerprint for name in "abc")
    assert a == b != c and open_text(str(folder)).fingerprint not in (a, c)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.json"])
@pytest.mark.parametrize("content", ["", "\n"])
def test_text_without_any_text_is_called_empty(folder: Path, name: str, content: str) -> None:
    (folder / name).write_text(f"[{content}]" if name == "a.json" else content)
    assert message(folder / name).startswith("TextError: empty text")


def test_a_folder_without_readable_files_names_the_suffixes(folder: Path) -> None:
    (folder / "a.md").write_text("x")
    assert ".txt, .jsonl, .json, .parquet" in message(folder)
    assert "'.md'" in message(folder / "a.md") and ".txt, .jsonl, .json, .parquet" in message(folder / "a.md")


def test_a_folder_holds_one_kind_of_file(folder: Path) -> None:
    write_rows(folder / "a.jsonl", {"text": "one"})
    write_rows(folder / "b.json", {"text": "two"})
    assert documents(open_text(str(folder))) == ["one", "two"]
    write_rows(folder / "c.parquet", {"text": "three"})
    assert "json, parquet" in message(folder)


@pytest.mark.parametrize("name", ["./nope", "../nope", "/nope/at/all", "~/nope", "nope.txt", "a/b/c.parquet"])
def test_a_missing_path_is_said_to_be_missing(name: str) -> None:
    assert message(name).startswith("TextError: no such file or folder") and name in message(name)


@pytest.mark.parametrize("name", ["a/b/c", "", "no such", "scheme://host/datasets/a/b"])
def test_what_is_neither_a_path_nor_a_hub_id_is_refused_without_a_look_up(name: str) -> None:
    with pytest.raises(HubError, match="neither an existing folder nor a hub id") as caught:
        open_text(name)
    assert repr(name) in str(caught.value)


def test_damaged_files_are_refused_in_one_sentence(folder: Path) -> None:
    (folder / "latin.txt").write_bytes("é".encode("latin-1"))
    (folder / "cut.jsonl").write_text('{"text": "whole"}\n{"text": "cu')
    (folder / "not.parquet").write_text("not parquet")
    for name in ("latin.txt", "cut.jsonl", "not.parquet"):
        assert message(folder / name).startswith(f"TextError: {name}: cannot be read")


def test_local_files_have_no_splits(folder: Path) -> None:
    (folder / "a.txt").write_text("x")
    assert "local files have no splits" in message(folder, split="train")


def test_the_embedded_text_has_three_splits(monkeypatch: pytest.MonkeyPatch) -> None:
    some = [embedded.Document("a", "ab", False), embedded.Document("b", "c", True)]
    monkeypatch.setattr(embedded, "embedded_documents", lambda: some)
    whole, train, held_out = open_text("embedded"), *(open_text("embedded", s) for s in ("train", "held_out"))
    assert [documents(text) for text in (whole, train, held_out)] == [["ab", "c"], ["ab"], ["c"]]
    assert [text.split for text in (whole, train, held_out)] == ["all", "train", "held_out"]
    assert (whole.id, whole.column) == ("embedded", "text")
    assert "all, train, held_out" in message("embedded", split="test")
    some[:] = [embedded.Document("a", "a", False), embedded.Document("b", "bc", True)]
    fingerprints = {text.fingerprint for text in (whole, train, held_out, open_text("embedded"))}
    assert len(fingerprints) == 4
    assert documents(open_text("embedded", column="name")) == ["a", "b"]


def packed(path: Path, content: bytes) -> Path:
    import pyarrow

    kind = {".gz": "gzip", ".zst": "zstd"}[path.suffix]
    with pyarrow.CompressedOutputStream(str(path), kind) as stream:
        stream.write(content)
    return path


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_text_is_read_as_what_it_holds(folder: Path, suffix: str) -> None:
    long = "".join(f"line {i} é\r\n" for i in range(60_000)).encode()
    text = open_text(str(packed(folder / f"a.txt{suffix}", long)))
    assert documents(text) == [long.decode().replace("\r\n", "\n")] and text.id == f"a.txt{suffix}"
    rows = [{"text": f"row {i}"} for i in range(3000)]
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    text = open_text(str(packed(folder / f"b.jsonl{suffix}", lines)))
    assert documents(text) == [row["text"] for row in rows]
    (folder / f"cut.jsonl{suffix}").write_bytes((folder / f"b.jsonl{suffix}").read_bytes()[:-40])
    assert message(folder / f"cut.jsonl{suffix}").startswith(f"TextError: cut.jsonl{suffix}: cannot be read")
    assert "got suffix" in message(packed(folder / f"a{suffix}", b"x"))


def test_csv_is_read_with_its_quotes_and_long_fields(folder: Path) -> None:
    long = "word " * 40_000
    (folder / "a.csv").write_text(
        f'\ufeffid,body\r\n1,"two\r\nlines, and ""quotes"""\r\n\r\n2,{long}\r\n3,NA\r\n', newline=""
    )
    text = open_text(str(folder / "a.csv"), column="body")
    assert documents(text) == ['two\r\nlines, and "quotes"', long, "NA"]
    places = [chunk.place for chunk in text.chunks()]
    for number, place in enumerate(places):
        assert ["".join(c.content) for c in text.chunks(place)] == documents(text)[number:]
    assert "cannot tell which column holds the text, got columns id, body" in message(folder / "a.csv")
    (folder / "b.csv").write_text('text\nfine\n"un"quoted,2\n')
    assert "has 2 fields, expected 1" in message(folder / "b.csv")


def test_blank_lines_before_the_names_of_columns_are_passed_over(folder: Path) -> None:
    (folder / "a.csv").write_text("\ufeff\r\n\r\ntext,n\r\none,1\r\n\r\ntwo,2\r\n", newline="")
    text = open_text(str(folder / "a.csv"))
    assert documents(text) == ["one", "two"]
    assert [chunk.content for chunk in text.chunks(list(text.chunks())[1].place)] == ["two"]
    (folder / "b.csv").write_text("\n\n")
    assert "empty text: b.csv" in message(folder / "b.csv")


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".json", ".parquet", ".csv"])
def test_every_reader_goes_on_from_every_place(folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch) -> None:
    from sae_lm.data import readers

    monkeypatch.setattr(readers, "TEXT_BYTES", 7)
    rows = [{"text": f"document {i} ж\r\n€ 🙂 " * (i % 5 + 1)} for i in range(200)]
    for name in ("a", "b"):
        path = folder / f"{name}{suffix}"
        if suffix == ".txt":
            path.write_bytes("".join(row["text"] for row in rows[:20]).encode())
        elif suffix == ".csv":
            path.write_text("text\n" + "".join(f'"{row["text"]}"\n' for row in rows), newline="")
        elif suffix == ".parquet":
            pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), path, row_group_size=70)
        else:
            write_rows(path, *rows)
    text = open_text(str(folder))
    chunks = list(text.chunks())
    for number in range(0, len(chunks), 37):
        place = json.loads(json.dumps(chunks[number].place))
        rest = list(text.chunks(place, inside=number > 0))
        assert rest[0] == chunks[number] or suffix == ".txt"
        shown, expected = ("".join(f"{c.content}{'|' * c.ends}" for c in some) for some in (rest, chunks[number:]))
        assert shown == expected


@pytest.mark.parametrize("suffix", [".txt", ".jsonl", ".csv"])
def test_what_goes_on_reads_the_bytes_from_there_on_and_not_those_before(
    folder: Path, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sae_lm.data import readers

    class Counted(io.FileIO):
        bytes = 0

        def readinto(self, buffer: Any) -> int | None:
            got = super().readinto(buffer)
            Counted.bytes += got or 0
            return got

    monkeypatch.setattr(readers, "TEXT_BYTES", 10_000)
    path, rows = folder / f"long{suffix}", [{"text": f"document {i} " * 100} for i in range(8000)]
    if suffix == ".jsonl":
        write_rows(path, *rows)
    else:
        path.write_text("text\n" + "".join(f'"{row["text"]}"\n' for row in rows))
    text = open_text(str(path))
    chunks = list(text.chunks())
    place, real = chunks[-len(chunks) // 10].place, Path.open
    monkeypatch.setattr(
        Path, "open", lambda self, *given: io.BufferedReader(Counted(self)) if given == ("rb",) else real(self, *given)
    )
    rest = list(text.chunks(place, inside=True))
    assert rest[-1] == chunks[-1] and 0 < Counted.bytes < 0.4 * path.stat().st_size  # the head tells which column


def test_a_jsonl_file_that_is_an_array_is_read_as_one(folder: Path) -> None:
    (folder / "a.jsonl").write_text('[\n {"text": "one"},\n {"text": "two"}\n]')
    assert documents(open_text(str(folder / "a.jsonl"))) == ["one", "two"]


def test_fields_that_change_type_and_dates_are_no_matter(folder: Path) -> None:
    lines = write_rows(
        folder / "a.jsonl", {"text": "2020-01-01", "n": 1}, {"text": "two", "n": "x"}, {"text": "3", "n": [{}]}
    )
    assert documents(open_text(str(lines))) == ["2020-01-01", "two", "3"]
    (folder / "b.jsonl").write_text('{"text": "\\ud800 alone"}\n')
    assert message(folder / "b.jsonl").startswith("TextError: b.jsonl: cannot be read, UnicodeEncodeError")


def test_a_stream_goes_on_from_every_place_without_reading_earlier_files(folder: Path) -> None:
    """As datasets reads the hub: by shards, whose state it can note."""
    from datasets import load_dataset

    from sae_lm.data.readers import Streamed

    for name in "abc":
        write_rows(folder / f"{name}.jsonl", *[{"text": f"{name} {i}"} for i in range(100)])
    files = [str(folder / f"{name}.jsonl") for name in "abc"]

    def stream() -> Streamed:
        return Streamed(load_dataset("json", data_files=files, split="train", streaming=True))

    rows = list(stream().read())
    assert [row.values["text"] for row in rows] == [f"{name} {i}" for name in "abc" for i in range(100)]
    (folder / "a.jsonl").write_text("")
    for number in (150, 199, 201, 299):
        place = json.loads(json.dumps(rows[number].place))
        reader = stream()
        assert reader.knows(place) and not reader.knows(["another version", *place[1:]])
        assert [row.values for row in reader.read(place)] == [row.values for row in rows[number:]]


def test_a_store_is_no_text(tiny_store):
    with pytest.raises(TextError, match="is an activation store, whose files are no text"):
        open_text(str(tiny_store))


def test_a_chunk_of_plain_text_depends_on_its_place_alone(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TEXT_BYTES", 61)
    path = folder / "a.txt"
    words = ["x" * (n % 7) + "\U0001f600\r\n" + "\u20ac" * (n % 5) + "\r" for n in range(200)]
    path.write_bytes("".join(words).encode())
    rows = list(open_text(str(path)).rows.read())
    assert len(rows) > 50
    for number, row in enumerate(rows):
        assert next(open_text(str(path)).rows.read(row.place)) == row, number
