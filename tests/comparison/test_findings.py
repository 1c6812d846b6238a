"""What the sentences of a report say, and what they do not."""

import pytest
from compared_arms import BASE, arms_of, claim, compare_arms, entry, shifted

from sae_lm.comparison.findings import answer, findings

pytestmark = pytest.mark.transformer_lens_3


@pytest.mark.parametrize(("fraction", "says"), [(shifted(-0.1), "less absorption"), (BASE, "no claim on absorption")])
def test_less_absorption_needs_hole_rate_at_equal_false_alarms_and_fraction_to_fall(fraction, says):
    values = arms_of(
        l0={"none": [16.0] * 6, "abs_cos:1": [16.0] * 6},
        fvu={"none": BASE, "abs_cos:1": shifted(0.004)},
        equal_hole_rate={"none": BASE, "abs_cos:1": shifted(-0.1)},
        absorption_fraction={"none": BASE, "abs_cos:1": fraction},
    )
    differences = compare_arms(values, "none")
    assert says in findings(differences, values, 6)[0]
    told = answer(differences, "none", 6, concepts=4)
    assert ("less absorption with abs_cos:1 (FVU +0.0042)" in told) == (says == "less absorption")
    assert ("no evidence that there is none" in told) == (says != "less absorption")


def test_a_plain_hole_rate_that_is_lower_alone_claims_nothing_and_the_finding_says_why():
    lower, alike = {"none": BASE, "abs_cos:1": shifted(-0.1)}, {"none": BASE, "abs_cos:1": shifted(0.0)}
    values = arms_of(
        l0={arm: [16.0] * 6 for arm in lower},
        fvu=alike,
        hole_rate=lower,
        absorption_fraction=lower,
        equal_hole_rate=alike,
    )
    differences = compare_arms(values, "none")
    assert claim(entry(differences, "abs_cos:1", "hole_rate")) == ("lower", None)
    said = findings(differences, values, 6)[0]
    assert "no claim on absorption: hole rate at equal false alarms not distinguishable" in said
    assert "main latents that fire more often give for nothing" in said
    assert "no evidence that there is none" in answer(differences, "none", 6, concepts=4)


def test_false_alarms_that_are_more_where_holes_are_counted_stand_beside_fewer_holes():
    lower = {"none": BASE, "abs_cos:1": shifted(-0.1)}
    for alarms, said in (
        (0.01, "but false alarms on the types where holes are counted are higher by 0.010"),
        (0.0, None),
    ):
        values = arms_of(l0={arm: [16.0] * 6 for arm in lower}, fvu=lower, equal_hole_rate=lower,
                         absorption_fraction=lower, equal_false_alarms={"none": BASE, "abs_cos:1": shifted(alarms)})  # fmt: skip
        sentence = findings(compare_arms(values, "none"), values, 6)[0]
        assert (said in sentence) if said else ("false alarms on the types" not in sentence)


def test_fewer_latents_per_concept_are_no_less_splitting_where_main_latents_tell_less():
    """As where latents are taken away: the fewer there are, the fewer a concept has."""
    lower = {"none": BASE, "abs_cos:1": shifted(-0.1)}
    for f1, told in (
        ({"none": BASE, "abs_cos:1": shifted(0.0)}, "less splitting with abs_cos:1"),
        (lower, "latents per concept lower, and F1 of main latents too, with abs_cos:1"),
    ):
        values = arms_of(l0={arm: [16.0] * 6 for arm in lower}, fvu=lower, splits=lower, main_f1=f1)
        found = compare_arms(values, "none")
        assert told in answer(found, "none", 6, 4)
        assert ("and F1 of main latents is lower" in findings(found, values, 6)[0]) == (f1 is lower)


def test_of_many_arms_with_a_finding_the_answer_counts_all_and_names_the_cheapest():
    costs = {f"abs_cos:{coefficient}": cost for coefficient, cost in zip(range(1, 7), (6, 1, 5, 2, 4, 3), strict=True)}
    values = arms_of(
        l0=dict.fromkeys(["none", *costs], [16.0] * 6),
        fvu={"none": BASE} | {arm: shifted(cost / 1000) for arm, cost in costs.items()},
        equal_hole_rate={"none": BASE} | {arm: shifted(-0.1) for arm in costs},
        absorption_fraction={"none": BASE} | {arm: shifted(-0.1) for arm in costs},
    )
    told = answer(compare_arms(values, "none"), "none", 6, concepts=4)
    named = [told.index(arm) for arm in ("abs_cos:2", "abs_cos:4", "abs_cos:6", "abs_cos:5")]
    assert "less absorption with 6 arms, cheapest abs_cos:2 (FVU +0.0012)" in told and named == sorted(named)
    assert "abs_cos:1 " not in told and "abs_cos:3 " not in told
