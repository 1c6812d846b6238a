"""Characters that are spread over several tokens: whole where they can be, named as parts where they cannot."""

import json
from pathlib import Path

import pytest

from sae_lm.commands.cache import cache
from sae_lm.commands.inspect import inspect
from sae_lm.data import characters
from sae_lm.data.characters import BYTES, partial_tokens, pieces, token_text
from sae_lm.data.merge import merge
from sae_lm.data.store import open_store
from sae_lm.data.tokens import vocabulary
from sae_lm.errors import StoreError
from sae_lm.lm.source import find_model, load_tokenizer
from sae_lm.settings import CacheSettings, MergeSettings

TEXTS = [
    "naïve 中文字 é",
    "🙂 and 👩‍👧, done",
    "שלום عالم Ω",
    "\u041f\u0440\u0438\u0432\u0435\u0442\n\t\u043c\u0438\u0440",
]


@pytest.fixture(scope="module")
def embedded():
    tokenizer = load_tokenizer(find_model("embedded"))
    words = vocabulary(tokenizer, len(tokenizer))
    return tokenizer, words, partial_tokens(tokenizer, words)


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_put_together_are_the_text(embedded, text):
    tokenizer, words, partial = embedded
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    made = pieces(ids, words, partial)
    assert "".join(piece.text for piece in made) == text
    assert [place for piece in made for place in range(piece.first, piece.last)] == list(range(len(ids)))
    assert all(piece.whole for piece in made) and "\ufffd" not in "".join(piece.text for piece in made)
    assert any(piece.last - piece.first > 1 for piece in made)


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("cut", [1, 2, 3, 5, 8])
def test_a_character_that_is_cut_is_named_by_its_bytes_and_the_rest_is_whole(embedded, text, cut):
    tokenizer, words, partial = embedded
    ids = tokenizer(text, add_special_tokens=False)["input_ids"]
    for some in (ids[cut:], ids[:-cut]):
        made = pieces(some, words, partial)
        assert sum(piece.last - piece.first for piece in made) == len(some)
        assert "\ufffd" not in "".join(piece.text for piece in made)
        assert all(("⟨0x" in piece.text) == (not piece.whole) for piece in made)


def test_a_token_alone_is_its_text_or_its_bytes():
    words, partial = ["a", "\ufffd", " \ufffd"], {1: b"\xe4", 2: b" \xce"}
    assert [token_text(token, words, partial) for token in range(3)] == ["a", "⟨0xE4⟩", " ⟨0xCE⟩"]
    assert [piece.text for piece in pieces([2, 1, 0], words, {1: b"\xa9", 2: b" \xce"})] == [" Ω", "a"]


class Tokenizer:
    def __init__(self, tokens):
        self.tokens = tokens

    def convert_ids_to_tokens(self, ids):
        return [self.tokens[token] for token in ids]


def test_bytes_are_told_for_byte_pieces_of_both_kinds_and_for_nothing_else():
    of_byte = {byte: character for character, byte in BYTES.items()}
    tokens = ["a", "<0xE4>", of_byte[0xE4] + of_byte[0xB8], "\ufffd", "[UNK]\ufffd"]
    words = ["a", "\ufffd", "\ufffd", "\ufffd", "[UNK]\ufffd"]
    assert partial_tokens(Tokenizer(tokens), words) == {1: b"\xe4", 2: b"\xe4\xb8"}
    assert len(BYTES) == 256 and sorted(BYTES.values()) == list(range(256))


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    folder = tmp_path_factory.mktemp("characters")
    (folder / "text.txt").write_text("\n\n".join([f"{'字中 🙂 é ' * 30}{text}" for text in TEXTS]), encoding="utf-8")
    cache(CacheSettings(text=str(folder / "text.txt"), hooks=("1",), tokens=300, context_size=32, out=folder / "acts"))
    return open_store(folder / "acts")


def test_a_store_keeps_the_bytes_and_shows_characters_whole(store):
    assert store.partial_tokens and "token_bytes.json" in store.manifest.files
    parts = 0
    for row in range(len(store)):
        around = store.text_around(row, 6, 3)
        shown = around.before + around.token + around.after
        assert "\ufffd" not in shown and len(around.tokens) >= min(4, len(store))
        if around.part:
            parts += 1
            assert 1 <= around.part[0] <= around.part[1] and len(around.token.strip()) >= 1
            assert around.token not in ("", " ")
    assert parts > 20
    assert "字" in "".join(store.text_around(row, 6, 3).token for row in range(60))


def test_inspect_shows_no_broken_character_and_says_which_token_is_a_part(store):
    said = inspect(str(store.path), 40)
    assert "\ufffd" not in said and "of its character" in said


def test_a_window_takes_in_the_characters_at_its_edges(store):
    for row in range(40, 90):
        wide, narrow = store.text_around(row, 20, 20), store.text_around(row, 1, 0)
        assert (wide.before + wide.token).endswith(narrow.before + narrow.token)
        assert "⟨0x" not in narrow.before or "⟨0x" in wide.before


def test_merged_stores_keep_the_bytes(store, tmp_path):
    copy = tmp_path / "copy"
    cache(CacheSettings(text="embedded", hooks=("1",), tokens=200, context_size=32, out=copy))
    merge(MergeSettings(stores=(str(store.path), str(copy)), out=tmp_path / "merged"))
    assert open_store(tmp_path / "merged").partial_tokens == store.partial_tokens


def test_a_damaged_file_of_bytes_is_told_in_a_sentence(tmp_path):
    (tmp_path / characters.FILE).write_text(json.dumps({"3": "no hex"}))
    with pytest.raises(StoreError, match="token_bytes.json is damaged"):
        characters.read_partial(Path(tmp_path / characters.FILE))
