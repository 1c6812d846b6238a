"""sae_lm.metrics.absorption: scores against loops over rows and latents, and their companions."""

import math

import pytest
import torch
from reference import dense_absorption
from toys import as_codes, random_case

from sae_lm.concepts.probes import f1
from sae_lm.metrics.absorption import (
    SWEPT_COS,
    SWEPT_SHARE,
    Centre,
    ConceptAtSae,
    absorption,
    control,
    fraction_scores,
    full_scores,
    gate_sweep,
    main_latents,
    projections,
    stand_ins,
)
from sae_lm.metrics.codes import encode_sparse, firing_codes
from sae_lm.sae.model import SAE, SaeConfig


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


@pytest.mark.parametrize("main", [[3], [0, 3, 9]])
def test_the_fraction_without_gates_equals_a_loop_over_rows_and_latents(main):
    a, codes, x, W_dec, probe, token_id = random_case(m=40, d=100, toward=0.3)
    unit, by_type = probe / probe.norm(), {}
    for row in range(len(x)):
        parts = [float(a[row, latent] * (W_dec[latent] @ unit)) for latent in range(len(W_dec))]
        whole, carried = float(x[row] @ unit), max(0.0, sum(parts[latent] for latent in main))
        others = sum(part for latent, part in enumerate(parts) if latent not in main)
        score = max(0.0, min(others, whole - carried)) / whole if whole > 0 else 0.0
        by_type.setdefault(int(token_id[row]), []).append(score)
    expected = sum(sum(of) / len(of) for of in by_type.values()) / len(by_type)
    scores = absorption(ConceptAtSae(codes, x, token_id, W_dec, probe), main)
    assert scores.ungated_fraction == pytest.approx(expected, abs=1e-5) and 0.01 < expected < 0.99


def test_an_absorber_cut_into_many_has_the_same_fraction_without_gates_and_another_with_them():
    probe = torch.tensor([1.0, 0.0])
    row = torch.tensor([[1.0, 0.0]])
    found = {}
    for pieces in (1, 4, 16):
        W_dec = probe.repeat(1 + pieces, 1)
        values = torch.tensor([[0.4] + [0.6 / pieces] * pieces])
        codes = firing_codes(values, torch.arange(1 + pieces)[None], 1 + pieces)
        scores = absorption(ConceptAtSae(codes, row, torch.tensor([0]), W_dec, probe), [0])
        found[pieces] = (round(scores.fraction, 3), round(scores.ungated_fraction, 3))
    assert found[1] == (0.6, 0.6) and found[16] == (0.0, 0.6) and found[4][1] == 0.6


def test_latents_that_mean_nothing_for_a_concept_do_not_fill_its_holes_without_gates():
    torch.manual_seed(0)
    W_dec = torch.nn.functional.normalize(torch.randn(33, 512), dim=1)
    probe = W_dec[0] - W_dec[1:].sum(0) / 512  # nearly at right angles to the others
    codes = firing_codes(torch.full((1, 32), 0.2), torch.arange(1, 33)[None], 33)
    row = probe[None] / probe.norm() + 0.2 * W_dec[1:].sum(0)
    scores = absorption(ConceptAtSae(codes, row, torch.tensor([0]), W_dec, probe), [0])
    assert scores.hole_rate == 1 and scores.ungated_fraction < 0.3


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
    codes = firing_codes(torch.tensor([[10.0]]), torch.tensor([[1]]), 2)
    row, probe = torch.tensor([[1.0, 10.0]]), torch.tensor([1.0, 0.0])
    concept = ConceptAtSae(codes, row, torch.tensor([0]), W_dec, probe)
    assert (scores := absorption(concept, [0])) and (scores.fraction, scores.ungated_fraction) == (
        0,
        pytest.approx(0.6),
    )
    gates = gate_sweep(concept, [0], Centre(torch.zeros(2), torch.zeros(2)))
    assert {g.cos for g in gates if g.fraction == 1} == {0.0, 0.025, 0.05}
    assert all(g.full == g.fraction for g in gates)


