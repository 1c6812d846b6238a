"""Which arms are compared with what, and what may be claimed."""

import math

import pytest
from compared_arms import BASE, arms_of, claim, compare_arms, entry, shifted

from sae_lm.comparison import verdicts
from sae_lm.comparison.findings import answer, findings
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.outcomes import METRICS, NOT_TESTED, OF_NARROWER
from sae_lm.comparison.pairs import share_narrower
from sae_lm.metrics.equivalence import MARGIN, equivalence_p
from sae_lm.penalties.arms import parse_arm
from sae_lm.settings import CompareSettings

NOISE = [0.06, -0.05, 0.04, -0.01, 0.03, -0.02]
EQUAL_L0 = {"none": [16.0] * 6, "abs_cos:1": [16.1] * 6, "max_cos:1": [15.9] * 6}


def test_a_clear_difference_is_lower_or_higher_and_an_unclear_one_says_how_many_seeds_it_needs():
    unclear = [0.06, -0.05, 0.04, -0.01, 0.03, -0.02]
    values = arms_of(
        l0=EQUAL_L0,
        equal_hole_rate={"none": BASE, "abs_cos:1": shifted(-0.1), "max_cos:1": shifted(0.1)},
        fvu={"none": BASE, "abs_cos:1": shifted(0.0, unclear), "max_cos:1": BASE},
    )
    found = compare_arms(values, "none")
    assert claim(entry(found, "abs_cos:1", "equal_hole_rate")) == ("lower", None)
    assert claim(entry(found, "max_cos:1", "equal_hole_rate")) == ("higher", None)
    fvu = entry(found, "abs_cos:1", "fvu")
    assert claim(fvu) == ("not distinguishable", f"needs about {fvu['seeds_needed']} seeds")
    assert fvu["seeds_needed"] > 6
    assert claim(entry(found, "max_cos:1", "fvu")) == ("not distinguishable", "equal")
    assert claim(entry(found, "max_cos:1", "splits")) == ("no claim", "no values")


@pytest.mark.parametrize(
    ("by_probe", "by_f1", "verdict", "reason"),
    [
        (shifted(-0.1), shifted(-0.1), "lower", None),
        (shifted(-0.1), shifted(0.1), "not distinguishable", "lower by the L1 probe, higher by F1, uncorrected"),
        (shifted(-0.1), BASE[::-1], "not distinguishable", "lower by the L1 probe alone, uncorrected"),
        (BASE[::-1], shifted(0.1), "not distinguishable", "higher by F1 alone, uncorrected"),
        (shifted(0.0), shifted(-0.0005), "equivalent", "within ±0.02"),
        (shifted(0.01, NOISE), shifted(-0.02, NOISE), "not distinguishable", "needs over 1000 seeds"),
        (
            shifted(-0.1),
            [*shifted(-0.1)[:2], *[math.nan] * 4],
            "not distinguishable",
            "lower by the L1 probe alone, uncorrected",
        ),
    ],
)
def test_where_main_latents_are_ranked_twice_a_primary_outcome_is_what_both_say(by_probe, by_f1, verdict, reason):
    values = arms_of(
        l0={"none": [16.0] * 6, "abs_cos:1": [16.0] * 6},
        equal_hole_rate={"none": BASE, "abs_cos:1": by_probe},
        equal_hole_rate_by_f1={"none": BASE, "abs_cos:1": by_f1},
    )
    found = compare_arms(values, "none", MARGIN)
    assert claim(entry(found, "abs_cos:1", "equal_hole_rate")) == (verdict, reason)
    alone = compare_arms(arms_of(l0=EQUAL_L0, equal_hole_rate={"none": BASE, "abs_cos:1": by_probe}), "none", MARGIN)
    first = entry(alone, "abs_cos:1", "equal_hole_rate")
    assert first["p"] <= entry(found, "abs_cos:1", "equal_hole_rate")["p"]
    assert first["mean"] == entry(found, "abs_cos:1", "equal_hole_rate")["mean"], "figures are the probe's"


