"""Contexts to measure an SAE on: the last ones of a store, or those that ``sae-lm cache --no-pack`` makes of a text."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from sae_lm.data.store import Store
from sae_lm.data.text import Text, names_a_text, open_text
from sae_lm.data.tokenizer_checks import check_ids
from sae_lm.data.tokens import Block, blocks, in_memory, lengths, special_tokens
from sae_lm.errors import SettingsError
from sae_lm.lm.capture import context_limit, too_long
from sae_lm.lm.source import language_config, saved_tokenizer

CONTEXT_SIZE = 128
"""Tokens of a context where nobody says how many."""


class Contexts(NamedTuple):
    tokens: Int[Tensor, "contexts pos"]
    special: Bool[Tensor, "contexts pos"]
    """positions that are not measured"""
    mask: Bool[Tensor, "contexts pos"] | None
    """tokens that are attended to, all but padding; None for all"""
    bos: bool
    """every context begins with the tokenizer's BOS or CLS"""


def contexts_of(
    model: Any, source: Any, tokens: int, context_size: int | None = None, trained: Mapping[str, Any] | None = None
) -> Contexts:
    """About so many tokens.

    source: a store; or a text, several, or what ``sae-lm cache`` takes (a file, a data set), by name or opened. A string
        that reads like a name is one (`sae_lm.data.text.names_a_text`); those of a list are texts.
    trained: an SAE's metadata, of which ``context_size`` and ``prepend_bos`` are followed where a text is cut.

    Raises SettingsError for a context size that the model does not take and for a source that is no text, TextError.
    """
    config = language_config(model.original_model.config)
    if isinstance(source, Store):
        contexts = _of_store(source, tokens)
        if told := too_long(config, contexts.tokens.shape[1]):
            raise SettingsError(
                f"contexts of store {source.path} have {contexts.tokens.shape[1]} tokens, {told}; give the model that the "
                "store was cached from"
            )
    else:
        size = _size(config, context_size, trained or {})
        contexts = _of_text(model, config, source, tokens, size, (trained or {}).get("prepend_bos") is not False)
    if not bool((~contexts.special).any()):
        raise SettingsError("the text gives no token that is not special; give more text")
    return contexts


def _of_store(store: Store, tokens: int) -> Contexts:
    recipe, stop = store.manifest.recipe, store.manifest.contexts
    first = stop - max(1, min(-(-tokens // recipe.context_size), stop))
    ids = store.blocks(first).long()
    ends = torch.from_numpy(lengths(ids.numpy(), recipe))
    mask = None if recipe.pack else _mask(ends, ids.shape[1])
    return Contexts(ids, store.rowless(first, stop), mask, recipe.bos is not None)


def _size(config: Any, given: int | None, trained: Mapping[str, Any]) -> int:
    limit = context_limit(config)
    if given is not None:
        if told := too_long(config, given):
            raise SettingsError(f"context_size is {given}, {told}; give --context-size {limit}")
        return given
    own = trained.get("context_size")
    size = own if isinstance(own, int) and own > 1 else CONTEXT_SIZE
    return min(size, limit or size)


def _of_text(model: Any, config: Any, source: Any, tokens: int, size: int, prepend_bos: bool) -> Contexts:
    """Every document begins a context of its own, padded where it ends, so that short texts do."""
    if model.tokenizer is None:
        raise SettingsError("this model has no tokenizer to read text with; give an activation store")
    tokenizer = saved_tokenizer(model)
    if isinstance(source, Path) or (isinstance(source, str) and names_a_text(source)):
        source = open_text(str(source))
    if isinstance(source, Text):
        read = source.with_chats_of(tokenizer).chunks
    elif isinstance(source, str):
        read = in_memory([source])
    elif isinstance(source, Sequence) and all(isinstance(text, str) for text in source):
        read = in_memory(source)
    else:
        raise SettingsError(f"the text is a {type(source).__name__}; expected an activation store, a text or several")
    knows_bos = tokenizer.bos_token_id is not None or tokenizer.cls_token_id is not None
    wanted = special_tokens(tokenizer, prepend_bos and knows_bos)
    found = list(_enough(blocks(read, tokenizer, wanted, size, pack=wanted.separator is None), tokens, size))
    if not found:
        raise SettingsError(f"the text does not fill a context of {size} tokens; give more text")
    ends = torch.tensor([block.length for block in found])
    ids, special = (torch.stack([torch.as_tensor(block[field]) for block in found]) for field in (0, 2))
    check_ids(ids.numpy(), config.vocab_size, tokenizer, "the text")
    return Contexts(ids.long(), special, _mask(ends, size), wanted.bos is not None)


def _enough(cut: Iterator[Block], tokens: int, size: int) -> Iterator[Block]:
    """Contexts until there are so many tokens. Where documents are short, no more contexts than of the usual size."""
    left = tokens
    for number, block in enumerate(cut):
        if number and (left <= 0 or number * min(size, CONTEXT_SIZE) >= tokens):
            return
        yield block
        left -= block.length


def _mask(ends: Tensor, size: int) -> Tensor | None:
    mask = torch.arange(size) < ends[:, None]
    return None if bool(mask.all()) else mask
