"""Tokenize documents and cut them into contexts of one length, which are called blocks here.

Documents are tokenized without special tokens and laid end to end, one separator after each (the
tokenizer's EOS or SEP, else its BOS, else none). The stream is cut into contexts of ``context_size``
tokens; with BOS the first of them is the tokenizer's BOS or CLS. So packed, contexts cross from one
document into the next, nothing is padded, and an incomplete last context is dropped. Without packing
every document begins a context and the last one of each is filled up with separators, which are
padding: they are special, so they are never rows. A text that ends early ends the blocks; only
``repeat`` begins it again.

A document that spells out a special token (``</s>``) has that token there, as the tokenizer reads it.

Long documents are tokenized in pieces (`sae_lm.data.pieces`), so memory does not grow with a document. A block knows
where in the text the next one begins, so that blocks can be made from there on without tokenizing what comes before,
and a place near it from which the text can be read on.
"""

from collections.abc import Callable, Iterable, Iterator
from itertools import count
from typing import Any, NamedTuple

import numpy as np

from sae_lm.data.manifest import Recipe
from sae_lm.data.pieces import Chunk, Piece, pieces
from sae_lm.errors import ModelError, SettingsError

PIECES_PER_CALL = 64
CHARACTERS_PER_CALL = 1 << 18
"""Handed to the tokenizer at once, at most: enough for its threads, little memory. Pieces of a document, or documents."""
RARE = "\U0010fffd \U00012000 \U0002a6d0 \U0001d300"
"""What few vocabularies have: a character for private use, which BERT's normaliser takes out, and a letter, an ideograph
and a symbol, which it leaves."""


class Position(NamedTuple):
    """A place in the text."""

    document: int
    """documents before it, repetitions counted"""
    offset: int
    """tokens of that document before it, separator counted"""


START = Position(0, 0)


class Place(NamedTuple):
    """From where the text can be read on; JSON as a list. It is at a Position or somewhat before it."""

    reader: Any
    """the reader's own note of a chunk"""
    skipped: int
    """characters of that chunk before this place"""
    anchor: str
    """of the piece that begins here (`sae_lm.data.pieces`)"""
    document: int
    """as in Position"""
    origin: int
    """of the document within the text, which is begun again where it is repeated"""
    offset: int
    """tokens of that document before this place"""

    @property
    def position(self) -> Position:
        return Position(self.document, self.offset)


BEGINNING = Place(None, 0, "", 0, 0, 0)
Read = Callable[..., Iterable[Chunk]]
"""``read()`` gives the text's chunks; ``read(note, inside)`` those from a chunk on, ``inside`` a document begun before."""


class Block(NamedTuple):
    """One context."""

    ids: np.ndarray
    """[context_size] int32 token ids"""
    documents: np.ndarray
    """[context_size] int32 index of the document each token is from; for BOS that of the next token"""
    special: np.ndarray
    """[context_size] bool: BOS, separators, other special tokens and padding, which are not kept as rows"""
    length: int
    """tokens before the padding"""
    next: Position
    """where the next block begins"""
    place: Place = BEGINNING
    """the last one noted at or before ``next``"""


class SpecialTokens(NamedTuple):
    bos: int | None
    separator: int | None
    others: tuple[int, ...] = ()
    """marks of chats, padding, masks: never laid by us, special where a document spells them"""

    @property
    def ids(self) -> list[int]:
        return [token for token in (self.bos, self.separator, *self.others) if token is not None]


def special_tokens(tokenizer: Any, prepend_bos: bool) -> SpecialTokens:
    """Which ids begin a context and separate documents. Raises ModelError if BOS is wanted but missing."""
    bos = tokenizer.bos_token_id if tokenizer.bos_token_id is not None else tokenizer.cls_token_id
    end = tokenizer.eos_token_id if tokenizer.eos_token_id is not None else tokenizer.sep_token_id
    if prepend_bos and bos is None:
        raise ModelError(
            "prepend_bos is true, but the tokenizer has no BOS token; give --no-prepend-bos to begin contexts with text"
        )
    laid = SpecialTokens(bos if prepend_bos else None, end if end is not None else bos)
    return laid._replace(others=tuple(sorted(special_token_ids(tokenizer) - set(laid.ids))))


def special_token_ids(tokenizer: Any) -> set[int]:
    """All ids that the tokenizer calls special, but for an unknown token that stands for text."""
    added = getattr(tokenizer, "added_tokens_decoder", {})
    ids = {*tokenizer.all_special_ids, *(index for index, token in added.items() if token.special)}
    unknown = tokenizer.unk_token_id
    text = tokenizer(RARE, add_special_tokens=False, verbose=False)["input_ids"]
    return ids - {unknown} if unknown in text else ids


