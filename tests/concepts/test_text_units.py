"""sae_lm.concepts.text_units: documents where there are many, blocks of contexts where there are few."""

import torch

from sae_lm.concepts.text_units import BLOCKS, text_units


def test_many_documents_are_the_units_whatever_the_contexts():
    document = torch.arange(30).repeat_interleave(7) + 5
    units = text_units(document, torch.arange(210) // 10)
    assert units.kind == "documents" and not units.after_border.any()
    assert torch.equal(units.of_row, document - 5)


def test_one_novel_is_cut_into_blocks_of_contexts_and_no_context_is_in_two():
    context = (torch.arange(6000) // 10) + 3  # 600 contexts
    units = text_units(torch.zeros(6000, dtype=torch.int32), context)
    assert units.kind == "blocks of 9 contexts" and len(units.of_row.unique()) == 67 > BLOCKS
    assert torch.equal(units.of_row, torch.arange(6000) // 90)
    assert units.after_border.nonzero().flatten()[:11].tolist() == [*range(90, 100), 180]


def test_a_few_long_documents_among_many_short_ones_do_not_count_as_many():
    document = torch.cat([torch.zeros(500), torch.ones(500), torch.arange(2, 60)]).int()
    units = text_units(document, torch.arange(len(document)) // 8)
    assert units.kind == "blocks of 2 contexts"


def test_few_contexts_are_units_by_themselves_and_a_block_has_at_least_so_many():
    context = torch.arange(40) // 4
    assert text_units(torch.zeros(40).int(), context).kind == "contexts"
    units = text_units(torch.zeros(40).int(), context, least=4)
    assert units.kind == "blocks of 4 contexts"
    assert units.of_row.tolist() == [0] * 16 + [1] * 16 + [2] * 8
    assert not len(text_units(torch.zeros(0).int(), torch.zeros(0).int()).of_row)
