"""sae_lm.metrics.reconstruction: every number against a hand-worked case or float64."""

import math

import pytest
import torch
from toys import identity_sae

from sae_lm.metrics.reconstruction import quality


def test_quality_of_a_hand_worked_case():
    sae = identity_sae(2)  # relu: the negative part of x is lost
    x = torch.tensor([[1.0, 2.0], [3.0, -1.0], [0.0, 0.0], [4.0, 3.0]])
    measured, fired, per_row = quality(sae, [x[:3], x[3:]])
    # errors: only -1 -> squared error 1 in all; sum ||x||^2 = 5 + 10 + 0 + 25 = 40; mean = (2, 1), 40/4 - 5 = 5
    assert measured.rows == 4
    assert measured.l0 == pytest.approx((2 + 1 + 0 + 2) / 4)
    assert measured.nmse == pytest.approx(1 / 40)
    assert measured.fvu == pytest.approx((1 / 4) / 5)
    assert fired.tolist() == [True, True] and measured.dead == 0
    assert measured.dense == 1
    assert measured.mse == pytest.approx(1 / 4)
    assert per_row.squared_error.tolist() == [0, 1, 0, 0] and per_row.firings.tolist() == [2, 1, 0, 2]
    assert measured.bias == pytest.approx(39 / 39)  # x_hat = x but for the lost -1: both sums are 5 + 9 + 0 + 25
    assert quality(sae, [x * 0])[0].l0 == 0


def test_dense_latents_are_counted_above_one_and_ten_percent_and_by_their_share_of_firings():
    x = torch.zeros(200, 5)
    for latent, firings in enumerate((100, 20, 3, 2)):  # 50%, 10%, 1.5%, 1% of the rows; the last never
        x[:firings, latent] = 1
    measured, fired, _ = quality(identity_sae(5), x.split(64))
    assert (measured.dense, measured.dense_1, measured.dead) == pytest.approx((1 / 5, 3 / 5, 1 / 5))
    assert measured.dense_firings == pytest.approx(100 / 125)
    assert measured.dense_1_firings == pytest.approx(123 / 125)
    assert fired.tolist() == [True] * 4 + [False]


def test_shrinkage_shows_in_norm_ratio_and_bias():
    x = torch.rand(50, 3, generator=torch.Generator().manual_seed(0)) + 0.1
    measured = quality(identity_sae(3, W_dec=torch.eye(3) * 0.8), [x])[0]
    assert measured.l2_ratio == pytest.approx(0.8) and measured.bias == pytest.approx(0.8)


def test_fvu_is_the_same_however_rows_are_batched_and_equals_float64_by_hand(make_sae):
    sae = make_sae(unit=False)
    x = torch.randn(100, 6, generator=torch.Generator().manual_seed(0)) + 3
    error = (x - sae(x)).double()
    expected = error.square().sum() / (x.double() - x.double().mean(0)).square().sum()
    for size in (7, 100):
        assert quality(sae, x.split(size))[0].fvu == pytest.approx(float(expected), rel=1e-6)


@pytest.mark.parametrize(("constant", "rows"), [(0.3, 1000), (0.7, 100), (1 / 3, 100), (12.34, 999), (0.0, 10)])
def test_rows_that_are_all_alike_have_no_variance_and_no_fvu(make_sae, constant, rows):
    # but for 0, rounding leaves these a variance of 1e-16 of their square
    assert math.isnan(quality(make_sae(), [torch.full((rows, 6), constant)])[0].fvu)


def test_predicting_the_mean_has_an_fvu_of_one():
    x = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + 5
    sae = identity_sae(3, W_dec=torch.zeros(3, 3), b_dec=x.mean(0))
    assert quality(sae, [x])[0].fvu == pytest.approx(1.0, abs=1e-5)
