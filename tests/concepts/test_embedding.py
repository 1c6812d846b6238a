"""sae_lm.concepts.embedding: a token's embedding tells what is of the token, and nothing of its place."""

import pytest
import torch

import sae_lm
from sae_lm.concepts.embedding import embedding_f1, input_embeddings
from sae_lm.concepts.rows import ConceptRows

pytestmark = pytest.mark.transformer_lens_3


def test_embeddings_are_those_of_the_model_whatever_stands_around_the_token(tiny_model):
    model = sae_lm.load_model(str(tiny_model))
    token_id = torch.tensor([5, 9, 5])
    rows = ConceptRows(torch.randn(3, 16), token_id, torch.zeros(3, 1, dtype=torch.bool), token_id, ["concept"])
    got = input_embeddings(model, rows)
    assert torch.equal(got, model.original_model.transformer.wte.weight[token_id]) and torch.equal(got[0], got[2])


def test_an_embedding_tells_a_concept_of_the_token_and_not_one_of_its_place():
    generator = torch.Generator().manual_seed(0)
    types, count = 200, 4
    table = torch.randn(types, 8, generator=generator)
    token_id = torch.arange(types).repeat_interleave(count)
    of_token = table[token_id, 0] > 0
    of_place = torch.arange(types * count) % count == 0  # one occurrence in four, of every type
    labels = torch.stack([of_token, of_place], 1)
    rows = ConceptRows(torch.zeros(types * count, 3), token_id, labels, token_id % 3, ["token", "place"])
    token, place = embedding_f1(rows, table[token_id], [0, 1])
    assert token > 0.9 and place == 0
    assert embedding_f1(rows, table[token_id], [1])[0] == 0
