"""sae_lm.metrics.meta_sae: the meta-SAE against a dense one under autograd, its rate on dictionaries made of parts."""

import math

import pytest
import torch

from sae_lm.metrics import meta_sae
from sae_lm.metrics.meta_sae import composition, composition_null, composition_rate, explained_variance, train_meta
from sae_lm.runtime.seeds import derive
from sae_lm.training.objective import Weights


def directions(n, d, seed=0):
    rows = torch.randn(n, d, generator=torch.Generator().manual_seed(seed))
    return rows / rows.norm(dim=1, keepdim=True)


def dense_forward(x, encoder, b_enc, W_dec, b_dec):
    """BatchTopK over a dense code whose activations are measured at unit decoder norm."""
    norms = W_dec.norm(dim=1)
    z = (((x - b_dec) @ encoder.T + b_enc) * norms).relu()
    count = meta_sae.K * len(x)
    kept = torch.zeros_like(z).flatten().scatter(0, z.flatten().topk(count).indices, 1.0).view_as(z)
    return (z * kept / norms) @ W_dec + b_dec


def dense_meta(rows, seed, steps):
    """The same training, dense and by autograd."""
    generator = torch.Generator().manual_seed(derive("composition", seed))
    start = 2 * torch.rand(math.ceil(len(rows) / 4), rows.shape[1], generator=generator) - 1
    start = 0.1 * start / start.norm(dim=1, keepdim=True)
    shapes = (start, torch.zeros(len(start)), start, torch.zeros(rows.shape[1]))
    weights = [weight.clone().requires_grad_() for weight in shapes]
    optimizer = torch.optim.Adam(weights, lr=5e-4)
    for _ in range(steps):
        x = rows[torch.randint(len(rows), (1024,), generator=generator)]
        optimizer.zero_grad()
        (x - dense_forward(x, *weights)).square().sum(1).mean().backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
    return [weight.detach() for weight in weights]


def test_training_equals_a_dense_one_under_autograd():
    rows = 4 * directions(60, 8)  # so long that gradients are clipped
    fast, slow = train_meta(rows, 3, steps=40), dense_meta(rows, 3, steps=40)
    for mine, twin in zip(fast[:4], slow, strict=True):
        torch.testing.assert_close(mine, twin, atol=2e-4, rtol=1e-3)
    assert not torch.equal(slow[1], torch.zeros(15))  # it did train
    torch.testing.assert_close(
        meta_sae.meta_reconstruction(rows, Weights(*slow)), dense_forward(rows, *slow), atol=1e-5, rtol=1e-4
    )


def test_explained_variance_is_worked_by_hand():
    rows = torch.tensor([[1.0, 0.0], [3.0, 0.0], [2.0, 3.0]])  # mean (2, 1): squares 2 + 2 + 4
    assert explained_variance(rows, rows) == 1
    assert explained_variance(rows, rows.mean(0).expand(3, 2)) == pytest.approx(0)
    assert explained_variance(rows, rows + torch.tensor([0.0, 1.0])) == pytest.approx(1 - 3 / 8)
    assert math.isnan(explained_variance(rows[:1], rows[:1]))


def test_latents_made_of_shared_parts_score_above_random_ones_and_norms_do_not_matter():
    parts = directions(30, 24)
    generator = torch.Generator().manual_seed(1)
    composed = torch.stack([parts[torch.randperm(30, generator=generator)[:2]].sum(0) for _ in range(240)])
    alive = torch.ones(240, dtype=torch.bool)
    rate = composition_rate(composed, alive, 0, steps=200)
    assert rate > composition_null(240, 24, 0, steps=200) + 0.1
    stretched = composed * torch.linspace(0.1, 9, 240)[:, None]
    assert composition_rate(stretched, alive, 0, steps=200) == pytest.approx(rate, abs=0.01)


def test_a_seed_gives_one_rate_whatever_else_draws_and_the_dead_do_not_count():
    rows = directions(80, 6)
    alive = torch.arange(120) < 80
    first = composition_rate(rows, alive[:80], 0, steps=20)
    torch.manual_seed(7)
    assert composition_rate(torch.cat([rows, rows[:40]]), alive, 0, steps=20) == first
    assert composition_rate(rows, alive[:80], 1, steps=20) != first


def test_a_rate_stands_beside_that_of_as_many_random_directions_to_two_digits(monkeypatch):
    monkeypatch.setattr(meta_sae, "composition_rate", lambda rows, alive, *_: float(alive.sum()))
    alive = torch.arange(130) < 123
    assert composition(torch.randn(130, 6), alive, 5) == (123, 120)
    assert composition_null(98, 6, 5) == 98 and composition_null(99_501, 6, 5) == 100_000


def test_the_null_of_random_directions_is_their_own_rate():
    rows, alive = directions(80, 6, seed=9), torch.ones(80, dtype=torch.bool)
    assert composition_null(80, 6, 0, steps=60) == pytest.approx(composition_rate(rows, alive, 0, steps=60), abs=0.05)
    assert math.isnan(composition_null(7, 6, 0))


def test_too_few_living_latents_give_no_number():
    assert math.isnan(composition_rate(torch.eye(9), torch.arange(9) < 7, 0))
