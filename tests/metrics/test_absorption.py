"""sae_lm.metrics.absorption, .splitting and .codes: companions of the scores, and the fast paths' slow twins."""

import math

import pytest
import torch

from sae_lm.metrics.absorption import (
    SWEPT_COS,
    SWEPT_SHARE,
    Centre,
    ConceptAtSae,
    absorption,
    control,
    gate_sweep,
    main_latents,
    stand_ins,
)
from sae_lm.metrics.codes import Codes, active, decode_active, encode_sparse
from sae_lm.metrics.splitting import BATCH, EPOCHS, L1, LR_END, LR_START, WEIGHT_DECAY, l1_probe, nested_regressions
from sae_lm.metrics.splitting import rule as split_rule
from sae_lm.runtime.seeds import derive
from sae_lm.sae.model import SAE, SaeConfig


def random_case(n=60, m=14, d=8, share=0.3, seed=0, toward=0.4):
    """Dense activations, their codes, rows, uneven decoder rows that lean to the probe, the probe, token ids."""
    draw = torch.Generator().manual_seed(seed)
    probe = torch.randn(d, generator=draw)
    W_dec = torch.randn(m, d, generator=draw) + toward * probe
    a = torch.rand(n, m, generator=draw) * (torch.rand(n, m, generator=draw) < share)
    x = a @ W_dec + 0.2 * torch.randn(n, d, generator=draw)
    strength, latent = (a * W_dec.norm(dim=1)).topk(int((a > 0).sum(1).max()), dim=1)
    return a, Codes(strength, latent, m), x, W_dec, probe, torch.arange(n) % 7


def as_codes(dense):
    strength, latent = dense.topk(max(1, int((dense > 0).sum(1).max())), dim=1)
    return Codes(strength, latent, dense.shape[1])


# --- codes


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


# --- gates


def swept(a, x, W_dec, w, main, cos, share, means=None):
    """Full and fraction of one row after another at any gates, in float64; means = (mean x, mean strength): centred."""
    W, p, norms = W_dec.double(), w.double() / w.double().norm(), W_dec.double().norm(dim=1)
    cosine = (W @ p / norms).tolist()
    strength = a.double() * norms
    out = []
    for row in range(len(x)):
        whole = float((x[row].double() - (means[0].double() if means else 0)) @ p)
        beyond = (strength[row] - (means[1].double() if means else 0)).tolist()
        fires = (a[row] > 0).tolist()
        silent = not any(fires[i] for i in main)
        carried = sum(beyond[i] * cosine[i] for i in main)
        along = {i: beyond[i] * cosine[i] for i in range(len(W)) if fires[i]}
        top = max(along, key=lambda i: along[i], default=None)
        full = top is not None and silent and whole > 0 and along[top] > 0
        full = full and cosine[top] >= cos and along[top] >= share * whole
        others = sorted((v for i, v in along.items() if i not in main and cosine[i] >= cos and v > 0), reverse=True)
        absorbed = sum(others[:3])
        if whole <= 0 or carried >= whole or absorbed < share * whole or absorbed <= 0:
            fraction = 0.0
        elif carried <= 0:
            fraction = 1.0
        else:
            part = min(absorbed, whole - carried)
            fraction = min(1.0, max(0.0, part / (part + carried)))
        out.append((float(full), fraction))
    return out


@pytest.mark.parametrize("main", [[3], [0, 3, 9]])
def test_the_gate_sweep_raw_and_centred_equals_a_loop_over_rows_and_latents(main):
    a, codes, x, W_dec, probe, token_id = random_case(m=40, d=100, toward=0.06)
    means = (x.mean(0), (a * W_dec.norm(dim=1)).mean(0))
    gates = gate_sweep(ConceptAtSae(codes, x, token_id, W_dec, probe), main, Centre(*means))
    assert [(g.centred, g.cos, g.share) for g in gates] == [
        (c, cos, s) for c in (False, True) for cos in SWEPT_COS for s in SWEPT_SHARE
    ]
    for gate in gates:
        rows = swept(a, x, W_dec, probe, main, gate.cos, gate.share, means if gate.centred else None)
        by_type = [[rows[i] for i in range(len(rows)) if int(token_id[i]) == t] for t in range(7)]
        for key, got in ((0, gate.full), (1, gate.fraction)):
            expected = sum(sum(row[key] for row in kind) / len(kind) for kind in by_type) / 7
            assert got == pytest.approx(expected, abs=1e-5)
    assert len({round(gate.fraction, 6) for gate in gates}) > 4


