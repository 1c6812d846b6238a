"""sae_lm.sae.topk and sae_lm.sae.arm: the sparse step against dense autograd, and its invariants."""

import pytest
import torch
from reference import dense_topk

from sae_lm.sae import arm
from sae_lm.sae.arm import ArmTraining, Hyperparameters, learning_rate
from sae_lm.sae.penalties import Arm
from sae_lm.sae.topk import TopK, auxk


def weights(d, m, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return [
        torch.randn(shape, dtype=torch.float64, generator=draw).requires_grad_()
        for shape in ((d, m), (m,), (m, d), (d,))
    ]


@pytest.mark.parametrize(("batch", "d", "m", "k"), [(37, 11, 53, 5), (1, 3, 4, 4), (9, 5, 7, 1)])
def test_reconstruction_and_all_gradients_equal_dense_autograd(batch, d, m, k):
    draw = torch.Generator().manual_seed(1)
    x, direction = (torch.randn(batch, d, dtype=torch.float64, generator=draw) for _ in range(2))
    parameters = weights(d, m)
    fast = TopK.apply(x, *parameters, k, torch.float64)[0]
    plain = dense_topk(x, *parameters, k)
    torch.testing.assert_close(fast, plain)
    for got, expected in zip(
        torch.autograd.grad((fast * direction).sum(), parameters),
        torch.autograd.grad((plain * direction).sum(), parameters),
        strict=True,
    ):
        torch.testing.assert_close(got, expected)


def test_a_latent_selected_below_zero_neither_fires_nor_learns():
    parameters = weights(3, 4)
    parameters[1] = torch.full((4,), -100.0, dtype=torch.float64, requires_grad=True)
    x_hat, z, _ = TopK.apply(torch.ones(2, 3, dtype=torch.float64), *parameters, 2, torch.float64)
    gradients = torch.autograd.grad(x_hat.sum(), parameters)
    assert not z.any() and not gradients[0].any() and not gradients[1].any() and not gradients[2].any()
    torch.testing.assert_close(x_hat, parameters[3].expand(2, 3))


def test_auxk_reaches_encoder_and_decoder_of_dead_latents_only():
    W_enc, b_enc, W_dec, b_dec = weights(5, 8)
    draw = torch.Generator().manual_seed(2)
    x, error = (torch.randn(30, 5, dtype=torch.float64, generator=draw) for _ in range(2))
    dead = torch.tensor([1, 4, 6])
    loss = auxk(error, x - b_dec, W_enc, b_enc, W_dec, dead, k=2)

    pre = ((x - b_dec.detach()) @ W_enc + b_enc)[:, dead]
    values, index = pre.topk(2, 1)
    missed = error - torch.zeros_like(pre).scatter(1, index, values.relu()) @ W_dec[dead]
    plain = missed.square().sum() / (error - error.mean(0)).square().sum()
    torch.testing.assert_close(loss, plain)
    got = torch.autograd.grad(loss, [W_enc, b_enc, W_dec])
    for mine, expected in zip(got, torch.autograd.grad(plain, [W_enc, b_enc, W_dec]), strict=True):
        torch.testing.assert_close(mine, expected)
    alive = torch.tensor([0, 2, 3, 5, 7])
    assert got[0][:, dead].any() and not got[0][:, alive].any()


HYPER = Hyperparameters(
    k=3,
    steps=40,
    lr=1e-2,
    warm_up=0.1,
    decay=0.2,
    penalty_every=2,
    penalty_start=0.0,
    penalty_on="decoder",
    aux_coefficient=1 / 32,
    aux_k=4,
    dead_after=64,
    matmul=torch.float32,
)


def trained(arm, h=HYPER, seed=0, steps=40):
    run = ArmTraining(arm, seed, 24, torch.zeros(8), h, "cpu")
    draw = torch.Generator().manual_seed(7)
    for step in range(steps):
        run.step(torch.randn(16, 8, generator=draw) / 8**0.5, step)
    return run


def test_coefficient_zero_is_bit_identical_to_no_penalty():
    plain, zero = trained(Arm("none", 0.0)), trained(Arm("max_cos", 0.0))
    assert all(torch.equal(a, b) for a, b in zip(plain.weights, zero.weights, strict=True))


def test_arms_of_one_seed_start_equal_and_a_penalty_lowers_what_it_penalises():
    from sae_lm.sae.penalties import abs_cos, max_cos

    plain = trained(Arm("none", 0.0))
    for name, measure in (("max_cos", max_cos), ("abs_cos", abs_cos)):
        start = trained(Arm(name, 5.0), steps=0)
        assert torch.equal(start.W_dec, trained(Arm("none", 0.0), steps=0).W_dec)
        assert measure(trained(Arm(name, 5.0)).W_dec) < 0.9 * measure(plain.W_dec)


def test_a_latent_selected_at_zero_counts_as_silent():
    run = ArmTraining(Arm("none", 0.0), 0, 24, torch.zeros(8), HYPER, "cpu")
    with torch.no_grad():
        run.b_enc[:] = -50.0
    for step in range(5):
        run.step(torch.randn(16, 8, generator=torch.Generator().manual_seed(step)) / 8**0.5, step)
    assert run.log(4)["dead"] == 24


def test_a_penalty_on_the_encoder_moves_the_encoder_and_not_the_decoder_directly(monkeypatch):
    from sae_lm.sae.penalties import abs_cos

    on_encoder = trained(Arm("abs_cos", 5.0), HYPER._replace(penalty_on="encoder"))
    plain = trained(Arm("none", 0.0))
    assert abs_cos(on_encoder.W_enc.T) < 0.8 * abs_cos(plain.W_enc.T)
    monkeypatch.setattr(arm, "CLIP_NORM", float("inf"))  # clipping the norm of all weights would couple them
    after_one = [
        trained(kind, HYPER._replace(penalty_on="encoder"), steps=1) for kind in (Arm("abs_cos", 5.0), Arm("none", 0.0))
    ]
    assert torch.equal(after_one[0].W_dec, after_one[1].W_dec)  # one step: nothing has come back through the codes


def test_the_penalty_waits_for_its_start():
    late = HYPER._replace(penalty_start=0.5)
    assert torch.equal(trained(Arm("max_cos", 5.0), late, steps=20).W_dec, trained(Arm("none", 0.0), steps=20).W_dec)
    assert not torch.equal(trained(Arm("max_cos", 5.0), late).W_dec, trained(Arm("none", 0.0)).W_dec)


def test_decoder_rows_keep_unit_norm_and_training_lowers_the_loss():
    run = trained(Arm("none", 0.0))
    torch.testing.assert_close(run.W_dec.norm(dim=1), torch.ones(24))
    assert run.log(39)["fvu"] < 0.85 * trained(Arm("none", 0.0), steps=1).log(0)["fvu"]


def test_dead_latents_are_revived_by_auxk():
    def dead_and_fvu(coefficient):
        h = HYPER._replace(k=1, aux_coefficient=coefficient, steps=400, dead_after=256)
        run = ArmTraining(Arm("none", 0.0), 0, 16, torch.zeros(16), h, "cpu")
        with torch.no_grad():
            run.b_enc[12:] = 1.5  # the other twelve are never the largest: without AuxK no gradient reaches them
        draw = torch.Generator().manual_seed(7)
        for step in range(400):  # sixteen features, one at a time
            run.step(torch.eye(16)[torch.randint(0, 16, (64,), generator=draw)], step)
        facts = run.log(399)
        return facts["dead"], facts["fvu"]

    dead_without, fvu_without = dead_and_fvu(0.0)
    dead_with, fvu_with = dead_and_fvu(1 / 32)
    assert dead_without > 9 and dead_with < 7
    assert fvu_with < 0.5 * fvu_without


def test_selecting_in_bfloat16_still_gives_float32_values():
    parameters = [p.detach().float() for p in weights(16, 64)]
    x = torch.randn(50, 16, generator=torch.Generator().manual_seed(3))
    _, z, latent = TopK.apply(x, *parameters, 4, torch.bfloat16)
    exact = ((x - parameters[3]) @ parameters[0] + parameters[1]).gather(1, latent)
    torch.testing.assert_close(z, exact.relu(), atol=1e-5, rtol=1e-5)


def test_learning_rate_rises_holds_and_falls_to_nothing():
    rates = [learning_rate(step, HYPER) for step in range(40)]
    assert rates[0] == pytest.approx(HYPER.lr / 4)  # warm-up of 4 steps
    assert rates[10] == HYPER.lr
    assert rates[-1] == pytest.approx(HYPER.lr / 8)  # the last of 8 decay steps
    assert rates[:4] == sorted(rates[:4]) and rates[-8:] == sorted(rates[-8:], reverse=True)


def test_a_loss_that_is_no_longer_finite_stops_with_arm_and_seed():
    from sae_lm.errors import SaeError

    run = ArmTraining(Arm("none", 0.0), 3, 24, torch.zeros(8), HYPER, "cpu")
    run.step(torch.full((16, 8), float("nan")), 0)
    with pytest.raises(SaeError, match="arm none, seed 3"):
        run.log(0)
