"""sae_lm.concepts.context_labels: against their definition on text made to be awkward, and by eye."""

import numpy as np
import pytest
import reference

from sae_lm.concepts.context_labels import CONTEXTUAL, contextual_labels

PIECES = ["a", " a", "the", " the", "The", ".", ". ", "x.", ".com", "os", " os", "_", "_b", "a_", "1", "12", " 3", '"', ' "', '."',
          "(", " (", ")", ")(", "]", "())", "\n", "\n\n", "\n  ", "\n \n\n", "  ", " ", "    ", "   if", ":\n", '"\n\n(', "\nx", "!",
          "\u201c", "\u201d", "\r\n", ",", "os.pa", "a.b c", "s",
          " of", " to", " and", " she", "I", " not", "'t", "n't", "do", "don", "n", "'", "\u2019", "t", "T", "What", " was", " Anna", "Anna", '"Is', " walked", "?"]  # fmt: skip


def test_contextual_labels_equal_their_definition_on_text_made_to_be_awkward():
    draw = np.random.default_rng(0)
    lengths = draw.integers(1, 40, 150)
    ids = draw.integers(0, len(PIECES), lengths.sum())
    begins = np.zeros(len(ids), bool)
    begins[np.cumsum(lengths) - lengths] = True
    found = contextual_labels(ids, begins, PIECES)
    expected = [
        row
        for part in np.split(ids, np.cumsum(lengths)[:-1])
        for row in reference.contextual_labels([PIECES[token] for token in part])
    ]
    for name, label in found.items():
        wrong = [place for place in range(len(ids)) if label[place] != expected[place][name]]
        assert not wrong, (name, [PIECES[token] for token in ids[max(0, wrong[0] - 8) : wrong[0] + 1]])
        assert 0 < label.sum() < len(label), name


def test_the_names_of_the_contextual_concepts_are_those_that_the_labeller_gives_in_its_order():
    assert tuple(contextual_labels(np.zeros(1, int), np.ones(1, bool), ["a"])) == CONTEXTUAL


def test_a_label_depends_on_nothing_after_its_token_or_before_its_document():
    draw = np.random.default_rng(1)
    ids = draw.integers(0, len(PIECES), 300)
    begins = np.zeros(300, bool)
    begins[[0, 100]] = True
    whole = contextual_labels(ids, begins, PIECES)
    cut = contextual_labels(ids[100:200], begins[100:200], PIECES)
    for name, label in whole.items():
        assert np.array_equal(label[100:200], cut[name]), name


def test_contextual_labels_of_a_text_one_can_read():
    tokens = ["He", " said", ' "', "no", '".', "\n", "  ", "The", " os", ".", "path", " (", "a", ")", "."]
    ids = np.array([sorted(set(tokens)).index(token) for token in tokens])
    begins = np.arange(len(ids)) == 0
    told = {
        name: [token for token, label in zip(tokens, labels, strict=True) if label]
        for name, labels in contextual_labels(ids, begins, sorted(set(tokens))).items()
    }
    assert told["inside quotation marks"] == ["no"]
    assert told["inside brackets"] == ["a"]
    assert told["first on its line"] == told["first of a sentence"] == ["The"]
    assert told["on an indented line"] == [" os", ".", "path", " (", "a", ")", "."]
    assert told["part of a dotted name"] == ["path"]
    assert told["after an article"] == [" os"]


def test_labels_of_words_before_of_a_text_one_can_read():
    tokens = ["It", " was", ".", " Did", " you", " not", " see", " Anna", " go", " to", " Rome", ",", " I", " said"]
    tokens += ["?", " Of", "ten", " the", " end", " of", " 12", " days", " came"]
    kinds = sorted(set(tokens))
    labels = contextual_labels(np.array([kinds.index(token) for token in tokens]), np.arange(23) == 0, kinds)
    told = {name: [t for t, has in zip(tokens, label, strict=True) if has] for name, label in labels.items()}
    assert told["after a question word"] == tokens[4:15]
    assert told["shortly after a negation"] == [" see", " Anna", " go", " to"]
    assert told["after a preposition"] == []  # "Of" goes on as "Often", and 12 is no word
    assert told["after to"] == [" Rome"] and told["after a comma"] == [" I"] and told["after a number"] == [" days"]
    assert told["after a pronoun"] == [" was", " not", " said"]
    assert told["after a name"] == [" go"]  # after "Rome" comes no word
    assert told["in a sentence with a comma"] == [" I", " said", "?"]
    assert told["in a sentence in the past tense"] == [".", *tokens[4:15]]
    assert told["near I or me"] == tokens[13:]
    assert told["far into a sentence"] == told["near she or her"] == []


@pytest.mark.parametrize("mark", ["'", "\u2019"])
@pytest.mark.parametrize("cut", ["don't", "do|n't", "don|'t", "don'|t", "don|'|t", "do|n|'|t", "DON|'|T", "d|on't"])
def test_a_contraction_is_a_negation_however_it_is_cut(mark, cut):
    tokens = ["I", *(" " + cut.replace("'", mark)).split("|"), " know", " him", " at", " all", " well", "."]
    assert negated(tokens) == [" know", " him", " at", " all"]


def test_a_t_after_an_apostrophe_is_no_negation_where_no_n_comes_before_or_the_word_goes_on():
    for tokens in (["It", "'", "t", " is"], ["don", "'", "tell", " me"], ["don", "'", " t", " is"], ["n", "t", " is"]):
        assert negated(tokens) == []
    assert negated(["do", "n't", "s", " is"]) == negated(["don", "'", "t", "s", " is"]) == []


def negated(tokens):
    kinds = sorted(set(tokens))
    ids = np.array([kinds.index(token) for token in tokens])
    labels = contextual_labels(ids, np.arange(len(ids)) == 0, kinds)["shortly after a negation"]
    return [token for token, has in zip(tokens, labels, strict=True) if has]
