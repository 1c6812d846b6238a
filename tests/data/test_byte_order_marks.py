"""A byte order mark, which Windows' programs write ahead of UTF-8, is no part of the text."""

import gzip
from pathlib import Path

import pytest

from sae_lm.data import readers
from sae_lm.data.text import open_text

CONTENTS = {
    "a.txt": "one two",
    "plain.csv": "text\none two\n",
    "quoted.csv": '"text","n"\n"one two","1"\n',
    "a.jsonl": '{"text": "one two"}\n',
    "array.json": '[\n{"text": "one two"}\n]',
}


@pytest.mark.parametrize("name", CONTENTS)
def test_a_byte_order_mark_is_no_part_of_a_document_or_a_column(tmp_path: Path, name: str) -> None:
    content = CONTENTS[name].encode("utf-8-sig")
    (tmp_path / name).write_bytes(content)
    (tmp_path / f"{name}.gz").write_bytes(gzip.compress(content))
    for path in (tmp_path / name, tmp_path / f"{name}.gz")[: 1 + (name != "array.json")]:
        assert list(open_text(str(path)).documents()) == ["one two"]


def test_only_a_files_first_character_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readers, "TEXT_BYTES", 3)
    (tmp_path / "a.txt").write_text("\ufeff\ufeffone\ufeff", encoding="utf-8")
    (tmp_path / "a.csv").write_text("\ufefftext\n\ufeffone\ufeff\n", encoding="utf-8")
    for name in ("a.txt", "a.csv"):
        text = open_text(str(tmp_path / name))
        assert list(text.documents()) == ["\ufeffone\ufeff"]
        place = next(text.chunks()).place
        assert "".join(str(chunk.content) for chunk in text.chunks(place)) == "\ufeffone\ufeff"