def in_memory(documents: Iterable[str]) -> Read:
    """Documents that are in memory, to be read as ``blocks`` reads."""
    numbered = list(enumerate(documents))
    return lambda first=0, inside=False: (Chunk(number, text, True) for number, text in numbered[first or 0 :])


def blocks(
    read: Read,
    tokenizer: Any,
    special: SpecialTokens,
    context_size: int,
    *,
    pack: bool = True,
    repeat: bool = False,
    start: Position = START,
    place: Place = BEGINNING,
) -> Iterator[Block]:
    """Cut documents into contexts; the order of documents is kept.

    read: called for each pass over the text.
    start: ``next`` of the last block that is there already.
    place: the last one known at or before ``start``; without it the text is read from its beginning.
    """
    if not pack and special.separator is None:
        raise SettingsError("pack is false, but the tokenizer has no EOS, SEP or BOS token to pad with; leave it true")
    room = context_size - (special.bos is not None)
    pending: list[_Tokens] = []
    waiting = 0
    for tokens in _stream(read, tokenizer, special.separator, repeat, start, place):
        pending.append(tokens)
        waiting += len(tokens.ids)
        if pack and waiting >= room:
            yield from _packed_blocks(pending, special, room)
        elif not pack and (waiting > room or tokens.ends):
            yield from _document_blocks(pending, special, context_size, room)
        else:
            continue
        waiting = sum(len(piece.ids) for piece in pending)


class _Tokens(NamedTuple):
    """A piece of a document."""

    ids: np.ndarray
    number: int
    """of the document, as in Position"""
    origin: int
    """of the document within the text"""
    offset: int
    """tokens of the document before this piece"""
    ends: bool
    """whether the document ends with it"""
    place: Place

    @property
    def following(self) -> Position:
        return Position(self.number + 1, 0) if self.ends else Position(self.number, self.offset + len(self.ids))


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
            following = pending[-1].following
        place = pending[min(piece, len(pending) - 1)].place
        yield _block(ids[last - room : last], index[last - room : last], special, following, place)
    used = len(ids) // room * room
    _forget(pending, used)


def _forget(pending: list[_Tokens], used: int) -> None:
    """Take the first ``used`` tokens off."""
    ends = np.cumsum([len(piece.ids) for piece in pending])
    piece = int(np.searchsorted(ends, used, "right"))
    del pending[:piece]
    if pending:
        cut = len(pending[0].ids) - (int(ends[piece]) - used)
        pending[0] = pending[0]._replace(ids=pending[0].ids[cut:], offset=pending[0].offset + cut)


def _document_blocks(pending: list[_Tokens], special: SpecialTokens, context_size: int, room: int) -> Iterator[Block]:
    """Blocks of one document's pieces, which keep the rest until the document ends; then the last one is padded."""
    ids, first, ends = np.concatenate([piece.ids for piece in pending]), pending[0], pending[-1].ends
    used = 0
    while len(ids) - used > room or (ends and used < len(ids)):
        own = ids[used : used + room]
        used += len(own)
        done = used == len(ids)
        following = pending[-1].following if done else Position(first.number, first.offset + used)
        block = _block(own, np.full(len(own), first.origin, np.int32), special, following, first.place)
        short = context_size - len(block.ids)
        yield block._replace(
            ids=np.pad(block.ids, (0, short), constant_values=special.separator or 0),
            documents=np.pad(block.documents, (0, short), mode="edge"),
            special=np.pad(block.special, (0, short), constant_values=True),
        )
    _forget(pending, used)


def _block(ids: np.ndarray, index: np.ndarray, special: SpecialTokens, following: Position, place: Place) -> Block:
    if special.bos is not None:
        ids = np.concatenate([np.array([special.bos], np.int32), ids])
        index = np.concatenate([index[:1], index])
    marks = np.isin(ids, special.ids)
    return Block(ids, index, marks, len(ids), following, place)


def lengths(ids: np.ndarray, recipe: Recipe) -> np.ndarray:
    """[contexts] tokens before the padding of a store's ids [contexts, pos], as far as ids tell it.

    Padding is made of separators, of which the first is none: it is the document's own, that ends it. So is one alone
    behind the BOS, which may be the same token, or alone in its context: the document filled the one before. Packed
    contexts have no padding. Separators that a document spells at its end are not told from padding.
    """
    size = ids.shape[1]
    if recipe.pack:
        return np.full(len(ids), size)
    text = ids != recipe.separator
    if recipe.bos is not None:
        text[:, 0] = True
    after_text = np.where(text.any(1), size - text[:, ::-1].argmax(1), 0)
    return np.minimum(after_text + 1, size)


