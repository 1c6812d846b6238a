"""sae_lm.metrics.splitting: its regressions against scikit-learn and autograd, and counts on concepts whose latents are known."""

import pytest
import torch
from toys import as_codes, identity_sae, toy_rows

from sae_lm.metrics.codes import encode_sparse
from sae_lm.metrics.splitting import (
    BATCH,
    EPOCHS,
    L1,
    LR_END,
    LR_START,
    NO_LOGIT,
    WEIGHT_DECAY,
    firing_f1,
    l1_probe,
    nested_regressions,
    split_counts,
)
from sae_lm.metrics.splitting import rule as split_rule
from sae_lm.runtime.seeds import derive


def slow_l1_probe(codes, labels, seed, epochs):
    """The probe's loss as it is written down, through autograd."""
    generator = torch.Generator().manual_seed(derive("split probe", seed))
    dense = codes.columns(list(range(codes.d_sae)))
    dense = dense / codes.strength[codes.strength > 0].mean()
    weight = torch.zeros(codes.d_sae, labels.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LR_START, weight_decay=WEIGHT_DECAY)
    for epoch in range(epochs):
        for group in optimizer.param_groups:
            group["lr"] = LR_START * (LR_END / LR_START) ** (epoch / epochs)
        for chunk in torch.randperm(len(labels), generator=generator).split(BATCH):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                dense[chunk] @ weight + bias, labels[chunk].float(), pos_weight=(~labels).sum(0) / labels.sum(0)
            )
            optimizer.zero_grad()
            (loss + L1 * weight.abs().sum(0).mean()).backward()
            optimizer.step()
    return weight.detach()


@pytest.mark.parametrize(("n", "epochs"), [(BATCH + 500, EPOCHS), (3000, EPOCHS), (500, 3 * EPOCHS)])
def test_the_l1_probe_equals_its_loss_through_autograd_and_ranks_alike(n, epochs):
    draw = torch.Generator().manual_seed(0)
    dense = torch.rand(n, 12, generator=draw) * 5 * (torch.rand(n, 12, generator=draw) < 0.3)
    labels = torch.stack([dense[:, 2] > 0, (dense[:, 5] > 0) | (dense[:, 7] > 3), dense[:, 1] > 4], 1)
    codes = as_codes(dense)
    fast, slow = l1_probe(codes, labels, 0, epochs), slow_l1_probe(codes, labels, 0, epochs)
    # about 0 a weight swings with the sign of the L1 term, whose rounding decides
    torch.testing.assert_close(fast, slow, atol=4e-3, rtol=1e-3)
    assert torch.equal(fast.topk(3, 0).indices[0], slow.topk(3, 0).indices[0])
    assert fast.argmax(0).tolist() == [2, 5, 1]


def test_the_f1_of_a_latents_firing_is_that_of_scikit_learn():
    from sklearn.metrics import f1_score

    draw = torch.Generator().manual_seed(0)
    dense = torch.rand(700, 12, generator=draw) * 5 * (torch.rand(700, 12, generator=draw) < 0.3)
    dense[:, 4] = 0
    labels = torch.stack([dense[:, 2] > 0, dense[:, 1] > 4, torch.zeros(700).bool(), torch.ones(700).bool()], 1)
    got = firing_f1(as_codes(dense), labels)
    for concept in range(4):
        for latent in range(12):
            twin = f1_score(labels[:, concept], dense[:, latent] > 0, zero_division=0)
            assert float(got[latent, concept]) == pytest.approx(twin), (latent, concept)
    assert got.argmax(0)[:2].tolist() == [2, 1] and got[2, 0] == 1


@pytest.mark.parametrize("rank_by", [l1_probe, firing_f1])
def test_the_unit_of_the_activations_does_not_count(rank_by):
    x = toy_rows([0, 1, 2]).x + 0.3 * torch.randn(1200, 6, generator=torch.Generator().manual_seed(1))
    plain = toy_rows([0, 1, 2])
    splits = [
        split_counts(
            as_codes(unit * x.clamp_min(0)),
            plain._replace(x=unit * x),
            [0],
            max_k=6,
            gain=0.03,
            seed=0,
            rank_by=rank_by,
        )[0]
        for unit in (1.0, 1e-3, 1e3)
    ]
    assert len(splits[0].latents) >= 3
    for split in splits:
        assert (split.latents, split.ranking) == (splits[0].latents, splits[0].ranking)
        assert split.test_f1_by_k == pytest.approx(splits[0].test_f1_by_k, abs=0.003)


