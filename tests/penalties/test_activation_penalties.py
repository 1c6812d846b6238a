"""What c2r and silent read off activations, against loops."""

import pytest
import torch
from reference import batch_norms, cross_sample

from sae_lm.penalties import silent as silent_module
from sae_lm.penalties.c2r import activation_norms, c2r
from sae_lm.penalties.coactive import coactive
from sae_lm.penalties.silent import fires_without, silent
from sae_lm.sae.sparse import Codes

M, D, BATCH = 23, 5, 20


def some(seed=0):
    """Rows, dense activations and the codes that they are."""
    draw = torch.Generator().manual_seed(seed)
    rows = torch.randn(M, D, generator=draw, dtype=torch.float64)
    z = torch.rand(BATCH, M, generator=draw, dtype=torch.float64) * (torch.rand(BATCH, M, generator=draw) < 0.2)
    z[3] = 0
    rate = torch.rand(M, generator=draw)
    return rows, z, codes_of(z, rate)


def codes_of(z, rate):
    starts = torch.cat([torch.zeros(1, dtype=torch.long), (z > 0).sum(1).cumsum(0)])
    return Codes(starts, z.nonzero()[:, 1], z[z > 0], rate)


@pytest.mark.parametrize("anchored", [False, True])
def test_c2rs_gradient_flows_through_the_norms_as_dense_autograd_has_it(anchored):
    rows, z, codes = some()
    rows, z = rows.requires_grad_(), z.requires_grad_()
    norms = activation_norms(codes).requires_grad_()
    value = c2r(rows, None, codes, norms=norms, anchored=anchored)
    by_rows, by_norm = torch.autograd.grad(value, (rows, norms))
    plain = cross_sample(rows, z, codes.firing_frequency if anchored else None)
    expected_rows, expected_z = torch.autograd.grad(plain, (rows, z), retain_graph=True)
    torch.testing.assert_close(value, plain)
    torch.testing.assert_close(by_rows, expected_rows)
    (by_z,) = torch.autograd.grad(batch_norms(z), z, by_norm)
    torch.testing.assert_close(by_z, expected_z)
    assert by_norm.any()


def test_c2r_means_the_same_at_any_batch_size():
    rows, z, codes = some()
    twice = codes_of(torch.cat([z, z]), codes.firing_frequency)
    torch.testing.assert_close(c2r(rows, None, twice), c2r(rows, None, codes))


@pytest.mark.parametrize("at_once", [1, 7, 20, 64])
def test_tokens_on_which_a_latent_fires_without_others_are_counted_as_by_loops(at_once, monkeypatch):
    monkeypatch.setattr(silent_module, "TOKENS_AT_ONCE", at_once)
    _, z, codes = some()
    others = torch.randint(0, M, (M, 3), generator=torch.Generator().manual_seed(1))
    expected = [[float(((z[:, j] > 0) & (z[:, i] == 0)).sum()) for i in others[j]] for j in range(M)]
    assert fires_without(codes, others).tolist() == expected


def test_silent_and_anchored_coactive_are_the_two_halves_of_one_penalty():
    """Of two rows, the general one on with the specific one or not: P(j) cos^2 in all."""
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64)
    for both in range(5):
        z = torch.zeros(10, 2, dtype=torch.float64)
        z[:4, 1], z[:both, 0], z[4:9, 0] = 1, 1, 1
        codes = codes_of(z, torch.tensor([0.9, 0.4]))
        share = silent(rows, None, codes) / float(4 * 0.64 / (z > 0).sum())
        assert float(share) == pytest.approx(1 - both / 4)
        whole = silent(rows, None, codes) + coactive(rows, None, codes, anchored=True)
        assert float(whole) == pytest.approx(4 * 0.64 / float((z > 0).sum()))


def test_under_silent_the_general_row_stands_still_and_the_specific_one_leaves_it():
    rows = torch.tensor([[1.0, 0.0], [0.8, 0.6]], dtype=torch.float64, requires_grad=True)
    z = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 0.0]], dtype=torch.float64)
    (gradient,) = torch.autograd.grad(silent(rows, None, codes_of(z, torch.tensor([0.7, 0.3]))), rows)
    assert not gradient[0].any()
    assert gradient[1, 0] > 0 > gradient[1, 1]  # descent turns it away from the general one's axis
