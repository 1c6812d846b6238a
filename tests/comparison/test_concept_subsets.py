"""sae_lm.comparison.concept_subsets: outcomes over clear concepts, and by kind."""

import math

import pytest
import torch

from sae_lm.comparison.concept_subsets import (
    differences_by_kind,
    disagreements,
    found_figures,
    found_sentence,
    kind_of,
    rank_correlation,
    reached_figures,
    subset_figures,
)
from sae_lm.comparison.evaluation_set import Candidates
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.outcomes import METRICS
from sae_lm.concepts.probes import Probe
from sae_lm.penalties.arms import parse_arm

NAMES = {"first letter a": "token", "digit": "token", "inside brackets": "contextual", "inside quotes": "contextual"}


def concept(name, kind, f1=0.9, skipped=None):
    return Probe(name, kind, 60, 40, 8, 400, f1, 0.2, torch.zeros(2), 0.0, skipped)


def candidates_of(probe):
    none = torch.zeros(0, dtype=torch.long)
    return Candidates(0, 0, probe, none, torch.zeros(0, 2), none, none, torch.zeros(1, 0), torch.zeros(1, 0))


def test_clear_concepts_are_those_whose_probe_has_an_f1_of_at_least_85():
    candidates = [candidates_of(concept("a concept", "token", f1)) for f1 in (0.85, 0.7, 0.99)]
    figures = [
        {"equal_hole_rate": 0.2, "fraction": 0.1, "splits": 1},
        {"equal_hole_rate": 0.9, "fraction": 0.9, "splits": 9},
        {"fraction": 0.3, "splits": 2},
    ]
    found = subset_figures(figures, candidates)
    assert found["equal_hole_rate_clear"] == 0.2 and math.isnan(found["probe_rank"])
    assert found["absorption_fraction_clear"] == pytest.approx(0.2) and found["splits_clear"] == 1.5
    assert math.isnan(subset_figures(figures[1:2], candidates[1:2])["splits_clear"])


def concepts(**figures):
    return [dict(zip(figures, values, strict=True)) for values in zip(*figures.values(), strict=True)]


def test_concepts_are_found_that_main_latents_of_the_baseline_tell_whatever_the_arms_do():
    none, arm = (parse_arm(name) for name in ("none", "max_cos:1"))
    saes = {
        (none, 0): concepts(main_f1=[0.9, 0.75, 0.1], fraction=[0.1, 0.3, 0.9], equal_hole_rate=[0.2, 0.0, 0.8],
                            fraction_by_f1=[0.5, 0.0, 0.0], equal_hole_rate_by_f1=[0.6, 0.0, 0.0]),
        (none, 1): concepts(main_f1=[0.6, 0.6, 0.1], fraction=[0.1, 0.3, 0.9], equal_hole_rate=[0.2, 0.0, 0.8]),
        (arm, 0): concepts(main_f1=[0.1, 0.9, 0.9], fraction=[0.2, 0.3, 0.9], equal_hole_rate=[0.1, 0.0, 0.8]),
    }  # fmt: skip
    found = found_figures(saes, [none])
    assert [of["absorption_fraction_found"] for of in found.values()] == [0.1, 0.1, 0.2]
    assert [of["equal_hole_rate_found"] for of in found.values()] == [0.2, 0.2, 0.1]
    assert found[none, 0]["absorption_fraction_found_by_f1"] == 0.5
    assert found[none, 0]["equal_hole_rate_found_by_f1"] == 0.6
    assert math.isnan(found[arm, 0]["absorption_fraction_found_by_f1"])
    (said,) = found_sentence(saes, [none])
    assert said == (
        "Of 3 concepts main latents tell 1 with an F1 of 0.7 or more (mean over the baseline's SAEs). none has holes at equal "
        "false alarms of 0.200 over these and 0.400 over the others, and a fraction of 0.100 and 0.600. Of the others an "
        "absorbed concept and one that was never learned look alike to holes and fraction."
    )


def test_a_concept_is_found_by_the_ranking_that_finds_the_better_main_latents():
    none = parse_arm("none")
    saes = {(none, 0): concepts(main_f1=[0.2, 0.2], main_f1_by_f1=[0.8, 0.6], fraction=[0.1, 0.9])}
    assert found_figures(saes, [none])[none, 0]["absorption_fraction_found"] == 0.1


def test_each_rung_of_the_baseline_is_told_apart_and_what_is_not_known_is_said():
    rungs = [parse_arm(name) for name in ("none@k=16", "none@k=32")]
    saes = {(rung, 0): concepts(main_f1=[0.8, 0.2], fraction=[0.1, 0.9]) for rung in rungs}
    (said,) = found_sentence(saes, rungs)
    for rung in rungs:
        assert f"{rung.name} has holes at equal false alarms of (unknown) over these" in said
    assert said.count("a fraction of 0.100 and 0.900") == 2