def test_stricter_gates_never_find_more():
    _, codes, x, W_dec, probe, token_id = random_case(n=200, seed=3)
    concept = ConceptAtSae(codes, x, token_id, W_dec, probe)
    gates = gate_sweep(concept, [3], Centre(x.mean(0), codes.mean_strength().float()))
    for centred in (False, True):
        at = {(g.cos, g.share): g for g in gates if g.centred == centred}
        for cos, share in at:
            for stricter in ((cos, s) for s in SWEPT_SHARE if s > share):
                assert at[stricter].fraction <= at[cos, share].fraction and at[stricter].full <= at[cos, share].full
            for stricter in ((c, share) for c in SWEPT_COS if c > cos):
                assert at[stricter].full <= at[cos, share].full


def test_the_sweep_finds_an_absorber_that_hides_under_the_cosine_gate():
    # the absorber carries 60% of the projection at cosine .06: above .025 and .05, under .1
    absorber = torch.tensor([0.06, math.sqrt(1 - 0.06**2)])
    W_dec = torch.stack([torch.tensor([1.0, 0.0]), absorber])
    codes = Codes(torch.tensor([[10.0]]), torch.tensor([[1]]), 2)
    row, probe = torch.tensor([[1.0, 10.0]]), torch.tensor([1.0, 0.0])
    concept = ConceptAtSae(codes, row, torch.tensor([0]), W_dec, probe)
    gates = gate_sweep(concept, [0], Centre(torch.zeros(2), torch.zeros(2)))
    assert {g.cos for g in gates if g.fraction == 1} == {0.0, 0.025, 0.05}
    assert all(g.full == g.fraction for g in gates)


# --- main latents and control


def test_main_latents_as_a_detector_by_hand_and_a_hub_is_named():
    dense = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 2, 1], [0, 0, 0]])
    labels = torch.tensor([True, True, False, False])
    told = main_latents(as_codes(dense), labels, [0, 1])
    assert (told.recall, told.precision, told.f1, told.hubs) == (0.5, 0.5, 0.5, [])
    told = main_latents(as_codes(dense), labels, [0, 2])
    assert told.hubs == [2] and told.recall == 1 and told.precision == pytest.approx(2 / 3)
    silent = main_latents(as_codes(dense * 0), labels, [0])
    assert silent.recall == 0 and math.isnan(silent.precision) and silent.f1 == 0
    assert math.isnan(main_latents(as_codes(dense), ~labels & labels, [0]).recall)


def test_recall_on_candidates_is_what_the_hole_rate_leaves():
    _, codes, x, W_dec, probe, _ = random_case()
    each_its_own_type = torch.arange(len(x))
    scores = absorption(ConceptAtSae(codes, x, each_its_own_type, W_dec, probe, torch.zeros(8)), [1, 4])
    assert scores is not None
    recall = main_latents(codes, torch.ones(len(x), dtype=torch.bool), [1, 4]).recall
    assert recall == pytest.approx(1 - scores.hole_rate)


def test_stand_ins_fire_as_often_are_others_all_different_and_random():
    density = torch.cat([torch.full((30,), 0.001), torch.full((30,), 0.2), torch.zeros(5)])
    drawn = {tuple(stand_ins(density, [0, 1, 30], seed)) for seed in range(20)}
    assert len(drawn) > 5
    for chosen in drawn:
        assert len(set(chosen)) == 3 and not set(chosen) & {0, 1, 30}
        assert [float(density[latent]) for latent in chosen] == pytest.approx([0.001, 0.001, 0.2])
    assert sorted(stand_ins(torch.ones(3), [0, 1, 2], 0)) == []
    assert len(stand_ins(torch.ones(5), [0, 1, 2], 0)) == 2


