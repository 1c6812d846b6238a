"""sae_lm.comparison.controls: which outcomes put SAEs of known worth in order."""

import math
from pathlib import Path

import pytest
import torch
from toys import identity_sae, toy_rows

from sae_lm.comparison import controls
from sae_lm.comparison.controls import (
    ABSORBED,
    ORDERED,
    ROWS,
    SHARES,
    GradedSae,
    Grades,
    control_remarks,
    grade,
    order_sentences,
    some_rows,
)
from sae_lm.comparison.equal_alarms import common_points, points_of_sae
from sae_lm.comparison.evaluate import common_counts, sae_codes, sae_splits
from sae_lm.comparison.evaluation_set import ConceptSet, EvaluationSet, find_candidates, sample_documents, sum_samples
from sae_lm.comparison.outcomes import BY_F1
from sae_lm.concepts.probes import fit_probes
from sae_lm.metrics.graded_saes import PlantedSAE
from sae_lm.metrics.splitting import Split
from sae_lm.settings import CompareSettings


def evaluation_set_of(rows):
    (probe,) = fit_probes(rows, min_words=8, gate=0.6)
    documents = sample_documents(torch.arange(len(rows.x)), 0)

    def read(size):
        return iter(rows.x.split(size))

    found = find_candidates(0, rows, [(0, probe)], documents)
    return EvaluationSet(read, documents, sum_samples(read, documents), [ConceptSet(rows, [0])], found, 0)


def graded(rows, sae, count=None):
    """count: how many main latents every SAE gets; else as many as this one has."""
    evaluation_set = evaluation_set_of(rows)
    codes = sae_codes(sae, evaluation_set)
    splits = sae_splits(codes, evaluation_set, 6, 0.03)
    settings = CompareSettings(runs=Path("runs"), out=Path("out"), max_k=6, rank_latents="both")
    common = [count] if count else common_counts([splits])
    scale = common, common_points([points_of_sae(codes, splits, evaluation_set)], common)
    return grade(sae, (codes, splits), settings, evaluation_set, scale, scale)


@pytest.fixture(scope="module")
def grades():
    """The concept has three axes of six; the baseline's latents are the axes, but the third fires too late to be seen."""
    return graded(toy_rows([0, 2, 5]), identity_sae(6, b_enc=torch.tensor([-0.1, -0.1, -0.1, -0.1, -0.1, -2.0])))


def of(grades, kind):
    return [sae.values for sae in grades.saes if sae.kind == kind]


def test_the_oracle_has_no_holes_absorbs_nothing_and_is_as_precise_as_the_probe(grades):
    (oracle,), (told,), (probes,), (baseline,) = (
        of(grades, k) for k in ("oracle", "told oracle", "probes", "baseline")
    )
    for figures in (oracle, told):
        assert figures["equal_hole_rate"] == figures["absorption_fraction"] == figures["absorption_full"] == 0
    assert told["main_precision"] == pytest.approx(probes["main_precision"])
    assert oracle["main_f1"] > 0.95 and baseline["equal_hole_rate"] > 0.2 and grades.planted == [("concept", True)]


def test_permuted_rows_leave_all_that_has_no_geometry_and_with_no_latents_left_nothing_fires(grades):
    (baseline,) = of(grades, "baseline")
    permuted, dropped = of(grades, "permuted"), of(grades, "dropped")
    assert len(permuted) == len(dropped) == len(SHARES)
    for figures in permuted:
        assert {figures[key] for key in ("equal_hole_rate", "main_f1")} == {
            baseline[key] for key in ("equal_hole_rate", "main_f1")
        }
    assert permuted[-1]["fvu"] > baseline["fvu"]
    assert dropped[-1]["equal_hole_rate"] == 1 and dropped[-1]["l0"] == dropped[-1]["absorption_fraction"] == 0


@pytest.fixture(scope="module")
def absorbed():
    """The concept has eight axes of twelve, each of which may absorb it; one main latent is asked for."""
    return graded(toy_rows([*range(8)], d=12), identity_sae(12, b_enc=torch.full((12,), -0.1)), count=1)


