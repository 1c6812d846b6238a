"""Families of arms, their curves, and what is read off them at one cost."""

import math
from itertools import pairwise

import numpy as np
import pytest
from scipy import stats

from sae_lm.comparison.equal_fvu import compare_at_equal_fvu, equal_fvu_findings
from sae_lm.comparison.families import families
from sae_lm.comparison.frontier import between_rungs, curves, frontier_entry, interpolate
from sae_lm.comparison.matching import match_arms
from sae_lm.comparison.outcomes import METRICS
from sae_lm.penalties.arms import parse_arm, parse_arms

NAN = float("nan")
SEEDS = 4


def named(texts):
    return [(family.name, family.number, [arm.name for arm in family.arms]) for family in families(parse_arms(texts))]


def values_of(costs, holes, l0=None):
    """{arm: FVU per seed or one number above a baseline that varies}, the same for holes -> all metrics."""
    base = {
        "fvu": [0.2 + 0.01 * seed for seed in range(SEEDS)],
        "equal_hole_rate": [0.5 - 0.02 * seed for seed in range(SEEDS)],
    }

    def per_seed(of, key):
        return [b + d for b, d in zip(base[key], of if isinstance(of, list) else [of] * SEEDS, strict=True)]

    return {
        parse_arm(arm): {key: [NAN] * SEEDS for key in METRICS}
        | {"fvu": per_seed(costs[arm], "fvu"), "equal_hole_rate": per_seed(holes[arm], "equal_hole_rate")}
        | {"equal_hole_rate_found": per_seed(holes[arm], "equal_hole_rate")}
        | {"l0": [(l0 or {}).get(arm, 16.0)] * SEEDS}
        for arm in costs
    }


def curves_of(values, baseline="none"):
    l0 = {arm: metrics["l0"] for arm, metrics in values.items()}
    return curves(values, match_arms([*values], parse_arm(baseline), l0))


def noisy(mean, seed, size=0.0004):
    return (mean + size * np.random.default_rng(seed).normal(size=SEEDS)).tolist()


# --- families


def test_arms_that_differ_in_their_coefficient_or_in_one_number_alone_are_a_family():
    assert named(["coactive:0.1/0.3/1@anchored", "sq_cos:3/10", "coactive:0.3", "none@arch=matryoshka"]) == [
        ("coactive:0.1/0.3/1@anchored", "coefficient",
         ["coactive:0.1@anchored", "coactive:0.3@anchored", "coactive:1@anchored"]),
        ("sq_cos:3/10", "coefficient", ["sq_cos:3", "sq_cos:10"]),
        ("coactive:0.3", None, ["coactive:0.3"]),
        ("none@arch=matryoshka", None, ["none@arch=matryoshka"]),
    ]  # fmt: skip
    ((name, number, _),) = named(["coactive@fvu=0.01/0.005"])
    assert (name, number) == ("coactive:0.2@fvu=0.005/0.01", "fvu")
    assert named(["abs_cos:1", "abs_cos:1@margin=0.2/0.1"])[0][:2] == (
        "abs_cos:1 and abs_cos:1@margin=0.1/0.2", "margin",
    )  # fmt: skip


def test_a_coefficient_goes_before_an_option_and_every_arm_is_in_one_family():
    found = named(["abs_cos:1/3@margin=0.1/0.2"])
    assert [name for name, _, _ in found] == ["abs_cos:1/3@margin=0.1", "abs_cos:1/3@margin=0.2"]
    assert named(["coactive:1", "coactive:1@anchored"]) == [
        ("coactive:1", None, ["coactive:1"]),
        ("coactive:1@anchored", None, ["coactive:1@anchored"]),
    ], "what differs is no number"


def test_of_many_values_a_family_names_the_first_and_the_last():
    assert named(["sq_cos:1/2/3/4/5"])[0][0] == "sq_cos:1/…/5"


# --- curves


def test_the_curve_is_read_as_a_slow_walk_along_its_points_reads_it():
    draw = np.random.default_rng(0)
    for _ in range(200):
        x, y, at = draw.normal(size=5), draw.normal(size=5), draw.normal()
        points = sorted(zip(x, y, strict=True))
        expected = NAN
        for (left, low), (right, high) in pairwise(points):
            if left <= at <= right:
                expected = low + (high - low) * (at - left) / (right - left)
        assert interpolate(at, x, y) == pytest.approx(expected, nan_ok=True)
    assert math.isnan(interpolate(0.5, np.array([0.0, 1.0]), np.array([0.0, NAN])))