def test_what_could_go_unseen_and_how_many_seeds_it_takes_is_that_of_both_rankings():
    def of(by_probe, by_f1):
        changes = {"equal_hole_rate": by_probe, "equal_hole_rate_by_f1": by_f1}
        values = arms_of(l0=EQUAL_L0, **{key: {"none": BASE, "abs_cos:1": of} for key, of in changes.items()})
        found = entry(compare_arms(values, "none"), "abs_cos:1", "equal_hole_rate")
        return found["detectable"], found["seeds_needed"]

    weak = shifted(-0.02, noise=[0.03, -0.04, 0.02, -0.01, 0.03, -0.03])
    (seen, few), (unseen, many) = of(shifted(-0.1), shifted(-0.1)), of(weak, weak)
    assert seen < unseen and few < many
    assert of(shifted(-0.1), weak) == of(weak, shifted(-0.1)) == (unseen, many)


def test_primary_outcomes_are_corrected_over_outcomes_and_arms_together_and_others_are_not():
    weak = shifted(-0.02, noise=[0.016, -0.014, 0.013, -0.018, 0.016, 0.0])  # p about .03 alone
    alike = dict.fromkeys(("none", "max_cos:1"), BASE)
    values = arms_of(
        l0=EQUAL_L0,
        fvu=alike | {"abs_cos:1": weak},
        equal_hole_rate=alike | {"abs_cos:1": weak, "max_cos:1": shifted(0.0)},
        splits=alike | {"abs_cos:1": shifted(0.0), "max_cos:1": shifted(0.0)},
    )
    found = compare_arms(values, "none")
    primary, other = entry(found, "abs_cos:1", "equal_hole_rate"), entry(found, "abs_cos:1", "fvu")
    assert other["p"] == primary["p"] < 0.05 and other["p_holm"] is None and other["verdict"] == "lower"
    assert primary["p_holm"] == pytest.approx(4 * primary["p"])  # two arms, two outcomes with values
    assert primary["verdict"] == "not distinguishable"
    assert primary["detectable"] > other["detectable"], "what is corrected needs more to be found"


NESTED = "none@arch=matryoshka"


def two_architectures(holes=-0.1, **l0):
    """Two arms against no penalty, and one on matryoshka against that architecture's own; all differ by so much."""
    names = ["none", NESTED, "abs_cos:1", "max_cos:1", "max_cos:1@arch=matryoshka"]
    changed = {name: BASE if name in ("none", NESTED) else shifted(holes) for name in names}
    return arms_of(
        l0={name: [l0.get(name, 16.0)] * 6 for name in names},
        fvu={name: BASE for name in names},
        equal_hole_rate=changed,
        absorption_fraction=changed,
    )


def test_the_answer_names_for_each_arm_what_it_was_compared_with():
    told = answer(compare_arms(two_architectures(), "none"), "none", 6, concepts=4)
    of_none, of_nested = told.split(f" Compared with {NESTED}, over 6 paired seeds: ")
    assert of_none.startswith("Compared with none, over 6 paired seeds: less absorption with abs_cos:1 (FVU")
    assert "max_cos:1 (FVU" in of_none and "@arch" not in of_none
    assert of_nested == "less absorption with max_cos:1@arch=matryoshka (FVU +0.0000)."


def test_an_architecture_at_several_k_is_one_baseline_in_the_answer():
    at_k = {"none@k=8": 8.0, "none@k=16": 16.0, f"{NESTED}@k=8": 8.0, f"{NESTED}@k=16": 16.0}
    changed = {f"abs_cos:1@arch=matryoshka@k={k}": float(k) for k in (8, 16)}
    l0 = {name: [at] * 6 for name, at in (at_k | changed).items()}
    values = arms_of(
        l0=l0,
        fvu=dict.fromkeys(l0, BASE),
        splits=dict.fromkeys(at_k, BASE) | dict.fromkeys(changed, shifted(-0.1)),
        main_f1=dict.fromkeys(at_k, BASE) | dict.fromkeys(changed, shifted(0.0)),
    )
    told = answer(compare_arms(values, "none"), "none", 6, concepts=4)
    assert told.count("Compared with") == 1 and told.startswith(
        f"Compared with {NESTED}, over 6 paired seeds: less splitting"
    )


