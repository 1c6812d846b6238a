"""sae_lm.concepts.word_forms: which words are which forms, and which are left out."""

import pytest

from sae_lm.concepts.word_forms import FORMS, WORDS, form_of


@pytest.mark.parametrize(
    ("form", "words"),
    [
        ("plural noun", "men:man children:child cities:city dogs:dog wolves:wolf churches:church"),
        ("past tense", "went:go said:say stopped:stop tried:try agreed:agree preferred:prefer offered:offer"),
        ("-ing form", "running:run making:make dying:die seeing:see trying:try visiting:visit"),
        ("third person verb", "goes:go teaches:teach carries:carry says:say"),
        ("comparative or superlative", "better:good bigger:big happiest:happy larger:large further:far"),
        (None, "king:king this:this hundred:hundred water:water forest:forest dog:dog go:go large:large"),
    ],
)
def test_words_have_their_form_and_lemma(form, words):
    for word, lemma in (pair.split(":") for pair in words.split()):
        if lemma:
            assert WORDS[word] == (form, lemma)


def test_words_of_two_readings_and_words_that_are_not_listed_are_left_out():
    for word in ("works", "lives", "building", "means", "left", "found", "stranger", "thought", "read", "xyzzy"):
        assert word not in WORDS, word


def test_only_a_token_that_begins_a_word_has_a_form():
    assert form_of(" Dogs") == form_of("Dogs") == form_of(" dogs") == ("plural noun", "dog")
    assert form_of("dogs") is form_of(" dogs,") is form_of(" ") is form_of("") is None


def test_every_form_has_words_enough_for_a_probe():
    for form in FORMS:
        assert sum(reading.form == form for reading in WORDS.values()) >= 150, form