def test_planted_absorption_is_seen_by_holes_and_the_fraction_by_both_rankings(absorbed):
    (oracle,), absorbing = of(absorbed, "oracle"), of(absorbed, "absorbing")
    assert [sae.share for sae in absorbed.saes if sae.kind == "absorbing"] == [*ABSORBED]
    planted = [figures["planted_holes"] for figures in absorbing]
    assert planted[0] == 0 and planted == pytest.approx([0, 1 / 8, 3 / 8], abs=0.02)
    for key in ("equal_hole_rate", "absorption_fraction", "equal_hole_rate_by_f1", "absorption_fraction_by_f1"):
        ladder = [figures[key] for figures in (oracle, *absorbing)]
        assert ladder == pytest.approx([0.0, *planted], abs=0.02)
    assert [figures["planted_in"] for figures in absorbing] == [0, 1, 1]
    assert [figures["absorbers_as_main"] for figures in absorbing] == [0, 0, 0]


def test_where_an_absorber_is_chosen_as_a_main_latent_holes_fall_short_of_what_was_planted_and_that_is_said():
    grades = graded(toy_rows([*range(8)], d=12), identity_sae(12, b_enc=torch.full((12,), -0.1)), count=3)
    (oracle,), last = of(grades, "oracle"), of(grades, "absorbing")[-1]
    assert last["absorbers_as_main"] == 1
    assert oracle["equal_hole_rate"] <= last["equal_hole_rate"] < last["planted_holes"] - 0.05
    (remark,) = (remark for remark in control_remarks(grades) if "planted" in remark)
    assert "In 0, 1, 1 concepts one of these is among the main latents, which counts as splitting." in remark


def test_what_was_planted_and_what_outcomes_see_of_it_stands_in_a_sentence_and_places_no_outcome(absorbed):
    (remark,) = (remark for remark in control_remarks(absorbed) if "planted" in remark)
    for key in ("planted_holes", "equal_hole_rate", "absorption_fraction_by_f1"):
        assert ", ".join(f"{figures[key]:.3g}" for figures in of(absorbed, "absorbing")) in remark
    assert "in 0, 1, 1 of 1 concepts" in remark
    assert all("planted" not in sentence for _, sentence in order_sentences(absorbed.saes).values())
    assert {*BY_F1.values()} <= order_sentences(absorbed.saes).keys()


def test_what_was_planted_is_asked_of_each_concepts_own_latent():
    sae = identity_sae(4)
    absorbing = PlantedSAE(sae, torch.eye(4)[:, :2], torch.zeros(2))
    absorbing.absorbers[3, 1] = True  # of the second concept alone
    x = torch.tensor([[1.0, 1, 0, 0], [1, 1, 0, 1], [1, 1, 0, 0], [1, 1, 0, 1]])
    evaluation_set = evaluation_set_of(toy_rows([0, 2, 5]))
    (candidates,) = evaluation_set.candidates
    candidates = candidates._replace(rows=torch.arange(4), x=x, token_id=torch.tensor([0, 0, 1, 2]))
    evaluation_set = evaluation_set._replace(candidates=[candidates] * 2)
    splits = [Split([0], ranking, [], []) for ranking in ([4, 3], [3, 5])]
    of_first = controls._planted(absorbing, splits, [2, 1], evaluation_set)
    assert of_first == {"planted_holes": (0 + 1 / 2) / 2, "planted_in": 1, "absorbers_as_main": 1}
    assert controls._planted(absorbing, [splits[1], splits[0]], [1, 1], evaluation_set)["absorbers_as_main"] == 0


def test_where_no_latent_can_absorb_a_concept_that_is_said():
    saes = [
        GradedSae(kind, 0.0, dict.fromkeys((*ORDERED, "planted_in"), 0.0))
        for kind in ("oracle", "absorbing", "baseline")
    ]
    assert "No absorption could be planted" in control_remarks(Grades(saes, [("digit", True)]))[0]