def _stream(
    read: Read, tokenizer: Any, separator: int | None, repeat: bool, start: Position, place: Place
) -> Iterator[_Tokens]:
    """Token ids of each piece from ``start`` on, behind a document's last its separator; never an empty piece."""

    def encode(texts: list[str]) -> list[list[int]]:
        return tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]

    if place.position > start:
        place = BEGINNING
    anchors: dict[str, list[int]] = {"": []}
    number, offset = start.document, place.offset if place.document == start.document else 0
    source = _cut(read, encode, repeat, place, start.document - place.document)
    for batch in _batches(source):
        for _, piece in batch:
            if piece.anchor not in anchors:
                anchors[piece.anchor] = encode([piece.anchor])[0]
        texts = [piece.anchor + piece.content for _, piece in batch if isinstance(piece.content, str)]
        encoded = iter(encode(texts) if texts else [])
        for index, piece in batch:
            if isinstance(piece.content, str):
                ids, anchor = next(encoded), anchors[piece.anchor]
                assert ids[: len(anchor)] == anchor, "the cut before this piece was tried"
                ids = ids[len(anchor) :]
            else:
                ids = piece.content
            if separator is not None and piece.ends and not (ids is piece.content and ids[-1:] == [separator]):
                ids = [*ids, separator]
            before = max(0, start.offset - offset) if number == start.document else 0
            here = Place(piece.place, piece.skipped, piece.anchor, number, index, offset)
            if own := ids[before:]:
                yield _Tokens(
                    np.asarray(own, np.int32), number, index, offset + min(before, len(ids)), piece.ends, here
                )
            number, offset = (number + 1, 0) if piece.ends else (number, offset + len(ids))


def _cut(
    read: Read, encode: Callable[[list[str]], list[list[int]]], repeat: bool, place: Place, skipped: int
) -> Iterator[tuple[int, Piece]]:
    """Index of the document within the text, and piece; from a place on, without the first ``skipped`` documents."""
    index, inside = place.origin, place.anchor != ""
    for turn in count():
        chunks = iter(read() if turn or place is BEGINNING else read(place.reader, inside))
        while skipped and (chunk := next(chunks, None)) is not None:
            index, skipped = index + chunk.ends, skipped - chunk.ends
            inside = False
        first = {"skipped": place.skipped, "anchor": place.anchor} if inside and not turn else {}
        for piece in pieces(chunks, encode, **first):
            yield index, piece
            index += piece.ends
        if not repeat:
            return
        index = 0


def _batches(source: Iterator[tuple[int, Piece]]) -> Iterator[list[tuple[int, Piece]]]:
    batch: list[tuple[int, Piece]] = []
    characters = 0
    for index, piece in source:
        batch.append((index, piece))
        characters += len(piece.content)
        if len(batch) == PIECES_PER_CALL or characters >= CHARACTERS_PER_CALL:
            yield batch
            batch, characters = [], 0
    if batch:
        yield batch


def vocabulary(tokenizer: Any, size: int) -> list[str]:
    """The text each token id stands for, leading space included; ids beyond the tokenizer are empty.

    Decoding one id loses the leading space of SentencePiece pieces, so those are read from the piece itself; WordPiece
    marks what goes on instead of what begins. Pieces that are part of a character show as U+FFFD, and so does a byte
    that stands for a character which has a piece of its own: text never has it.
    """
    pieces = tokenizer.convert_ids_to_tokens(list(range(min(size, len(tokenizer)))))
    sentence_piece = any(piece is not None and piece.startswith("\u2581") for piece in pieces)
    word_piece = type(getattr(getattr(tokenizer, "backend_tokenizer", None), "model", None)).__name__ == "WordPiece"
    known, special = set(pieces), set(tokenizer.all_special_tokens) if word_piece else set()
    texts = []
    for index, piece in enumerate(pieces):
        if piece is None:
            texts.append("")
        elif sentence_piece and len(piece) == 6 and piece.startswith("<0x"):
            text = bytes([int(piece[3:5], 16)]).decode("utf-8", "replace")
            texts.append("\N{REPLACEMENT CHARACTER}" if text.replace(" ", "\u2581") in known else text)
        elif sentence_piece:
            texts.append(piece.replace("\u2581", " "))
        elif word_piece and piece not in special:
            goes_on = piece.startswith("##") and len(piece) > 2
            texts.append(piece[2:] if goes_on else f" {piece}" if piece[:1].isalnum() else piece)
        else:
            texts.append(tokenizer.decode([index], clean_up_tokenization_spaces=False))
    return texts + [""] * (size - len(texts))
