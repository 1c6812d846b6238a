"""Tokenize documents and cut them into contexts of one length, which are called blocks here.

Documents are tokenized without special tokens and laid end to end, one separator after each (the
tokenizer's EOS or SEP, else its BOS, else none). The stream is cut into contexts of ``context_size``
tokens; with BOS the first of them is the tokenizer's BOS or CLS. So packed, contexts cross from one
document into the next, nothing is padded, and an incomplete last context is dropped. Without packing
every document begins a context and the last one of each is filled up with separators, which are
padding: they are special, so they are never rows. A text that ends early ends the blocks; only
``repeat`` begins it again.

A document that spells out a special token (``</s>``) has that token there, as the tokenizer reads it.

A block knows where in the text the next one begins, so that blocks can be made from there on
without tokenizing what comes before.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from typing import Any, NamedTuple

import numpy as np

from sae_lm.errors import ModelError, SettingsError

DOCUMENTS_PER_CALL = 64
"""Documents handed to the tokenizer at once: enough for its threads, little memory."""


class Position(NamedTuple):
    """A place in the text."""

    document: int
    """documents before it, repetitions counted"""
    offset: int
    """tokens of that document before it, separator counted"""


START = Position(0, 0)


class Block(NamedTuple):
    """One context."""

    ids: np.ndarray
    """[context_size] int32 token ids"""
    documents: np.ndarray
    """[context_size] int32 index of the document each token is from; for BOS that of the next token"""
    special: np.ndarray
    """[context_size] bool: BOS, separators and padding, which are not kept as rows"""
    length: int
    """tokens before the padding"""
    next: Position
    """where the next block begins"""


class SpecialTokens(NamedTuple):
    bos: int | None
    separator: int | None


def special_tokens(tokenizer: Any, prepend_bos: bool) -> SpecialTokens:
    """Which ids begin a context and separate documents. Raises ModelError if BOS is wanted but missing."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if prepend_bos and bos is None:
        raise ModelError(
            "prepend_bos is true, but the tokenizer has no BOS token; give --no-prepend-bos to begin contexts with text"
        )
    return SpecialTokens(bos if prepend_bos else None, end if end is not None else bos)


def blocks(
    documents: Callable[[], Iterable[str]],
    tokenizer: Any,
    special: SpecialTokens,
    context_size: int,
    *,
    pack: bool = True,
    repeat: bool = False,
    start: Position = START,
) -> Iterator[Block]:
    """Cut documents into contexts; the order of documents is kept.

    documents: called for each pass over the text.
    start: ``next`` of the last block that is there already.
    """
    if not pack and special.separator is None:
        raise SettingsError("pack is false, but the tokenizer has no EOS, SEP or BOS token to pad with; leave it true")
    room = context_size - (special.bos is not None)
    pending: list[_Tokens] = []
    waiting = 0
    for tokens in _stream(documents, tokenizer, special.separator, repeat, start):
        if not pack:
            yield from _documents_blocks(tokens, special, context_size, room)
            continue
        pending.append(tokens)
        waiting += len(tokens.ids)
        if waiting >= room:
            yield from _packed_blocks(pending, special, room)
            waiting = sum(len(piece.ids) for piece in pending)


class _Tokens(NamedTuple):
    """A piece of a document."""

    ids: np.ndarray
    number: int
    """of the document, as in Position"""
    origin: int
    """index of the document within the text"""
    offset: int
    """tokens of the document before this piece"""


