"""sae_lm.metrics.false_alarms: how far main latents are above their gate, and thresholds at which SAEs are equals."""

import math

import pytest
import torch

from sae_lm.metrics.codes import encode_sparse
from sae_lm.metrics.false_alarms import (
    gate_ratios,
    operating_point,
    points_by_count,
    threshold_at_false_alarms,
    threshold_at_precision,
)
from sae_lm.metrics.graded_saes import oracle_sae
from sae_lm.sae.model import SAE

X = torch.randn(300, 6, generator=torch.Generator().manual_seed(1)) + 0.5
MAIN = [[2], [0, 7, 9], [4, 1]]


def turned_up(sae, latents, factor):
    """The edit that costs nothing: a louder encoder, a quieter decoder."""
    weights = {name: value.clone() for name, value in sae.named_parameters()}
    weights["W_enc"][:, latents] *= factor
    weights["b_enc"][latents] *= factor
    weights["W_dec"][latents] /= factor
    return SAE(sae.config, weights)


@pytest.mark.parametrize(
    ("architecture", "gate"), [("topk", 1.0), ("jumprelu", 1.0), ("groupmax", 1.0), ("standard", 0.0)]
)
def test_main_latents_fire_where_the_ratio_is_above_the_gate(make_sae, architecture, gate):
    sae = make_sae(architecture, k=5, unit=False)
    codes, ratios = encode_sparse(sae, X.split(70)), gate_ratios(sae, X.split(70), MAIN)
    for main, ratio in zip(MAIN, ratios.T, strict=True):
        fires = codes.columns(main).gt(0).any(1)
        assert torch.equal(fires, ratio > gate) and 0 < int(fires.sum()) < len(X)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "groupmax"])
def test_turned_up_by_a_factor_main_latents_fire_where_the_ratio_is_above_its_inverse(make_sae, architecture):
    sae = make_sae(architecture, k=5)
    for main, ratio in zip(MAIN, gate_ratios(sae, [X], MAIN).T, strict=True):
        for factor in (0.6, 1.4):
            fires = encode_sparse(turned_up(sae, main, factor), [X]).columns(main).gt(0).any(1)
            assert torch.equal(fires, ratio > 1 / factor), (main, factor)
            edited = gate_ratios(turned_up(sae, main, factor), [X], [main])[:, 0]
            assert torch.allclose(edited, factor * ratio, rtol=1e-4)


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "groupmax", "standard"])
def test_every_share_of_false_alarms_is_reached_where_pre_activations_are_negative_too(make_sae, architecture):
    sae = make_sae(architecture, k=5)
    sae.b_enc[MAIN[0]] -= 1.5
    ratio = gate_ratios(sae, [X], [MAIN[0]])[:, 0]
    assert 0 < int((ratio > 0).sum()) < 0.5 * len(X)
    for share in (0.1, 0.5, 0.9):
        assert float((ratio > threshold_at_false_alarms(ratio, share)).double().mean()) == pytest.approx(
            share, abs=0.01
        )
    below, pre = ratio < 0, sae.pre_activations(X)
    if architecture == "topk":
        gate = pre.index_fill(1, torch.tensor(MAIN[0]), -torch.inf).topk(5).values[:, -1]
    pre = pre[:, MAIN[0][0]][below]
    if architecture in ("jumprelu", "standard"):
        assert torch.equal(ratio[below].argsort(), pre.argsort()), "the nearest to firing first"
    if architecture == "topk":
        nearer = (pre[:, None] > pre) & (gate[below][:, None] < gate[below])
        assert int(nearer.sum()) > 1000 and bool((ratio[below][:, None] > ratio[below])[nearer].all())