@pytest.mark.parametrize("kind", ["overlapping", "separable", "rare", "a column of zeros", "large"])
def test_nested_regressions_equal_scikit_learns_one_by_one(kind):
    from sklearn.linear_model import LogisticRegression

    draw = torch.Generator().manual_seed(0)
    x = torch.rand(500, 4, generator=draw) * (torch.rand(500, 4, generator=draw) < 0.3)
    labels = x.sum(1) + 0.4 * torch.randn(500, generator=draw) > 0.6
    if kind == "separable":
        labels = x[:, 0] > 0.2
    if kind == "rare":
        labels = torch.arange(500) < 5
    if kind == "a column of zeros":
        x[:, 1] = 0
    if kind == "large":
        x = x * 300
    weight, bias = nested_regressions(x, labels)
    for k in range(1, 5):
        twin = LogisticRegression(class_weight="balanced", tol=1e-10, max_iter=20_000, solver="newton-cholesky")
        twin.fit(x[:, :k].double().numpy(), labels.numpy())
        assert weight[:k, k - 1].tolist() == pytest.approx(twin.coef_[0].tolist(), rel=1e-3, abs=1e-4)
        assert float(bias[k - 1]) == pytest.approx(twin.intercept_[0], rel=1e-3, abs=1e-4)
        assert weight[k:, k - 1].tolist() == [0] * (4 - k)


def test_regressions_on_latents_that_never_fire_give_numbers():
    weight, bias = nested_regressions(torch.zeros(20, 3), torch.arange(20) < 4)
    assert torch.equal(weight, torch.zeros(3, 3).double()) and torch.allclose(bias, torch.zeros(3).double(), atol=1e-6)
    assert all(torch.isfinite(t).all() for t in nested_regressions(torch.rand(20, 2), torch.zeros(20).bool()))


def test_the_rule_wants_more_than_the_gain_and_ends_at_the_first_that_fails():
    assert split_rule([0.5], 0.03) == (1, 1)
    assert split_rule([0.5, 0.53, 0.9], 0.03) == (1, 2)  # exactly the gain is not more; what comes later is not seen
    assert split_rule([0.5, 0.54, 0.6, 0.61, 0.9], 0.03) == (3, 4)
    assert split_rule([0.0, 0.5, 1.0], 0.03) == (3, 3)


@pytest.mark.parametrize("rank_by", [l1_probe, firing_f1])
def test_a_concept_carried_by_one_latent_counts_one_and_by_three_counts_three(rank_by):
    for carriers in ([2], [0, 2, 5]):
        rows = toy_rows(carriers)
        codes = encode_sparse(identity_sae(6, b_enc=torch.full((6,), -0.1)), [rows.x])
        split = split_counts(codes, rows, [0], max_k=6, gain=0.03, seed=0, rank_by=rank_by)[0]
        assert sorted(split.latents) == carriers and split.test_f1_by_k[len(carriers) - 1] > 0.99


def test_an_sae_that_never_fires_gets_a_splitting_count_of_one_and_no_skill():
    rows = toy_rows([1])
    codes = encode_sparse(identity_sae(6, b_enc=torch.full((6,), -100.0)), [rows.x])
    assert torch.isfinite(l1_probe(codes, rows.labels, 0)).all()
    split = split_counts(codes, rows, [0], max_k=3, gain=0.03, seed=0)[0]
    assert len(split.latents) == 1 and split.test_f1_by_k == [0, 0, 0]


def test_latents_that_never_fire_say_no_whatever_rounding_leaves_of_their_bias():
    rounded = 0
    for positive in range(20, 300, 7):
        weight, bias = nested_regressions(torch.zeros(431, 2), torch.arange(431) < positive)
        rounded += int(bias[0] > 0)
        assert (weight == 0).all() and (bias <= NO_LOGIT).all()
    assert rounded, "else nothing is tested here"
