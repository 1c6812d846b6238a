"""Contextual labels: what a token's place is (inside brackets, first of a sentence, ...), whatever the token.

The residual stream at a token has seen the tokens before it in its context and itself, nothing else. So a label is a
function of these alone, and of these of the token's own document alone: a document and a context that begin, begin
unquoted, unbracketed, with nothing seen. What cannot be known there (whether a context begins inside a quotation) counts
as not so. A paragraph's end, a blank line, closes quotations and brackets, so that an unpaired mark does not turn
the rest of the text around.

All tokens are labelled at once: what a token's text does to a state is looked up, and states are running sums, minima
and last occurrences.
"""

import numpy as np
from jaxtyping import Bool, Int

from sae_lm.concepts.token_sequence import TokenSequence, TokenTexts, token_texts
from sae_lm.concepts.words_before import WORDS_BEFORE, labels_of_words_before

CONTEXTUAL = (
    "inside quotation marks",
    "inside brackets",
    "after a quotation",
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
    "after a repeated token",
    *WORDS_BEFORE,
)
"""Names of the concepts, in the order of `contextual_labels`."""
INDENTED = 2
"""Blank characters before the first other on an indented line, at least."""


def contextual_labels(
    token_id: Int[np.ndarray, " n"], begins: Bool[np.ndarray, " n"], vocabulary: list[str]
) -> dict[str, Bool[np.ndarray, " n"]]:
    """Concept -> which of the tokens have it; the concepts are `CONTEXTUAL`, in this order.

    token_id: contexts, one after the other.
    begins: where a context or a document begins; nothing before is looked at.
    """
    types, kind = np.unique(token_id, return_inverse=True)
    texts = [vocabulary[token] for token in types]
    text = TokenTexts(*(feature[kind] for feature in token_texts(texts)))
    place = np.arange(len(token_id))
    tokens = TokenSequence(text, kind, place, np.maximum.accumulate(np.where(begins, place, 0)))
    return {
        **_inside_marks(tokens),
        **_on_lines(tokens),
        **_in_names(tokens),
        **_in_words(tokens),
        **_in_sentences(tokens),
        **_repeated(tokens),
        **labels_of_words_before(tokens, texts),
    }


def _inside_marks(tokens: TokenSequence) -> dict[str, np.ndarray]:
    """Open quotation marks and brackets. A paragraph begins at the token that ends a blank line; of its text only what
    follows counts."""
    t, place = tokens.text, tokens.place
    breaks = tokens.paragraph_breaks()
    paragraph = np.maximum(tokens.start, tokens.last(breaks))
    part = breaks.astype(int)
    quotes = np.cumsum(t.quotes[place, part])
    marks = quotes - (quotes - t.quotes[place, part])[paragraph]
    seen, unquoted = tokens.before(marks, 0), (t.quotes[:, 0] == 0) & ~breaks
    depth = _open_brackets(t.low[place, part], t.depth[place, part], paragraph)
    return {
        "inside quotation marks": (seen % 2 == 1) & unquoted,
        "inside brackets": (tokens.before(depth, 0) > 0) & ~t.bracket & ~breaks,
        "after a quotation": (seen > 0) & (seen % 2 == 0) & unquoted,
    }


def _on_lines(tokens: TokenSequence) -> dict[str, np.ndarray]:
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


def _in_names(tokens: TokenSequence) -> dict[str, np.ndarray]:
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


def _in_words(tokens: TokenSequence) -> dict[str, np.ndarray]:
    t = tokens.text
    return {
        "inside a number": t.digits & tokens.before(t.digit_last),
        "inside a word": t.letters_first & tokens.before(t.letters_last),
    }


def _in_sentences(tokens: TokenSequence) -> dict[str, np.ndarray]:
    t = tokens.text
    content = tokens.last(~t.blank)
    sentence = tokens.before(content, -1)
    gap = t.starts_blank | (sentence < tokens.place - 1) | t.ends_blank[np.maximum(sentence, 0)]
    whole_word = t.starts_blank | ~tokens.before(t.letters_last)
    return {
        "first of a sentence": t.body_letter_first & (sentence >= 0) & t.sentence_end[np.maximum(sentence, 0)] & gap,
        "after an article": t.body_letter_first & t.starts_blank & tokens.before(t.article & whole_word),
    }


def _repeated(tokens: TokenSequence) -> dict[str, np.ndarray]:
    t, kind, start, letter = tokens.text, tokens.kind, tokens.start, tokens.text.letter
    has_previous = tokens.place > start
    pair = np.roll(kind, 1) * (int(kind.max(initial=0)) + 1) + kind
    repeated = letter & _seen(start, kind)
    return {
        "repeated token": repeated,
        "repeated pair": letter & has_previous & _seen(start, pair, has_previous),
        "after a repeated token": tokens.before(repeated) & t.starts_blank & t.body_letter_first,
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
