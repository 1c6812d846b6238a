"""documents -> blocks: token ids packed into contexts of one length.

Documents are tokenized without special tokens and laid end to end, one separator after each (the
tokenizer's EOS, else its BOS, else none). The stream is cut into contexts of ``context_size``
tokens; with ``prepend_bos`` the first of them is BOS. No padding, and nothing is ever repeated: a
text that ends early ends the blocks, an incomplete last context is dropped.
"""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np

from sae_lm.errors import ModelError

DOCUMENTS_PER_CALL = 64
"""Documents handed to the tokenizer at once: enough for its threads, little memory."""


class Block(NamedTuple):
    """One context."""

    ids: np.ndarray
    """[context_size] int32 token ids"""
    documents: np.ndarray
    """[context_size] int32 index of the document each token is from; for BOS that of the next token"""
    special: np.ndarray
    """[context_size] bool: BOS and separators, which are not kept as rows"""


class SpecialTokens(NamedTuple):
    bos: int | None
    separator: int | None


def special_tokens(tokenizer: Any, prepend_bos: bool) -> SpecialTokens:
    """Which ids begin a context and separate documents. Raises ModelError if BOS is wanted but missing."""
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if prepend_bos and bos is None:
        raise ModelError(
            "prepend_bos is true, but the tokenizer has no BOS token; give --no-prepend-bos to begin contexts with text"
        )
    return SpecialTokens(bos if prepend_bos else None, eos if eos is not None else bos)


def blocks(documents: Iterable[str], tokenizer: Any, special: SpecialTokens, context_size: int) -> Iterator[Block]:
    """Cut documents into contexts; the order of documents is kept."""
    room = context_size - (special.bos is not None)
    ids = np.zeros(0, np.int32)
    origins = np.zeros(0, np.int32)
    for document_ids, document_index in _stream(documents, tokenizer, special.separator):
        ids = np.concatenate([ids, document_ids])
        origins = np.concatenate([origins, np.full(len(document_ids), document_index, np.int32)])
        whole = len(ids) // room * room
        for first in range(0, whole, room):
            yield _block(ids[first : first + room], origins[first : first + room], special)
        ids, origins = ids[whole:], origins[whole:]


def _block(ids: np.ndarray, origins: np.ndarray, special: SpecialTokens) -> Block:
    if special.bos is not None:
        ids = np.concatenate([np.array([special.bos], np.int32), ids])
        origins = np.concatenate([origins[:1], origins])
    marks = np.zeros(len(ids), bool)
    for token in special:
        if token is not None:
            marks |= ids == token
    return Block(ids, origins, marks)


def _stream(documents: Iterable[str], tokenizer: Any, separator: int | None) -> Iterator[tuple[np.ndarray, int]]:
    source = iter(documents)
    index = 0
    while texts := list(islice(source, DOCUMENTS_PER_CALL)):
        for row in tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]:
            if separator is not None:
                row = [*row, separator]
            yield np.asarray(row, np.int32), index
            index += 1


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
