"""Figures of SAEs, the noise of their evaluation, and what they are held to."""

from dataclasses import replace
from typing import NamedTuple

import pytest
import torch

from sae_lm.comparison.evaluate import held_out_figures, type_means
from sae_lm.comparison.evaluation_set import Candidates, EvaluationSet, sample_documents, sum_samples
from sae_lm.comparison.explorer import is_shown
from sae_lm.comparison.language_model import pooled_entropy
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.measure import check_metrics, merge_figures
from sae_lm.comparison.pairs import compare_seeds
from sae_lm.comparison.runs import Runs
from sae_lm.concepts.probes import Probe
from sae_lm.metrics.language_model import CrossEntropy
from sae_lm.penalties.arms import parse_arm
from sae_lm.sae.model import SAE, SaeConfig, random_sae

pytestmark = pytest.mark.transformer_lens_3


def test_what_seeds_have_in_common_is_taken_against_the_rung_of_the_arms_l0():
    class Same(NamedTuple):
        W_dec: torch.Tensor

        def load(self, device):
            return self

    at = {"none@k=8": 0, "none@k=16": 1, "none@arch=matryoshka@k=15": 1}  # what an SAE's latents all point at
    rows = {parse_arm(arm): row for arm, row in at.items()}
    runs = Runs(
        parse_arm("none"),
        list(rows),
        [0, 1],
        {(arm, seed): Same(torch.eye(4)[[row, row]]) for arm, row in rows.items() for seed in (0, 1)},
        [],
        {},
    )
    l0 = {"none@k=8": 8.0, "none@k=16": 16.0, "none@arch=matryoshka@k=15": 16.3}
    matching = match_arms(runs.arms, runs.baseline, {arm: [l0[arm.name]] * 2 for arm in rows})
    alive, signal = (dict.fromkeys(runs.by_key, torch.ones(2, dtype=kind)) for kind in (torch.bool, torch.float64))
    figures = compare_seeds(runs, alive, signal, matching.to_baseline, "cpu")
    assert {arm: figures[arm, 0]["distinct"] for arm in rows} == dict.fromkeys(rows, 0.0)


def test_the_explorer_shows_arms_of_the_rungs_k_or_of_its_l0():
    ladder = [parse_arm(f"none@k={k}") for k in (8, 16, 32)]
    l0 = {
        "none@k=8": 8.0,
        "none@k=16": 16.0,
        "max_cos:1@k=16": 14.0,
        "none@arch=matryoshka@k=15": 16.3,
        "max_cos:1@k=8": 8.0,
    }
    of_arms = {parse_arm(arm): value for arm, value in l0.items()}
    shown = [arm.name for arm in of_arms if is_shown(arm, ladder[1], ladder, of_arms)]
    assert shown == ["none@k=16", "max_cos:1@k=16", "none@arch=matryoshka@k=15"]


def test_figures_of_an_sae_are_merged_and_what_no_report_would_show_is_an_error():
    none = parse_arm("none")
    assert merge_figures([{(none, 0): {"fvu": 0.1}}, {}, {(none, 0): {"l0": 8.0}, (none, 1): {"l0": 9.0}}]) == {
        (none, 0): {"fvu": 0.1, "l0": 8.0},
        (none, 1): {"l0": 9.0},
    }
    with pytest.raises(AssertionError, match="fvuu of none is measured and is no metric.*; name it in METRICS"):
        merge_figures([{(none, 0): {"fvuu": 0.1}}])
    with pytest.raises(AssertionError, match="hole_rat of an SAE's noise is measured and is no metric"):
        check_metrics({"hole_rate": 0.1, "hole_rat": 0.2}, "an SAE's noise")
    with pytest.raises(AssertionError, match="l0 of none is measured twice"):
        merge_figures([{(none, 0): {"l0": 8.0}}, {(none, 0): {"l0": 8.0}}])


