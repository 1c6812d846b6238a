"""sae_lm.concepts.text_units: documents where there are many, blocks of contexts where there are few."""

import torch
from largest_tensor import LargestTensor

from sae_lm.concepts.text_units import BLOCKS, numbered, text_units


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


def test_rows_are_numbered_as_unique_does_in_four_bytes_each():
    draw = torch.Generator().manual_seed(0)
    values = torch.randint(3, 40, (60,), generator=draw).repeat_interleave(torch.randint(1, 90, (60,), generator=draw))
    values[100:103] = torch.tensor([7, 3, 7])  # a text that was begun again, so that a document comes twice
    found, expected = values.unique(return_inverse=True)
    got, count = numbered(values.int())
    assert got.dtype == torch.int32 and torch.equal(got.long(), expected) and count == len(found)
    assert numbered(values[:0])[1] == 0


def test_units_of_many_rows_are_found_without_a_wide_number_for_each():
    document, context = (torch.arange(200_000) // size for size in (4000, 128))
    for columns in ((document.int(), context.int()), (document.int() * 0, context.int())):
        with LargestTensor() as largest:
            units = text_units(*columns)
        assert units.of_row.dtype == torch.int32 and largest.bytes <= 4 * 200_000