@pytest.mark.parametrize("batch", [100, 3000, 8191, 20_000])
def test_fvu_and_l0_of_all_are_of_the_same_rows_however_many_are_read_at_once(batch, monkeypatch):
    monkeypatch.setattr(controls, "batch_rows", lambda _: batch)
    x = torch.arange(20_000.0)[:, None]
    rows = some_rows(lambda size: iter(x.split(size)), identity_sae(1))
    assert torch.equal(torch.cat([*rows]), x[:ROWS])


def saes_of(oracle, baseline, permuted, dropped):
    values = [("oracle", 0.0, oracle), ("baseline", 0.0, baseline)]
    values += [("permuted", share, value) for share, value in zip(SHARES, permuted, strict=True)]
    values += [("dropped", share, value) for share, value in zip(SHARES, dropped, strict=True)]
    return [GradedSae(kind, share, dict.fromkeys(ORDERED, value)) for kind, share, value in values]


def test_an_outcome_that_orders_all_is_said_to_and_one_that_does_not_is_told_where():
    right = order_sentences(saes_of(0.0, 0.2, (0.3, 0.3, 0.4, 0.5), (0.3, 0.4, 0.5, 1.0)))
    ordered, sentence = right["equal_hole_rate"]
    assert ordered and "puts the oracle first (0, the baseline 0.2)" in sentence
    assert "orders permuted decoder rows (0.2, then 0.3, 0.3, 0.4, 0.5)" in sentence
    assert (
        not right["main_f1"][0] and "does not put the oracle before the baseline" in right["main_f1"][1]
    )  # higher is better there
    wrong = order_sentences(saes_of(0.0, 0.2, (0.2,) * 4, (0.3, 0.1, 0.2, 0.9)))["equal_hole_rate"]
    assert not wrong[0] and "does not see permuted decoder rows at all (all 0.2)" in wrong[1]
    assert "does not order dropped latents throughout" in wrong[1] and "up to 0.2 the wrong way" in wrong[1]
    falls = order_sentences(saes_of(0.0, 0.2, (0.15, 0.1, 0.05, 0.0), (math.nan, 0.1, 0.1, 0.1)))["equal_hole_rate"]
    assert not falls[0] and "does not order permuted decoder rows: spoilt ones look better" in falls[1]
    assert "is not known for all dropped latents" in falls[1]


def test_fvu_does_not_place_the_oracle_more_of_whose_latents_fire():
    for oracle in (0.1, 0.3):
        ordered, sentence = order_sentences(saes_of(oracle, 0.2, (0.3, 0.3, 0.4, 0.5), (0.3, 0.4, 0.5, 1.0)))["fvu"]
        assert ordered and sentence.endswith("; the oracle is not placed by it, as more of its latents fire.")
        assert "the oracle first" not in sentence and "before the baseline" not in sentence


def test_an_outcome_that_prefers_emptied_saes_to_the_oracle_is_not_said_to_put_the_oracle_first():
    saes = saes_of(0.1, 0.3, (0.3, 0.2, 0.1, 0.05), (0.2, 0.1, 0.07, 0.0))
    ordered, sentence = order_sentences(saes)["absorption_fraction"]
    assert not ordered and "before the baseline, but not before 5 of 8 spoilt SAEs" in sentence  # two are level
    assert "(0.1, the baseline 0.3, the best of those 0)" in sentence and "oracle first" not in sentence


def test_what_spoilt_saes_would_pass_for_and_which_oracle_latents_are_missed_is_said():
    saes = saes_of(0.0, 0.2, (0.2,) * 4, (0.3, 0.1, 0.3, 1.0))
    saes.append(GradedSae("told oracle", 0.0, dict.fromkeys(ORDERED, 0.0)))
    missed, passing = control_remarks(Grades(saes, [("digit", True), ("bracket", False)]))
    assert "misses the oracle's own latent of 1 of 2 concepts (bracket)" in missed
    assert "in 1 of 8 spoilt SAEs (50% dropped latents)" in passing
    assert "in 0 of 4 spoilt SAEs." in control_remarks(Grades([s for s in saes if s.kind != "dropped"], []))[0]