def test_where_nothing_is_shown_only_arms_that_were_compared_are_counted():
    differences = compare_arms(two_architectures(holes=0.0, **{"max_cos:1": 40.0}), "none")
    told = answer(differences, "none", 6, concepts=4)
    assert f"from none or {NESTED} is shown for any of the 3 arms that could be compared with 6" in told
    differences = compare_arms(two_architectures(holes=0.0), "none")
    assert "is shown for any of the 4 arms with 6 paired seeds" in answer(differences, "none", 6, concepts=4)


def test_what_could_go_unseen_is_of_arms_that_were_compared():
    noisy = [0.4, -0.5, 0.3, -0.4, 0.5, -0.3]
    values = arms_of(
        l0={"none": [16.0] * 6, "abs_cos:1": [16.0] * 6, "max_cos:1": [40.0] * 6},
        equal_hole_rate={"none": BASE, "abs_cos:1": shifted(0.0), "max_cos:1": shifted(0.0, noisy)},
    )
    found = compare_arms(values, "none")
    seen = entry(found, "abs_cos:1", "equal_hole_rate")["detectable"]
    assert entry(found, "max_cos:1", "equal_hole_rate")["detectable"] > 10 * seen
    assert f"lower by less than {seen:.2g} could go unseen" in answer(found, "none", 6, concepts=4)


def test_few_seeds_no_concepts_or_no_other_arms_give_an_answer_without_a_claim():
    two = {"none": [0.5, 0.6], "abs_cos:1": [0.1, 0.2]}
    values = arms_of(l0={arm: [16.0, 16.0] for arm in two}, equal_hole_rate=two, absorption_fraction=two, fvu=two)
    found = compare_arms(values, "none")
    assert found and all(d["verdict"] == "no claim" for d in found)
    assert claim(entry(found, "abs_cos:1", "equal_hole_rate")) == ("no claim", "< 3 seeds")
    assert answer(found, "none", 2, 4) == (
        "No claim: 2 seeds per arm, where at least 3 are needed to tell a difference from chance."
    )
    assert "no concept passed" in answer(found, "none", 2, 0)
    assert "no arm besides none" in answer([], "none", 6, 4)
    assert "no claim with 2 seeds" in findings(found, values, 2)[0]


def test_claims_that_the_sign_flip_test_could_never_make_say_what_they_rest_on():
    values = arms_of(l0=EQUAL_L0, equal_hole_rate={"none": BASE, "abs_cos:1": shifted(-0.1), "max_cos:1": BASE})
    assert any("cannot go below p = 0.0312" in said for said in findings(compare_arms(values, "none"), values, 6))


def test_each_arm_of_a_ladder_is_compared_with_the_baseline_of_its_k():
    names = ["none@k=8", "none@k=16", "abs_cos:1@k=8", "abs_cos:1@k=16"]
    l0 = {name: [8.0 if "8" in name else 16.0] * 6 for name in names}
    values = arms_of(l0=l0, fvu={name: [1 / l0[name][0] + i for i in range(6)] for name in names})
    found = compare_arms(values, "none")
    assert {d["arm"]: d["baseline"] for d in found} == {"abs_cos:1@k=8": "none@k=8", "abs_cos:1@k=16": "none@k=16"}
    assert [d["mean"] for d in found if d["metric"] == "fvu"] == [0, 0]