def test_main_latents_as_a_detector_by_hand_and_a_hub_is_named():
    dense = torch.tensor([[1.0, 0, 1], [0, 0, 1], [0, 2, 1], [0, 0, 0]])
    labels = torch.tensor([True, True, False, False])
    told = main_latents(as_codes(dense), labels, [0, 1])
    assert (told.recall, told.precision, told.hubs) == (0.5, 0.5, [])
    assert f1((dense[:, :2] > 0).any(1), labels) == 0.5
    told = main_latents(as_codes(dense), labels, [0, 2])
    assert told.hubs == [2] and told.recall == 1 and told.precision == pytest.approx(2 / 3)
    silent = main_latents(as_codes(dense * 0), labels, [0])
    assert silent.recall == 0 and math.isnan(silent.precision)
    assert f1(torch.zeros(4, dtype=torch.bool), labels) == 0
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


@pytest.mark.parametrize("unit", [True, False])
def test_absorption_scores_equal_the_plain_definition_row_by_row(unit):
    draw = torch.Generator().manual_seed(0)
    n, m, d = 300, 12, 8
    W_dec = torch.randn(m, d, generator=draw)
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True) if unit else W_dec
    a = torch.randn(n, m, generator=draw).relu() * (torch.rand(n, m, generator=draw) < 0.4)
    x = a @ W_dec + 0.3 * torch.randn(n, d, generator=draw)
    w = W_dec[0] + 0.5 * W_dec[1]
    main = [0, 3]
    strength, latent = (a * W_dec.norm(dim=1)).topk(m, dim=1)
    parts = projections(ConceptAtSae(firing_codes(strength, latent, m), x, torch.arange(n), W_dec, w), main)
    full, fraction = full_scores(parts), fraction_scores(parts)
    expected = dense_absorption(a, x, W_dec, w, main)
    assert full.tolist() == [full for full, _ in expected]
    torch.testing.assert_close(fraction, torch.tensor([f for _, f in expected]), atol=1e-5, rtol=1e-5)
    assert 0 < int(full.sum()) < n and 0 < int((fraction > 0).sum()) < n


def test_a_child_latent_that_swallows_its_parent_is_found():
    # latent 0: the parent's own direction; latent 1: child + parent, absorbing
    W_dec = torch.tensor([[1.0, 0.0], [1.0, 1.0]])
    W_dec = W_dec / W_dec.norm(dim=1, keepdim=True)
    x = torch.tensor([[1.0, 0.0], [1.0, 1.0]])  # parent alone, parent with child
    strength = torch.tensor([[1.0], [2**0.5]])
    latent = torch.tensor([[0], [1]])
    probe = torch.tensor([1.0, 0.0])
    token_id = torch.tensor([4, 4])
    result = absorption(
        ConceptAtSae(firing_codes(strength, latent, 2), x, token_id, W_dec, probe, torch.zeros(2)), main=[0]
    )
    assert result is not None
    assert (result.candidates, result.types) == (2, 1)
    assert result.full == result.fraction == result.hole_rate == 0.5
    assert result.recovered == pytest.approx(1.0)  # the absorber carries the whole projection on the hole


def test_token_types_weigh_the_same_however_often_they_occur():
    W_dec = torch.eye(2)
    x = torch.tensor([[1.0, 0.0]] * 4)
    strength = torch.tensor([[1.0], [1.0], [1.0], [0.0]])  # the one row of the second type is a hole
    codes = firing_codes(strength, torch.zeros(4, 1, dtype=torch.long), 2)
    concept = ConceptAtSae(codes, x, torch.tensor([7, 7, 7, 8]), W_dec, torch.tensor([1.0, 0.0]), torch.zeros(2))
    result = absorption(concept, [0])
    assert result is not None and result.hole_rate == 0.5
