"""Cut long documents into pieces whose tokens, one after another, are those of the whole document.

A tokenizer takes a document whole, so a long one would cost memory and minutes before its first token. It is cut
where the tokenizer keeps a border anyway: before a line break or a space between letters, or behind a line break
before a letter. Every cut is tried first, on the text just around it: the tokens on its two sides must be those of both
together. What comes behind a cut is tokenized behind an anchor, whose tokens are taken off again, since many
tokenizers treat the beginning of a text in a way of its own. Byte pairs never merge over a border that the result
keeps, words and pre-tokens end there, so what is farther away has no say.

Where no cut holds, a piece grows to twice its size, and so on: one endless line without spaces is held whole.
"""

import re
from bisect import bisect_right
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

PIECE = 1 << 16
"""Characters to a piece, about."""
AROUND = 64
"""Characters on each side of a cut on which it is tried."""
TRIED = 8
"""Cuts tried of a piece, the last ones, before it grows."""

CUTS = re.compile(r"(?<=[^\W\d_])(?=[\n ][^\W\d_])|(?<=\S\n)(?=[^\W\d_])")
"""[^\\W\\d_] is a letter. Punctuation may belong to the line break behind it, and digits come in groups."""

Encode = Callable[[list[str]], list[list[int]]]
"""Texts -> their token ids, without special tokens at the ends."""


class Chunk(NamedTuple):
    """A document or part of one, as it is read: cut anywhere."""

    place: Any
    """JSON from which the reader goes on with this chunk"""
    content: str | list[int]
    """text, or token ids, which are never in parts"""
    ends: bool
    """whether the document ends with it"""


class Piece(NamedTuple):
    """A document or part of one that can be tokenized by itself."""

    place: Any
    """of the chunk in which it begins"""
    skipped: int
    """characters of that chunk before it"""
    anchor: str
    """what it is tokenized behind; empty at a document's beginning"""
    content: str | list[int]
    ends: bool


def pieces(
    chunks: Iterable[Chunk], encode: Encode, *, skipped: int = 0, anchor: str = "", size: int | None = None
) -> Iterator[Piece]:
    """The documents in pieces of about ``size`` characters (default: PIECE).

    skipped, anchor: of the piece to begin with, where the first chunk is the one in which it begins.
    """
    size = PIECE if size is None else size
    parts: list[str] = []
    marks: list[tuple[int, Any]] = []  # where in `parts` each chunk begins, and its place
    waiting, limit = 0, size
    for chunk in chunks:
        if not isinstance(chunk.content, str):
            yield Piece(chunk.place, 0, "", chunk.content, chunk.ends)
            continue
        marks.append((waiting - skipped, chunk.place))
        parts.append(chunk.content[skipped:])
        waiting, skipped = waiting + len(parts[-1]), 0
        if waiting < limit + AROUND and not chunk.ends:
            continue
        text, first = "".join(parts), 0
        while waiting - first >= limit + AROUND:
            if (cut := _find_cut(text, first, first + limit, encode)) is None:
                limit *= 2
                continue
            yield _piece(marks, first, anchor, text[first:cut], False)
            first, anchor, limit = cut, _anchor(text, cut), size
        if chunk.ends:
            yield _piece(marks, first, anchor, text[first:], True)
            parts, marks, waiting, anchor, limit = [], [], 0, "", size
        else:
            kept = bisect_right(marks, first, key=lambda mark: mark[0]) - 1
            marks = [(at - first, place) for at, place in marks[kept:]]
            parts, waiting = [text[first:]], waiting - first


def _piece(marks: list[tuple[int, Any]], first: int, anchor: str, text: str, ends: bool) -> Piece:
    at, place = marks[bisect_right(marks, first, key=lambda mark: mark[0]) - 1]
    return Piece(place, first - at, anchor, text, ends)


def _anchor(text: str, cut: int) -> str:
    return "a\n" if text[cut - 1] == "\n" else "a"


def _find_cut(text: str, first: int, last: int, encode: Encode) -> int | None:
    """The last cut that holds in the second half of a piece from first to last."""
    found = deque((match.start() for match in CUTS.finditer(text, (first + last) // 2, last + 1)), TRIED)
    for cut in reversed(found):
        anchor, before, after = _anchor(text, cut), text[max(first, cut - AROUND) : cut], text[cut : cut + AROUND]
        both, left, right, ahead = encode([before + after, before, anchor + after, anchor])
        if right[: len(ahead)] == ahead and both == left + right[len(ahead) :]:
            return cut
    return None
