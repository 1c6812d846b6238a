"""sae_lm.concepts.word_split: words are whole, and every list of them has words on every side."""

import pytest
import torch

from sae_lm.concepts.token_labels import WORD_LISTS, spelled
from sae_lm.concepts.word_split import SHARES, TEST, TRAIN, VALIDATION, split_words, word_of

SIDES = (TRAIN, VALIDATION, TEST)


@pytest.mark.parametrize(("word", "forms"), [
    ("dog", [" dogs", "Dog", "DOGS", " dog"]), ("foot", ["feet", " Foot"]), ("go", [" went", "going", "goes"]),
    ("leg", [" legs", "Legs"]), ("byte", ["bytes", " byte"]), ("class", [" class"]), ("is", [" is"]),
])  # fmt: skip
def test_spellings_and_inflections_are_one_word(word, forms):
    vocabulary = [word, *forms]
    assert {word_of(token, vocabulary) for token in range(len(vocabulary))} == {word_of(0, vocabulary)}


def test_spaces_and_parts_of_characters_are_words_of_their_own_and_no_digits():
    vocabulary = ["  ", "\n", " \ufffd", "\ufffd", " .", ".", "0", "1"]
    found = [word_of(token, vocabulary) for token in range(8)]
    assert found[4] == found[5] == "." and len(set(found)) == 7


def lists(seed=0):
    """The words of `WORD_LISTS` and 3000 of no list, and which of the lists each is in."""
    words = sorted({spelled(word) for words in WORD_LISTS.values() for word in words.split()})
    words += [f"other {number}" for number in range(3000)]
    return words, torch.tensor([[word in of.split() for of in WORD_LISTS.values()] for word in words])


@pytest.mark.parametrize("seed", range(5))
def test_every_side_has_its_share_of_every_list_however_short(seed):
    words, labels = lists()
    side = split_words(words, labels, seed)
    for concept, name in enumerate(WORD_LISTS):
        has = labels[:, concept]
        counts = torch.stack([(has & (side == of)).sum() for of in SIDES]).double()
        wanted = torch.tensor(SHARES).double() * has.sum()
        assert (counts - wanted).abs().max() <= 2, (name, counts, wanted)
    shares = torch.bincount(side, minlength=3) / len(side)
    torch.testing.assert_close(shares, torch.tensor(SHARES), atol=0.002, rtol=0)


def test_the_split_is_of_words_and_seed_whatever_their_order():
    words, labels = lists()
    order = torch.randperm(len(words), generator=torch.Generator().manual_seed(1))
    side = split_words(words, labels, 0)
    assert torch.equal(split_words([words[place] for place in order], labels[order], 0), side[order])
    assert not torch.equal(split_words(words, labels, 1), side)


def test_words_of_no_concept_are_split_as_well():
    words = [f"w{number}" for number in range(500)]
    side = split_words(words, torch.zeros(500, 0, dtype=torch.bool), 0)
    assert [int((side == of).sum()) for of in SIDES] == [320, 80, 100]
    runs = (side.diff() != 0).sum()
    assert runs > 150, "the order of words says which side they are on"
    assert split_words([], torch.zeros(0, 3, dtype=torch.bool), 0).shape == (0,)
