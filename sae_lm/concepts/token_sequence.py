"""Read a sequence of tokens as text: what each token's text does to the state, and where something last occurred.

The state (open brackets, the current line, the current sentence) is kept for all tokens at once: what a token's text
does to it is looked up by token type, and states are running sums, minima and last occurrences.
"""

import re
from typing import NamedTuple

import numpy as np

BLANK_LINE = re.compile(r"\n[^\S\n]*(?=\n)")
OPENING, CLOSING, QUOTES = "([{", ")]}", '"\u201c\u201d'
ARTICLES = ("the", "a", "an")


class TokenTexts(NamedTuple):
    """What each token's text does to the states; an array over the tokens each."""

    newline: np.ndarray
    """holds a line break"""
    blank: np.ndarray
    """nothing but space"""
    starts_blank: np.ndarray
    ends_blank: np.ndarray
    lead: np.ndarray
    """blank characters it begins with, or those after its last line break"""
    tail_blank: np.ndarray
    """nothing but space after its last line break, or in all of it"""
    breaks_after_blank: np.ndarray
    """nothing but space before its first line break"""
    break_inside: np.ndarray
    """holds a blank line"""
    quotes: np.ndarray
    """[2] quotation marks in all of it, and after the blank line that ends in it or before it"""
    low: np.ndarray
    """[2] lowest bracket depth inside, from 0; in all of it, and after the blank line"""
    depth: np.ndarray
    """[2] bracket depth after it, from 0"""
    bracket: np.ndarray
    """holds a bracket"""
    word: np.ndarray
    """nothing but letters, digits and underscores"""
    letters_first: np.ndarray
    """begins with a letter"""
    name_first: np.ndarray
    """begins with a letter or an underscore"""
    letters_last: np.ndarray
    word_last: np.ndarray
    digits: np.ndarray
    """nothing but digits"""
    digit_last: np.ndarray
    dot: np.ndarray
    """a dot alone"""
    dot_after_word: np.ndarray
    """ends in a dot that follows a letter, digit or underscore in it"""
    dotted: np.ndarray
    """ends in a dotted name"""
    dot_name: np.ndarray
    """a dot and a name, nothing else"""
    underscored: np.ndarray
    """the name it ends in has an underscore"""
    sentence_end: np.ndarray
    article: np.ndarray
    letter: np.ndarray
    """holds a letter"""
    body_letter_first: np.ndarray
    """begins with a letter, but for space"""


def token_texts(texts: list[str]) -> TokenTexts:
    columns = [_account(text) for text in texts]
    return TokenTexts(*(np.array(column) for column in zip(*columns, strict=True)))


def _account(text: str) -> tuple:
    last_line, body = text.rpartition("\n")[2], text.strip()
    after = BLANK_LINE.split("\n" + text)[-1]
    low, depth = zip(_depths(text), _depths(after), strict=True)
    return (
        "\n" in text,
        not body,
        text[:1].isspace(),
        text[-1:].isspace(),
        len(last_line) - len(last_line.lstrip()),
        not last_line.strip(),
        not text.partition("\n")[0].strip(),
        bool(BLANK_LINE.search(text)),
        [sum(c in QUOTES for c in part) for part in (text, after)],
        low,
        depth,
        any(c in OPENING + CLOSING for c in text),
        bool(re.fullmatch(r"\w+", text)),
        text[:1].isalpha(),
        bool(re.match(r"[^\W\d]", text)),
        text[-1:].isalpha(),
        bool(re.search(r"\w\Z", text)),
        text.isdigit(),
        text[-1:].isdigit(),
        text == ".",
        bool(re.search(r"\w\.\Z", text)),
        bool(re.search(r"\w\.[^\W\d]\w*\Z", text)),
        bool(re.fullmatch(r"\.[^\W\d]\w*", text)),
        bool(re.search(r"_\w*\Z", text)),
        bool(re.search(r"[.!?][\"')\]\u201d\u2019]*\Z", body)),
        body.lower() in ARTICLES,
        any(c.isalpha() for c in text),
        body[:1].isalpha(),
    )


def _depths(text: str) -> tuple[int, int]:
    """Lowest and last bracket depth, from 0, closing brackets counted whether anything is open or not."""
    low = depth = 0
    for c in text:
        depth += (c in OPENING) - (c in CLOSING)
        low = min(low, depth)
    return low, depth


class TokenSequence(NamedTuple):
    """The tokens in their order, and where the document or context of each begins."""

    text: TokenTexts
    """what each token's text does"""
    kind: np.ndarray
    """type of each token, numbered from 0"""
    place: np.ndarray
    """0, 1, 2, ..."""
    start: np.ndarray
    """place at which each token's document or context begins"""

    def last(self, where: np.ndarray) -> np.ndarray:
        """Place of the last such token up to each, -1 where its document or context has none."""
        latest = np.maximum.accumulate(np.where(where, self.place, -1))
        return np.where(latest >= self.start, latest, -1)

    def before(self, values: np.ndarray, beginning: bool | int = False) -> np.ndarray:
        """The values at the token before, and at a beginning this."""
        return np.where(self.place > self.start, np.roll(values, 1), beginning)

    def line_is_blank(self) -> np.ndarray:
        """Whether nothing but space follows the last line break, the token itself included."""
        newline = self.last(self.text.newline)
        return (newline >= 0) & (newline > self.last(~self.text.tail_blank))

    def paragraph_breaks(self) -> np.ndarray:
        """Tokens that end a blank line: a paragraph begins in them, or after."""
        t = self.text
        return t.newline & (t.break_inside | (self.before(self.line_is_blank()) & t.breaks_after_blank))