def test_a_curve_begins_at_the_baseline_and_its_reach_is_what_every_seed_holds():
    costs = {"none": 0.0, "sq_cos:10": [0.01, 0.012, 0.009, 0.011], "sq_cos:3": 0.004}
    (curve,) = curves_of(values_of(costs, {"none": 0.0, "sq_cos:10": -0.1, "sq_cos:3": -0.06}))
    assert [arm.name for arm in curve.places] == ["none", "sq_cos:3", "sq_cos:10"]
    assert curve.reach == pytest.approx((0.0, 0.009))
    assert curve.read("equal_hole_rate", 0.002) == pytest.approx([-0.03] * SEEDS)
    read = curve.read("equal_hole_rate", 0.0095)
    assert np.isnan(read).tolist() == [False, False, True, False]
    assert [arm.name for arm in curve.between(0.005)] == ["sq_cos:3", "sq_cos:10"]


def test_a_penalty_on_another_architecture_begins_at_that_architecture_and_both_are_held_to_the_baseline():
    costs = {"none": 0.0, "none@arch=matryoshka": 0.02, "coactive:1@arch=matryoshka": 0.03}
    holes = {"none": 0.0, "none@arch=matryoshka": -0.2, "coactive:1@arch=matryoshka": -0.25}
    alone, penalised = curves_of(values_of(costs, holes))
    assert [arm.name for arm in alone.places] == ["none", "none@arch=matryoshka"]
    assert [arm.name for arm in penalised.places] == ["none@arch=matryoshka", "coactive:1@arch=matryoshka"]
    assert penalised.reach == pytest.approx((0.02, 0.03))
    assert penalised.change["equal_hole_rate"][:, 0] == pytest.approx([-0.2, -0.25])


def test_arms_are_on_the_curve_of_their_l0_and_those_of_no_rung_on_none():
    names = ["none@k=8", "none@k=32", "sq_cos:3@k=8", "sq_cos:3@k=32", "sq_cos:10@k=32", "max_cos:1@k=64"]
    l0 = {name: float(name.partition("=")[2]) for name in names}
    flat = dict.fromkeys(names, 0.001)
    found = curves_of(values_of(flat, flat, l0))
    assert [(curve.family.name, curve.rung.name) for curve in found] == [
        ("sq_cos:3", "none@k=8"),
        ("sq_cos:3/10", "none@k=32"),
    ]


def test_an_arm_between_two_rungs_is_on_no_curve_since_others_there_have_another_l0():
    names = {"none@k=16": 16.0, "none@k=32": 32.0, "sq_cos:1@k=24": 23.5, "max_cos:1@k=32": 33.0}
    flat = dict.fromkeys(names, 0.001)
    values = values_of(flat, flat, names)
    assert [curve.family.name for curve in curves_of(values)] == ["max_cos:1"]
    matching = match_arms([*values], parse_arm("none"), {arm: metrics["l0"] for arm, metrics in values.items()})
    assert (between_rungs(matching) or "").startswith("sq_cos:1@k=24: of an L0 between two rungs of the baseline")


def test_a_control_held_at_its_start_is_no_point_of_the_family_that_is_free_and_no_reference():
    arms = ["none@arch=matryoshka@decoder=0.8", "none@arch=matryoshka", "sq_cos:1"]
    assert [name for name, _, _ in named(arms)] == arms
    costs = {"none": 0.0, **{arm: noisy(0.01, seed) for seed, arm in enumerate(arms)}}
    entries = compare_at_equal_fvu(curves_of(values_of(costs, costs)), [0.0095])
    assert {entry["reference"] for entry in entries} == {"none@arch=matryoshka"}
    held_first = {"none": 0.0, "none@decoder=0.8": noisy(0.01, 0), "sq_cos:1": noisy(0.01, 1)}
    entries = compare_at_equal_fvu(curves_of(values_of(held_first, held_first)), [0.0095])
    assert {entry["reference"] for entry in entries} == {"sq_cos:1"}


def test_two_rungs_of_one_penalty_at_one_l0_keep_their_k_in_their_names():
    assert [name for name, _, _ in named(["max_cos:1@k=31", "max_cos:1@k=32", "sq_cos:1@k=32"])] == [
        "max_cos:1@k=31", "max_cos:1@k=32", "sq_cos:1",
    ]  # fmt: skip
    assert [name for name, _, _ in named(["max_cos:1", "max_cos:1@k=31"])] == ["max_cos:1", "max_cos:1@k=31"]


