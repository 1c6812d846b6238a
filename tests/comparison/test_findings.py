"""What the sentences of a report say, and what they do not."""

import math

import pytest
from compared_arms import BASE, arms_of, claim, compare_arms, entry, shifted

from sae_lm.comparison.findings import alarm_findings, answer, findings, l0_findings, removal_findings
from sae_lm.penalties.arms import parse_arm


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
    alone = "hole rate at equal false alarms lower and fraction not, which is no claim on absorption, with abs_cos:1"
    assert (alone in told) == (says != "less absorption") and "no evidence that there is none" not in told


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
    told = answer(differences, "none", 6, concepts=4)
    assert "fraction lower and hole rate at equal false alarms not, which is no claim on absorption" in told


def test_fewer_holes_by_one_ranking_alone_are_not_said_to_be_plain_ones():
    lower, alike = {"none": BASE, "abs_cos:1": shifted(-0.1)}, {"none": BASE, "abs_cos:1": shifted(0.0)}
    values = arms_of(l0={arm: [16.0] * 6 for arm in lower}, fvu=alike, hole_rate=lower, absorption_fraction=lower,
                     equal_hole_rate=lower, equal_hole_rate_by_f1=alike)  # fmt: skip
    said = findings(compare_arms(values, "none"), values, 6)[0]
    assert "lower by the L1 probe alone, uncorrected" in said and "for nothing" not in said


FRACTION = ("absorption_fraction", "absorption_fraction_by_f1")
UNGATED = ("absorption_fraction_ungated", "absorption_fraction_ungated_by_f1")


def compared(margin=None, **changes):
    """Differences of one arm and the values behind them: what is not named is as in the baseline."""
    held = ("equal_hole_rate", "equal_hole_rate_by_f1", "fvu", *FRACTION)
    by_metric = dict.fromkeys(held, shifted(0.0)) | changes
    values = arms_of(
        l0={arm: [16.0] * 6 for arm in ("none", "max_cos:1")},
        **{metric: {"none": BASE, "max_cos:1": of_arm} for metric, of_arm in by_metric.items()},
    )
    return compare_arms(values, "none", margin), values


@pytest.mark.parametrize(
    ("ungated", "by_f1", "says"),
    [
        (shifted(-0.08), shifted(-0.08), None),
        (shifted(-0.03), shifted(-0.08), "but without its gates the fraction is -0.030, with them -0.100"),
        (shifted(-0.08), shifted(-0.02), "the fraction is -0.020, with them -0.100, ranked by F1"),
        (shifted(0.0), shifted(-0.08), "but without its gates the fraction is not distinguishable"),
        (shifted(-0.02), shifted(0.05), "but without its gates the fraction is higher (+0.050, ranked by F1)"),
    ],
)
def test_a_lower_fraction_that_the_gates_make_is_told_with_what_is_left_without_them(ungated, by_f1, says):
    """A penalty on cosines can push absorbers under the gate on cosines."""
    lower = dict.fromkeys(FRACTION, shifted(-0.1))
    differences, values = compared(**lower, **dict(zip(UNGATED, (ungated, by_f1), strict=True)))
    for said in (findings(differences, values, 6)[0], answer(differences, "none", 6, concepts=4)):
        assert "fraction lower" in said
        assert says in said if says else "gates" not in said


def test_what_speaks_against_less_absorption_is_in_the_answer_and_not_said_of_splitting():
    lower = dict.fromkeys(
        (*FRACTION, "equal_hole_rate", "equal_hole_rate_by_f1", "splits", "splits_by_f1"), shifted(-0.1)
    )
    told = answer(compared(**lower, main_f1=shifted(0.0), absorption_fraction_ungated=shifted(0.1))[0], "none", 6, 4)
    doubt = "; but without its gates the fraction is higher (+0.100)"
    assert f"less absorption with max_cos:1 (FVU +0.0002{doubt})" in told
    assert "less splitting with max_cos:1 (FVU +0.0002)" in told


@pytest.mark.parametrize(
    ("figure", "found", "by_f1", "says"),
    [
        ("absorption_fraction", shifted(-0.01), shifted(-0.02), None),
        ("absorption_fraction", shifted(0.0), shifted(-0.02), "latents tell the fraction differs by +0.000 [-0.0"),
        (
            "absorption_fraction",
            shifted(-0.01),
            shifted(0.03),
            "tell the fraction differs by +0.030 [+0.029, +0.032], ranked by F1",
        ),
        ("equal_hole_rate", shifted(0.04), shifted(-0.02), "latents tell holes differ by +0.040 [+0.039, +0.042]"),
        ("equal_hole_rate", [float("nan")] * 6, shifted(-0.02), "latents tell none of the concepts, so that absorbed"),
    ],
)
def test_what_is_lower_only_where_no_latents_stand_for_a_concept_is_told(figure, found, by_f1, says):
    lower = {figure: shifted(-0.1), f"{figure}_by_f1": shifted(-0.1)}
    differences, values = compared(**lower, **{f"{figure}_found": found, f"{figure}_found_by_f1": by_f1})
    for said in (findings(differences, values, 6)[0], answer(differences, "none", 6, concepts=4)):
        assert says in said if says else "main latents tell" not in said


