"""Documents are cut into contexts, from any of them on."""

import numpy as np
import pytest
import torch
from made_stores import made_recipe

from sae_lm.data.tokens import Position, SpecialTokens, blocks, in_memory, lengths


class Letters:
    """A tokenizer of one token per letter."""

    def __call__(self, texts, **options):
        return {"input_ids": [[10 + ord(letter) for letter in text] for text in texts]}


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("special", [SpecialTokens(1, 2), SpecialTokens(None, 2)])
def test_blocks_can_be_made_from_any_block_on(pack, special):
    draw = torch.Generator().manual_seed(0)
    lengths = torch.randint(0, 40, (150,), generator=draw).tolist()
    documents = ["".join(chr(97 + (i * j) % 26) for j in range(n)) for i, n in enumerate(lengths)]

    def make(**options):
        found = blocks(in_memory(documents), Letters(), special, 8, pack=pack, **options)
        return [(b.ids.tolist(), b.documents.tolist(), b.special.tolist(), b.length, b.next) for b in found]

    whole = make()
    for at in torch.randint(0, len(whole) - 1, (25,), generator=draw).tolist():
        assert make(start=whole[at][-1]) == whole[at + 1 :]
    text = [token for ids, _, _, length, _ in whole for token in ids[special.bos is not None : length]]
    expected = [token for document in documents for token in [*(10 + ord(letter) for letter in document), 2]]
    assert text == expected[: len(text)] and len(text) > len(expected) - 8
    assert whole[-1][-1] == Position(150, 0) or pack


@pytest.mark.parametrize("pack", [True, False])
@pytest.mark.parametrize("special", [SpecialTokens(1, 2), SpecialTokens(None, 2), SpecialTokens(2, 2)])
def test_ids_tell_where_the_padding_of_a_context_begins(pack, special):
    """Of empty documents, and of those that fill their last context, one holds the separator alone, or with the BOS."""
    documents = ["a" * n for n in range(20)]
    made = [*blocks(in_memory(documents), Letters(), special, 8, pack=pack)]
    recipe = made_recipe({}, 8, 100, 1, "float32", pack=pack, bos=special.bos, separator=special.separator)
    assert lengths(np.stack([block.ids for block in made]), recipe).tolist() == [block.length for block in made]
    assert pack or min(block.length for block in made) == 1 + (special.bos is not None)
