"""Primary differences over seeds and concepts together, and with each concept left out."""

import numpy as np
import pytest

from sae_lm.comparison.evaluate import concept_means
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.other_concepts import (
    compare_over_concepts,
    concept_findings,
    holds_for_others,
    over_common_concepts,
    paired_by_concept,
)
from sae_lm.comparison.outcomes import METRICS
from sae_lm.comparison.verdicts import compare_arms
from sae_lm.penalties.arms import parse_arm

NONE, ARM = parse_arm("none"), parse_arm("abs_cos:1")
SEEDS = [0, 1, 2, 3, 4, 5]
NAN = float("nan")


def scene(by_concept, spread=0.01):
    """Hole rates of two arms whose difference is about so much on each concept -> the entries and the differences."""
    draw = np.random.default_rng(0)
    base = 0.5 + 0.1 * draw.normal(size=(len(SEEDS), len(by_concept)))
    arm = base + np.array(by_concept) + spread * draw.normal(size=base.shape)
    per_concept = {
        (which, seed): [
            {"concept": f"concept {place}", "equal_hole_rate": float(value)} for place, value in enumerate(of[row])
        ]
        for which, of in ((NONE, base), (ARM, arm))
        for row, seed in enumerate(SEEDS)
    }
    values = {
        which: {key: [NAN] * len(SEEDS) for key in METRICS} | {"l0": [16.0] * len(SEEDS), "equal_hole_rate": of.mean(1).tolist()}
        for which, of in ((NONE, base), (ARM, arm))
    }  # fmt: skip
    matching = match_arms([NONE, ARM], NONE, {which: [16.0] * len(SEEDS) for which in (NONE, ARM)})
    differences = compare_arms(values, matching)
    return per_concept, matching.matches, differences


def entries_of(by_concept, spread=0.01):
    per_concept, matches, differences = scene(by_concept, spread)
    return compare_over_concepts(per_concept, SEEDS, matches, differences), differences


def test_an_effect_on_every_concept_holds_for_others_and_without_any_one():
    (entry,), differences = entries_of([-0.1, -0.12, -0.09, -0.11, -0.1, -0.13, -0.08, -0.1])
    of_pair = next(d for d in differences if d["metric"] == "equal_hole_rate")
    assert entry["mean"] == pytest.approx(of_pair["mean"]) and entry["concepts"] == 8
    assert entry["low"] < of_pair["low"] and of_pair["high"] < entry["high"] < 0
    assert entry["without_low"] < entry["mean"] < entry["without_high"] < 0
    assert not entry["sign_changes"] and entry["claim_rests_on"] == []
    assert concept_findings([entry], differences) == [
        "The claim on primary outcomes would hold for other concepts of the kind too (corrected interval over "
        "seeds and concepts together)."
    ]


def test_an_effect_on_one_concept_alone_rests_on_it_and_is_none_for_others():
    (entry,), differences = entries_of([0.01, 0.0, -0.01, 0.02, -0.8, 0.01, 0.0, 0.01])
    assert next(d for d in differences if d["metric"] == "equal_hole_rate")["verdict"] == "lower"
    assert entry["low"] < 0 < entry["high"] and entry["concept"] == "concept 4"
    assert entry["claim_rests_on"] == ["concept 4"] and entry["sign_changes"]
    rests, narrow = concept_findings([entry], differences)
    assert rests == (
        "abs_cos:1: that the hole rate at equal false alarms is lower rests on single concepts; it is no claim without concept 4."
    )
    assert narrow.startswith("Not shown for other concepts of the kind (corrected interval")


def test_ranked_twice_a_claim_holds_for_other_concepts_and_without_any_one_by_both():
    per_concept, matches, differences = scene([-0.1, -0.12, -0.09, -0.11, -0.1, -0.13, -0.08, -0.1])
    on_one, _, _ = scene([-0.9, *[0.0] * 7])
    for by_f1, holds in ((per_concept, True), (on_one, False)):
        both = {
            key: [first | {"equal_hole_rate_by_f1": second["equal_hole_rate"]}
                  for first, second in zip(per_concept[key], by_f1[key], strict=True)]
            for key in per_concept
        }  # fmt: skip
        (entry,) = compare_over_concepts(both, SEEDS, matches, differences)
        assert (entry["for_others"], entry["claim_rests_on"]) == (holds, [] if holds else ["concept 0"])
        assert entry["mean"] == pytest.approx(-0.104, abs=0.01), "figures are the probe's"


def test_what_is_no_claim_rests_on_nothing():
    (entry,), differences = entries_of([0.3, -0.3, 0.2, -0.2, 0.05, -0.05], spread=0.2)
    assert next(d for d in differences if d["metric"] == "equal_hole_rate")["verdict"] == "not distinguishable"
    assert entry["claim_rests_on"] == [] and concept_findings([entry], differences) == []


def test_few_concepts_say_nothing_of_others_and_one_that_an_sae_lacks_is_left_out():
    assert entries_of([-0.1] * 4)[0] == []
    per_concept, matches, differences = scene([-0.1] * 6)
    del per_concept[ARM, 2][3]["equal_hole_rate"]
    known, x = paired_by_concept(per_concept, SEEDS, ARM, matches[ARM], "equal_hole_rate")
    assert "concept 3" not in known and x.shape == (6, 5)
    assert compare_over_concepts(per_concept, SEEDS, matches, differences)[0]["concepts"] == 5