def test_an_arm_between_the_rungs_is_compared_with_the_line_between_them_and_says_so():
    l0 = {"none@k=8": [8.0] * 6, "none@k=16": [16.0] * 6, "abs_cos:1@k=11": [128**0.5] * 6}
    rungs = {"none@k=8": [0.4] * 6, "none@k=16": [0.2] * 6}
    lower = rungs | {"abs_cos:1@k=11": shifted(-0.5, start=0.5)}
    values = arms_of(l0=l0, fvu=rungs | {"abs_cos:1@k=11": [0.31, 0.32, 0.33, 0.31, 0.32, 0.33]},
                     equal_hole_rate=lower, absorption_fraction=lower)  # fmt: skip
    found = compare_arms(values, "none")
    fvu = entry(found, "abs_cos:1@k=11", "fvu")
    assert (fvu["l0"], fvu["baseline"]) == ("interpolated", "none@k=8/none@k=16")
    assert fvu["per_seed"] == pytest.approx([0.01, 0.02, 0.03] * 2)
    assert "interpolated" in findings(found, values, 6)[0]
    assert "less absorption with abs_cos:1@k=11 (FVU +0.0200, interpolated)" in answer(found, "none", 6, 4)


def test_an_arm_beyond_the_ladder_gets_no_verdict_but_on_its_l0():
    values = arms_of(
        l0={"none": [16.0] * 3, "max_cos:1": [24.0, 24.1, 24.2]},
        fvu={"none": [0.3] * 3, "max_cos:1": [0.1, 0.11, 0.12]},
    )
    found = compare_arms(values, "none")
    assert entry(found, "max_cos:1", "fvu")["verdict"] == "L0 not matched"
    assert entry(found, "max_cos:1", "l0")["verdict"] == "higher"
    assert "no arm has the L0 of none" in answer(found, "none", 3, 4)


def test_equal_differences_on_too_few_seeds_do_not_say_that_these_would_do():
    values = arms_of(l0={"none": [16.0] * 3, "abs_cos:1": [16.0] * 3},
                     splits={"none": [2.5, 3.0, 2.75], "abs_cos:1": [2.0, 2.5, 2.25]})  # fmt: skip
    found = entry(compare_arms(values, "none"), "abs_cos:1", "splits")
    assert found["detectable"] is None and found["seeds_needed"] > 3
    assert claim(found) == ("not distinguishable", f"needs about {found['seeds_needed']} seeds")


def test_values_of_pairs_of_seeds_that_overlap_are_told_and_not_tested():
    values = arms_of(l0=EQUAL_L0, seed_stability={"none": BASE, "abs_cos:1": shifted(-0.1), "max_cos:1": BASE})
    found = entry(compare_arms(values, "none"), "abs_cos:1", "seed_stability")
    assert found["mean"] == pytest.approx(-0.1, abs=0.01) and found["low"] is found["p"] is found["detectable"] is None
    assert claim(found) == ("no claim", "pairs of seeds overlap")


def test_where_seeds_share_a_narrower_sae_what_became_of_its_latents_is_told_and_not_tested():
    values = arms_of(l0={arm: [16.0] * 6 for arm in ("none", "abs_cos:1")},
                     stitched_novel={"none": BASE, "abs_cos:1": shifted(-0.1)})  # fmt: skip
    matching = match_arms([*values], parse_arm("none"), {arm: of["l0"] for arm, of in values.items()})
    for narrow_seeds, verdict in (((1, 2, 0), ("lower", None)), ((1, 0, 0), ("no claim", "pairs of seeds overlap"))):
        entries = [{"arm": "none", "seed": seed} for seed in narrow_seeds]
        not_tested = NOT_TESTED + OF_NARROWER * share_narrower(entries)
        found = verdicts.compare_arms(values, matching, not_tested=not_tested)
        assert claim(entry(found, "abs_cos:1", "stitched_novel")) == verdict


