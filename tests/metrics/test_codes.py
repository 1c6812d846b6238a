"""sae_lm.metrics.codes: what fires, and what it decodes to, against the dense code."""

import pytest
import torch
from toys import random_case

from sae_lm.metrics.codes import active, decode_active, encode_sparse, mean_square_strength

pytestmark = pytest.mark.transformer_lens_3


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


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_the_mean_squared_strength_is_that_of_the_dense_code_in_any_batches(make_sae, architecture):
    sae = make_sae(architecture, unit=False)
    x = torch.randn(40, 6, generator=torch.Generator().manual_seed(0))
    dense = (sae.encode(x) * sae.W_dec.norm(dim=1)).double().square().mean(0)
    torch.testing.assert_close(mean_square_strength(sae, x.split(9)), dense, rtol=1e-5, atol=0)
    assert mean_square_strength(sae, []).tolist() == [0] * 10