def test_where_no_concept_or_every_one_is_found_there_is_nothing_to_compare():
    none = parse_arm("none")
    none_found = (
        "Of 1 concepts main latents tell none with an F1 of 0.7 or more (mean over the baseline's SAEs): an absorbed"
    )
    for f1, said in ((0.2, [none_found]), (0.7, [])):
        saes = {(none, 0): concepts(main_f1=[f1], fraction=[0.1], equal_hole_rate=[0.2])}
        assert math.isnan(found_figures(saes, [none])[none, 0]["absorption_fraction_found"]) == bool(said)
        assert [sentence[: len(none_found)] for sentence in found_sentence(saes, [none])] == said


def test_holes_where_all_reach_the_false_alarms_leave_out_a_concept_that_one_sae_does_not_reach():
    none, arm = (parse_arm(name) for name in ("none", "max_cos:1"))
    found = reached_figures(
        {
            (none, 0): concepts(reached=[True, True, False], equal_hole_rate=[0.1, 0.3, 0.9]),
            (none, 1): concepts(reached=[True, False, True], equal_hole_rate=[0.2, 0.3, 0.9]),
            (arm, 0): concepts(reached=[True, True, True], equal_hole_rate=[0.4, 0.3, 0.9]),
        }
    )
    assert [of["equal_hole_rate_reached"] for of in found.values()] == [0.1, 0.2, 0.4]
    assert all(math.isnan(of["equal_hole_rate_reached_by_f1"]) for of in found.values())


def test_rank_correlation_needs_three_pairs_and_two_values_on_each_side():
    assert rank_correlation([0.1, 0.5, 0.9], [3.0, 2.0, 1.0]) == pytest.approx(-1)
    assert rank_correlation([0.1, 0.5, 0.9, 0.7], [1.0, 2.0, 4.0, math.nan]) == pytest.approx(1)
    assert math.isnan(rank_correlation([0.1, 0.5], [1.0, 2.0]))
    assert math.isnan(rank_correlation([0.1, 0.5, 0.9], [1.0, 1.0, 1.0]))


def kinds_of(shifts, seeds=4, key="equal_hole_rate"):
    """Entries of an arm of which a figure of the concepts differs by kind as given."""
    none, arm = parse_arm("none"), parse_arm("abs_cos:1")
    noise = [0.001, -0.001, 0.002, 0.0]

    def of(seed, moved):
        return [
            {"concept": name, key: 0.5 + 0.01 * seed + moved * (shifts[kind_of(probe)] + noise[seed])}
            for name, probe in ((name, concept(name, kind)) for name, kind in NAMES.items())
        ]

    per_concept = {(a, seed): of(seed, a is arm) for a in (none, arm) for seed in range(seeds)}
    probes = [*(concept(name, kind) for name, kind in NAMES.items()), concept("other", "csv", skipped="too few")]
    matching = match_arms([none, arm], none, {a: [16.0] * seeds for a in (none, arm)})
    return differences_by_kind(per_concept, probes, matching, range(seeds))


def of_metric(entries, metric):
    return [entry for entry in entries if entry["metric"] == metric]


def test_differences_of_each_kind_are_over_its_concepts_alone_and_first_letters_are_a_kind():
    entries = of_metric(kinds_of({"token": -0.1, "letter": 0.0, "contextual": -0.05}), "equal_hole_rate")
    assert [(entry["kind"], entry["concepts"]) for entry in entries] == [("token", 1), ("letter", 1), ("contextual", 2)]
    assert [entry["mean"] for entry in entries] == pytest.approx([-0.0995, 0.0005, -0.0495])
    assert all(entry["arm"] == "abs_cos:1" and entry["low"] < entry["mean"] < entry["high"] for entry in entries)


def test_kinds_disagree_where_intervals_lie_on_both_sides_of_0():
    (said,) = disagreements(kinds_of({"token": -0.1, "letter": 0.0, "contextual": 0.05}))
    assert said.startswith("abs_cos:1: kinds of concepts disagree.") and "first letters" not in said
    assert "hole rate at equal false alarms is lower for tokens (1 concept, -0.09" in said
    assert "higher for places (2 concepts, +0.05" in said
    assert disagreements(kinds_of({"token": -0.1, "letter": 0.0, "contextual": -0.05})) == []
    assert disagreements(kinds_of({"token": -0.1, "letter": 0.0, "contextual": 0.05}, seeds=2)) == []


def test_seeds_without_a_value_are_none_that_kinds_disagree_in():
    entries = kinds_of({"token": -0.1, "letter": 0.0, "contextual": 0.05})
    lacking = [entry | {"per_seed": [*entry["per_seed"][:2], math.nan, None]} for entry in entries]
    assert disagreements(entries) and disagreements(lacking) == []


@pytest.mark.parametrize(("key", "metric"), [("fraction", "absorption_fraction"), ("splits", "splits")])
def test_kinds_are_asked_about_the_fraction_and_splitting_too(key, metric):
    entries = kinds_of({"token": -0.1, "letter": 0.0, "contextual": 0.05}, key=key)
    assert [entry["mean"] for entry in of_metric(entries, metric)] == pytest.approx([-0.0995, 0.0005, 0.0505])
    assert all(entry["mean"] is None for entry in of_metric(entries, "equal_hole_rate"))
    (said,) = disagreements(entries)
    assert f"Its {METRICS[metric].label} is lower for tokens" in said