def test_what_is_read_at_equal_fvu_is_from_the_baseline_and_undertrained_where_that_is():
    values = values_of({"none": 0.0, "sq_cos:1": 0.01, "sq_cos:3": 0.02, "max_cos:1": 0.01, "max_cos:3": 0.02},
                       dict.fromkeys(["none", "sq_cos:1", "sq_cos:3", "max_cos:1", "max_cos:3"], 0.001))  # fmt: skip
    for weak, marked in (([], False), (["none"], True), (["max_cos:3"], True), (["coactive:1"], False)):
        entries = compare_at_equal_fvu(curves_of(values), [0.015], parse_arms(weak))
        assert {e["undertrained"] for e in entries if e["fvu"] == 0.015} == {marked}, weak


def test_points_and_bands_have_students_interval_over_seeds():
    costs = {"none": 0.0, "sq_cos:3": noisy(0.004, 1)}
    holes = {"none": 0.0, "sq_cos:3": noisy(-0.06, 2, 0.01)}
    (curve,) = curves_of(values_of(costs, holes))
    entry = frontier_entry(curve)
    twin = stats.ttest_1samp(np.array(holes["sq_cos:3"]), 0).confidence_interval(0.95)
    of_point = entry["points"][-1]["changes"]["equal_hole_rate"]
    assert (of_point["low"], of_point["high"]) == pytest.approx((twin.low, twin.high))
    assert list(entry["points"][-1]["changes"]) == ["equal_hole_rate"], "outcomes without values are left out"
    band = entry["bands"]["equal_hole_rate"]
    assert band[0]["fvu"] == 0 and band[0]["low"] == band[0]["high"] == 0
    assert band[-1]["fvu"] == pytest.approx(min(costs["sq_cos:3"])) and band[-1]["low"] < band[-1]["high"]


def test_a_curve_is_told_by_the_other_ranking_of_main_latents_too_where_both_were_asked_for():
    costs = {"none": 0.0, "sq_cos:3": noisy(0.004, 1)}
    values = values_of(costs, {"none": 0.0, "sq_cos:3": -0.06})
    other = values_of(costs, {"none": 0.0, "sq_cos:3": -0.02})
    for arm, of in values.items():
        of["equal_hole_rate_by_f1"] = other[arm]["equal_hole_rate"]
    (curve,) = curves_of(values)
    entry = frontier_entry(curve)
    changes = entry["points"][-1]["changes"]
    assert {key: round(change["mean"], 6) for key, change in changes.items()} == {
        "equal_hole_rate": -0.06, "equal_hole_rate_by_f1": -0.02,
    }  # fmt: skip
    assert set(entry["bands"]) == set(changes)


# --- at equal FVU


NESTED = [f"none@arch=matryoshka@balance={balance}" for balance in (0.25, 0.5)]
REFERENCE = f"{NESTED[0]}/0.5"


def arranged(steep=-0.08, shallow=-0.06):
    """Matryoshka at .0045 and .009; one family that costs up to .008, one that never costs .005."""
    costs = {"none": 0.0, "sq_cos:3": noisy(0.004, 1), "sq_cos:10": noisy(0.008, 2)}
    costs |= {"max_cos:1": noisy(0.002, 3), NESTED[0]: noisy(0.0045, 9), NESTED[1]: noisy(0.009, 4)}
    holes = {"none": 0.0, "sq_cos:3": noisy(steep, 5), "sq_cos:10": noisy(2 * steep, 6)}
    holes |= {"max_cos:1": noisy(shallow / 4, 7), NESTED[0]: noisy(-0.02, 10), NESTED[1]: noisy(-0.1, 8)}
    return curves_of(values_of(costs, holes))


