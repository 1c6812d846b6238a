"""Tell, before a model runs and in a sentence each, where tokenizer, text and model do not go together."""

import unicodedata
from collections import Counter
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np

from sae_lm.data.manifest import Recipe
from sae_lm.data.text import Text
from sae_lm.errors import ModelError

TRIED_DOCUMENTS, TRIED_CHARACTERS = 8, 2000
"""The text's head that is encoded and decoded again."""
LOST = 0.01
"""Share of the head's letters and digits whose loss is told."""
NAMED = 3


def check_ids(ids: np.ndarray, size: int, tokenizer: Any, where: str) -> None:
    """Raise ModelError where one of the ids has no row in an embedding of ``size`` rows."""
    if len(ids) and (ids.min() < 0 or ids.max() >= size):
        bad = int(ids[(ids < 0) | (ids >= size)][0])
        name = tokenizer.convert_ids_to_tokens(bad) if 0 <= bad < len(tokenizer) else None
        token = f"token {name!r} with id {bad}" if name else f"token id {bad}"
        raise ModelError(
            f"{where} has {token}, the model's embedding has {size} rows; take the tokenizer that was made for this model, or "
            "leave that token out of the text"
        )


def remarks(tokenizer: Any, text: Text, recipe: Recipe) -> Iterator[str]:
    """Sentences on what may go wrong, or has gone wrong, with this tokenizer on this text; usually none."""
    size = recipe.model["d_vocab"]
    if beyond := sorted(index for index in tokenizer.get_vocab().values() if index >= size):
        shown = ", ".join(f"{tokenizer.convert_ids_to_tokens(index)!r} (id {index})" for index in beyond[:NAMED])
        rest = f" and {len(beyond) - NAMED:,} more" if len(beyond) > NAMED else ""
        yield (
            f"the tokenizer has tokens beyond the model's embedding of {size} rows: {shown}{rest}; "
            "a document that holds one will end caching"
        )
    heads = [chunk.content for chunk in islice(text.chunks(), TRIED_DOCUMENTS)]
    if recipe.bos not in (None, recipe.separator) and any(_first_id(head, tokenizer) == recipe.bos for head in heads):
        yield (
            f"documents of text {text.id!r} begin with the token {tokenizer.convert_ids_to_tokens(recipe.bos)!r} that every "
            "context is given as well, so that it stands there twice; --no-prepend-bos gives contexts none"
        )
    whole = "\n".join(head[:TRIED_CHARACTERS] for head in heads if isinstance(head, str))
    if (lost := lost_letters(whole, tokenizer)) > LOST:
        yield (
            f"the tokenizer loses {lost:.0%} of the letters and digits at the head of text {text.id!r}, which come back otherwise "
            "when its tokens are decoded; is it made for this language?"
        )


def _first_id(content: str | list[int], tokenizer: Any) -> int | None:
    ids: list[int] = content if isinstance(content, list) else _encoded(content[:TRIED_CHARACTERS], tokenizer)
    return ids[0] if ids else None


def _encoded(text: str, tokenizer: Any) -> list[int]:
    return tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"]


def lost_letters(text: str, tokenizer: Any) -> float:
    """Share of the letters and digits of a text that its decoded tokens lack; case, accents and spaces do not count."""
    ids = _encoded(text, tokenizer)
    before = _letters(text)
    lost = before - _letters(tokenizer.decode(ids, clean_up_tokenization_spaces=False))
    return sum(lost.values()) / max(1, sum(before.values()))


def _letters(text: str) -> Counter[str]:
    return Counter(letter for letter in unicodedata.normalize("NFKD", text).casefold() if letter.isalnum())
