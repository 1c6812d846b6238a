"""sae_lm.training.dead_latents: AuxK against dense autograd, and what resampling does to dead latents alone."""

import pytest
import torch

from sae_lm.training.dead_latents import auxk, dead_sae, lower_thresholds, resample
from sae_lm.training.objective import Weights

D, M = 5, 12
DEAD = torch.tensor([1, 4, 6, 7, 10])


def weights(log_threshold=False):
    draw = torch.Generator().manual_seed(0)
    shapes = ((M, D), (M,), (M, D), (D,), (M,))
    parts = [torch.randn(shape, dtype=torch.float64, generator=draw) for shape in shapes]
    return Weights(*parts[:4], parts[4] if log_threshold else None)


def batch(rows=30):
    draw = torch.Generator().manual_seed(2)
    return [torch.randn(rows, D, dtype=torch.float64, generator=draw) for _ in range(2)]


@pytest.mark.parametrize("k", [1, 2, 5, 9])
@pytest.mark.parametrize("shift", [0.0, 0.7])
def test_auxk_and_its_gradients_equal_dense_autograd(k, shift):
    w, (centred, residual) = weights(), batch()
    loss, gradient = auxk(residual, centred, dead_sae(w, DEAD, torch.float64, shift), k)

    leaves = [one.clone().requires_grad_() for one in w[:3]]
    pre = (centred @ leaves[0].T + leaves[1] + shift)[:, DEAD]
    values, index = pre.topk(min(k, len(DEAD)), 1)
    unexplained = residual - torch.zeros_like(pre).scatter(1, index, values.relu()) @ leaves[2][DEAD]
    plain = unexplained.square().sum() / (residual - residual.mean(0)).square().sum()
    torch.testing.assert_close(loss, plain.detach())
    for mine, expected in zip(gradient, torch.autograd.grad(plain, leaves), strict=False):
        torch.testing.assert_close(mine, expected[DEAD])
        assert mine.any()
        expected[DEAD] = 0
        assert not expected.any()  # nothing reaches the others
    assert not gradient.b_dec.any()


def test_in_bfloat16_auxk_is_near_what_it_is_in_float32():
    w, (centred, residual) = weights(), batch(400)
    w = Weights(*(one.float() for one in w[:4]))
    (half, rough), (whole, fine) = (
        auxk(residual.float(), centred.float(), dead_sae(w, DEAD, matmul), 9)
        for matmul in (torch.bfloat16, torch.float32)
    )
    assert abs(half - whole) < 0.01 * whole
    for a, b in zip(rough[:3], fine[:3], strict=True):
        assert a.dtype == torch.float32 and (a - b).norm() < 0.02 * b.norm()


def test_resampled_latents_point_at_badly_reconstructed_rows_and_the_others_stay():
    w, (centred, residual) = weights(log_threshold=True), batch()
    residual[:] = 0
    residual[[3, 8]] = 1.0  # only these rows can be drawn
    before = Weights(*(one.clone() for one in w))
    resample(residual, centred, w, DEAD, torch.Generator().manual_seed(0), encoder_norm=0.2)
    others = torch.tensor([i for i in range(M) if i not in DEAD.tolist()])
    unit = centred[[3, 8]] / centred[[3, 8]].norm(dim=1, keepdim=True)
    cosines = w.W_dec[DEAD] @ unit.T
    torch.testing.assert_close(cosines.amax(1), torch.ones(5).double())
    assert cosines.argmax(1).unique().numel() == 2
    mean_norm = before.encoder[others].norm(dim=1).mean()
    torch.testing.assert_close(w.encoder[DEAD], 0.2 * mean_norm * w.W_dec[DEAD])
    for name in ("b_enc", "log_threshold"):
        mean = getattr(before, name)[others].mean()
        torch.testing.assert_close(getattr(w, name)[DEAD], mean.expand(5))
    for name in ("encoder", "b_enc", "W_dec", "log_threshold"):
        assert torch.equal(getattr(w, name)[others], getattr(before, name)[others])
    assert torch.equal(w.b_dec, before.b_dec)


def test_resampling_draws_from_its_generator_alone_and_survives_a_dictionary_all_dead():
    every = torch.arange(M)
    torch.manual_seed(0)
    global_state = torch.get_rng_state()
    drawn = []
    for seed in (5, 5, 6):
        w, (centred, residual) = weights(), batch()
        resample(residual, centred, w, every, torch.Generator().manual_seed(seed), encoder_norm=1.0)
        drawn.append(w)
    assert torch.equal(torch.get_rng_state(), global_state)
    assert torch.equal(drawn[0].W_dec, drawn[1].W_dec) and not torch.equal(drawn[0].W_dec, drawn[2].W_dec)
    torch.testing.assert_close(drawn[0].encoder.norm(dim=1), torch.ones(M).double())


def test_a_row_without_a_direction_leaves_a_dead_latent_its_own():
    w, (centred, residual) = weights(), batch()
    centred[:] = 0
    before = w.W_dec[DEAD].clone()
    resample(residual, centred, w, DEAD, torch.Generator().manual_seed(0), encoder_norm=1.0)
    assert torch.equal(w.W_dec[DEAD], before) and bool(w.encoder.norm(dim=1).gt(0).all())


def test_a_dead_latents_threshold_comes_down_to_the_others_mean_and_never_rises():
    log_threshold = torch.tensor([0.0, 5.0, -1.0, -7.0])
    lower_thresholds(log_threshold, torch.tensor([1, 3]))
    assert log_threshold.tolist() == [0.0, -0.5, -1.0, -7.0]
    lower_thresholds(log_threshold, torch.arange(4))  # nobody to take the mean of
    assert log_threshold.tolist() == [0.0, -0.5, -1.0, -7.0]


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
def test_a_row_that_is_not_finite_is_drawn_for_no_latent_and_ends_nothing_here(bad):
    w, (centred, residual) = weights(), batch()
    residual[2] = bad
    resample(residual, centred, w, DEAD, torch.Generator().manual_seed(0), encoder_norm=0.2)
    unit = centred[2] / centred[2].norm()
    assert not torch.isclose(w.W_dec[DEAD] @ unit, torch.ones(5).double()).any()
    residual[:] = bad
    resample(residual, centred, w, DEAD, torch.Generator().manual_seed(0), encoder_norm=0.2)