def test_a_fraction_that_is_the_same_because_of_its_gates_has_its_doubt_too():
    differences, values = compared(0.02, absorption_fraction_ungated=shifted(0.1))
    said = findings(differences, values, 6)[0]
    assert "absorption as before" in said and "without its gates the fraction is higher (+0.100)" in said


@pytest.mark.parametrize(
    ("reached", "by_f1", "says"),
    [
        (shifted(-0.1), shifted(-0.1), None),
        (shifted(0.0), shifted(-0.1), "every SAE reaches holes are not distinguishable (+0.000"),
        (shifted(-0.1), shifted(0.1), "every SAE reaches holes are higher (+0.100, ranked by F1)"),
    ],
)
def test_fewer_holes_that_are_of_thresholds_no_sae_has_are_told_without_them(reached, by_f1, says):
    lower = {"equal_hole_rate": shifted(-0.1), "equal_hole_rate_by_f1": shifted(-0.1)}
    differences, values = compared(**lower, equal_hole_rate_reached=reached, equal_hole_rate_reached_by_f1=by_f1)
    said = findings(differences, values, 6)[0]
    assert says in said if says else "reaches" not in said


@pytest.mark.parametrize(
    ("absorber", "says"),
    [
        (0.3, "leans on absorbers more than on other latents"),
        (-0.3, "leans on absorbers less than on other latents"),
        (0.0, "is not shown to lean on absorbers more, or less, than on other latents"),
    ],
)
def test_whether_the_model_leans_on_absorbers_is_asked_over_all_arms_together(absorber, says):
    noise = [0.4, 0.1, -0.2, 0.0, 0.2, -0.4]
    values = arms_of(
        absorber_kl={
            "none": [0.5 + absorber + n for n in noise],
            "max_cos:1": [0.5 + absorber - 0.9 * n for n in noise],
        },
        other_kl={"none": [0.5] * 6, "max_cos:1": [0.5] * 6},
    )
    (said,) = removal_findings(values)
    assert says in said
    assert (
        removal_findings({arm: {key: of[:2] for key, of in metrics.items()} for arm, metrics in values.items()}) == []
    )


def test_an_l0_that_seeds_do_not_tell_from_the_next_is_not_called_right():
    ks = (8, 16, 32)
    l0 = {f"none@k={k}": [float(k)] * 4 for k in ks}
    noise = [0.02, -0.01, 0.015, -0.025]
    flat = {f"none@k={k}": [4.07 - 0.001 * i + n * (-1) ** i for n in noise] for i, k in enumerate(ks)}
    steep = {f"none@k={k}": [4.07 - 0.1 * i + n * (-1) ** i for n in noise] for i, k in enumerate(ks)}
    assert l0_findings(arms_of(l0=l0, nth_projection=flat)) == []
    assert len(l0_findings(arms_of(l0=l0, nth_projection=steep))) == 1