def test_families_are_held_against_matryoshkas_at_the_costs_asked_for_and_where_both_still_reach():
    found = compare_at_equal_fvu(arranged(), [0.005])
    assert {entry["reference"] for entry in found} == {REFERENCE}
    assert [(e["family"], e["fvu"] == 0.005) for e in found] == [
        ("sq_cos:3/10", True), ("sq_cos:3/10", False), ("max_cos:1", True), ("max_cos:1", False),
    ]  # fmt: skip
    by_family = {curve.family.name: curve for curve in arranged()}
    assert [e["fvu"] for e in found[1::2]] == [by_family[e["family"]].reach[1] for e in found[1::2]]
    steep = found[0]
    assert steep["change"] == pytest.approx(-0.08 * 5 / 4, abs=0.01)
    assert steep["reference_change"] == pytest.approx(-0.029, abs=0.002)
    assert steep["mean"] == pytest.approx(steep["change"] - steep["reference_change"])
    assert steep["between"] == ["sq_cos:3", "sq_cos:10"] and steep["reference_between"] == NESTED
    assert steep["verdict"] == "lower" and steep["p_holm"] >= steep["p"]


def test_nothing_is_read_beyond_a_curves_end_and_the_report_says_where_that_is():
    found = compare_at_equal_fvu(arranged(), [0.005])
    (unreached,) = [entry for entry in found if entry["family"] == "max_cos:1" and entry["fvu"] == 0.005]
    assert unreached["verdict"] == "no claim" and "max_cos:1 does not reach it, 0.00" in unreached["reason"]
    assert unreached["mean"] is unreached["p_holm"] is unreached["change"] is None


def test_a_difference_at_equal_fvu_is_paired_by_seed_and_its_interval_is_students():
    family, _, reference = arranged()
    (got, _) = compare_at_equal_fvu([reference, family], [0.005])
    by_hand = [
        np.interp(0.005, np.sort(x), y[np.argsort(x)]) - np.interp(0.005, np.sort(u), v[np.argsort(u)])
        for x, y, u, v in zip(family.cost.T, family.change["equal_hole_rate"].T,
                              reference.cost.T, reference.change["equal_hole_rate"].T, strict=True)
    ]  # fmt: skip
    assert got["family"] == "sq_cos:3/10" and got["per_seed"] == pytest.approx(by_hand)
    twin = stats.ttest_1samp(got["per_seed"], 0).confidence_interval(0.95)
    assert (got["low"], got["high"]) == pytest.approx((twin.low, twin.high))


def test_at_equal_fvu_too_both_rankings_have_to_differ_the_same_way():
    arms = {"none": 0.0, "sq_cos:1": noisy(0.01, 1), "max_cos:1": noisy(0.01, 2)}
    holes = {"none": 0.0, "sq_cos:1": noisy(0.0, 3), "max_cos:1": noisy(-0.1, 4)}
    for by_f1, verdict, reason in (
        (noisy(-0.1, 5), "lower", None),
        (noisy(0.1, 6), "not distinguishable", "lower by the L1 probe, higher by F1, uncorrected"),
    ):
        values = values_of(arms, holes)
        second = values_of(arms, holes | {"max_cos:1": by_f1})
        for arm, of in values.items():
            of["equal_hole_rate_by_f1"] = second[arm]["equal_hole_rate"]
        (entry,) = [e for e in compare_at_equal_fvu(curves_of(values), [0.005]) if e["fvu"] == 0.005]
        assert (entry["family"], entry["verdict"], entry["reason"]) == ("max_cos:1", verdict, reason)


def test_what_speaks_against_fewer_holes_at_equal_fvu_is_read_off_the_same_curves_and_told():
    arms = {"none": 0.0, "sq_cos:1": noisy(0.01, 1), "max_cos:1": noisy(0.01, 2)}
    values = values_of(arms, {"none": 0.0, "sq_cos:1": noisy(0.0, 3), "max_cos:1": noisy(-0.1, 4)})
    for by, doubted in ((-0.1, False), (0.1, True)):
        alarms = values_of(arms, {"none": 0.0, "sq_cos:1": 0.0, "max_cos:1": noisy(by, 5)})
        for arm, of in values.items():
            of["equal_false_alarms"] = alarms[arm]["equal_hole_rate"]
        found = compare_at_equal_fvu(curves_of(values), [0.005])
        (entry,) = [e for e in found if e["fvu"] == 0.005 and e["metric"] == "equal_hole_rate"]
        assert entry["verdict"] == "lower" and bool(entry["doubts"]) == doubted
        doubt = "; but false alarms on the words where holes are counted are higher by 0.05"
        assert (doubt in equal_fvu_findings(found)[0]) == doubted


