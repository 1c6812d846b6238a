"""sae_lm.metrics.codes: what fires, and what it decodes to, against the dense code."""

import pytest
import torch
from largest_tensor import LargestTensor
from toys import as_codes, identity_sae, random_case

from sae_lm.metrics.absorption import ConceptAtSae, absorption, fraction_scores, projections
from sae_lm.metrics.absorption_events import children
from sae_lm.metrics.codes import (
    active,
    at_entries,
    decode_active,
    encode_sparse,
    firing_codes,
    mean_square_strength,
)


@pytest.mark.parametrize("d_sae", [10, 200])
@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "standard"])
def test_active_entries_and_their_reconstruction_are_those_of_the_dense_code(make_sae, architecture, d_sae):
    sae = make_sae(architecture, d_sae=d_sae, unit=False)
    x = torch.randn(50, 6, generator=torch.Generator().manual_seed(1))
    values, latent = active(sae, x)
    z = torch.zeros(50, d_sae).scatter_add_(1, latent, values)
    torch.testing.assert_close(z, sae.encode(x))
    torch.testing.assert_close(decode_active(sae, values, latent), sae(x), atol=1e-4, rtol=1e-4)


def test_columns_densities_and_means_equal_those_of_the_dense_code():
    a, codes, _, W_dec, _, _ = random_case()
    dense = a * W_dec.norm(dim=1)
    torch.testing.assert_close(codes.columns([5, 0, 13]), dense[:, [5, 0, 13]])
    torch.testing.assert_close(codes.firing_frequency(), (a > 0).double().mean(0))
    torch.testing.assert_close(codes.mean_strength(), dense.double().mean(0))
    nothing = codes.take(torch.zeros(0, dtype=torch.long))
    assert nothing.firing_frequency().tolist() == [0] * 14 and nothing.columns([1]).shape == (0, 1)


def test_codes_of_batches_of_different_fullness_are_padded_and_agree_with_one_batch(make_sae):
    sae = make_sae("standard", d_sae=40)
    x = torch.randn(30, 6, generator=torch.Generator().manual_seed(2)) * torch.linspace(0.01, 3, 30)[:, None]
    together, apart = encode_sparse(sae, [x]), encode_sparse(sae, x.split(7))
    every = list(range(40))
    torch.testing.assert_close(together.columns(every), apart.columns(every))


def test_sparse_codes_hold_exactly_what_fires_scaled_by_decoder_norms(make_sae):
    sae = make_sae("standard", unit=False)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    codes = encode_sparse(sae, x.split(9))
    dense = sae.encode(x) * sae.W_dec.norm(dim=1)
    torch.testing.assert_close(codes.columns(list(range(10))), dense)


def test_a_threshold_below_0_lets_nothing_below_0_fire(make_sae):
    sae = make_sae("jumprelu", unit=False)
    sae.threshold[::2] = -0.7
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    codes = encode_sparse(sae, x.split(9))
    dense = sae.encode(x) * sae.W_dec.norm(dim=1)
    torch.testing.assert_close(codes.columns(list(range(10))), dense)
    assert len(codes.strength) == int((dense > 0).sum())
    values, latent = active(sae, x)
    torch.testing.assert_close(decode_active(sae, values, latent), sae(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_the_mean_squared_strength_is_that_of_the_dense_code_in_any_batches(make_sae, architecture):
    sae = make_sae(architecture, unit=False)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    dense = (sae.encode(x) * sae.W_dec.norm(dim=1)).double().square().mean(0)
    torch.testing.assert_close(mean_square_strength(sae, x.split(9)), dense, rtol=1e-5, atol=0)
    assert mean_square_strength(sae, []).tolist() == [0] * 10


def loud_rows(n=300, d=400):
    """Rows that fire one latent of `identity_sae` each, but for one of 60 times the norm, which fires all."""
    x = torch.eye(d)[torch.arange(n) % d]
    x[7] = 60.0
    return x


def test_one_token_on_which_all_latents_fire_takes_no_room_of_the_others():
    x = loud_rows()
    codes = encode_sparse(identity_sae(400, b_enc=torch.full((400,), -0.5)), x.split(50))
    held = sum(part.numel() * part.element_size() for part in (codes.strength, codes.latent, codes.starts))
    assert len(codes.strength) == 299 + 400
    assert held == 8 * (299 + 400) + 8 * 301  # padded to the fullest token: 12 * 300 * 400
    torch.testing.assert_close(codes.columns(list(range(400))), (x - 0.5).relu())


def test_scores_of_a_concept_make_no_tensor_as_wide_as_the_fullest_token():
    x = loud_rows()
    codes = encode_sparse(identity_sae(400, b_enc=torch.full((400,), -0.5)), [x])
    concept = ConceptAtSae(codes, x, torch.arange(300) % 9, torch.eye(400), torch.ones(400), torch.zeros(400))
    with LargestTensor(but=x) as largest:
        scores = absorption(concept, [0, 3])
        children(codes, concept.token_id)
    assert scores is not None and scores.candidates == 300
    assert largest.numbers <= 4 * len(codes.strength)


def test_what_each_tokens_entries_come_to_equals_a_loop_over_tokens():
    draw = torch.Generator().manual_seed(3)
    dense = torch.rand(40, 30, generator=draw) * (torch.rand(40, 30, generator=draw) < 0.2)
    dense[[0, 9, 39]] = 0  # nothing fires
    dense[5] = 0.5  # all equal
    codes = as_codes(dense)
    values = torch.randn(30, generator=draw)[codes.latent] * codes.strength - 0.05
    every, above = torch.arange(len(values)), (values > 0).nonzero().flatten()
    sums, (top, entry), tops = (
        codes.sums(values, every),
        codes.largest(values),
        codes.top_sums(values[above], above, 3),
    )
    assert codes.token.tolist() == [token for token in range(40) for _ in range(int((dense[token] > 0).sum()))]
    for token in range(40):
        first, last = int(codes.starts[token]), int(codes.starts[token + 1])
        own = values[first:last]
        assert float(sums[token]) == pytest.approx(float(own.sum()), abs=1e-6)
        assert float(tops[token]) == pytest.approx(float(own.clamp_min(0).sort(descending=True).values[:3].sum()))
        if len(own):
            assert float(top[token]) == float(own.max()) and int(entry[token]) == first + int(own.argmax())
        else:
            assert float(top[token]) == -torch.inf and int(entry[token]) == -1
    assert at_entries(codes.latent, entry)[[0, 9]].tolist() == [0, 0]
    torch.testing.assert_close(torch.from_numpy(codes.matrix().toarray()), dense)
    some = torch.tensor([39, 5, 5, 0, 12])
    every = list(range(30))
    torch.testing.assert_close(codes.take(some).columns(every), dense[some])
    torch.testing.assert_close(codes.take(dense.any(1)).columns(every), dense[dense.any(1)])


def test_codes_of_no_tokens_and_of_silent_ones_have_scores():
    for n in (0, 3):
        codes = firing_codes(torch.zeros(n, 2), torch.zeros(n, 2, dtype=torch.long), 5)
        parts = projections(
            ConceptAtSae(codes, torch.ones(n, 4), torch.zeros(n).long(), torch.ones(5, 4), torch.ones(4)), [1]
        )
        assert parts.silent.tolist() == [True] * n and fraction_scores(parts).tolist() == [0.0] * n
        assert codes.mean_strength().tolist() == [0.0] * 5 and len(codes) == n
