"""Which column of rows is the text, chats and token ids among them."""

from pathlib import Path
from typing import Any

import pytest
from text_rows import documents, message, write_rows

from sae_lm.data.text import open_text
from sae_lm.errors import TextError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "corpus"
    folder.mkdir()
    return folder


def test_the_column_is_the_given_one_or_text_or_the_only_one_with_strings(folder: Path) -> None:
    both = str(write_rows(folder / "both.jsonl", {"title": "T", "text": "body"}))
    only = str(write_rows(folder / "only.parquet", {"n": 1, "body": None}, {"n": 2, "body": "late"}))
    assert [open_text(both).column, open_text(both, column="title").column] == ["text", "title"]
    assert documents(open_text(both, column="title")) == ["T"]
    assert open_text(only).column == "body"


def test_a_column_that_cannot_be_used_is_refused_with_the_columns_listed(folder: Path) -> None:
    two = write_rows(folder / "two.jsonl", {"title": "T", "body": "B", "n": 1})
    assert "TextError" in message(two) and "title, body, n" in message(two)
    assert "'text'" in message(two, column="text") and "title, body, n" in message(two, column="text")
    assert "int in column 'n'" in message(two, column="n")
    tokens = write_rows(folder / "tokens.jsonl", {"text": ["a", "list"]})
    assert "list in column 'text'" in message(tokens)
    late = write_rows(folder / "late.json", *[{"text": ""}] * 40, {"text": ""})
    assert "empty text" in message(late)


CHAT = [{"role": "user", "content": "Hello"}]
SHARED = [{"from": "human", "value": "Hello"}]


@pytest.mark.parametrize(
    ("row", "column"),
    [
        ({"messages": CHAT, "source": "a site"}, "messages"),
        ({"id": "row 1", "input_ids": [5, 6, 7], "attention_mask": [1, 1, 1]}, "input_ids"),
        ({"id": "row 1", "conversations": CHAT}, "conversations"),
        ({"id": "row 1", "language": "English", "conversation": CHAT}, "conversation"),
        ({"messages": CHAT, "text": "the same, written out"}, "text"),
    ],
)
def test_chats_and_token_ids_win_over_strings_that_are_not_called_text(folder: Path, row: Any, column: str) -> None:
    text = open_text(str(write_rows(folder / "rows.jsonl", row)))
    assert (text.column, text.chats) == (column, row[column] == CHAT)


@pytest.mark.parametrize(
    "row",
    [
        {"id": "row 1", "conversations": SHARED},
        {"messages": SHARED, "source": "a site"},
        {"source": "a site", "tokens": [[5, 6]]},
        {"title": "T", "document": {"body": "B"}},
    ],
)
def test_the_only_strings_beside_lists_or_objects_that_are_not_understood_are_no_text_unless_named(
    folder: Path, row: dict[str, Any]
) -> None:
    rows = write_rows(folder / "rows.jsonl", row)
    strings, nested = sorted(row, key=lambda key: not isinstance(row[key], str))
    said = message(rows)
    assert f"{strings} has strings, {nested} lists or objects that are no chats or token ids" in said
    assert said.endswith("; name one with --text-column")
    assert documents(open_text(str(rows), column=strings)) == [row[strings]]


@pytest.mark.parametrize("suffix", ["jsonl", "json", "csv", "parquet"])
def test_a_file_of_a_folder_without_the_column_is_named_and_not_passed_over(folder: Path, suffix: str) -> None:
    def write(name: str, **row: str) -> None:
        path = folder / f"{name}.{suffix}"
        if suffix == "csv":
            path.write_text(",".join(row) + "\n" + ",".join(row.values()) + "\n")
        else:
            write_rows(path, row)

    write("a", text="one", id="1")
    write("b", content="two", id="2")
    text = open_text(str(folder))
    with pytest.raises(TextError, match=f"b.{suffix} has no column 'text', as other files here have"):
        documents(text)
    write("b", text="two", id="2")
    assert documents(open_text(str(folder))) == ["one", "two"]