@pytest.mark.parametrize("architecture", ["jumprelu", "standard"])
def test_ratios_of_latents_that_fire_by_themselves_are_those_of_all_pre_activations(make_sae, architecture):
    sae = make_sae(architecture, k=5, unit=False)
    pre = sae.pre_activations(X)
    over = torch.where(pre >= 0, pre / sae.threshold, pre * sae.threshold) if architecture == "jumprelu" else None
    every = pre * sae.W_dec.norm(dim=1) if over is None else over
    plain = torch.stack([every[:, main].amax(1) for main in MAIN], 1)
    assert torch.allclose(gate_ratios(sae, X.split(70), MAIN), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("k", [1, 5, 9])
def test_ratios_from_what_was_ranked_are_those_of_all_pre_activations_and_fire_where_the_codes_do(make_sae, k):
    sae = make_sae("topk", k=k, unit=False)
    codes = encode_sparse(sae, X.split(70), runners_up=3)
    ratios = gate_ratios(sae, X.split(50), MAIN, codes.ranked)
    torch.testing.assert_close(ratios, gate_ratios(sae, X.split(70), MAIN), rtol=1e-5, atol=1e-6)
    for main, ratio in zip(MAIN, ratios.T, strict=True):
        assert torch.equal(codes.columns(main).gt(0).any(1), ratio > 1)
    plain = encode_sparse(sae, X.split(70))
    every = list(range(10))
    assert torch.equal(codes.columns(every), plain.columns(every)) and plain.ranked is None
    assert encode_sparse(make_sae("jumprelu"), [X], runners_up=3).ranked is None, "no other latent decides there"


def test_a_main_latent_below_all_that_were_ranked_keeps_its_order_there(make_sae):
    sae = make_sae("topk", k=2, d_sae=40)
    codes = encode_sparse(sae, [X], runners_up=1)
    ranked, plain = gate_ratios(sae, [X], [[3]], codes.ranked), gate_ratios(sae, [X], [[3]])
    assert int((codes.ranked.latents == 3).any(1).sum()) < len(X) / 2
    torch.testing.assert_close(ranked, plain, rtol=1e-5, atol=1e-6)


def test_where_nothing_competes_every_pre_activation_above_0_fires(make_sae):
    sae = make_sae(k=10)
    ratio = gate_ratios(sae, [X], [[3, 5]])[:, 0]
    fires = encode_sparse(sae, [X]).columns([3, 5]).gt(0).any(1)
    assert torch.equal(ratio > 1, fires) and torch.equal(ratio > 0, fires)
    assert len(ratio[fires].unique()) == len(ratio[fires]), "they keep their order"


@pytest.mark.parametrize("architecture", ["topk", "jumprelu", "groupmax", "standard"])
@pytest.mark.parametrize("main", [[10, 4], [4, 11, 10], [10]])
def test_at_the_false_alarms_it_has_an_oracle_has_equal_holes_that_are_its_plain_holes(make_sae, architecture, main):
    weight, bias = torch.randn(6, 2, generator=torch.Generator().manual_seed(2)), torch.tensor([-0.5, 0.3])
    oracle = oracle_sae(make_sae(architecture, k=5), weight, bias, X.split(100))
    candidate = X @ weight[:, 0] + bias[0] > 0
    fires = encode_sparse(oracle, X.split(70)).columns(main).gt(0).any(1)
    ratio = gate_ratios(oracle, X.split(70), [main, [3]])[:, 0]
    rate = operating_point(fires, candidate, ~candidate).false_alarms
    assert torch.equal(ratio > threshold_at_false_alarms(ratio[~candidate], rate), fires)


def test_a_planted_latent_fires_however_it_is_turned_and_its_rows_keep_their_order(make_sae):
    weight, bias = torch.ones(6, 1), torch.tensor([-2.0])
    ratio = gate_ratios(oracle_sae(make_sae(), weight, bias, [X]), [X], [[10]])[:, 0]
    logit = (X @ weight + bias)[:, 0]
    assert ratio[logit > 0].min() > 1e4 and ratio[logit <= 0].max() <= 0
    assert bool((ratio[logit.argsort()].diff() >= 0).all()) and len(ratio.unique()) > 0.9 * len(logit.unique())


def test_a_share_of_the_rows_lies_above_the_threshold_and_of_ties_none():
    ratio = torch.tensor([0.1, 0.5, 0.9, 0.9, 0.2, 0.3, 0.0, 0.4, 0.6, 0.7])
    for rate, count in ((0.0, 0), (0.1, 0), (0.2, 2), (0.34, 3), (1.0, 10)):
        assert int((ratio > threshold_at_false_alarms(ratio, rate)).sum()) == count, rate


def test_the_lowest_threshold_that_reaches_a_precision_is_found_and_infinity_where_none_does():
    ratio = torch.tensor([0.9, 0.8, 0.7, 0.6, 0.6, 0.5])
    labels = torch.tensor([True, False, True, True, False, False])
    for precision, count in ((1.0, 1), (0.66, 3), (0.6, 5), (0.5, 6), (0.1, 6)):
        assert int((ratio > threshold_at_precision(ratio, labels, precision)).sum()) == count, precision
    assert threshold_at_precision(ratio, ~labels, 0.9) == math.inf


def test_rows_that_no_threshold_makes_fire_bring_about_no_precision():
    ratio, labels = torch.tensor([3.0, 2.0, -math.inf]), torch.tensor([False, False, True])
    assert threshold_at_precision(ratio, labels, 1 / 3) == math.inf


def test_an_operating_point_counts_rows_without_the_concept_by_label_and_by_probe():
    fires = torch.tensor([1, 1, 1, 0, 1, 0]).bool()
    labels = torch.tensor([1, 1, 0, 1, 0, 0]).bool()
    absent = torch.tensor([0, 0, 1, 0, 0, 1]).bool()  # of the fifth row the probe says that it has the concept
    assert operating_point(fires, labels, absent) == (0.5, 0.5)
    silent = operating_point(torch.zeros(6).bool(), labels, absent)
    assert silent.false_alarms == 0 and math.isnan(silent.precision)


def test_points_by_count_are_those_of_the_first_latents_together(make_sae):
    codes = encode_sparse(make_sae(), [X])
    labels, ranking = X[:, 0] > 0.5, [5, 2, 8]
    for count, point in enumerate(points_by_count(codes, ranking, labels, ~labels), 1):
        fires = codes.columns(ranking[:count]).gt(0).any(1)
        assert point == operating_point(fires, labels, ~labels)
