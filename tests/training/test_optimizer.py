"""sae_lm.training.optimizer: row-wise RMSprop against its slow plain twin, and Adam beside it."""

import math

import pytest
import torch

from sae_lm.training.objective import Weights
from sae_lm.training.optimizer import ENCODER_SHARE, MOST, NEWEST, Adam, RowRms, make_optimizer

M, D, STEPS, LR = 12, 7, 6, 0.03


def weights():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(M, D, generator=draw, dtype=torch.float64)
    return Weights(
        encoder=torch.randn(M, D, generator=draw, dtype=torch.float64),
        b_enc=torch.zeros(M, dtype=torch.float64),
        W_dec=rows / rows.norm(dim=1, keepdim=True),
        b_dec=torch.zeros(D, dtype=torch.float64),
    )


def gradients(step):
    """Of every third latent there is none at this step."""
    draw = torch.Generator().manual_seed(100 + step)
    silent = torch.arange(M) % 3 == step % 3

    def of(*shape):
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    encoder, b_enc, W_dec = of(M, D), of(M), of(M, D)
    if step == 4:
        W_dec[1] *= 50  # an outlier
    for gradient in (encoder, b_enc, W_dec):
        gradient[silent] = 0
    return Weights(encoder, b_enc, W_dec, of(D)), (~silent).nonzero().flatten()


def single(w):
    """In float32, which torch's fused Adam wants the clipping norm in."""
    return Weights(*(value if value is None else value.float() for value in w))


def named(w):
    return {name: value for name, value in w._asdict().items() if value is not None}


def plain_twin(penalty=0.0):
    """Row by row, as the definition says, and torch's own Adam. penalty: on the decoder's gradient, everywhere."""
    w = weights()
    squares = {name: [[] for _ in range(M)] for name in ("encoder", "W_dec")}
    mean_square = {name: [0.0] * M for name in squares}
    adam = torch.optim.Adam([w.b_enc, w.b_dec], lr=LR)
    for step in range(STEPS):
        gradient, rows = gradients(step)
        w.b_enc.grad, w.b_dec.grad = gradient.b_enc, gradient.b_dec
        torch.nn.utils.clip_grad_norm_([w.b_enc, w.b_dec], 1.0)
        adam.step()
        for name in squares:
            value, rate = getattr(w, name), LR * (ENCODER_SHARE if name == "encoder" else 1)
            for i, g in enumerate(getattr(gradient, name)):
                if name == "W_dec":
                    g = g + penalty * torch.ones(D, dtype=torch.float64)
                    g = g - (g @ value[i]) * value[i]
                square = float((g * g).mean())
                if squares[name][i] and square > MOST**2 * mean_square[name][i]:
                    g = g * math.sqrt(MOST**2 * mean_square[name][i] / square)
                    square = MOST**2 * mean_square[name][i]
                if i in rows:
                    squares[name][i].append(square)
                    newest = max(NEWEST, 1 / len(squares[name][i]))
                    mean_square[name][i] += newest * (squares[name][i][-1] - mean_square[name][i])
                if squares[name][i]:
                    value[i] -= rate * g / math.sqrt(mean_square[name][i])
                if name == "W_dec":
                    value[i] /= value[i].norm()
    return w


@pytest.mark.parametrize("only_rows", [False, True])
def test_each_row_moves_by_its_gradient_over_its_root_mean_square(only_rows):
    w = weights()
    optimizer = RowRms(named(w))
    for step in range(STEPS):
        gradient, rows = gradients(step)
        if only_rows:
            gradient = gradient._replace(encoder=gradient.encoder[rows], W_dec=gradient.W_dec[rows])
        optimizer.update(gradient, rows if only_rows else None, step, LR)
    for ours, theirs in zip(named(w).values(), named(plain_twin()).values(), strict=True):
        torch.testing.assert_close(ours, theirs, atol=1e-7, rtol=1e-6)