def test_false_alarms_that_are_more_where_holes_are_counted_stand_beside_fewer_holes():
    lower = {"none": BASE, "abs_cos:1": shifted(-0.1)}
    for alarms, said in (
        (0.01, "but false alarms on the words where holes are counted are higher by 0.010"),
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


@pytest.mark.parametrize("fraction", [BASE, shifted(0.1)])
def test_an_answer_does_not_deny_an_outcome_that_was_found_alone(fraction):
    """Whether the other outcome is as before or goes the other way."""
    values = arms_of(
        l0={"none": [16.0] * 6, "abs_cos:1": [16.0] * 6},
        fvu={"none": BASE, "abs_cos:1": shifted(0.004)},
        equal_hole_rate={"none": BASE, "abs_cos:1": shifted(-0.1)},
        absorption_fraction={"none": BASE, "abs_cos:1": fraction},
    )
    told = answer(compare_arms(values, "none", margin=0.02), "none", 6, concepts=4)
    assert told.startswith(
        "Compared with none, over 6 paired seeds: hole rate at equal false alarms lower and fraction"
    )
    assert ("fraction higher and hole rate at equal false alarms not" in told) == (fraction is not BASE)
    assert "could go unseen" not in told and "less absorption" not in told


def test_less_splitting_is_not_said_where_f1_may_have_fallen_too():
    lower, unsure = {"none": BASE, "abs_cos:1": shifted(-0.1)}, [0.0, -0.12, 0.03, -0.09, -0.02, 0.01]
    values = arms_of(
        l0={arm: [16.0] * 6 for arm in lower},
        fvu=lower,
        splits=lower,
        main_f1={"none": BASE, "abs_cos:1": shifted(0.0, unsure)},
    )
    found = compare_arms(values, "none")
    assert entry(found, "abs_cos:1", "main_f1")["verdict"] == "not distinguishable"
    told = answer(found, "none", 6, 4)
    assert "less splitting" not in told
    assert "latents per concept lower, where F1 of main latents may be lower too, with abs_cos:1" in told
    assert "splitting lower (and F1 of main latents may be lower too)" in findings(found, values, 6)[0]


@pytest.mark.parametrize(
    ("holes", "alarms", "said"),
    [(0.1, -0.01, "are lower by 0.010"), (0.0, 0.01, "are higher by 0.010"), (0.0, -0.01, "are lower by 0.010"),
     (0.1, 0.01, None), (-0.1, -0.01, None)],
)  # fmt: skip
def test_unequal_false_alarms_are_told_wherever_they_could_make_the_verdict(holes, alarms, said):
    """More of them make few holes, fewer make many, and either may hide a difference that is called equivalent."""
    arm = {"none": BASE, "abs_cos:1": shifted(holes)}
    values = arms_of(l0={name: [16.0] * 6 for name in arm}, fvu=arm, equal_hole_rate=arm, absorption_fraction=arm,
                     equal_false_alarms={"none": BASE, "abs_cos:1": shifted(alarms)})  # fmt: skip
    sentence = findings(compare_arms(values, "none", margin=0.02), values, 6)[0]
    assert (said in sentence) if said else ("false alarms on the types" not in sentence)


def test_fewer_holes_with_less_precision_say_so():
    """Main latents that fire where the probe alone says yes are in no rate of false alarms."""
    lower = {"none": BASE, "abs_cos:1": shifted(-0.1)}
    for precision, said in ((-0.03, True), (0.0, False)):
        values = arms_of(l0={arm: [16.0] * 6 for arm in lower}, fvu=lower, equal_hole_rate=lower,
                         absorption_fraction=lower, equal_precision={"none": BASE, "abs_cos:1": shifted(precision)})  # fmt: skip
        sentence = findings(compare_arms(values, "none"), values, 6)[0]
        assert ("but precision there is lower by 0.030" in sentence) == said


def around(value, number):
    """Three seeds that vary, by other amounts for each number."""
    return [value + 0.01 * noise * (1 + number) for noise in (-1, 0.2, 0.8)]


@pytest.mark.parametrize(
    ("projections", "said"),
    [
        ([9.0, 8.0, 7.0], "It is least at the L0 in brackets, the highest, so that all may be too low: none (33)."),
        ([7.0, 8.0, 9.0], "It is least at the L0 in brackets, the lowest, so that all may be too high: none (8.5)."),
        ([9.0, 7.0, 8.0], "It is least at the L0 in brackets: none (16.5)."),
    ],
)
def test_a_ladder_says_at_which_l0_the_nth_projection_is_least(projections, said):
    l0 = {8: 8.5, 32: 33.0, 16: 16.5}  # in no order
    by_k = dict(zip((8, 16, 32), projections, strict=True))
    arms = {f"none@k={k}": [l0[k]] * 3 for k in l0}
    values = arms_of(l0=arms, nth_projection={f"none@k={k}": around(by_k[k], i) for i, k in enumerate(l0)})
    (sentence,) = l0_findings(values)
    assert sentence.endswith(said)


def test_of_two_l0_or_an_unknown_projection_nothing_is_said_of_the_right_one():
    arms = {f"none@k={k}": [float(k)] * 3 for k in (8, 16, 32)}
    unknown = arms_of(l0=arms, nth_projection={"none@k=8": [9.0] * 3, "none@k=16": [8.0] * 3})
    assert l0_findings(unknown) == []


def test_a_rung_whose_projection_is_unknown_is_an_end_of_its_ladder_all_the_same():
    known = dict(zip((8, 16, 32), (9.0, 8.0, 7.0), strict=True))
    l0 = {f"none@k={k}": [float(k)] * 3 for k in (8, 16, 32, 64)}
    (said,) = l0_findings(
        arms_of(l0=l0, nth_projection={f"none@k={k}": around(of, i) for i, (k, of) in enumerate(known.items())})
    )
    assert said.endswith("It is least at the L0 in brackets: none (32).")


def test_concepts_are_named_in_which_the_baselines_main_latents_fire_wrongly_on_a_quarter_of_the_rows_or_more():
    def concepts(**alarms):
        return [{"concept": name, "false_alarms": alarms.get(name, 0.1)} for name in ("digit", "line", "bracket", "to")]

    none, other = parse_arm("none"), parse_arm("sq_cos:1")
    saes = {
        (none, 0): concepts(line=0.6, bracket=0.2, to=math.nan),
        (none, 1): concepts(line=0.4, bracket=0.35, to=math.nan),
        (other, 0): concepts(digit=0.9),
    }
    (said,) = alarm_findings(saes, [none])
    assert said.endswith("holes at equal false alarms say little: line (0.50), bracket (0.28).")
    assert alarm_findings({(none, 0): concepts()}, [none]) == []
