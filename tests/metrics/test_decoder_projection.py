"""sae_lm.metrics.decoder_projection: the projection that n latents per row exceed."""

import pytest
import torch

from sae_lm.metrics.decoder_projection import nth_decoder_projection


@pytest.mark.parametrize("n", [1, 3, 10])
def test_the_nth_projection_is_that_of_all_rows_together_in_order(make_sae, n):
    sae, x = make_sae(), torch.randn(50, 6, generator=torch.Generator().manual_seed(0))
    ordered = ((x - sae.b_dec) @ sae.W_dec.T).flatten().sort(descending=True).values
    assert nth_decoder_projection(sae, x, n) == pytest.approx(float(ordered[min(n * 50, 499)]))
    scaled = make_sae(unit=False)
    assert nth_decoder_projection(scaled, x, n) == pytest.approx(nth_decoder_projection(sae, x, n), rel=1e-5)


def test_decoder_rows_that_mix_features_have_a_larger_nth_projection(make_sae):
    """Three of eight orthogonal features are on; then each row holds a part of its neighbour's too."""
    generator = torch.Generator().manual_seed(0)
    on = torch.rand(2000, 8, generator=generator).argsort(1) < 3
    x = on * (1 + 0.1 * torch.randn(2000, 8, generator=generator))
    sae = make_sae("standard", d_in=8, d_sae=8)
    sae.W_enc.copy_(torch.eye(8)), sae.b_dec.zero_()
    at = {}
    for mixed in (0.0, 0.3, 0.6):
        sae.W_dec.copy_(torch.eye(8) + mixed * torch.eye(8).roll(1, 0))
        at[mixed] = nth_decoder_projection(sae, x, 4)
    assert at[0.0] < at[0.3] < at[0.6]
