"""sae_lm.comparison.evaluate: one SAE's figures on rows that all SAEs share."""

from dataclasses import replace
from pathlib import Path
from typing import get_args

import pytest
import torch
from toys import identity_sae, toy_rows

from sae_lm.comparison.evaluate import concept_figures, find_main_latents, sae_codes, sae_splits
from sae_lm.comparison.evaluation_set import (
    ConceptSet,
    EvaluationSet,
    find_candidates,
    sample_documents,
    sum_samples,
)
from sae_lm.comparison.explorer import keep_for_explorer
from sae_lm.comparison.measure import _shown, _Yardstick
from sae_lm.comparison.removals import measure_removals
from sae_lm.comparison.runs import Run
from sae_lm.concepts.probes import f1, fit_probes
from sae_lm.concepts.word_split import TEST, TRAIN
from sae_lm.metrics.codes import TokenCodes
from sae_lm.metrics.decoder_projection import nth_decoder_projection
from sae_lm.metrics.splitting import RANKERS, Split, firing_f1, l1_probe
from sae_lm.penalties.arms import parse_arm
from sae_lm.sae.model import SAE, SaeConfig
from sae_lm.settings import CompareSettings


def evaluated(rows, probe):
    of_rows = sample_documents(torch.arange(len(rows.x)), 0)
    return EvaluationSet(
        lambda size: iter([rows.x]),
        of_rows,
        sum_samples(lambda size: iter([rows.x]), of_rows),
        [ConceptSet(rows, [0])],
        find_candidates(0, rows, [(0, probe)], of_rows),
        0,
    )


@pytest.mark.parametrize("norm", ["constant_norm_rescale", "layer_norm"])
def test_an_sae_that_normalises_is_scored_as_one_that_does_not_on_what_it_normalises_to(norm):
    """Rows 100 times as long, which it brings back: fraction, removals and projections are those of the plain SAE."""
    plain = identity_sae(6, b_enc=torch.full((6,), -0.1), b_dec=torch.full((6,), 0.05))
    W_enc, mixed = torch.eye(6) + 0.5 * torch.eye(6).roll(1, 1), torch.eye(6) + 0.3 * torch.eye(6).roll(1, 0)
    weights = dict(plain.named_parameters()) | {"W_enc": W_enc, "W_dec": mixed}
    plain = SAE(plain.config, weights)
    own = SAE(replace(plain.config, normalize_activations=norm), weights)
    rows = toy_rows([0, 2, 5])
    rows = rows._replace(x=own.normalise(rows.x))
    far = rows._replace(x=100 * rows.x)
    assert torch.allclose(own.normalise(far.x), rows.x, atol=1e-3)
    (probe,) = fit_probes(rows, min_words=8, gate=0.6)
    found = []
    for sae, of, weight in ((plain, rows, probe.weight), (own, far, probe.weight / 100)):
        evaluation_set = evaluated(of, probe._replace(weight=weight))
        codes = sae_codes(sae, evaluation_set)
        splits = [Split([0], [0, 1, 2, 3, 4, 5], [0.5], [0.5] * 6)]
        (figures,), _ = concept_figures(sae, codes, splits, evaluation_set, [1], sweep=True)
        flips, _ = measure_removals(sae, codes, splits, evaluation_set, [1])
        shown = keep_for_explorer(sae, codes, splits, evaluation_set).rows[0]
        found.append((figures, flips, nth_decoder_projection(sae, of.x, 3), shown))
    (figures, flips, projection, shown), (theirs, other_flips, other_projection, other_shown) = found
    assert figures["fraction"] > 0.1 and figures["full"] > 0.1 and flips["absorbed_tokens"] > 10
    for key in ("fraction", "full", "recovered", "hole_rate", "control_fraction"):
        assert theirs[key] == pytest.approx(figures[key], abs=0.01), key
    for mine, other in zip(figures["sweep"], theirs["sweep"], strict=True):
        assert other == pytest.approx(mine, abs=0.02)
    assert other_flips == pytest.approx(flips, abs=0.02) and other_projection == pytest.approx(projection, rel=0.01)
    assert torch.allclose(shown, other_shown, atol=1e-3)


