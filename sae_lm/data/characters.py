"""Characters that are spread over several tokens: put together again, or told as the parts they are.

Tokenizers of bytes cut rarer characters (Chinese, emoji, accents) into tokens that are no text by themselves. What
bytes these tokens are is read off the tokenizer and kept in the store beside its vocabulary.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from sae_lm.errors import StoreError
from sae_lm.runtime.files import read_json, write_json

FILE = "token_bytes.json"
"""Of a store: token id -> its bytes in hexadecimal, of tokens that are a part of a character; absent without any."""
REPLACEMENT = "\ufffd"
LONGEST = 16
"""Tokens that are put together at most; a character of UTF-8 has four bytes, and a token one at least."""


class Piece(NamedTuple):
    """Tokens that are text only together; mostly one token."""

    first: int
    last: int
    """behind the last of them"""
    text: str
    whole: bool
    """false for bytes that make no character: ``text`` then names them"""


def _byte_alphabet() -> dict[str, int]:
    """The character that stands for each byte in byte-level vocabularies (GPT-2's): printable ones for themselves."""
    plain = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    rest = [byte for byte in range(256) if byte not in plain]
    return {chr(byte): byte for byte in plain} | {chr(256 + n): byte for n, byte in enumerate(rest)}


BYTES = _byte_alphabet()


def partial_tokens(tokenizer: Any, vocabulary: Sequence[str]) -> dict[int, bytes]:
    """The bytes of each token that is no text by itself, as far as the tokenizer tells them.

    vocabulary: the text of each token id, U+FFFD for what is none.
    """
    unclear = [token for token, text in enumerate(vocabulary) if REPLACEMENT in text]
    found = {}
    for token, piece in zip(unclear, tokenizer.convert_ids_to_tokens(unclear), strict=True):
        if len(piece) == 6 and piece.startswith("<0x") and piece.endswith(">"):
            found[token] = bytes([int(piece[3:5], 16)])
            continue
        if all(character in BYTES for character in piece):
            raw = bytes(BYTES[character] for character in piece)
            if raw.decode("utf-8", "replace") == vocabulary[token] and not _is_text(raw):
                found[token] = raw
    return found


def write_partial(folder: Path, partial: Mapping[int, bytes]) -> list[str]:
    """Write the file, if there is something in it; the names of the files written, to be put into the manifest."""
    if not partial:
        return []
    write_json(folder / FILE, {str(token): raw.hex() for token, raw in sorted(partial.items())})
    return [FILE]


def read_partial(path: Path) -> dict[int, bytes]:
    """Raises StoreError for a file that is not as `write_partial` writes it."""
    try:
        return {int(token): bytes.fromhex(raw) for token, raw in read_json(path, StoreError, "a store").items()}
    except (TypeError, ValueError) as problem:
        raise StoreError(f"{path} is damaged ({problem}), expected bytes in hexadecimal; run sae-lm verify") from None


def pieces(ids: Sequence[int], vocabulary: Sequence[str], partial: Mapping[int, bytes]) -> list[Piece]:
    """Tokens in the order of the text, those that are one character's parts together."""
    out, at = [], 0
    while at < len(ids):
        end = _end_of_character(ids, at, vocabulary, partial)
        if end is None:
            whole = ids[at] not in partial
            out.append(Piece(at, at + 1, token_text(ids[at], vocabulary, partial), whole))
            at += 1
        else:
            raw = b"".join(_raw(token, vocabulary, partial) for token in ids[at:end])
            out.append(Piece(at, end, raw.decode("utf-8"), True))
            at = end
    return out


def token_text(token: int, vocabulary: Sequence[str], partial: Mapping[int, bytes]) -> str:
    """A token's own text; its bytes by name where these are a part of a character."""
    return vocabulary[token] if token not in partial else _named(partial[token])


def _raw(token: int, vocabulary: Sequence[str], partial: Mapping[int, bytes]) -> bytes:
    return partial[token] if token in partial else vocabulary[token].encode("utf-8", "surrogatepass")


def _end_of_character(
    ids: Sequence[int], at: int, vocabulary: Sequence[str], partial: Mapping[int, bytes]
) -> int | None:
    """Where the tokens from ``at`` on that make whole characters end, None where they do not make any."""
    if ids[at] not in partial:
        return None
    raw = b""
    for end in range(at, min(len(ids), at + LONGEST)):
        if ids[end] not in partial:
            return None
        raw += partial[ids[end]]
        if _is_text(raw):
            return end + 1
    return None


def _is_text(raw: bytes) -> bool:
    try:
        raw.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _named(raw: bytes) -> str:
    """Whole characters as they are, other bytes as ``⟨0xE4⟩``."""
    text = raw.decode("utf-8", "surrogateescape")  # which makes U+DCE4 of a byte E4 that is no text
    return "".join(f"⟨0x{ord(c) - 0xDC00:02X}⟩" if 0xDC80 <= ord(c) <= 0xDCFF else c for c in text)