def test_a_penalty_moves_silent_latents_by_what_their_own_gradients_were_and_none_before_they_fired():
    w = weights()
    optimizer = RowRms(named(w))
    for step in range(STEPS):
        gradient, rows = gradients(step)
        before = w.W_dec.clone()
        gradient.W_dec.add_(0.3)
        optimizer.update(gradient, None, step, LR)
        moved = (w.W_dec != before).any(1)
        assert moved[rows].all()
        assert moved.all() == (step > 0)  # at the first step a third of the latents has not fired yet
    torch.testing.assert_close(w.W_dec, plain_twin(0.3).W_dec, atol=1e-7, rtol=1e-6)


@pytest.mark.parametrize("only_rows", [False, True])
def test_a_latent_without_a_gradient_stays_what_it_is_to_the_bit(only_rows):
    w, before = single(weights()), single(weights())  # in float32 norms of unit rows are 1 to the last bit but one
    gradient, rows = gradients(0)
    few = gradient._replace(encoder=gradient.encoder[rows], W_dec=gradient.W_dec[rows])
    RowRms(named(w)).update(single(few if only_rows else gradient), rows if only_rows else None, 0, LR)
    silent = torch.tensor([i for i in range(M) if i not in rows.tolist()])
    for name in ("encoder", "b_enc", "W_dec"):
        assert torch.equal(getattr(w, name)[silent], getattr(before, name)[silent])
        assert not torch.equal(getattr(w, name)[rows], getattr(before, name)[rows])


@pytest.mark.parametrize("name", ["row_rms", "adam"])
def test_decoder_rows_keep_unit_norm_and_do_not_feel_gradients_along_themselves(name):
    moved = []
    for along in (0.0, 3.0):
        w = single(weights())
        optimizer = make_optimizer(name, named(w))
        for step in range(STEPS):
            gradient, rows = single(gradients(step)[0]), gradients(step)[1]
            gradient.W_dec[rows] += along * w.W_dec[rows]
            optimizer.update(gradient, None, step, LR)
        torch.testing.assert_close(w.W_dec.norm(dim=1), torch.ones(M))
        moved.append(w.W_dec)
    torch.testing.assert_close(*moved, atol=1e-4, rtol=1e-4)
    assert (moved[0] - single(weights()).W_dec).norm(dim=1).min() > LR / 10


@pytest.mark.parametrize("optimizer", [RowRms, Adam])
def test_what_is_forgotten_of_a_latent_is_as_if_it_had_never_had_a_gradient(optimizer):
    ours = optimizer(named(single(weights())))
    for step in range(STEPS):
        ours.update(single(gradients(step)[0]), None, step, LR)
    ours.forget(["encoder", "W_dec"], torch.tensor([2, 4]))
    assert {"mean_square.W_dec", "events.encoder"} <= ours.state().keys() or optimizer is Adam
    for name, value in ours.state().items():
        if value.ndim == 0 or "b_dec" in name:
            continue
        forgotten = ".encoder" in name or ".W_dec" in name
        assert bool((value[[2, 4]] == 0).all()) is forgotten
        assert value[3].abs().sum() > 0


@pytest.mark.parametrize("name", ["row_rms", "adam"])
def test_learning_rates_of_thresholds_are_larger_and_bounded(name):
    moved = {}
    for lr in (1e-3, 1.0):
        weights = named(single(weights_with_thresholds()))
        optimizer = make_optimizer(name, weights)
        gradient = single(gradients(0)[0])._replace(log_threshold=torch.ones(M))
        optimizer.update(gradient, None, 0, lr)
        moved[lr] = weights["log_threshold"]
    torch.testing.assert_close(moved[1e-3], torch.full((M,), -0.03), rtol=1e-3, atol=0)
    torch.testing.assert_close(moved[1.0], torch.full((M,), -0.05), rtol=1e-3, atol=0)


def weights_with_thresholds():
    return weights()._replace(log_threshold=torch.zeros(M, dtype=torch.float64))
