"""sae_lm.concepts.token_labels: what tokens are called, and a user's own labels."""

import pytest

from sae_lm.concepts.rows import CONCEPTS
from sae_lm.concepts.token_labels import LABELS, WORD_LISTS, read_labels
from sae_lm.errors import SettingsError


def test_labels_read_the_tokens_text():
    texts = (" The", "the", " NASA", "12", "),", " running", " s", "_x")
    told = {name: [text for text in texts if has(text)] for name, has in LABELS.items()}
    assert told["leading space"] == [" The", " NASA", " running", " s"]
    assert told["capitalised"] == [" The"]
    assert told["all capitals"] == [" NASA"]
    assert told["digit"] == ["12"]
    assert told["punctuation"] == ["),"]
    assert told["ends in -ing"] == [" running"]
    assert told["ends in -s"] == []
    assert told["first letter t"] == [" The", "the"]


def test_each_class_of_punctuation_and_each_word_list_knows_its_own():
    texts = ("()", " [", '."', "==", ":", " -", "__", " January", "the", " ELSE", "x_y", "\u201d", "\ufffd", "  ")
    told = {name: [text for text in texts if has(text)] for name, has in LABELS.items()}
    assert told["bracket"] == ["()", " ["]
    assert told["quotation mark"] == ['."', "\u201d"]
    assert told["sentence end"] == ['."']
    assert told["operator"] == ["==", " -"]
    assert told["comma, colon or semicolon"] == [":"]
    assert told["dash or underscore"] == [" -", "__"]
    assert told["month or weekday"] == [" January"]
    assert told["Python keyword or builtin"] == [" ELSE"]
    assert told["not ASCII"] == ["\u201d", "\ufffd"]
    assert all(words == words.lower() for words in WORD_LISTS.values())


VOCABULARY = ["<s>", " dog", "dog", " Dog", " cat", "s", "\n", ","]


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return path


def test_a_string_means_every_spelling_of_a_word_and_a_token_one(tmp_path):
    loose = read_labels(write(tmp_path / "a.csv", "string,label,child\nDOG,animal,hound\ncat,animal,\n"), VOCABULARY)
    assert loose.tokens == {"animal": {1, 2, 3, 4}} and loose.unknown is None
    assert loose.child == {1: "hound", 2: "hound", 3: "hound"}
    exact = read_labels(write(tmp_path / "b.csv", 'label,token\nanimal, dog\nmark,","\nbreak,"\n"\n'), VOCABULARY)
    assert exact.tokens == {"animal": {1}, "mark": {7}, "break": {6}}


def test_unknown_tokens_are_counted_and_named_once(tmp_path):
    lines = "".join(f"w{i},animal\n" for i in [*range(7), 0])
    given = read_labels(write(tmp_path / "a.csv", f"string,label\ndog,animal\n{lines}"), VOCABULARY)
    assert given.unknown is not None and "7 of its entries" in given.unknown
    assert "('w0', 'w1', 'w2', 'w3', 'w4', ...)" in given.unknown


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("string,label\nwolf,animal\n", r"none of its 1 lines matches .*'wolf'"),
        ("word,label\ndog,animal\n", "has the columns word, label; expected `token` or `string`"),
        ("token,string,label\n a,a,x\n", "expected `token` or `string`"),
        ("", "has the columns \\(none\\)"),
        ("string,label\ndog\n", "row 2 has 1 field and"),
        ("string,label,label\ndog,a,b\n", "string, label, label; .* each once"),
        ("string;label\ndog;a\n", "string;label; expected .* separated by commas"),
        ("string,label\ndog,inside brackets\n", "'inside brackets' is a concept already"),
        ("string,label\ndog, \n", "row 2 has 2 fields and the label ''"),
        ("string,label\ndog,digit\n", "'digit' is a concept already"),
        ("string,label\ndog,past tense\n", "'past tense' is a concept already"),
        ("string,label\n", "has no rows below its header; expected one for each token or string"),
    ],
)
def test_a_table_that_cannot_serve_is_refused_in_one_sentence(tmp_path, text, message):
    with pytest.raises(SettingsError, match=message):
        read_labels(write(tmp_path / "a.csv", text), VOCABULARY, CONCEPTS)


def test_a_file_that_is_no_text_or_not_there_is_refused(tmp_path):
    (tmp_path / "bytes.csv").write_bytes(b"\xff\xfe\x00string")
    for name, says in (("bytes.csv", "cannot be read as CSV"), ("missing.csv", "does not exist; expected a CSV file")):
        with pytest.raises(SettingsError, match=f"{name} {says}"):
            read_labels(tmp_path / name, VOCABULARY)