def test_that_a_claim_holds_for_other_concepts_is_corrected_for_all_that_was_tested():
    (entry,), differences = entries_of([-0.1, 0.02, -0.12, 0.01, -0.11, -0.02, -0.09, 0.0, -0.1, -0.03], spread=0.002)
    assert entry["high"] < 0 and entry["for_others"], "one test"
    per_concept, matches, _ = scene([-0.1, 0.02, -0.12, 0.01, -0.11, -0.02, -0.09, 0.0, -0.1, -0.03], spread=0.002)
    (claimed,) = (d for d in differences if d["metric"] == "equal_hole_rate")
    many = [*differences, *(claimed | {"metric": "splits"} for _ in range(30))]
    (among,) = compare_over_concepts(per_concept, SEEDS, matches, many)
    assert among["high"] == entry["high"] < 0 and not among["for_others"]
    assert concept_findings([among], differences)[-1].endswith(
        "1 of 1 claims on primary outcomes, abs_cos:1 (hole rate at equal false alarms)."
    )


def test_a_plain_effect_holds_for_other_concepts_however_many_tests_it_is_corrected_for():
    """The interval's ends need bootstrap samples beyond them: more, the more is corrected for."""
    draw = np.random.default_rng(0)
    x = -0.1 + 0.01 * draw.normal(size=(8, 40))
    for tests in (1, 100, 126, 300):
        assert holds_for_others(x, 0.05 / tests)
        assert not holds_for_others(x + 0.1, 0.05 / tests)


def test_a_claim_that_rests_on_one_concept_is_not_said_to_hold_for_others():
    (entry,), differences = entries_of([-0.1, -0.12, -0.09, -0.11, -0.1, -0.13, -0.08, -0.1])
    rests = entry | {"claim_rests_on": ["concept 4"]}
    (said,) = concept_findings([rests], differences)
    assert said.endswith("rests on single concepts; it is no claim without concept 4.")
    for many, others in ((4, ", or one other."), (6, ", or any of 3 others.")):
        (said,) = concept_findings([entry | {"claim_rests_on": [*"abcdef"[:many]]}], differences)
        assert said.endswith(f"it is no claim without a or b or c{others}")


def test_a_figure_that_no_concept_has_in_every_sae_is_not_compared_over_different_ones():
    """The arm has it of an easy concept alone, the baseline of a hard one: neither is better on any."""
    matching = match_arms([NONE, ARM], NONE, {which: [16.0] * len(SEEDS) for which in (NONE, ARM)})
    of = {ARM: ("easy", 0.9), NONE: ("hard", 0.3)}
    per_concept = {
        (which, seed): [{"concept": name} | ({"recovered": value + 0.01 * seed} if name == has else {})
                        for name in ("easy", "hard")]
        for which, (has, value) in of.items()
        for seed in SEEDS
    }  # fmt: skip
    found = over_common_concepts(per_concept, SEEDS, matching)
    values = {
        which: {key: [NAN] * len(SEEDS) for key in METRICS}
        | {"l0": [16.0] * len(SEEDS), "recovered_on_holes": [of[which][1] + 0.01 * seed for seed in SEEDS]}
        for which in of
    }
    (of_pair,) = (d for d in compare_arms(values, matching, None, found) if d["metric"] == "recovered_on_holes")
    assert (of_pair["mean"], of_pair["verdict"], of_pair["reason"]) == (None, "no claim", "no values")


def test_a_figure_that_some_saes_lack_of_a_concept_is_compared_over_the_concepts_that_all_have():
    """The arm closes all holes of an easy concept: nothing is recovered on them, and nothing has become worse."""
    l0 = {which: [16.0] * len(SEEDS) for which in (NONE, ARM)}
    matching = match_arms([NONE, ARM], NONE, l0)
    recovered = {"easy": 0.9, "hard": 0.5, "harder": 0.4}
    per_concept = {
        (which, seed): [
            {"concept": name} | ({} if name == "easy" and which == ARM else {"recovered": value + 0.01 * seed})
            for name, value in recovered.items()
        ]
        for which in (NONE, ARM)
        for seed in SEEDS
    }
    found = over_common_concepts(per_concept, SEEDS, matching)
    assert found[ARM, "recovered_on_holes"] == pytest.approx([0.0] * len(SEEDS))
    means = {which: [concept_means(per_concept[which, seed])["recovered_on_holes"] for seed in SEEDS] for which in l0}
    assert means[ARM][0] < means[NONE][0] - 0.1, "each over what it has"
    values = {which: {key: [NAN] * len(SEEDS) for key in METRICS} | {"l0": l0[which], "recovered_on_holes": means[which]}
              for which in l0}  # fmt: skip
    (of_pair,) = (d for d in compare_arms(values, matching, None, found) if d["metric"] == "recovered_on_holes")
    assert of_pair["mean"] == pytest.approx(0.0) and of_pair["verdict"] != "lower"