def test_main_latents_are_told_with_the_number_that_all_saes_get_and_not_with_their_own():
    rows, sae = toy_rows([0, 2, 5]), identity_sae(6, b_enc=torch.full((6,), -0.1))
    (probe,) = fit_probes(rows, min_words=8, gate=0.6)
    evaluation_set = evaluated(rows, probe)
    codes = sae_codes(sae, evaluation_set)
    splits = sae_splits(codes, evaluation_set, 6, 0.03)
    for common in (1, 2, 3):
        (figures,), _ = concept_figures(sae, codes, splits, evaluation_set, [common])
        predicted = codes[0].columns(splits[0].ranking[:common]).gt(0).any(1)
        test = rows.subset == TEST
        assert figures["splits"] == 3 and figures["main_f1"] == pytest.approx(f1(predicted[test], rows.labels[test, 0]))


def test_candidates_for_main_latents_are_ranked_as_the_settings_say():
    rows, sae = toy_rows([0, 2, 5]), identity_sae(6, b_enc=torch.full((6,), -0.1))
    (probe,) = fit_probes(rows, min_words=8, gate=0.6)
    evaluation_set = evaluated(rows, probe)
    known = rows.subset == TRAIN
    codes = sae_codes(sae, evaluation_set)[0].take(known)
    labels = rows.labels[known]
    assert set(get_args(CompareSettings.model_fields["rank_latents"].annotation)) == set(RANKERS)
    orders = {"l1_probe": l1_probe(codes, labels, 0), "f1": firing_f1(codes, labels)}
    orders = {ranking: order[:, 0].topk(6).indices.tolist() for ranking, order in orders.items()}
    assert orders["l1_probe"] != orders["f1"]
    for ranking, order in orders.items():
        settings = CompareSettings(runs=Path("runs"), out=Path("out"), max_k=6, rank_latents=ranking)
        found = find_main_latents(sae, settings, evaluation_set)
        assert found and found[1][0].ranking == order


def test_of_equal_pre_activations_the_explorer_shows_those_that_were_scored(monkeypatch):
    """Every latent is there twelve times over, so that which of them fire is a matter of the way they are looked for."""
    one, copies = identity_sae(6), 12
    W_enc, W_dec = one.W_enc.repeat(1, copies), one.W_dec.repeat(copies, 1)
    config = SaeConfig(architecture="topk", d_in=6, d_sae=6 * copies, k=3)
    sae = SAE(config, {"W_enc": W_enc, "W_dec": W_dec, "b_enc": torch.zeros(6 * copies), "b_dec": torch.zeros(6)})
    rows = toy_rows([0, 2, 5])
    (probe,) = fit_probes(rows, min_words=8, gate=0.6)
    evaluation_set, settings = evaluated(rows, probe), CompareSettings(runs="runs", out="out", max_k=2)
    splits = [Split([0], [0], [1.0], [1.0])]
    found = find_main_latents(sae, settings, evaluation_set, splits)
    monkeypatch.setattr("sae_lm.comparison.runs.load", lambda *_, **__: sae)
    kept: list[list[TokenCodes]] = []

    def keep(sae, codes, splits, evaluation_set):
        kept.append(codes)
        return keep_for_explorer(sae, codes, splits, evaluation_set)

    monkeypatch.setattr("sae_lm.comparison.measure.keep_for_explorer", keep)
    run = Run(parse_arm("none"), 0, Path("none-seed0"), {}, "topk")
    _shown(run, _Yardstick(settings, evaluation_set, [1], [], None, 1, "cpu"), splits)
    ((shown,),), (plain,) = kept, sae_codes(sae, evaluation_set)
    assert found and torch.equal(shown.latent, found[0][0].latent)
    assert not torch.equal(plain.latent, shown.latent), "there is something to differ in"
