"""Split words into train, validation and test: whole, so that a probe cannot pass by remembering any of them.

A word is all token types that are spelled alike but for case and spaces around, and its inflections, as far as they are
listed (`sae_lm.concepts.word_forms`) or a final s tells. Measured on SmolLM2, with types split one by one: on eight labels
of 25 random words each a probe had F1 .36 to .62 on types it had not seen, whose other spellings it had. Split by word it
has .00 to .02.

Lists of concepts are short, and a draw may leave one of their sides empty: of 27 auxiliary verbs none fell to the test at
one seed. So words are dealt out, concept by concept from the one with the fewest on, each to the side that lacks most of
it: iterative stratification (Sechidis, Tsoumakas and Vlahavas 2011, doi 10.1007/978-3-642-23808-6_10), in the order of a hash.
"""

import hashlib
from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lm.concepts.token_labels import spelled
from sae_lm.concepts.word_forms import WORDS

TRAIN, VALIDATION, TEST = 0, 1, 2
SHARES = (0.64, 0.16, 0.20)
"""Of the words on each side."""
FEWEST = 5
"""Words of a concept that are dealt out by it, at least; of fewer a side would have none, and all the first were to train."""
LEAST_WITH_S = 4
"""Letters of a word whose final s is taken for an inflection, at least."""


def word_of(token_id: int, vocabulary: list[str]) -> str:
    """The word that a token is a form of; of spaces alone, or parts of a character, one of its own."""
    word = spelled(vocabulary[token_id])
    if not word or "\N{REPLACEMENT CHARACTER}" in word:
        return f" {token_id}"
    if word in WORDS:
        return WORDS[word].lemma
    return word[:-1] if len(word) >= LEAST_WITH_S and word.endswith("s") and not word.endswith("ss") else word


def split_words(words: Sequence[str], labels: Bool[Tensor, "words concepts"], seed: int) -> Int[Tensor, " words"]:
    """TRAIN, VALIDATION or TEST of each word, in `SHARES` of every concept and of all. The order of words is of no
    effect; which concepts there are is."""
    order = sorted(range(len(words)), key=lambda place: hashlib.sha256(f"{seed},{words[place]}".encode()).digest())
    shares, has_each = torch.tensor(SHARES, dtype=torch.float64), labels.double()
    counts = labels.sum(0)
    lacking, lacking_of_all = shares[:, None] * counts, shares * len(words)
    side = torch.full((len(words),), -1)

    def deal(places: Sequence[int], lacks: Tensor) -> None:
        """lacks: a view of what the sides lack of what these are dealt out by."""
        for place in places:
            to = max((TRAIN, VALIDATION, TEST), key=lambda to: (float(lacks[to]), float(lacking_of_all[to])))
            side[place] = to
            lacking[to] -= has_each[place]
            lacking_of_all[to] -= 1

    for concept in counts.argsort(stable=True).tolist():
        if counts[concept] < FEWEST:
            continue
        has = labels[:, concept] & (side < 0)
        deal([place for place in order if has[place]], lacking[:, concept])
    deal([place for place in order if side[place] < 0], lacking_of_all)
    return side