def test_only_splitting_hole_rate_at_equal_false_alarms_and_absorption_fraction_are_corrected():
    """Each is clearly lower, as every other metric is: what the question is about pays for being asked three times."""
    lower = {"none": BASE, "abs_cos:1": shifted(-0.02)}
    values = arms_of(**{key: lower for key in METRICS if key != "l0"}, l0={arm: [16.0] * 6 for arm in lower})
    found = compare_arms(values, "none")
    corrected = {d["metric"]: d["p_holm"] / d["p"] for d in found if d["p_holm"] is not None}
    assert corrected == pytest.approx(dict.fromkeys(("splits", "equal_hole_rate", "absorption_fraction"), 3.0))


# --- equivalence


def alike(**changes):
    """hole rate at equal false alarms and fraction of one arm, by how much each is shifted; the rest is equal to the baseline's."""
    both = {key: {"none": BASE, "abs_cos:1": shifted(by)} for key, by in changes.items()}
    return arms_of(l0={arm: [16.0] * 6 for arm in ("none", "abs_cos:1")}, **both)


def test_what_is_shown_to_be_within_the_margin_is_equivalent_and_without_a_margin_nothing_is():
    values = alike(equal_hole_rate=0.0, absorption_fraction=0.0, splits=0.0)
    found = compare_arms(values, "none", margin=0.02)
    assert claim(entry(found, "abs_cos:1", "equal_hole_rate")) == ("equivalent", "within ±0.02")
    assert entry(found, "abs_cos:1", "splits")["p_equivalence"] is None, "a number of latents has no such margin"
    assert entry(found, "abs_cos:1", "splits")["verdict"] == "not distinguishable"
    assert entry(found, "abs_cos:1", "fvu")["p_equivalence"] is None, "a price is no primary outcome"
    said = findings(found, values, 6)[0]
    assert "absorption as before (hole rate at equal false alarms and fraction equivalent, within ±0.02)" in said
    assert answer(found, "none", 6, 4).endswith(
        "which is no evidence that there is none; but with abs_cos:1 hole rate at equal false alarms and fraction are shown to be the same "
        "within ±0.02."
    )
    assert all(d["verdict"] != "equivalent" for d in compare_arms(values, "none"))
    assert answer(compare_arms(values, "none"), "none", 6, 4).endswith("which is no evidence that there is none.")


def test_a_difference_wider_than_the_margin_or_as_unsure_is_not_equivalent():
    unsure = [0.06, -0.05, 0.04, -0.01, 0.03, -0.02]
    values = arms_of(l0={arm: [16.0] * 6 for arm in ("none", "abs_cos:1")},
                     equal_hole_rate={"none": BASE, "abs_cos:1": shifted(0.0, unsure)},
                     absorption_fraction={"none": BASE, "abs_cos:1": shifted(-0.1)})  # fmt: skip
    found = compare_arms(values, "none", margin=0.02)
    assert entry(found, "abs_cos:1", "equal_hole_rate")["verdict"] == "not distinguishable"
    assert claim(entry(found, "abs_cos:1", "absorption_fraction")) == ("lower", None)


def test_a_claim_stays_a_claim_and_says_where_it_is_smaller_than_the_margin():
    values = alike(equal_hole_rate=-0.01, absorption_fraction=-0.01)
    found = compare_arms(values, "none", margin=0.02)
    assert claim(entry(found, "abs_cos:1", "equal_hole_rate")) == ("lower", "within ±0.02")
    assert "both lower, hole rate within ±0.02)" in findings(found, values, 6)[0]


def test_equivalence_is_corrected_over_all_shares_that_are_tested():
    values = alike(equal_hole_rate=0.0, absorption_fraction=-0.1)
    found = compare_arms(values, "none", margin=0.02)
    hole = entry(found, "abs_cos:1", "equal_hole_rate")
    assert hole["p_equivalence"] == pytest.approx(2 * equivalence_p(hole["per_seed"], 0.02))


def test_the_margin_of_findings_is_the_default_of_the_settings():
    assert CompareSettings(runs="runs", out="report").equivalence == MARGIN
