"""sae_lm.data.tokens.vocabulary: a token's text says whether it begins a word, whatever the tokenizer writes for that."""

import numpy as np
import pytest

from sae_lm.concepts.context_labels import contextual_labels
from sae_lm.concepts.word_forms import form_of
from sae_lm.data.characters import partial_tokens, pieces, token_text
from sae_lm.data.tokens import vocabulary


def tokenizer_of(model, **special):
    from tokenizers import Tokenizer
    from transformers import PreTrainedTokenizerFast

    return PreTrainedTokenizerFast(tokenizer_object=Tokenizer(model), **special)


@pytest.fixture
def word_piece():
    from tokenizers import models

    names = ["[UNK]", "[CLS]", "he", "walk", "##ing", "the", "old", "dogs", "##", ".", "42"]
    model = models.WordPiece({name: number for number, name in enumerate(names)}, unk_token="[UNK]")
    return tokenizer_of(model, unk_token="[UNK]", cls_token="[CLS]")


def test_word_piece_marks_what_goes_on_and_words_begin_with_a_space(word_piece):
    texts = vocabulary(word_piece, 13)
    assert texts == ["[UNK]", "[CLS]", " he", " walk", "ing", " the", " old", " dogs", "##", ".", " 42", "", ""]
    labels = contextual_labels(np.array([2, 3, 4, 5, 6, 7, 9]), np.arange(7) == 0, texts)
    assert labels["inside a word"].tolist() == [False, False, True, False, False, False, False]
    assert labels["after an article"].tolist() == [False, False, False, False, True, False, False]
    assert form_of(texts[7]) is not None and form_of(texts[4]) is None


def test_hashes_of_another_tokenizer_are_text():
    from tokenizers import models

    names = {"##": 0, "#": 1, "##a": 2}
    assert vocabulary(tokenizer_of(models.BPE(names, [("#", "#")])), 3)[0] == "##"


def test_a_byte_that_text_never_has_is_no_letter():
    from tokenizers import models

    names = ["<unk>", "\u2581dog", "a", "\u2581", "<0x61>", "<0x20>", "<0x0A>", "<0xE4>"]
    model = models.BPE({name: number for number, name in enumerate(names)}, [], byte_fallback=True, unk_token="<unk>")
    tokenizer = tokenizer_of(model, unk_token="<unk>")
    texts = vocabulary(tokenizer, len(names))
    assert texts == ["<unk>", " dog", "a", " ", "\ufffd", "\ufffd", "\n", "\ufffd"]
    partial = partial_tokens(tokenizer, texts)
    assert "".join(piece.text for piece in pieces([1, 4, 2, 6], texts, partial)) == " dogaa\n"
    assert token_text(4, texts, partial) == "a"