def _packed_blocks(pending: list[_Tokens], special: SpecialTokens, room: int) -> Iterator[Block]:
    """Blocks of all whole contexts in ``pending``, which keeps the rest."""
    ids = np.concatenate([piece.ids for piece in pending])
    index = np.repeat(np.array([piece.origin for piece in pending], np.int32), [len(piece.ids) for piece in pending])
    ends = np.cumsum([len(piece.ids) for piece in pending])
    for last in range(room, len(ids) + 1, room):
        piece = int(np.searchsorted(ends, last, "right"))  # the piece that holds the token after this block
        if piece < len(pending):
            inside = last - (int(ends[piece - 1]) if piece else 0)
            following = Position(pending[piece].number, pending[piece].offset + inside)
        else:
            following = Position(pending[-1].number + 1, 0)
        yield _block(ids[last - room : last], index[last - room : last], special, following)
    used = len(ids) // room * room
    piece = int(np.searchsorted(ends, used, "right"))
    del pending[:piece]
    if pending:
        cut = len(pending[0].ids) - (int(ends[piece]) - used)
        pending[0] = pending[0]._replace(ids=pending[0].ids[cut:], offset=pending[0].offset + cut)


def _documents_blocks(tokens: _Tokens, special: SpecialTokens, context_size: int, room: int) -> Iterator[Block]:
    """Blocks of one document alone, the last one padded."""
    for first in range(0, len(tokens.ids), room):
        ids = tokens.ids[first : first + room]
        done = first + room >= len(tokens.ids)
        following = Position(tokens.number + 1, 0) if done else Position(tokens.number, tokens.offset + first + room)
        index = np.full(len(ids), tokens.origin, np.int32)
        block = _block(ids, index, special, following)
        short = context_size - len(block.ids)
        yield block._replace(
            ids=np.pad(block.ids, (0, short), constant_values=special.separator or 0),
            documents=np.pad(block.documents, (0, short), mode="edge"),
            special=np.pad(block.special, (0, short), constant_values=True),
        )


def _block(ids: np.ndarray, index: np.ndarray, special: SpecialTokens, following: Position) -> Block:
    if special.bos is not None:
        ids = np.concatenate([np.array([special.bos], np.int32), ids])
        index = np.concatenate([index[:1], index])
    marks = np.zeros(len(ids), bool)
    for token in special:
        if token is not None:
            marks |= ids == token
    return Block(ids, index, marks, len(ids), following)


def _stream(
    documents: Callable[[], Iterable[str]], tokenizer: Any, separator: int | None, repeat: bool, start: Position
) -> Iterator[_Tokens]:
    """Token ids of each document from ``start`` on, with its separator; never an empty piece."""
    source = islice(_numbered(documents, repeat), start.document, None)
    number, offset = start
    while rows := list(islice(source, DOCUMENTS_PER_CALL)):
        encoded = tokenizer([text for _, text in rows], add_special_tokens=False, verbose=False)["input_ids"]
        for (index, _), ids in zip(rows, encoded, strict=True):
            if separator is not None:
                ids = [*ids, separator]
            if ids := ids[offset:]:
                yield _Tokens(np.asarray(ids, np.int32), number, index, offset)
            number, offset = number + 1, 0


def _numbered(documents: Callable[[], Iterable[str]], repeat: bool) -> Iterator[tuple[int, str]]:
    for _ in count():
        yield from enumerate(documents())
        if not repeat:
            return


def vocabulary(tokenizer: Any, size: int) -> list[str]:
    """The text each token id stands for, leading space included; ids beyond the tokenizer are empty.

    Decoding one id loses the leading space of SentencePiece pieces, so those are read from the
    piece itself. Pieces that are part of a character show as U+FFFD.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    sentence_piece = any(piece is not None and piece.startswith("\u2581") for piece in pieces)
    texts = []
    for index, piece in enumerate(pieces):
        if piece is None:
            texts.append("")
        elif sentence_piece and len(piece) == 6 and piece.startswith("<0x"):
            texts.append(bytes([int(piece[3:5], 16)]).decode("utf-8", "replace"))
        elif sentence_piece:
            texts.append(piece.replace("\u2581", " "))
        else:
            texts.append(tokenizer.decode([index], clean_up_tokenization_spaces=False))
    return texts + [""] * (size - len(texts))
