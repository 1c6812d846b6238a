"""Contextual labels: what a token's place is (inside brackets, first of a sentence, ...), whatever the token.

The residual stream at a token has seen the tokens before it in its context and itself, nothing else. So a label is a
function of these alone, and of these of the token's own document alone: a document and a context that begin, begin
unquoted, unbracketed, with nothing seen. What cannot be known there (whether a context begins inside a quotation) counts
as not so. A paragraph's end, a blank line, closes quotations and brackets, so that an unpaired mark does not turn
the rest of the text around.

All tokens are labelled at once: what a token's text does to a state is looked up, and states are running sums, minima
and last occurrences.
"""

import re
from typing import NamedTuple

import numpy as np
from jaxtyping import Bool, Int

CONTEXTUAL = (
    "inside quotation marks",
    "inside brackets",
    "first on its line",
    "on an indented line",
    "part of a dotted name",
    "after an underscore in a name",
    "inside a number",
    "inside a word",
    "first of a sentence",
    "after an article",
    "repeated token",
    "repeated pair",
)
"""Names of the concepts, in the order of `contextual_labels`."""
BLANK_LINE = re.compile(r"\n[^\S\n]*(?=\n)")
OPENING, CLOSING, QUOTES = "([{", ")]}", '"\u201c\u201d'
ARTICLES = ("the", "a", "an")
INDENTED = 2
"""Blank characters before the first other on an indented line, at least."""


class _Texts(NamedTuple):
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


def _texts(texts: list[str]) -> _Texts:
    columns = [_account(text) for text in texts]
    return _Texts(*(np.array(column) for column in zip(*columns, strict=True)))


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


class _Sequence(NamedTuple):
    """The tokens in their order, and where the document or context of each begins."""

    text: _Texts
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