def test_the_control_scores_latents_that_have_nothing_to_do_with_the_concept():
    # latent 0 is the concept and fires on every row that has it; of the others each fires as often, anywhere
    draw = torch.Generator().manual_seed(0)
    n, m = 400, 24
    dense = (torch.rand(n, m, generator=draw) < 0.3).float()
    labels = dense[:, 0] > 0
    x = dense @ torch.eye(m) + 0.01
    codes, rows = as_codes(dense), labels.nonzero().flatten()
    probe = torch.eye(m)[0]
    concept = ConceptAtSae(codes.take(rows), x[rows], torch.arange(len(rows)), torch.eye(m), probe, torch.zeros(m))
    frequency = codes.firing_frequency()
    scores, other = absorption(concept, [0]), control(concept, [0], frequency, seed=0)
    assert scores is not None and other is not None
    assert scores.hole_rate == 0 and other.hole_rate == pytest.approx(0.7, abs=0.06)
    assert other.full == pytest.approx(other.hole_rate)  # the true latent "absorbs" what the stand-ins miss
    assert other == control(concept, [0], frequency, seed=0) and other != control(concept, [0], frequency, seed=1)
    assert control(concept, [], frequency, seed=0) is None


# --- splitting


def slow_l1_probe(codes, labels, seed):
    """The probe's loss as it is written down, through autograd."""
    generator = torch.Generator().manual_seed(derive("split probe", seed))
    dense = codes.columns(list(range(codes.d_sae)))
    dense = dense / codes.strength[codes.strength > 0].mean()
    weight = torch.zeros(codes.d_sae, labels.shape[1], requires_grad=True)
    bias = torch.zeros(labels.shape[1], requires_grad=True)
    optimizer = torch.optim.Adam([weight, bias], lr=LR_START, weight_decay=WEIGHT_DECAY)
    for epoch in range(EPOCHS):
        for group in optimizer.param_groups:
            group["lr"] = LR_START * (LR_END / LR_START) ** (epoch / EPOCHS)
        for chunk in torch.randperm(len(labels), generator=generator).split(BATCH):
            loss = torch.nn.functional.binary_cross_entropy_with_logits(
                dense[chunk] @ weight + bias, labels[chunk].float(), pos_weight=(~labels).sum(0) / labels.sum(0)
            )
            optimizer.zero_grad()
            (loss + L1 * weight.abs().sum(0).mean()).backward()
            optimizer.step()
    return weight.detach()


@pytest.mark.parametrize("n", [BATCH + 500, 3000])
def test_the_l1_probe_equals_its_loss_through_autograd_and_ranks_alike(n):
    draw = torch.Generator().manual_seed(0)
    dense = torch.rand(n, 12, generator=draw) * 5 * (torch.rand(n, 12, generator=draw) < 0.3)
    labels = torch.stack([dense[:, 2] > 0, (dense[:, 5] > 0) | (dense[:, 7] > 3), dense[:, 1] > 4], 1)
    codes = as_codes(dense)
    fast, slow = l1_probe(codes, labels, 0), slow_l1_probe(codes, labels, 0)
    # about 0 a weight swings with the sign of the L1 term, whose rounding decides
    torch.testing.assert_close(fast, slow, atol=4e-3, rtol=1e-3)
    assert torch.equal(fast.topk(3, 0).indices[0], slow.topk(3, 0).indices[0])
    assert fast.argmax(0).tolist() == [2, 5, 1]


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


# --- a decoder's norms


def test_scores_do_not_change_when_decoder_rows_are_rescaled():
    a, codes, x, W_dec, probe, token_id = random_case()
    scale = torch.linspace(0.1, 9, 14)[:, None]
    b_dec = torch.zeros(8)
    one = absorption(ConceptAtSae(codes, x, token_id, W_dec, probe, b_dec), [3])
    other = absorption(ConceptAtSae(codes, x, token_id, W_dec * scale, probe, b_dec), [3])
    assert one is not None and list(one) == pytest.approx(list(other or ()), abs=1e-6)
    weights = {"W_enc": W_dec.T.contiguous(), "b_enc": torch.zeros(14), "W_dec": W_dec, "b_dec": b_dec}
    config = SaeConfig(architecture="standard", d_in=8, d_sae=14)
    folded = {**weights, "W_enc": weights["W_enc"] / scale.T, "W_dec": W_dec * scale}
    strengths = [encode_sparse(SAE(config, w), [x]).columns(list(range(14))) for w in (weights, folded)]
    torch.testing.assert_close(*strengths, atol=1e-4, rtol=1e-4)
    assert 0 < one.fraction < 1 and a.shape == (60, 14)
