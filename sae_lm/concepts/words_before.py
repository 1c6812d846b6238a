"""Contextual labels that the words before a token give: after a preposition, after a question word, near "she" or "her", ...

A word counts once it is whole: its token begins a word, and the token after it does not go on with it. Both are known
at the token that is labelled. A sentence ends at a full stop, question or exclamation mark (and what closes behind
it) that no letter or digit follows at once, and at a blank line; so "Mr." ends one too. Where a context begins in the
middle of a sentence, nothing is said of that sentence's beginning.
"""

import re
from collections.abc import Callable

import numpy as np

from sae_lm.concepts.token_sequence import TokenSequence
from sae_lm.concepts.word_forms import WORDS

PREPOSITIONS = (
    "about above across after against along among around at before behind below beneath beside between beyond by "
    "despite during except for from in inside into near of off on onto outside over past since through throughout "
    "toward towards under until upon via with within without"
)
CONJUNCTIONS = "and or but nor"
PRONOUNS = "i you he she it we they"
NEGATIONS = "no not never none nothing nobody nowhere neither cannot 't \u2019t"
QUESTION_WORDS = (
    "who whom whose what which when where why how is are was were am do does did have has had can could will "
    "would shall should may might must"
)
PAST_VERBS = " ".join(("was were had did", *(word for word, reading in WORDS.items() if reading.form == "past tense")))
WOMAN, SPEAKER = "she her hers herself", "i me my mine myself"
OPENERS = re.compile(r"^[\"\u201c\u2018(\[*_]+(?=[^\W\d_])")
SHORTLY, NEAR, FAR = 4, 16, 20
"""Tokens: back to a negation at most, back to a pronoun at most, into a sentence at least."""
WORDS_BEFORE = (
    "after a preposition",
    "after to",
    "after a conjunction",
    "after a pronoun",
    "after a comma",
    "after a number",
    "after a name",
    "shortly after a negation",
    "after a question word",
    "in a sentence with a comma",
    "in a sentence in the past tense",
    "far into a sentence",
    "near she or her",
    "near I or me",
)
"""Names of the concepts, in the order of `labels_of_words_before`."""


def labels_of_words_before(tokens: TokenSequence, texts: list[str]) -> dict[str, np.ndarray]:
    """Concept -> which of the tokens have it. texts: of each type of ``tokens.kind``."""
    t = tokens.text
    glued_to_next = np.roll(t.letters_first, -1)
    begins_word = ~t.letters_first | ~tokens.before(t.letters_last)

    def whole(words: str) -> np.ndarray:
        known = frozenset(words.split())
        return _of_type(tokens, texts, lambda text: bare(text) in known) & begins_word & ~glued_to_next

    sentence = _sentence_end(tokens)
    first_word = t.letter & (tokens.before(tokens.last(t.letter), -1) <= sentence)
    name = _of_type(tokens, texts, lambda text: bool(re.fullmatch(r"\s?[A-Z][a-z]+", text)))
    comma = _of_type(tokens, texts, lambda text: text.endswith(","))
    negation = whole(NEGATIONS) | (_contraction(tokens, texts) & ~glued_to_next)
    question = whole(QUESTION_WORDS) & first_word & (sentence >= 0)
    next_word = t.starts_blank & t.body_letter_first

    def last(where: np.ndarray) -> np.ndarray:
        return tokens.before(tokens.last(where), -1)

    def within(where: np.ndarray, distance: int) -> np.ndarray:
        return (last(where) >= 0) & (tokens.place - last(where) <= distance)

    def previous(where: np.ndarray) -> np.ndarray:
        return tokens.before(where) & next_word

    return {
        "after a preposition": previous(whole(PREPOSITIONS)),
        "after to": previous(whole("to")),
        "after a conjunction": previous(whole(CONJUNCTIONS)),
        "after a pronoun": previous(whole(PRONOUNS)),
        "after a comma": previous(comma),
        "after a number": previous(t.digit_last),
        "after a name": previous(name & begins_word & ~first_word),
        "shortly after a negation": within(negation, SHORTLY) & (last(negation) > sentence),
        "after a question word": last(question) > sentence,
        "in a sentence with a comma": last(comma) > sentence,
        "in a sentence in the past tense": last(whole(PAST_VERBS)) > sentence,
        "far into a sentence": (sentence >= 0) & (tokens.place - sentence > FAR),
        "near she or her": within(whole(WOMAN), NEAR),
        "near I or me": within(whole(SPEAKER), NEAR),
    }


def bare(text: str) -> str:
    """A token's word in lower case, without the space around it and quotation marks or brackets before it."""
    return OPENERS.sub("", text.strip()).lower()


def _contraction(tokens: TokenSequence, texts: list[str]) -> np.ndarray:
    """Where "don't", "isn't" and the like end, whatever tokens they are cut into; "don" and "'t" is with the words."""

    def matches(pattern: str) -> np.ndarray:
        return _of_type(tokens, texts, lambda text: bool(re.search(pattern, text, re.IGNORECASE)))

    mark = matches(r"n['\u2019]\Z") | (matches(r"\A['\u2019]\Z") & tokens.before(matches(r"n\Z")))
    return matches(r"n['\u2019]t\Z") | (matches(r"\At\Z") & tokens.before(mark))


def _of_type(tokens: TokenSequence, texts: list[str], has: Callable[[str], bool]) -> np.ndarray:
    return np.array([has(text) for text in texts])[tokens.kind]


def _sentence_end(tokens: TokenSequence) -> np.ndarray:
    """Where the last sentence before each token ended, -1 where its document or context has not ended any."""
    t = tokens.text
    followed = np.roll(t.letters_first | t.digits, -1)
    ends = (t.sentence_end & ~followed) | tokens.paragraph_breaks()
    return tokens.before(tokens.last(ends), -1)