def contextual_labels(
    token_id: Int[np.ndarray, " n"], begins: Bool[np.ndarray, " n"], vocabulary: list[str]
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Concept -> which of the tokens have it; the concepts are `CONTEXTUAL`, in this order.

    token_id: contexts, one after the other.
    begins: where a context or a document begins; nothing before is looked at.
    """
    types, kind = np.unique(token_id, return_inverse=True)
    text = _Texts(*(feature[kind] for feature in _texts([vocabulary[token] for token in types])))
    place = np.arange(len(token_id))
    tokens = _Sequence(text, kind, place, np.maximum.accumulate(np.where(begins, place, 0)))
    return {
        **_inside_marks(tokens),
        **_on_lines(tokens),
        **_in_names(tokens),
        **_in_words(tokens),
        **_in_sentences(tokens),
        **_repeated(tokens),
    }


def _inside_marks(tokens: _Sequence) -> dict[str, np.ndarray]:
    """Open quotation marks and brackets. A paragraph begins at the token that ends a blank line; of its text only what
    follows counts."""
    t, place = tokens.text, tokens.place
    breaks = t.newline & (t.break_inside | (tokens.before(tokens.line_is_blank()) & t.breaks_after_blank))
    paragraph = np.maximum(tokens.start, tokens.last(breaks))
    part = breaks.astype(int)
    quotes = np.cumsum(t.quotes[place, part])
    quoted = (quotes - (quotes - t.quotes[place, part])[paragraph]) % 2 == 1
    depth = _open_brackets(t.low[place, part], t.depth[place, part], paragraph)
    return {
        "inside quotation marks": tokens.before(quoted) & (t.quotes[:, 0] == 0) & ~breaks,
        "inside brackets": (tokens.before(depth, 0) > 0) & ~t.bracket & ~breaks,
    }


def _on_lines(tokens: _Sequence) -> dict[str, np.ndarray]:
    t, place = tokens.text, tokens.place
    newline = tokens.last(t.newline)
    first_on_line = tokens.before(tokens.line_is_blank()) & ~t.blank & ~t.newline
    blanks = np.cumsum(np.where(t.blank & ~t.newline, t.lead, 0))
    at = tokens.last(first_on_line)
    opened = np.maximum(tokens.before(newline, -1)[np.maximum(at, 0)], 0)
    indent = t.lead[opened] + blanks[np.maximum(at - 1, 0)] - blanks[opened] + t.lead[at]
    return {
        "first on its line": first_on_line,
        "on an indented line": ~t.blank & ~t.newline & (at >= 0) & (at < place) & (at > newline) & (indent >= INDENTED),
    }


def _in_names(tokens: _Sequence) -> dict[str, np.ndarray]:
    """A name may be several tokens: they are traced back to the one at which the letters, digits and underscores begin."""
    t, start = tokens.text, tokens.start
    glued = t.word & tokens.before(t.word_last)
    run = tokens.last(~glued)
    one_before, two_before = np.maximum(run - 1, 0), np.maximum(run - 2, 0)
    has_one, has_two = run - 1 >= start, run - 2 >= start
    dot_ends = (t.dot[one_before] & t.word_last[two_before] & has_two) | t.dot_after_word[one_before]
    dotted = (t.name_first[run] & t.word[run] & has_one & dot_ends) | t.dotted[run]
    dotted |= t.dot_name[run] & has_one & t.word_last[one_before]
    underscore = tokens.last(t.underscored)
    return {
        "part of a dotted name": t.word & dotted,
        "after an underscore in a name": glued & (tokens.before(underscore, -1) >= run) & (run >= 0),
    }


def _in_words(tokens: _Sequence) -> dict[str, np.ndarray]:
    t = tokens.text
    return {
        "inside a number": t.digits & tokens.before(t.digit_last),
        "inside a word": t.letters_first & tokens.before(t.letters_last),
    }


def _in_sentences(tokens: _Sequence) -> dict[str, np.ndarray]:
    t = tokens.text
    content = tokens.last(~t.blank)
    sentence = tokens.before(content, -1)
    gap = t.starts_blank | (sentence < tokens.place - 1) | t.ends_blank[np.maximum(sentence, 0)]
    whole_word = t.starts_blank | ~tokens.before(t.letters_last)
    return {
        "first of a sentence": t.body_letter_first & (sentence >= 0) & t.sentence_end[np.maximum(sentence, 0)] & gap,
        "after an article": t.body_letter_first & t.starts_blank & tokens.before(t.article & whole_word),
    }


def _repeated(tokens: _Sequence) -> dict[str, np.ndarray]:
    kind, start, letter = tokens.kind, tokens.start, tokens.text.letter
    has_previous = tokens.place > start
    pair = np.roll(kind, 1) * (int(kind.max(initial=0)) + 1) + kind
    return {
        "repeated token": letter & _seen(start, kind),
        "repeated pair": letter & has_previous & _seen(start, pair, has_previous),
    }


def _open_brackets(low: np.ndarray, change: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Brackets open after each token: a running sum that never falls below 0, from the place where each begins.

    The sum is kept from falling below 0 by what it fell below at its lowest so far; places before ``begin`` are made
    to lie higher, so that one running minimum serves all.
    """
    total = np.cumsum(change)
    previous = total - change
    since = previous[begin]
    span = int(np.abs(change).sum() + np.abs(low).sum()) + 1
    rank = np.cumsum(begin == np.arange(len(begin)))
    lowest = np.minimum.accumulate(previous + low - since - rank * 3 * span) + rank * 3 * span
    return total - since - np.minimum(lowest, 0)


def _seen(start: np.ndarray, what: np.ndarray, counts: np.ndarray | None = None) -> np.ndarray:
    """Where the same occurred earlier since ``start``. counts: which occurrences are any."""
    order = np.lexsort((what, start))
    order = order if counts is None else order[counts[order]]
    again = (start[order][1:] == start[order][:-1]) & (what[order][1:] == what[order][:-1])
    out = np.zeros(len(what), bool)
    out[order[1:]] = again
    return out