@pytest.mark.parametrize("architecture", ["topk", "standard", "jumprelu"])
def test_the_random_control_fires_as_many_latents_as_the_baseline_whatever_its_architecture(make_sae, architecture):
    weights = {name: value for name, value in make_sae().named_parameters() if name != "threshold"}
    weights |= {"threshold": torch.full((10,), 3.0)} if architecture == "jumprelu" else {}
    like = SAE(SaeConfig(architecture=architecture, d_in=6, d_sae=10, k=4 if architecture == "topk" else None), weights)
    control = random_sae(like, 3.2, seed=0)
    x = torch.randn(200, 6, generator=torch.Generator().manual_seed(0))
    assert float((control.encode(x) > 0).sum(1).float().mean()) == pytest.approx(3, abs=0.1)
    assert torch.equal(control.b_dec, like.b_dec) and torch.allclose(control.W_dec.norm(dim=1), torch.ones(10))
    folded = SAE(replace(like.config, apply_b_dec_to_input=False), weights)  # the same with b_dec in b_enc
    assert torch.equal(random_sae(folded, 3.2, seed=0).encode(x), control.encode(x))


def evaluation_set_of(x, of_row, size):
    def read(rows):
        return iter(x.split(size))

    return EvaluationSet(read, of_row, sum_samples(read, of_row), [], [], 0)


def test_samples_in_which_every_document_is_once_give_the_figures_themselves(make_sae):
    sae, x = make_sae(unit=False), torch.randn(60, 6, generator=torch.Generator().manual_seed(0)) + 1
    of_row = sample_documents(torch.arange(60) // 7, 0)._replace(counts=torch.ones(2, 9))
    figures, bootstrap_values, fired, nearest = held_out_figures(sae, evaluation_set_of(x, of_row, 17))
    for key in ("l0", "fvu", "nmse"):
        assert bootstrap_values[key].tolist() == pytest.approx([figures[key]] * 2, rel=1e-5), key
    assert fired.shape == (10,) and len(nearest) == int(fired.sum())


def test_the_fvu_of_a_sample_is_that_of_its_rows(make_sae):
    sae, x = make_sae(), torch.randn(60, 6, generator=torch.Generator().manual_seed(0))
    of_row = sample_documents(torch.arange(60) // 20, 0)._replace(counts=torch.tensor([[2.0, 0.0, 1.0]]))
    twice = torch.cat([x[:20], x[:20], x[40:]])
    expected = held_out_figures(
        sae, evaluation_set_of(twice, sample_documents(torch.zeros(60, dtype=torch.long), 0), 60)
    ).figures["fvu"]
    bootstrap_values = held_out_figures(sae, evaluation_set_of(x, of_row, 25)).bootstrap_values
    assert float(bootstrap_values["fvu"]) == pytest.approx(expected, rel=1e-5)


def test_means_over_types_leave_out_types_that_a_sample_lacks():
    weight = torch.tensor([[1.0, 1.0, 1.0], [2.0, 1.0, 0.0]])
    types = torch.tensor([0, 0, 1])
    type_weight = torch.zeros(2, 2).index_add_(1, types, weight)
    probe = Probe("p", "token", 2, 2, 2, 3, 1.0, 0.0, torch.zeros(2), 0.0, None)
    found = Candidates(0, 0, probe, torch.arange(3), torch.zeros(3, 2), types, types, weight, type_weight)
    values = torch.tensor([1.0, 0.0, 1.0])
    assert type_means(values, found).tolist() == pytest.approx([(0.5 + 1) / 2, 2 / 3])


def test_blocks_of_contexts_are_pooled_by_their_tokens():
    parts = [CrossEntropy(10, 1.0, 2.0, 5.0), CrossEntropy(30, 2.0, 4.0, 5.0)]
    pooled = pooled_entropy(parts)
    assert (pooled.tokens, pooled.clean, pooled.spliced) == (40, 1.75, 3.5)
    assert pooled_entropy(parts, [2.0, 0.0]).spliced == 2.0