def test_claims_at_equal_fvu_are_corrected_together_and_put_into_sentences():
    found = compare_at_equal_fvu(arranged(), [0.005])
    tested = [entry for entry in found if entry["p_holm"] is not None]
    assert all(entry["p_holm"] >= entry["p"] for entry in tested)
    assert max(entry["p_holm"] / entry["p"] for entry in tested) == pytest.approx(len(tested))
    said = equal_fvu_findings(found)
    assert any(
        f"At +0.0050 FVU and the L0 of none, sq_cos:3/10 against {REFERENCE}: hole rate at equal false alarms lower"
        in sentence
        for sentence in said
    )
    (refused,) = [sentence for sentence in said if f"max_cos:1 and {REFERENCE} are not compared: " in sentence]
    assert "nothing was trained of max_cos:1 below max_cos:1, which costs " in refused
    assert f", or of {REFERENCE} below {NESTED[0]}, which costs " in refused
    unclear = [entry | {"verdict": "not distinguishable"} for entry in found]
    assert equal_fvu_findings(unclear)[0] == f"At equal FVU no family is told apart from {REFERENCE}."
    assert equal_fvu_findings([]) == []


def concave(costs, world=0):
    """Arms on one curve of holes, whose gains flatten with cost, as noisy as on a real model."""
    draw, none = np.random.default_rng(world), [0.0] * SEEDS
    fvu = {arm: (cost + 2e-4 * draw.normal(size=SEEDS)).tolist() for arm, cost in costs.items()}
    holes = {
        arm: (-0.05 * (1 - math.exp(-cost / 0.002)) + 0.008 * draw.normal(size=SEEDS)).tolist()
        for arm, cost in costs.items()
    }
    return curves_of(values_of({"none": none} | fvu, {"none": none} | holes))


FAR_FROM_TRAINED = {
    "a far first point": ({NESTED[0]: 0.0022, NESTED[1]: 0.0062, "abs_cos:1": 0.0049}, 0.003),
    "a far second point": ({NESTED[0]: 0.002, NESTED[1]: 0.0055, "abs_cos:1": 0.0004, "abs_cos:3": 0.02}, 0.005),
    "an arm cheaper than none": ({NESTED[0]: 0.002, NESTED[1]: 0.0055, "abs_cos:1": -0.001, "abs_cos:3": 0.02}, 0.005),
    "a line of almost three times the cost": (
        {NESTED[0]: 0.002, NESTED[1]: 0.0055, "abs_cos:1": 0.0036, "abs_cos:3": 0.0065},
        0.0036,
    ),
    "a tenth before a far first point": ({NESTED[0]: 0.0036, NESTED[1]: 0.0062, "abs_cos:1": 0.0052}, 0.0047),
    "lines that end a quarter apart": ({"abs_cos:1": 0.0049, "max_cos:1": 0.0062}, 0.002),
}


@pytest.mark.parametrize("case", FAR_FROM_TRAINED)
def test_far_from_what_was_trained_no_family_is_compared(case):
    """On one curve a long line lies above it, and the family that costs more would have more holes."""
    costs, at = FAR_FROM_TRAINED[case]
    found = compare_at_equal_fvu(concave(costs), [at])
    (asked,) = (entry for entry in found if entry["fvu"] == at)
    assert asked["verdict"] == "no claim" and asked["p"] is asked["p_holm"] is None
    assert asked["reason"].startswith("nothing was trained of ")
    said = equal_fvu_findings(found)
    assert any("are not compared: nothing was trained of " in sentence for sentence in said)


NEAR = {
    "lines that end at one cost": ({"abs_cos:1": 0.0025, "max_cos:1": 0.0026}, 0.0018),
    "short lines": ({NESTED[0]: 0.002, NESTED[1]: 0.004, "abs_cos:1": 0.0026, "abs_cos:3": 0.0052}, 0.0032),
}


@pytest.mark.parametrize("case", NEAR)
def test_near_what_was_trained_families_on_one_curve_are_seldom_told_apart(case):
    costs, at = NEAR[case]
    found = [entry for world in range(60) for entry in compare_at_equal_fvu(concave(costs, world), [at])]
    p = [entry["p"] for entry in found if entry["fvu"] == at and entry["p"] is not None]
    assert len(p) > 40 and sum(value < 0.05 for value in p) / len(p) < 0.15


def test_one_test_on_two_lines_from_the_origin_is_not_counted_twice():
    pair = concave({"abs_cos:1": 0.0049, "max_cos:1": 0.0052})
    assert [entry["fvu"] for entry in compare_at_equal_fvu(pair, [0.002])] == [0.002]
